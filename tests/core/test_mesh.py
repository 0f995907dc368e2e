import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from nml_jax.core import mesh as meshes
from nml_jax.core.errors import UserError


def test_mesh_divides_the_devices():
    assert dict(meshes.make(2).shape) == {"data": 4, "fsdp": 2}
    with pytest.raises(UserError, match="valid here: 1, 2, 4, 8"):
        meshes.make(3)


def test_parameters_are_sharded_by_shape():
    mesh = meshes.make(4)
    shapes = {
        "large": jax.ShapeDtypeStruct((3, 2048, 1024), "float32"),
        "odd": jax.ShapeDtypeStruct((1023, 2047), "float32"),
        "small": jax.ShapeDtypeStruct((64, 64), "float32"),
    }
    specs = jax.tree.map(lambda s: s.spec, meshes.parameter_shardings(mesh, shapes))
    assert specs["large"] == PartitionSpec(None, "fsdp")
    assert specs["odd"] == specs["small"] == PartitionSpec()


def test_a_batch_is_divided_over_all_devices():
    batch = meshes.put_batch(meshes.make(2), {"image": np.arange(16.0).reshape(16, 1)})
    assert [s.data.shape for s in batch["image"].addressable_shards] == [(2, 1)] * 8
    np.testing.assert_array_equal(batch["image"][:, 0], np.arange(16))
    with pytest.raises(UserError, match="multiple of the number of devices"):
        meshes.local_batch_size(12)
