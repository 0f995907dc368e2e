"""Vision transformer (Dosovitskiy et al. 2021), layer by layer as timm's, with timm's initial values."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from nml_jax.core.errors import UserError
from nml_jax.models import options, transformer
from nml_jax.models.drop_path import Dropout, linear_rates

ENCODES = "image"
# size -> (width, layers, heads); "vit_b16" is size b with patches of 16 px
SIZES = {"ti": (192, 12, 3), "s": (384, 12, 6), "b": (768, 12, 12), "l": (1024, 24, 16)}
VARIANTS = {f"vit_{size}{patch}": (*shape, patch) for size, shape in SIZES.items() for patch in (16, 32)}
POOLS = ("token", "mean")
POSITIONS = ("learned", "sincos2d")

normal = nn.initializers.normal


class VisionTransformer(nn.Module):
    """Image (B, H, W, 3) -> (logits (B, num_classes) or None, {"features": (B, D) float32}).

    The table of learned positions is made for the size of the image that the model is initialised with.

    Attributes:
      pool: "token": the class token of the normalised output. "mean": the mean over the patches, then normalised
        (timm's global_pool="avg", which keeps the class token in the sequence and out of the mean).
      class_token: whether there is one.
      position: "learned", or "sincos2d": fixed sines and cosines of row and column (Beyer et al. 2022, "Better plain
        ViT baselines for ImageNet-1k"), zero for the class token.
      dropout: after the positions, the attention and both layers of the MLP (timm's pos_drop_rate and proj_drop_rate).
      drop_path: stochastic depth of both branches at the last block, from 0 at the first, linearly.
      remat: the backward computes each block again from its input instead of keeping its activations.
      project: features are projected to this many dimensions (an embedding for contrastive learning); 0: not.
      attention_implementation: of jax.nn.dot_product_attention: "cudnn" (flash attention on NVIDIA GPUs, in
        bfloat16), "xla", or "" (JAX chooses).
      clip: CLIP's way, `models.clip_vit`, in place of timm's: the tokens are normalised before the first block, the
        patches have no bias, LayerNorm's epsilon is 1e-5, and the initial values are open_clip's.
      activation: a key of `transformer.ACTIVATIONS`.
    """

    width: int
    layers: int
    heads: int
    patch: int
    num_classes: int
    pool: str
    class_token: bool
    position: str
    dropout: float
    drop_path: float
    remat: bool
    project: int
    attention_implementation: str
    dtype: Any
    clip: bool = False
    activation: str = "gelu"

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool) -> tuple[jax.Array | None, dict[str, jax.Array]]:
        epsilon = 1e-5 if self.clip else 1e-6
        x = self._embedded(image)
        x = Dropout(self.dropout)(x, train=train)
        if self.clip:
            x = nn.LayerNorm(epsilon=epsilon, dtype=self.dtype, name="norm_pre")(x)
        block = nn.remat(transformer.Block) if self.remat else transformer.Block
        for index, rate in enumerate(linear_rates(self.drop_path, self.layers)):
            x = block(
                heads=self.heads,
                implementation=self.attention_implementation,
                initial=transformer.initial("torch" if self.clip else "timm", self.width, self.layers),
                activation=self.activation,
                epsilon=epsilon,
                dropout=self.dropout,
                drop_path=rate,
                dtype=self.dtype,
                train=train,
                name=f"block{index + 1}",
            )(x)
        # LayerNorm is by token, so only the token that is read needs it.
        if self.pool == "token":
            features = nn.LayerNorm(epsilon=epsilon, dtype=jnp.float32, name="norm")(x[:, 0])
        else:
            pooled = x[:, int(self.class_token) :].mean(axis=1, dtype=jnp.float32)
            features = nn.LayerNorm(epsilon=epsilon, dtype=jnp.float32, name="fc_norm")(pooled)
        if self.project:
            start = normal(self.width**-0.5) if self.clip else nn.initializers.lecun_normal()
            features = nn.Dense(self.project, use_bias=False, kernel_init=start, name="project")(features)
        head = (
            nn.Dense(self.num_classes, kernel_init=normal(0.02), name="classifier")
            if self.num_classes
            else None
        )
        return head(features) if head else None, {"features": features}

    def _embedded(self, image: jax.Array) -> jax.Array:
        """(B, H, W, 3) -> patches, with the class token in front, and their positions added (B, N, D)."""
        batch, height, width = image.shape[:3]
        if height % self.patch or width % self.patch:
            raise UserError(
                f"A vision transformer with patches of {self.patch} px cannot take images of {height} x {width}; give "
                f"sizes that are multiples of {self.patch}."
            )
        rows, columns = height // self.patch, width // self.patch
        fan_in = 3 * self.patch**2
        x = nn.Conv(
            self.width,
            (self.patch,) * 2,
            (self.patch,) * 2,
            padding="VALID",
            use_bias=not self.clip,
            dtype=self.dtype,
            kernel_init=transformer.uniform(fan_in**-0.5),
            bias_init=transformer.uniform(fan_in**-0.5),
            name="patch",
        )(image.astype(self.dtype)).reshape(batch, rows * columns, self.width)
        if self.class_token:
            start = normal(self.width**-0.5 if self.clip else 1e-6)
            token = self.param("class_token", start, (self.width,), jnp.float32)
            token = jnp.broadcast_to(token.astype(self.dtype), (batch, 1, self.width))
            x = jnp.concatenate([token, x], axis=1)
        if self.position == "learned":
            start = normal(self.width**-0.5 if self.clip else 0.02)
            position = transformer.position_table(self, x.shape[1], self.width, start)
        else:
            position = sincos2d(rows, columns, self.width)
            position = np.pad(position, ((int(self.class_token), 0), (0, 0)))
        return x + jnp.asarray(position, self.dtype)


def sincos2d(rows: int, columns: int, width: int) -> np.ndarray:
    """Sine and cosine of column and row at width / 4 frequencies from 1 to 1/10000, (rows * columns, width) float32."""
    frequencies = 10_000.0 ** -np.linspace(0, 1, width // 4)
    y, x = np.divmod(np.arange(rows * columns), columns)
    angles = [np.outer(place, frequencies) for place in (x, y)]
    return np.concatenate([f(a) for a in angles for f in (np.sin, np.cos)], axis=1).astype(np.float32)


def shape(
    variant: str, variants: dict[str, tuple], width: int, layers: int, heads: int, patch: int
) -> tuple[int, int, int, int]:
    """(width, layers, heads, patch) of the `variant`, a key of `variants`, or as given.

    Raises:
      UserError: there is no such variant, or no transformer of such a shape.
    """
    if options.variant(variant, variants, "vision transformer"):
        return variants[variant]
    if min(width, layers, heads, patch) < 1 or width % heads:
        raise UserError(
            f"No vision transformer has width={width}, layers={layers}, heads={heads}, patch={patch}: give a variant "
            f"({', '.join(variants)}), or all four, with a width that heads divides."
        )
    return width, layers, heads, patch


def make(
    *,
    variant: str = "",
    num_classes: int = 0,
    width: int = 0,
    layers: int = 0,
    heads: int = 0,
    patch: int = 0,
    pool: str = "token",
    class_token: bool = True,
    position: str = "learned",
    dropout: float = 0.0,
    drop_path: float = 0.0,
    remat: str = "none",
    project: int = 0,
    attention_implementation: str = "",
    dtype: str = "float32",
) -> VisionTransformer:
    """A vision transformer by `variant` (a key of VARIANTS), or by its own `width`, `layers`, `heads` and `patch`.

    Raises:
      UserError: an option that is not valid, or options that exclude each other.
    """
    width, layers, heads, patch = shape(variant, VARIANTS, width, layers, heads, patch)
    options.choice(pool, POOLS, "pool")
    options.choice(position, POSITIONS, "position")
    if position == "sincos2d" and width % 4:
        raise UserError(f"position='sincos2d' needs a width that 4 divides, not {width}.")
    if pool == "token" and not class_token:
        raise UserError("pool='token' reads the class token; give class_token=True, or pool='mean'.")
    return VisionTransformer(
        width=width,
        layers=layers,
        heads=heads,
        patch=patch,
        num_classes=num_classes,
        pool=pool,
        class_token=class_token,
        position=position,
        dropout=options.rate(dropout, "dropout"),
        drop_path=options.rate(drop_path, "drop_path"),
        remat=options.remat(remat),
        project=project,
        attention_implementation=options.attention(attention_implementation, dtype),
        dtype=jnp.dtype(dtype),
    )
