"""ResNet v1.5 (He et al. 2016; stride on the 3x3 convolution, as torchvision has it) for 224 and 32 px images."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from nml_jax.core.errors import UserError

ENCODES = "image"
# name -> (blocks in each stage, bottleneck blocks)
VARIANTS = {
    "resnet10": ((1, 1, 1, 1), False),
    "resnet18": ((2, 2, 2, 2), False),
    "resnet34": ((3, 4, 6, 3), False),
    "resnet50": ((3, 4, 6, 3), True),
    "resnet101": ((3, 4, 23, 3), True),
    "resnet152": ((3, 8, 36, 3), True),
}
STEMS = ("imagenet", "cifar", "half")

# PyTorch's padding: flax's "SAME" pads a strided convolution on one side only and shifts the image.
ONE = [(1, 1), (1, 1)]
kernel_init = nn.initializers.variance_scaling(2.0, "fan_out", "truncated_normal")


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut; (B, H, W, C) -> (B, H/strides, W/strides, width)."""

    width: int
    strides: int
    conv: Callable[..., Any]
    norm: Callable[..., Any]
    expansion = 1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = self.conv(self.width, (3, 3), (self.strides,) * 2, padding=ONE, name="conv1")(x)
        y = nn.relu(self.norm(name="norm1")(y))
        y = self.conv(self.width, (3, 3), padding=ONE, name="conv2")(y)
        y = self.norm(name="norm2")(y)
        return nn.relu(y + shortcut(x, y, self.strides, self.conv, self.norm))


class Bottleneck(nn.Module):
    """1x1, 3x3 (strided), 1x1 to four times `width`, and a shortcut."""

    width: int
    strides: int
    conv: Callable[..., Any]
    norm: Callable[..., Any]
    expansion = 4

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = nn.relu(self.norm(name="norm1")(self.conv(self.width, (1, 1), name="conv1")(x)))
        y = self.conv(self.width, (3, 3), (self.strides,) * 2, padding=ONE, name="conv2")(y)
        y = nn.relu(self.norm(name="norm2")(y))
        y = self.conv(4 * self.width, (1, 1), name="conv3")(y)
        y = self.norm(name="norm3")(y)
        return nn.relu(y + shortcut(x, y, self.strides, self.conv, self.norm))


def shortcut(x: jax.Array, y: jax.Array, strides: int, conv: Callable, norm: Callable) -> jax.Array:
    """x itself, or projected where the shapes differ."""
    if x.shape == y.shape:
        return x
    return norm(name="norm_shortcut")(conv(y.shape[-1], (1, 1), (strides,) * 2, name="conv_shortcut")(x))


class ResNet(nn.Module):
    """Image (B, H, W, 3) -> (logits (B, num_classes) or None, {"features": (B, D)}).

    Attributes:
      stages: blocks in each stage; the width doubles from stage to stage.
      stem: "imagenet" (7x7 stride 2, max-pool), "cifar" (3x3 stride 1) or "half" (3x3 stride 2: small images
        at a quarter of the cost of "cifar").
      norm: "sync" (statistics of the whole global batch: what jit on a sharded batch computes).
      project: features are projected to this many dimensions (an embedding for contrastive learning); 0: not.
    """

    stages: Sequence[int]
    bottleneck: bool
    width: int
    num_classes: int
    stem: str
    project: int
    dtype: Any

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool) -> tuple[jax.Array | None, dict[str, jax.Array]]:
        conv = partial(nn.Conv, use_bias=False, dtype=self.dtype, kernel_init=kernel_init, padding="VALID")
        # momentum 0.9 and epsilon 1e-5 are torch.nn.BatchNorm2d's 0.1 and 1e-5
        norm = partial(
            nn.BatchNorm, use_running_average=not train, momentum=0.9, epsilon=1e-5, dtype=self.dtype
        )
        x = image.astype(self.dtype)
        if self.stem == "imagenet":
            x = conv(self.width, (7, 7), (2, 2), padding=[(3, 3), (3, 3)], name="conv_stem")(x)
            x = nn.relu(norm(name="norm_stem")(x))
            x = nn.max_pool(x, (3, 3), (2, 2), padding=ONE)
        else:
            strides = 1 if self.stem == "cifar" else 2
            x = conv(self.width, (3, 3), (strides,) * 2, padding=ONE, name="conv_stem")(x)
            x = nn.relu(norm(name="norm_stem")(x))
        block = Bottleneck if self.bottleneck else BasicBlock
        for stage, blocks in enumerate(self.stages):
            for index in range(blocks):
                strides = 2 if stage > 0 and index == 0 else 1
                name = f"stage{stage + 1}_block{index + 1}"
                x = block(self.width * 2**stage, strides, conv, norm, name=name)(x)
        features = x.mean((1, 2)).astype(jnp.float32)
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
    width: int = 64,
    stem: str = "imagenet",
    project: int = 0,
    dtype: str = "float32",
) -> ResNet:
    """A ResNet by `variant` (a key of VARIANTS), or by its own `stages` and `bottleneck`."""
    if variant and variant not in VARIANTS:
        raise UserError(f"Unknown ResNet variant {variant!r}; valid: {', '.join(VARIANTS)}.")
    if stem not in STEMS:
        raise UserError(f"Unknown ResNet stem {stem!r}; valid: {', '.join(STEMS)}.")
    if not variant and not stages:
        raise UserError("A ResNet needs a variant or its own stages, for example stages=(1, 1, 1).")
    if variant:
        stages, bottleneck = VARIANTS[variant]
    if width < 1 or min(stages) < 1:
        raise UserError(
            f"A ResNet of width={width} and stages={tuple(stages)} has nothing in it; valid are 1 and above. "
            "Correct config.model.options."
        )
    return ResNet(tuple(stages), bottleneck, width, num_classes, stem, project, jnp.dtype(dtype))
