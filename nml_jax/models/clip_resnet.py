"""CLIP's modified ResNet (Radford et al. 2021, 2.4), layer by layer as OpenAI's and open_clip's.

Beside a ResNet: a stem of three convolutions with an average pool, strides by average pooling in front of the
convolution (anti-aliased), and attention in the place of the mean over the image.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from nml_jax.core.errors import UserError
from nml_jax.models import options, transformer
from nml_jax.models.norm import BatchNorm, widened
from nml_jax.models.resnet import ONE

ENCODES = "image"
# blocks in each stage; the embeddings have 1024 and 512 dimensions
VARIANTS = {"rn50": (3, 4, 6, 3), "rn101": (3, 4, 23, 3)}
HEAD_WIDTH = 64

# torch's own for convolutions: U(-b, b) with b = 1 / sqrt(fan_in)
kernel_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


class Block(nn.Module):
    """1x1, 3x3, average pool, 1x1 to four times `width`, and a shortcut; (B, H, W, C) -> (B, H/s, W/s, 4 width).

    Attributes:
      conv, norm: what makes the layers, by name; `norm` is called with `train`.
      last_scale: initial scale of the last BatchNorm.
    """

    width: int
    strides: int
    last_scale: float
    conv: Callable[..., Any]
    norm: Callable[..., Any]
    train: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = self.conv(self.width, (1, 1), name="conv1")(x)
        y = nn.relu(self.norm(name="norm1")(y, train=self.train))
        y = self.conv(self.width, (3, 3), padding=ONE, name="conv2")(y)
        y = average_pool(nn.relu(self.norm(name="norm2")(y, train=self.train)), self.strides)
        y = self.conv(4 * self.width, (1, 1), name="conv3")(y)
        y = self.norm(scale_init=nn.initializers.constant(self.last_scale), name="norm3")(y, train=self.train)
        if x.shape != y.shape:
            x = self.conv(y.shape[-1], (1, 1), name="conv_shortcut")(average_pool(x, self.strides))
            x = self.norm(name="norm_shortcut")(x, train=self.train)
        return nn.relu(y + x)


class AttentionPool(nn.Module):
    """(B, H, W, C) -> (B, D) float32: what the mean of the image, as a query, attends to among all places and itself.

    The positions are learned, and made for the size of the image that the model is initialised with.
    """

    heads: int
    features: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        batch, channels = len(x), x.shape[-1]
        x = x.reshape(batch, -1, channels)
        mean = widened(x).mean(axis=1, keepdims=True).astype(self.dtype)
        x = jnp.concatenate([mean, x], axis=1)
        normal = nn.initializers.normal(channels**-0.5)
        position = transformer.position_table(self, x.shape[1], channels, normal)
        x = x + position.astype(self.dtype)
        dense = partial(nn.Dense, kernel_init=normal, bias_init=transformer.uniform(channels**-0.5))

        def heads(tokens: jax.Array, name: str) -> jax.Array:
            y = dense(channels, dtype=self.dtype, name=name)(tokens)
            return y.reshape(*y.shape[:2], self.heads, -1)

        # The mean is the only token that is read, so it is the only query.
        y = jax.nn.dot_product_attention(heads(x[:, :1], "query"), heads(x, "key"), heads(x, "value"))
        return dense(self.features, name="out")(widened(y.reshape(batch, channels)))


class ClipResNet(nn.Module):
    """Image (B, H, W, 3) -> (logits (B, num_classes) or None, {"features": (B, D) float32}).

    Attributes:
      stages: blocks in each stage; the width doubles from stage to stage.
      heads: of the attention pooling.
      norm_rows: BatchNorm takes its statistics from so many samples; 0: from the whole global batch.
      remat: the backward computes each block again from its input instead of keeping its activations.
      zero_init_last: each block starts as its shortcut (the last BatchNorm's scale is zero).
      project: dimensions of the features, which the attention pooling itself projects (the embedding); 0: as many as
        the last stage has channels.
    """

    stages: Sequence[int]
    width: int
    heads: int
    num_classes: int
    norm_rows: int
    remat: bool
    zero_init_last: bool
    project: int
    dtype: Any

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool) -> tuple[jax.Array | None, dict[str, jax.Array]]:
        smallest = 2 ** (len(self.stages) + 1)
        if min(image.shape[1:3]) < smallest:
            raise UserError(
                f"A CLIP ResNet with {len(self.stages)} stages halves the image {len(self.stages) + 1} times and "
                f"cannot take {image.shape[1]} x {image.shape[2]} px; give {smallest} px or more."
            )
        conv = partial(nn.Conv, use_bias=False, dtype=self.dtype, kernel_init=kernel_init, padding="VALID")
        norm = partial(BatchNorm, rows=self.norm_rows, dtype=self.dtype)
        x = image.astype(self.dtype)
        for index, (width, strides) in enumerate(
            ((self.width // 2, 2), (self.width // 2, 1), (self.width, 1))
        ):
            x = conv(width, (3, 3), (strides,) * 2, padding=ONE, name=f"conv_stem{index + 1}")(x)
            x = nn.relu(norm(name=f"norm_stem{index + 1}")(x, train=train))
        x = average_pool(x, 2)
        block = nn.remat(Block) if self.remat else Block
        for stage, blocks in enumerate(self.stages):
            for index in range(blocks):
                x = block(
                    width=self.width * 2**stage,
                    strides=2 if stage > 0 and index == 0 else 1,
                    last_scale=0.0 if self.zero_init_last else 1.0,
                    conv=conv,
                    norm=norm,
                    train=train,
                    name=f"stage{stage + 1}_block{index + 1}",
                )(x)
        features = AttentionPool(self.heads, self.project or x.shape[-1], self.dtype, name="pool")(x)
        logits = nn.Dense(self.num_classes, name="classifier")(features) if self.num_classes else None
        return logits, {"features": features}


def average_pool(x: jax.Array, size: int) -> jax.Array:
    """Means of `size` x `size` pixels; rows and columns that are left over are dropped, as torch does."""
    return nn.avg_pool(x, (size, size), (size, size)) if size > 1 else x


def make(
    *,
    variant: str = "",
    num_classes: int = 0,
    stages: Sequence[int] = (),
    width: int = 64,
    heads: int = 0,
    norm: str = "sync",
    norm_rows: int = 0,
    remat: str = "none",
    zero_init_last: bool = True,
    project: int = 0,
    dtype: str = "float32",
) -> ClipResNet:
    """CLIP's ResNet by `variant` (a key of VARIANTS), or by its own `stages`.

    `heads` of the attention pooling: 0 for one for each 64 channels, as CLIP's. `norm`, `norm_rows` and `remat` are
    those of `models.resnet.make`; `zero_init_last` is CLIP's default.

    Raises:
      UserError: an option that is not valid, or options that exclude each other.
    """
    stages = VARIANTS[variant] if options.variant(variant, VARIANTS, "CLIP ResNet") else tuple(stages)
    if not stages:
        raise UserError("A CLIP ResNet needs a variant or its own stages, for example stages=(1, 1, 1, 1).")
    channels = 4 * width * 2 ** (len(stages) - 1)
    heads = heads or max(channels // HEAD_WIDTH, 1)
    if min(width - 1, heads, *stages) < 1 or width % 2 or channels % heads:
        raise UserError(
            f"No CLIP ResNet has width={width}, stages={stages}, heads={heads}: width is even, each stage is 1 or "
            f"above, and heads divides the {channels} channels of the last stage. Correct config.model.options."
        )
    return ClipResNet(
        stages=stages,
        width=width,
        heads=heads,
        num_classes=num_classes,
        norm_rows=options.norm_rows(norm, norm_rows),
        remat=options.remat(remat),
        zero_init_last=zero_init_last,
        project=project,
        dtype=jnp.dtype(dtype),
    )
