"""Gradient caching against the whole batch, and against plain differentiation of microbatches with BatchNorm."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs.pretrain import glyphs_contrastive
from nml_jax.core import gradients, loop
from nml_jax.core import mesh as meshes
from nml_jax.core.task import Task
from nml_jax.pretrain import contrastive
from tests import hlo
from tests.core import toy

ROWS = 32
VIT = {"width": 32, "layers": 1, "heads": 2, "patch": 8}


def config(model: str = "vit", **loss):
    c = glyphs_contrastive.get_config("smoke")
    c.embed_dim = 16
    c.text.options.width = 32
    c.loss.update(loss)
    if model == "vit":
        with c.unlocked():
            c.model.name, c.model.options = "vit", VIT
    return c


def made(c) -> tuple[Task, tuple]:
    """The task, and (params, frozen, stats)."""
    task = contrastive.make_task(c, *contrastive.towers(c))
    return task, jax.jit(lambda rng: task.init(rng, batch(c)))(jax.random.key(0))


def batch(c, rows: int = ROWS) -> dict[str, np.ndarray]:
    """Images of 16 px and captions of different lengths."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(3, 1000, (rows, 12)).astype(np.int32)
    tokens[np.arange(12) >= rng.integers(3, 12, (rows, 1))] = 0
    return {"image": rng.integers(0, 256, (rows, 16, 16, 3)).astype(np.uint8), "tokens": tokens}


def computed(c, accumulate: int, mesh):
    """((loss, (stats, metrics)), gradients) on `mesh`."""
    task, (params, frozen, stats) = made(c)
    fn = jax.jit(gradients.make(task, accumulate=accumulate, mesh=mesh))
    return jax.device_get(fn(params, frozen, stats, meshes.put_batch(mesh, batch(c)), jax.random.key(1)))


def close(found, expected, tolerance: float):
    """Within `tolerance` of the largest value of each array."""

    def check(a, b):
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * max(np.abs(b).max(), 1e-3))

    jax.tree.map(check, found, expected)


@functools.cache
def whole(name: str):
    """By the naive loss on one device."""
    return computed(config(name=name, method="naive"), 1, toy.mesh_of(1))


@pytest.mark.parametrize(
    ("loss", "devices", "fsdp"),
    [
        ({"method": "local"}, 1, 1),
        ({"method": "local"}, 8, 1),
        ({"method": "chunked", "tile": 12}, 8, 2),
        ({"method": "naive"}, 8, 1),
        ({"name": "sigmoid", "method": "chunked", "tile": 12}, 8, 1),
    ],
)
def test_microbatches_give_what_the_whole_batch_gives(loss, devices, fsdp):
    """Each pair is compared with all 31 others, not with those of its microbatch."""
    expected = whole(loss.get("name", "info_nce"))
    close(computed(config(**loss), 4, toy.mesh_of(devices, fsdp)), expected, 2e-5)


def test_the_whole_batch_on_many_devices():
    close(computed(config(method="chunked", tile=12), 1, toy.mesh_of(8)), whole("info_nce"), 2e-5)


@pytest.mark.parametrize("devices", [1, 8])
def test_batch_norm_and_stochastic_depth(devices):
    """Against one differentiation of all microbatches: i, i + 4, ... have their own statistics and their own key."""
    c = config("resnet")
    c.model.options.update(stages=(1, 1), drop_path=0.5)
    task, (params, _, stats) = made(c)
    model = contrastive.towers(c)[0]

    def value(params):
        image, now = [None] * ROWS, stats["image"]
        for i in range(4):
            rows = {k: v[i::4] for k, v in batch(c).items()}
            (_, out), updated = model.apply(
                {"params": params["image"], "batch_stats": now},
                contrastive.normalized(c, rows["image"]),
                train=True,
                mutable=["batch_stats"],
                rngs={"dropout": jax.random.fold_in(jax.random.key(1), i)},
            )
            image[i::4], now = contrastive.unit(out["features"]), updated["batch_stats"]
        text = task.predict(params, {}, stats, batch(c))[1]
        loss = contrastive.info_nce(jnp.stack(image), text, contrastive.scale_of(params["log_scale"]))
        return loss, {"image": now}

    (loss, new_stats), grads = jax.jit(jax.value_and_grad(value, has_aux=True))(params)
    (found, (found_stats, _)), found_grads = computed(c, 4, toy.mesh_of(devices))
    close((found, found_stats, found_grads), (loss, new_stats, grads), 5e-5)


def compiled(c, accumulate: int, rows: int = ROWS) -> jax.stages.Compiled:
    """A training step for 8 devices."""
    task, mesh = contrastive.make_task(c, *contrastive.towers(c)), toy.mesh_of(8)
    tx = optax.sgd(0.1)
    options = loop.Options(total_steps=4, seed=0, save_every=4, log_every=1, accumulate=accumulate)
    spec = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), batch(c, rows))
    shapes = jax.eval_shape(functools.partial(loop._create, task, tx, spec, decay=0.0), jax.random.key(0))
    same = meshes.replicated(mesh)
    state = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=same), shapes)
    return loop.compile_step(task, tx, options, state, spec, mesh)[0]


@pytest.mark.parametrize("accumulate", [1, 4])
def test_gradients_are_summed_over_the_devices_once_a_step(accumulate):
    c = config(method="chunked", tile=12)
    program = hlo.Program(compiled(c, accumulate))
    parameters = sum(p.size for p in jax.tree.leaves(made(c)[1][0]))
    outside, inside = program.sizes("all-reduce")
    assert parameters <= sum(outside) <= parameters + 64  # the loss, the accuracy, the temperature
    assert not inside


def test_activations_are_those_of_a_microbatch():
    c = config(method="chunked", tile=32)
    c.model.options.layers, c.text.options.layers = 3, 3
    temporary = {k: compiled(c, k, 512).memory_analysis().temp_size_in_bytes for k in (1, 8)}
    assert temporary[8] < temporary[1] / 3
