"""Microbatches against the whole batch, on 1 and 8 devices, and what the devices send each other."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nml_jax.core import gradients, loop
from nml_jax.core import mesh as meshes
from tests.core import toy

ROWS = 32


def computed(mesh, accumulate: int, drop: float = 0.0, rows: int = ROWS):
    """((loss, (stats, metrics)), gradients) of the toy task on `mesh`."""
    task = toy.task(drop)
    params, frozen, stats = task.init(jax.random.key(0), None)
    batch = {k: v[:rows] for k, v in toy.records().items()}
    with jax.set_mesh(mesh):
        placed = meshes.put_batch(mesh, batch)
        fn = jax.jit(gradients.make(task, accumulate=accumulate, mesh=mesh))
        return jax.device_get(fn(params, frozen, stats, placed, jax.random.key(1)))


def close(a, b, **tolerance):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), a, b)


@pytest.mark.parametrize("accumulate", [1, 2, 4])
@pytest.mark.parametrize(("devices", "fsdp"), [(8, 1), (8, 2)])
def test_any_number_of_devices_gives_the_same(accumulate, devices, fsdp):
    """With stochastic depth: whose branch is dropped does not depend on where a sample lies."""
    one = computed(toy.mesh_of(1), accumulate, drop=0.5)
    many = computed(toy.mesh_of(devices, fsdp), accumulate, drop=0.5)
    close(many, one, rtol=1e-4, atol=2e-6)


def test_microbatches_are_averaged_and_statistics_handed_on():
    """Against the microbatches one by one in plain Python: i, i + 4, i + 8, ... belong together."""
    task = toy.task()
    params, frozen, stats = task.init(jax.random.key(0), None)
    batch, total = toy.records(), None
    for i in range(4):
        part = {k: v[:ROWS][i::4] for k, v in batch.items()}
        (loss, (stats, _)), grads = jax.value_and_grad(task.loss, has_aux=True)(
            params, frozen, stats, part, jax.random.fold_in(jax.random.key(1), i)
        )
        total = (loss, grads) if total is None else jax.tree.map(jnp.add, total, (loss, grads))
    (loss, (new_stats, _)), grads = computed(toy.mesh_of(8), 4)
    close((loss, grads), jax.tree.map(lambda x: x / 4, total), rtol=1e-5, atol=1e-7)
    close(new_stats, stats, rtol=1e-5, atol=1e-7)


def reductions(accumulate: int) -> tuple[int, int]:
    """(numbers summed over the devices by all-reduces outside of loops, those inside), of a compiled step."""
    task, mesh = toy.task(), toy.mesh_of(8)
    tx = optax.sgd(0.1)
    options = loop.Options(total_steps=4, seed=0, save_every=4, log_every=1, accumulate=accumulate)
    create = functools.partial(loop._create, task, tx, toy.spec(ROWS), decay=0.0)
    shapes = jax.eval_shape(create, jax.random.key(0))
    replicated = meshes.replicated(mesh)
    state = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=replicated), shapes)
    compiled, _ = loop.compile_step(task, tx, options, state, toy.spec(ROWS), mesh)
    text = compiled.as_text()
    entry = text[text.index("ENTRY") :]

    def count(lines: str) -> int:
        total = 0
        for shapes in re.findall(r"= (.*?) all-reduce(?:-start)?\(", lines):
            for dims in re.findall(r"f32\[([\d,]*)\]", shapes):
                total += int(np.prod([int(n) for n in dims.split(",") if n] or [1]))
        return total

    return count(entry), count(text[: text.index("ENTRY")])


@pytest.mark.parametrize("accumulate", [1, 4])
def test_gradients_are_summed_over_the_devices_once_a_step(accumulate):
    """All else that goes over the wire are BatchNorm's moments, the loss and the accuracy."""
    parameters = sum(p.size for p in jax.tree.leaves(toy.task().init(jax.random.key(0), None)[0]))
    outside, inside = reductions(accumulate)
    moments = 4 * 2 * 16  # forward and backward, two each, of 16 channels
    assert parameters <= outside <= parameters + moments + 64
    assert inside <= moments
    if accumulate == 1:
        assert inside == 0
