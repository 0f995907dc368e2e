"""Stochastic depth and dropout whose masks do not depend on the number of devices."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from nml_jax.models import shard


class DropPath(nn.Module):
    """Stochastic depth (Huang et al. 2016): a sample's residual branch is left out with probability `rate`.

    What stays is divided by 1 - rate, as in timm. Off unless `train`. The rng collection is "dropout".
    """

    rate: float

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """x (B, ...) with whole samples set to zero."""
        if not train or self.rate == 0 or self.is_initializing():
            return x
        return dropped(x, self.make_rng("dropout"), self.rate, (1,) * (x.ndim - 1))


class Dropout(nn.Module):
    """Each value is set to zero with probability `rate`, the others divided by 1 - rate; rng collection "dropout".

    flax.linen.Dropout draws one mask for the array it sees, so within a shard_map all devices would use the same.
    """

    rate: float

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """x (B, ...) with single values set to zero."""
        if not train or self.rate == 0 or self.is_initializing():
            return x
        return dropped(x, self.make_rng("dropout"), self.rate, x.shape[1:])


def dropped(x: jax.Array, rng: jax.Array, rate: float, shape: tuple[int, ...]) -> jax.Array:
    """x (B, ...) under a mask of `shape` for each sample, each drawn with the sample's own key."""
    keys = shard.row_keys(rng, len(x))
    keep = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - rate, shape))(keys)
    return jnp.where(keep, x / (1 - rate), jnp.zeros((), x.dtype))


def linear_rates(rate: float, blocks: int) -> list[float]:
    """The rate of each block: 0 at the first, `rate` at the last, linear between (timm's)."""
    return [rate * block / max(blocks - 1, 1) for block in range(blocks)]
