"""Gradients of a global batch, whole or in microbatches; each gradient is summed over the devices once a step."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from nml_jax.core import mesh as meshes
from nml_jax.core.task import PyTree, Task


def make(task: Task, *, accumulate: int, mesh: Mesh) -> Callable[..., Any]:
    """(params, frozen, stats, batch, rng) -> ((loss, (stats, metrics)), gradients), means over the global batch.

    With `accumulate` = k > 1 the batch goes through in k microbatches, one after another: row i of every k rows
    belongs to microbatch i, so each lies on all devices, and is the same on any number of them. Loss, metrics and
    gradients are averaged, the statistics handed on.

    Under jit alone, XLA would sum the gradients over the devices in every microbatch. So where each device holds all
    parameters, the microbatches run under `jax.shard_map`, and the sum is taken when all are through. With parameters
    divided over the axis "fsdp" they are gathered and their gradients scattered in each microbatch, as they must be.

    A task that has `gradients` of its own is asked for them.
    """
    if task.gradients is not None:
        return task.gradients(accumulate=accumulate, mesh=mesh)
    whole = jax.value_and_grad(task.loss, has_aux=True)
    if accumulate == 1:
        return whole

    def in_parts(params: PyTree, frozen: PyTree, stats: PyTree, batch: PyTree, rng: jax.Array):
        parts = microbatches(batch, accumulate)

        def add(carry, numbered):
            stats, total = carry
            number, part = numbered
            (loss, (stats, metrics)), grads = whole(
                params, frozen, stats, part, jax.random.fold_in(rng, number)
            )
            return (stats, jax.tree.map(jnp.add, total, (loss, metrics, grads))), None

        first = jax.tree.map(lambda x: x[0], parts)
        (loss, (_, metrics)), grads = jax.eval_shape(whole, params, frozen, stats, first, rng)
        zeros = varying(jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), (loss, metrics, grads)))
        (stats, total), _ = jax.lax.scan(add, (stats, zeros), (jnp.arange(accumulate), parts))
        loss, metrics, grads = jax.tree.map(lambda x: x / accumulate, total)
        return (loss, (stats, metrics)), grads

    if mesh.shape["fsdp"] > 1:
        return in_parts

    def on_each_device(params: PyTree, frozen: PyTree, stats: PyTree, batch: PyTree, rng: jax.Array):
        # Marked as varying, the parameters get the gradient of this device's rows; unmarked, each use would sum it.
        (loss, (stats, metrics)), grads = in_parts(varying(params), frozen, stats, batch, rng)
        loss, metrics, grads = jax.lax.pmean((loss, metrics, grads), meshes.AXES)
        return (loss, (stats, metrics)), grads

    same, divided = PartitionSpec(), PartitionSpec(meshes.AXES)
    return jax.shard_map(
        on_each_device, mesh=mesh, in_specs=(same, same, same, divided, same), out_specs=same
    )


def microbatches(batch: PyTree, count: int) -> PyTree:
    """Arrays (B, ...) -> (count, B / count, ...): row i of every `count` rows belongs to microbatch i."""
    return jax.tree.map(lambda x: jnp.swapaxes(x.reshape(-1, count, *x.shape[1:]), 0, 1), batch)


def varying(tree: PyTree) -> PyTree:
    """Marks arrays as different on each device, where devices are computed for one by one (shard_map)."""
    axes = tuple(jax.sharding.get_abstract_mesh().manual_axes)
    return jax.tree.map(lambda x: jax.lax.pcast(x, axes, to="varying"), tree) if axes else tree
