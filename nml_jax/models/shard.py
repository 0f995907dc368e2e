"""What a layer must know inside a jax.shard_map over the batch: it sees one device's share of the global batch.

Under plain jit there is one program for the global batch, and all of these do nothing.
"""

from typing import Any

import jax
import jax.numpy as jnp

from nml_jax.core import mesh


def axes() -> tuple[str, ...]:
    """Those of `mesh.AXES` that are manual here, in their order: a batch is divided over all of them.

    Other manual axes divide something else (the heads of a sweep, for example), and no layer is concerned.
    """
    manual = jax.sharding.get_abstract_mesh().manual_axes
    return tuple(axis for axis in mesh.AXES if axis in manual)


def devices() -> int:
    """The number of shares of the global batch."""
    return jax.lax.axis_size(axes()) if axes() else 1


def mean(tree: Any) -> Any:
    """Each array averaged over the devices; differentiable."""
    return jax.lax.pmean(tree, axes()) if axes() else tree


def row_keys(rng: jax.Array, rows: int) -> jax.Array:
    """A key for each of this device's `rows` samples, (rows,), from one `rng` that all devices hold.

    It depends on the sample's place in the global batch alone, so what is drawn with it is the same on any number of
    devices, under jit and under shard_map.
    """
    first = jax.lax.axis_index(axes()) * rows if axes() else 0
    return jax.vmap(jax.random.fold_in, (None, 0))(rng, first + jnp.arange(rows))
