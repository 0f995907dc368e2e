"""BatchNorm as PyTorch has it, over the whole batch or over each device's share, for images and for rows."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from nml_jax.core.errors import UserError
from nml_jax.models import shard


class BatchNorm(nn.Module):
    """torch.nn.BatchNorm1d/2d over the last axis of (N, D) or (B, H, W, C).

    The batch is normalised by its biased variance; the running variance takes the unbiased one, and
    running <- running + momentum (batch - running). (flax.linen.BatchNorm keeps the biased one, which differs by
    n / (n - 1).) Statistics are computed in float32 and the output is in `dtype`. Collections: params (scale, bias)
    and batch_stats (mean, var), all float32.

    Attributes:
      rows: over what a statistic is taken.
        0, "sync": the whole global batch. That is what jit computes of a batch that lies on many devices; within
        a jax.shard_map the devices average their moments. torch.nn.SyncBatchNorm.
        Above 0, "per device": each `rows` consecutive samples of the batch on their own, as
        DistributedDataParallel does with `rows` samples a GPU, on any number of devices. With `rows` = batch /
        devices nothing is communicated but the running statistics, which are the mean over the groups (timm's
        `--dist-bn reduce`; DistributedDataParallel by itself keeps those of the first GPU).
      dtype: of the output.
      scale_init: initial `scale`.
    """

    rows: int = 0
    dtype: Any = jnp.float32
    momentum: float = 0.1
    eps: float = 1e-5
    scale_init: nn.initializers.Initializer = nn.initializers.ones

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """x normalised, in its own shape; `train` takes the statistics from x, not from batch_stats.

        Raises:
          UserError: `rows` does not divide the batch.
        """
        channels = x.shape[-1]
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,), jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, (channels,), jnp.float32)
        scale = self.param("scale", self.scale_init, (channels,), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (channels,), jnp.float32)
        if not train:
            return self._normalise(x, running_mean.value, running_var.value, scale, bias)

        # (groups, rows, ..., C): a view, which XLA does not copy
        grouped = x.reshape(self._groups(len(x)), -1, *x.shape[1:])
        mean, var, count = moments(grouped, running_mean.value, sync=not self.rows)
        if not self.is_initializing():
            unbiased = var * (count / max(count - 1, 1))
            new_mean, new_var = mean.mean(axis=0).reshape(-1), unbiased.mean(axis=0).reshape(-1)
            if self.rows:
                new_mean, new_var = shard.mean((new_mean, new_var))
            running_mean.value += self.momentum * (new_mean - running_mean.value)
            running_var.value += self.momentum * (new_var - running_var.value)
        return self._normalise(grouped, mean, var, scale, bias).reshape(x.shape)

    def _groups(self, batch: int) -> int:
        if self.rows and batch % self.rows:
            raise UserError(
                f"BatchNorm over {self.rows} samples at a time cannot divide the {batch} samples given to it; give "
                "norm_rows that divides the batch of one step (of one device, where it is computed by device)."
            )
        return batch // self.rows if self.rows else 1

    def _normalise(self, x: jax.Array, mean: jax.Array, var: jax.Array, scale: jax.Array, bias: jax.Array):
        # One elementwise chain on x in float32: XLA fuses it, with the ReLU behind it, into one read and one write of
        # `dtype`, and the backward starts from x again.
        factor = jax.lax.rsqrt(var + self.eps) * scale
        return ((widened(x) - mean) * factor + bias).astype(self.dtype)


def moments(x: jax.Array, running_mean: jax.Array, *, sync: bool) -> tuple[jax.Array, jax.Array, int]:
    """Mean and biased variance of each group of x (G, n, ..., C), both (G, 1, ..., C), and the samples of one.

    Rows (N, D) are few and are read twice. Images are what a GPU's time goes into, and are read once: with d = x - s,
    mean = s + E[d] and var = E[d^2] - E[d]^2 for any constant s, and the rounding is small where s is near the mean,
    as the running mean is.
    """
    axes = tuple(range(1, x.ndim - 1))
    combine = shard.mean if sync else lambda values: values
    count = x[0, ..., 0].size * (shard.devices() if sync else 1)
    x = widened(x)
    if x.ndim == 3:
        mean = combine(x.mean(axes, keepdims=True))
        return mean, combine(jnp.square(x - mean).mean(axes, keepdims=True)), count
    shift = jax.lax.stop_gradient(running_mean)
    d = x - shift
    first, second = combine((d.mean(axes, keepdims=True), jnp.square(d).mean(axes, keepdims=True)))
    return shift + first, jnp.maximum(second - jnp.square(first), 0.0), count


def widened(x: jax.Array) -> jax.Array:
    """x in float32, or in float64 if it is that."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
