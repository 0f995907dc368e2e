"""Gradients of a loss over all pairs of a batch whose encoders see one microbatch at a time (GradCache).

Gao et al. 2021, arXiv 2101.06983. Two passes: the embeddings of all microbatches, of which no activations are kept; the
loss of all embeddings together and its gradient with respect to them; then each microbatch again, forward and backward
from its rows of that gradient. Memory is that of one microbatch's activations and the whole batch's embeddings; the
price is one more forward.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from nml_jax.core import mesh as meshes
from nml_jax.core.gradients import microbatches, varying
from nml_jax.core.task import PyTree
from nml_jax.models import shard


def make(embed: Callable, loss: Callable, *, accumulate: int, mesh: Mesh) -> Callable[..., Any]:
    """(params, frozen, stats, batch, rng) -> ((loss, (stats, metrics)), gradients): a `Task.gradients`.

    With `accumulate` = 1 encoders and loss are differentiated as one. With more, microbatches are those of
    `core.gradients.make` (row i of every `accumulate` rows belongs to microbatch i, with its own key), and gradients
    are summed over the devices once, when all microbatches are through, unless parameters are divided over "fsdp".

    Loss and gradients are those of the whole batch where a row's embedding depends on that row alone. BatchNorm takes
    its statistics over a microbatch. Both passes start from the same running statistics, hand them on from microbatch
    to microbatch and use the same keys, so their embeddings are the same; the statistics kept are the second pass's.

    Args:
      embed: (params, stats, batch, rng) -> (embeddings, new stats), each embedding (rows of the batch, ...).
      loss: (params, embeddings of the global batch) -> (loss, scalar metrics); within a jax.shard_map over the batch it
        is given this device's rows, and returns what is the same on all devices (`pretrain.pairwise`).
    """

    def whole(params: PyTree, frozen: PyTree, stats: PyTree, batch: PyTree, rng: jax.Array):
        del frozen

        def value(params: PyTree):
            embeddings, new_stats = embed(params, stats, batch, rng)
            value, metrics = loss(params, embeddings)
            return value, (new_stats, metrics)

        return jax.value_and_grad(value, has_aux=True)(params)

    if accumulate == 1:
        return whole

    def in_parts(params: PyTree, frozen: PyTree, stats: PyTree, batch: PyTree, rng: jax.Array):
        del frozen
        parts = (jnp.arange(accumulate), microbatches(batch, accumulate))
        # Marked as varying, the encoders get the gradient of this device's rows; unmarked, each use would sum it.
        own = varying(params)

        def forward(stats: PyTree, numbered: tuple):
            number, part = numbered
            embeddings, stats = embed(own, stats, part, jax.random.fold_in(rng, number))
            return stats, embeddings

        _, embeddings = jax.lax.scan(forward, stats, parts)
        of_all = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
        (value, metrics), (direct, cotangents) = of_all(params, _in_order(embeddings))

        def backward(carry: tuple, numbered: tuple):
            stats, total = carry
            (number, part), cotangent = numbered
            key = jax.random.fold_in(rng, number)
            _, pull, stats = jax.vjp(lambda p: embed(p, stats, part, key), own, has_aux=True)
            return (stats, jax.tree.map(jnp.add, total, *pull(cotangent))), None

        start = (stats, varying(jax.tree.map(jnp.zeros_like, params)))
        (stats, total), _ = jax.lax.scan(backward, start, (parts, microbatches(cotangents, accumulate)))
        if shard.axes():
            total = jax.lax.psum(total, shard.axes())
        # What the loss itself takes of the parameters (its temperature) is whole on every device already.
        return (value, (stats, metrics)), jax.tree.map(jnp.add, total, direct)

    if mesh.shape["fsdp"] > 1:
        return in_parts
    same, divided = PartitionSpec(), PartitionSpec(meshes.AXES)
    return jax.shard_map(in_parts, mesh=mesh, in_specs=(same, same, same, divided, same), out_specs=same)


def _in_order(parts: PyTree) -> PyTree:
    """The inverse of `microbatches`: (count, rows, ...) -> (count * rows, ...)."""
    return jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1).reshape(-1, *x.shape[2:]), parts)
