"""The device mesh, and how arrays lie on it: decided here, outside the models."""

import math
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from nml_jax.core.errors import UserError

AXES = ("data", "fsdp")
# Sharding a small array costs more in messages than it saves in memory.
SMALLEST_SHARDED = 4 * 2**20


def make(fsdp: int = 1) -> Mesh:
    """A mesh of all devices: `fsdp` of them share each copy of the parameters, the rest repeat it.

    The axes are Auto: jax.make_mesh would make them Explicit, under which Linen modules fail.

    Raises:
      UserError: `fsdp` does not divide the number of devices.
    """
    count = jax.device_count()
    if fsdp < 1 or count % fsdp:
        valid = ", ".join(str(n) for n in range(1, count + 1) if count % n == 0)
        raise UserError(f"fsdp={fsdp} does not divide the {count} devices; valid here: {valid}.")
    return jax.make_mesh((count // fsdp, fsdp), AXES, axis_types=(AxisType.Auto,) * 2)


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The first axis is divided over all devices."""
    return NamedSharding(mesh, PartitionSpec(AXES))


def parameter_shardings(mesh: Mesh, shapes: Any) -> Any:
    """Shardings for a tree of arrays: the largest axis that the fsdp axis divides; small arrays replicated."""

    def rule(array: Any) -> NamedSharding:
        size = mesh.shape["fsdp"]
        nbytes = math.prod(array.shape) * np.dtype(array.dtype).itemsize
        divisible = [i for i, n in enumerate(array.shape) if n % size == 0]
        if size == 1 or nbytes < SMALLEST_SHARDED or not divisible:
            return replicated(mesh)
        axis = max(divisible, key=lambda i: array.shape[i])
        return NamedSharding(mesh, PartitionSpec(*(None,) * axis, "fsdp"))

    return jax.tree.map(rule, shapes)


def put_batch(mesh: Mesh, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """This process's rows of a batch -> the global arrays, divided over all devices."""
    sharding = batch_sharding(mesh)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), batch)


def local_batch_size(global_batch_size: int) -> int:
    """Rows of the global batch that this process supplies.

    Raises:
      UserError: the devices cannot share the global batch equally.
    """
    if global_batch_size % jax.device_count():
        raise UserError(
            f"A batch of {global_batch_size} cannot be shared by {jax.device_count()} devices equally; "
            "give a batch_size that is a multiple of the number of devices."
        )
    return global_batch_size // jax.process_count()
