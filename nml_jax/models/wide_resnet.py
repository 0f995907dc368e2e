"""Wide ResNets for 32 px images (Zagoruyko & Komodakis 2016): BatchNorm and ReLU come before each convolution.

torchvision's wide_resnet50_2 is another thing: a variant of `models/resnet.py`.
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from nml_jax.core.errors import UserError
from nml_jax.models import options
from nml_jax.models.drop_path import Dropout, DropPath, linear_rates
from nml_jax.models.norm import BatchNorm
from nml_jax.models.resnet import ONE, kernel_init

ENCODES = "image"
# name -> (depth, how much wider than the 16, 32, 64 channels of a thin ResNet)
VARIANTS = {
    "wrn16_8": (16, 8),
    "wrn28_2": (28, 2),
    "wrn28_10": (28, 10),
    "wrn40_2": (40, 2),
    "wrn40_4": (40, 4),
}


class Block(nn.Module):
    """BN, ReLU, 3x3 (strided), BN, ReLU, dropout, 3x3, and a shortcut; (B, H, W, C) -> (B, H/strides, .., width).

    Where the number of channels changes, the shortcut is a 1x1 convolution of what the first ReLU gives; elsewhere it
    is the input itself.
    """

    width: int
    strides: int
    drop_rate: float
    drop_path: float
    conv: Any
    norm: Any
    train: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        strides = (self.strides,) * 2
        y = nn.relu(self.norm(name="norm1")(x, train=self.train))
        if x.shape[-1] != self.width:
            x = self.conv(self.width, (1, 1), strides, name="conv_shortcut")(y)
        y = self.conv(self.width, (3, 3), strides, padding=ONE, name="conv1")(y)
        y = nn.relu(self.norm(name="norm2")(y, train=self.train))
        y = Dropout(self.drop_rate)(y, train=self.train)
        y = self.conv(self.width, (3, 3), padding=ONE, name="conv2")(y)
        return x + DropPath(self.drop_path)(y, train=self.train)


class WideResNet(nn.Module):
    """Image (B, H, W, 3) -> (logits (B, num_classes) or None, {"features": (B, D) float32}).

    Three stages of (depth - 4) / 6 blocks with 16, 32 and 64 times `widen` channels. The other attributes are those
    of `models.resnet.ResNet`; `drop_rate` is the dropout within each block.
    """

    depth: int
    widen: int
    num_classes: int
    norm_rows: int
    drop_rate: float
    drop_path: float
    remat: bool
    project: int
    dtype: Any

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool) -> tuple[jax.Array | None, dict[str, jax.Array]]:
        conv = partial(nn.Conv, use_bias=False, dtype=self.dtype, kernel_init=kernel_init, padding="VALID")
        norm = partial(BatchNorm, rows=self.norm_rows, dtype=self.dtype)
        x = conv(16, (3, 3), padding=ONE, name="conv_stem")(image.astype(self.dtype))
        block = nn.remat(Block) if self.remat else Block
        blocks = (self.depth - 4) // 6
        rates = iter(linear_rates(self.drop_path, 3 * blocks))
        for stage in range(3):
            for index in range(blocks):
                x = block(
                    width=16 * self.widen * 2**stage,
                    strides=2 if stage > 0 and index == 0 else 1,
                    drop_rate=self.drop_rate,
                    drop_path=next(rates),
                    conv=conv,
                    norm=norm,
                    train=train,
                    name=f"stage{stage + 1}_block{index + 1}",
                )(x)
        x = nn.relu(norm(name="norm")(x, train=train))
        features = x.mean((1, 2), dtype=jnp.float32)
        if self.project:
            features = nn.Dense(self.project, use_bias=False, name="project")(features)
        logits = nn.Dense(self.num_classes, name="classifier")(features) if self.num_classes else None
        return logits, {"features": features}


def make(
    *,
    variant: str = "",
    num_classes: int = 0,
    depth: int = 28,
    widen: int = 10,
    norm: str = "sync",
    norm_rows: int = 0,
    drop_rate: float = 0.0,
    drop_path: float = 0.0,
    remat: str = "none",
    project: int = 0,
    dtype: str = "float32",
) -> WideResNet:
    """A wide ResNet by `variant` (a key of VARIANTS), or by `depth` and `widen`; options as `models.resnet.make`'s.

    Raises:
      UserError: an option that is not valid.
    """
    if options.variant(variant, VARIANTS, "wide ResNet"):
        depth, widen = VARIANTS[variant]
    if depth < 10 or (depth - 4) % 6 or widen < 1:
        raise UserError(
            f"No wide ResNet has depth={depth} and widen={widen}: depth is 6 n + 4 (10, 16, 22, 28, ...) and widen is "
            "1 or above. Correct config.model.options."
        )
    return WideResNet(
        depth=depth,
        widen=widen,
        num_classes=num_classes,
        norm_rows=options.norm_rows(norm, norm_rows),
        drop_rate=options.rate(drop_rate, "drop_rate"),
        drop_path=options.rate(drop_path, "drop_path"),
        remat=options.remat(remat),
        project=project,
        dtype=jnp.dtype(dtype),
    )
