"""ResNet v1.5 (He et al. 2016; stride on the 3x3 convolution, as torchvision has it) for 224 and 32 px images."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from nml_jax.core.errors import UserError
from nml_jax.models import options
from nml_jax.models.drop_path import DropPath, linear_rates
from nml_jax.models.norm import BatchNorm

ENCODES = "image"
# name -> (blocks in each stage, bottleneck blocks, how much wider the 3x3 convolution of a bottleneck is)
VARIANTS = {
    "resnet10": ((1, 1, 1, 1), False, 1),
    "resnet18": ((2, 2, 2, 2), False, 1),
    "resnet34": ((3, 4, 6, 3), False, 1),
    "resnet50": ((3, 4, 6, 3), True, 1),
    "resnet101": ((3, 4, 23, 3), True, 1),
    "resnet152": ((3, 8, 36, 3), True, 1),
    "wide_resnet50_2": ((3, 4, 6, 3), True, 2),
    "wide_resnet101_2": ((3, 4, 23, 3), True, 2),
}
STEMS = ("imagenet", "cifar", "half")

# PyTorch's padding: flax's "SAME" pads a strided convolution on one side only and shifts the image.
ONE = [(1, 1), (1, 1)]
kernel_init = nn.initializers.variance_scaling(2.0, "fan_out", "truncated_normal")


class Block(nn.Module):
    """Convolutions and a shortcut; (B, H, W, C) -> (B, H/strides, W/strides, `width` or 4 `width`).

    "Basic": 3x3 (strided), 3x3. Bottleneck: 1x1, 3x3 (strided) with `widen` times the width, 1x1 to four times
    `width`. The sum is taken before the last ReLU; `drop_path` is applied to the residual branch.

    Attributes:
      conv, norm: what makes the layers, by name; `norm` is called with `train`.
      last_scale: initial scale of the last BatchNorm.
    """

    width: int
    strides: int
    bottleneck: bool
    widen: int
    drop_path: float
    last_scale: float
    conv: Callable[..., Any]
    norm: Callable[..., Any]
    train: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        inner, strides = self.width * self.widen, (self.strides,) * 2
        last_norm = partial(self.norm, scale_init=nn.initializers.constant(self.last_scale))
        if self.bottleneck:
            y = self.conv(inner, (1, 1), name="conv1")(x)
            y = nn.relu(self.norm(name="norm1")(y, train=self.train))
            y = self.conv(inner, (3, 3), strides, padding=ONE, name="conv2")(y)
            y = nn.relu(self.norm(name="norm2")(y, train=self.train))
            y = self.conv(4 * self.width, (1, 1), name="conv3")(y)
            y = last_norm(name="norm3")(y, train=self.train)
        else:
            y = self.conv(self.width, (3, 3), strides, padding=ONE, name="conv1")(x)
            y = nn.relu(self.norm(name="norm1")(y, train=self.train))
            y = self.conv(self.width, (3, 3), padding=ONE, name="conv2")(y)
            y = last_norm(name="norm2")(y, train=self.train)
        if x.shape != y.shape:
            x = self.conv(y.shape[-1], (1, 1), strides, name="conv_shortcut")(x)
            x = self.norm(name="norm_shortcut")(x, train=self.train)
        return nn.relu(DropPath(self.drop_path)(y, train=self.train) + x)


class ResNet(nn.Module):
    """Image (B, H, W, 3) -> (logits (B, num_classes) or None, {"features": (B, D) float32}).

    Attributes:
      stages: blocks in each stage; the width doubles from stage to stage.
      widen: how much wider the 3x3 convolutions of bottlenecks are (2: torchvision's wide_resnet50_2).
      stem: "imagenet" (7x7 stride 2, max-pool), "cifar" (3x3 stride 1) or "half" (3x3 stride 2: small images
        at a quarter of the cost of "cifar").
      norm_rows: BatchNorm takes its statistics from so many samples; 0: from the whole global batch.
      drop_path: stochastic depth at the last block, from 0 at the first, linearly.
      remat: the backward computes each block again from its input instead of keeping its activations.
      zero_init_last: each block starts as its shortcut (the last BatchNorm's scale is zero).
      project: features are projected to this many dimensions (an embedding for contrastive learning); 0: not.
    """

    stages: Sequence[int]
    bottleneck: bool
    widen: int
    width: int
    num_classes: int
    stem: str
    norm_rows: int
    drop_path: float
    remat: bool
    zero_init_last: bool
    project: int
    dtype: Any

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool) -> tuple[jax.Array | None, dict[str, jax.Array]]:
        conv = partial(nn.Conv, use_bias=False, dtype=self.dtype, kernel_init=kernel_init, padding="VALID")
        norm = partial(BatchNorm, rows=self.norm_rows, dtype=self.dtype)
        x = image.astype(self.dtype)
        if self.stem == "imagenet":
            x = conv(self.width, (7, 7), (2, 2), padding=[(3, 3), (3, 3)], name="conv_stem")(x)
        else:
            strides = 1 if self.stem == "cifar" else 2
            x = conv(self.width, (3, 3), (strides,) * 2, padding=ONE, name="conv_stem")(x)
        x = nn.relu(norm(name="norm_stem")(x, train=train))
        if self.stem == "imagenet":
            x = nn.max_pool(x, (3, 3), (2, 2), padding=ONE)
        block = nn.remat(Block) if self.remat else Block
        rates = iter(linear_rates(self.drop_path, sum(self.stages)))
        for stage, blocks in enumerate(self.stages):
            for index in range(blocks):
                x = block(
                    width=self.width * 2**stage,
                    strides=2 if stage > 0 and index == 0 else 1,
                    bottleneck=self.bottleneck,
                    widen=self.widen,
                    drop_path=next(rates),
                    last_scale=0.0 if self.zero_init_last else 1.0,
                    conv=conv,
                    norm=norm,
                    train=train,
                    name=f"stage{stage + 1}_block{index + 1}",
                )(x)
        features = x.mean((1, 2), dtype=jnp.float32)
        if self.project:
            features = nn.Dense(self.project, use_bias=False, name="project")(features)
        logits = nn.Dense(self.num_classes, name="classifier")(features) if self.num_classes else None
        return logits, {"features": features}


def make(
    *,
    variant: str = "",
    num_classes: int = 0,
    stages: Sequence[int] = (),
    bottleneck: bool = False,
    widen: int = 1,
    width: int = 64,
    stem: str = "imagenet",
    norm: str = "sync",
    norm_rows: int = 0,
    drop_path: float = 0.0,
    remat: str = "none",
    zero_init_last: bool = False,
    project: int = 0,
    dtype: str = "float32",
) -> ResNet:
    """A ResNet by `variant` (a key of VARIANTS), or by its own `stages`, `bottleneck` and `widen`.

    `norm` is "sync" (statistics of the whole global batch) or "per_device" (of `norm_rows` samples at a time, the
    batch of one GPU in a DistributedDataParallel run). `remat` is "none" or "block". `zero_init_last` is timm's
    default and not torchvision's.

    Raises:
      UserError: an option that is not valid, or options that exclude each other.
    """
    if stem not in STEMS:
        raise UserError(f"Unknown ResNet stem {stem!r}; valid: {', '.join(STEMS)}.")
    if options.variant(variant, VARIANTS, "ResNet"):
        stages, bottleneck, widen = VARIANTS[variant]
    if not stages:
        raise UserError("A ResNet needs a variant or its own stages, for example stages=(1, 1, 1).")
    if min(width, widen, *stages) < 1 or (widen > 1 and not bottleneck):
        raise UserError(
            f"No ResNet has width={width}, stages={stages}, widen={widen}, bottleneck={bottleneck}: width, widen "
            "and each stage are 1 or above, and only bottlenecks widen. Correct config.model.options."
        )
    return ResNet(
        stages=tuple(stages),
        bottleneck=bottleneck,
        widen=widen,
        width=width,
        num_classes=num_classes,
        stem=stem,
        norm_rows=options.norm_rows(norm, norm_rows),
        drop_path=options.rate(drop_path, "drop_path"),
        remat=options.remat(remat),
        zero_init_last=zero_init_last,
        project=project,
        dtype=jnp.dtype(dtype),
    )
