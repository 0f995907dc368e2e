"""Stochastic depth and dropout: what is drawn, how it is scaled, and that devices do not change it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from nml_jax.core import mesh as meshes
from nml_jax.core.errors import UserError
from nml_jax.models import drop_path, resnet
from nml_jax.models.drop_path import Dropout, DropPath

ALL = PartitionSpec(meshes.AXES)


def draw(module, x, seed=0):
    return module.apply({}, x, train=True, rngs={"dropout": jax.random.key(seed)})


def test_whole_samples_are_dropped_and_the_mean_is_kept():
    y = np.asarray(draw(DropPath(0.25), jnp.ones((4000, 3, 2)))).reshape(4000, 6)
    assert set(np.unique(y)) == {0, np.float32(1 / 0.75)}
    assert (y.std(axis=1) == 0).all()
    assert abs((y[:, 0] == 0).mean() - 0.25) < 0.03  # four standard deviations
    assert (draw(DropPath(0.25), jnp.ones((40, 1)), 0) != draw(DropPath(0.25), jnp.ones((40, 1)), 1)).any()


def test_single_values_are_dropped_and_the_mean_is_kept():
    y = np.asarray(draw(Dropout(0.25), jnp.ones((100, 8, 10), jnp.bfloat16)), np.float32)
    assert set(np.unique(y)) == {0, np.float32(jnp.bfloat16(1 / 0.75))}
    assert abs((y == 0).mean() - 0.25) < 0.02
    assert len(np.unique(y.reshape(100, -1), axis=0)) == 100  # no two samples share a mask


@pytest.mark.parametrize("kind", [DropPath, Dropout])
def test_off(kind):
    x = jnp.arange(6.0).reshape(3, 2)
    np.testing.assert_array_equal(kind(0.5).apply({}, x, train=False), x)
    np.testing.assert_array_equal(kind(0.0).apply({}, x, train=True), x)


@pytest.mark.parametrize("kind", [DropPath, Dropout])
@pytest.mark.parametrize("fsdp", [1, 2])
def test_the_mask_is_the_same_on_one_device_on_eight_and_in_a_shard_map(kind, fsdp):
    x = np.ones((32, 6), np.float32)
    expected = draw(kind(0.5), x)
    mesh = meshes.make(fsdp)
    with jax.set_mesh(mesh):
        sharded = jax.device_put(x, meshes.batch_sharding(mesh))
        np.testing.assert_array_equal(jax.jit(lambda x: draw(kind(0.5), x))(sharded), expected)
        mapped = jax.shard_map(lambda x: draw(kind(0.5), x), in_specs=ALL, out_specs=ALL)
        np.testing.assert_array_equal(jax.jit(mapped)(sharded), expected)


def test_rates_are_linear_in_depth():
    assert drop_path.linear_rates(0.3, 4) == pytest.approx([0, 0.1, 0.2, 0.3])
    assert drop_path.linear_rates(0.3, 1) == [0]  # timm's: the first block is never dropped
    with pytest.raises(UserError, match="drop_path=1 is not a probability below 1"):
        resnet.make(variant="resnet18", drop_path=1)
