"""Vision transformer (Dosovitskiy et al. 2021), layer by layer as timm's, with timm's initial values."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from nml_jax.core.errors import UserError
from nml_jax.models import options
from nml_jax.models.drop_path import Dropout, DropPath, linear_rates

ENCODES = "image"
# size -> (width, layers, heads); "vit_b16" is size b with patches of 16 px
SIZES = {"ti": (192, 12, 3), "s": (384, 12, 6), "b": (768, 12, 12), "l": (1024, 24, 16)}
VARIANTS = {f"vit_{size}{patch}": (*shape, patch) for size, shape in SIZES.items() for patch in (16, 32)}
POOLS = ("token", "mean")
POSITIONS = ("learned", "sincos2d")
ATTENTION = ("", "xla", "cudnn")

# timm's trunc_normal_(std=0.02) cuts at -2 and 2, a hundred standard deviations: it is the normal distribution.
normal = nn.initializers.normal(0.02)


class Attention(nn.Module):
    """Multi-head self-attention, (B, N, D) -> (B, N, D); queries, keys and values from one Dense, as timm's."""

    heads: int
    implementation: str
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        batch, tokens, width = x.shape
        x = nn.Dense(3 * width, dtype=self.dtype, kernel_init=normal, name="qkv")(x)
        query, key, value = jnp.moveaxis(x.reshape(batch, tokens, 3, self.heads, -1), 2, 0)
        x = jax.nn.dot_product_attention(query, key, value, implementation=self.implementation or None)
        return nn.Dense(width, dtype=self.dtype, kernel_init=normal, name="out")(
            x.reshape(batch, tokens, width)
        )


class Block(nn.Module):
    """Attention and a four times wider MLP, each on normalised input and added to it; (B, N, D) -> (B, N, D)."""

    heads: int
    implementation: str
    dropout: float
    drop_path: float
    dtype: Any
    train: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        def drop(y: jax.Array) -> jax.Array:
            return Dropout(self.dropout)(y, train=self.train)

        y = nn.LayerNorm(epsilon=1e-6, dtype=self.dtype, name="norm1")(x)
        y = drop(Attention(self.heads, self.implementation, self.dtype, name="attention")(y))
        x = x + DropPath(self.drop_path)(y, train=self.train)
        y = nn.LayerNorm(epsilon=1e-6, dtype=self.dtype, name="norm2")(x)
        y = nn.Dense(4 * x.shape[-1], dtype=self.dtype, kernel_init=normal, name="fc1")(y)
        y = drop(nn.gelu(y, approximate=False))
        y = drop(nn.Dense(x.shape[-1], dtype=self.dtype, kernel_init=normal, name="fc2")(y))
        return x + DropPath(self.drop_path)(y, train=self.train)


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

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool) -> tuple[jax.Array | None, dict[str, jax.Array]]:
        x = self._embedded(image)
        x = Dropout(self.dropout)(x, train=train)
        block = nn.remat(Block) if self.remat else Block
        for index, rate in enumerate(linear_rates(self.drop_path, self.layers)):
            x = block(
                heads=self.heads,
                implementation=self.attention_implementation,
                dropout=self.dropout,
                drop_path=rate,
                dtype=self.dtype,
                train=train,
                name=f"block{index + 1}",
            )(x)
        # LayerNorm is by token, so only the token that is read needs it.
        if self.pool == "token":
            features = nn.LayerNorm(epsilon=1e-6, dtype=jnp.float32, name="norm")(x[:, 0])
        else:
            pooled = x[:, int(self.class_token) :].mean(axis=1, dtype=jnp.float32)
            features = nn.LayerNorm(epsilon=1e-6, dtype=jnp.float32, name="fc_norm")(pooled)
        if self.project:
            features = nn.Dense(self.project, use_bias=False, name="project")(features)
        head = nn.Dense(self.num_classes, kernel_init=normal, name="classifier") if self.num_classes else None
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
            dtype=self.dtype,
            kernel_init=nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform"),
            bias_init=uniform(fan_in**-0.5),
            name="patch",
        )(image.astype(self.dtype)).reshape(batch, rows * columns, self.width)
        if self.class_token:
            token = self.param("class_token", nn.initializers.normal(1e-6), (self.width,), jnp.float32)
            token = jnp.broadcast_to(token.astype(self.dtype), (batch, 1, self.width))
            x = jnp.concatenate([token, x], axis=1)
        if self.position == "learned":
            position = self._position_table(x.shape[1])
        else:
            position = sincos2d(rows, columns, self.width)
            position = np.pad(position, ((int(self.class_token), 0), (0, 0)))
        return x + jnp.asarray(position, self.dtype)

    def _position_table(self, tokens: int) -> jax.Array:
        if self.has_variable("params", "position"):
            table = self.get_variable("params", "position")
            if table.shape[0] != tokens:
                raise UserError(
                    f"The vision transformer has {table.shape[0]} learned positions and the images have {tokens} "
                    "patches (with the class token); give images of the size it was trained with."
                )
        return self.param("position", normal, (tokens, self.width), jnp.float32)


def sincos2d(rows: int, columns: int, width: int) -> np.ndarray:
    """Sine and cosine of column and row at width / 4 frequencies from 1 to 1/10000, (rows * columns, width) float32."""
    frequencies = 10_000.0 ** -np.linspace(0, 1, width // 4)
    y, x = np.divmod(np.arange(rows * columns), columns)
    angles = [np.outer(place, frequencies) for place in (x, y)]
    return np.concatenate([f(a) for a in angles for f in (np.sin, np.cos)], axis=1).astype(np.float32)


def uniform(bound: float) -> nn.initializers.Initializer:
    """U(-bound, bound)."""
    return lambda rng, shape, dtype=jnp.float32: jax.random.uniform(rng, shape, dtype, -bound, bound)


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
    if options.variant(variant, VARIANTS, "vision transformer"):
        width, layers, heads, patch = VARIANTS[variant]
    if min(width, layers, heads, patch) < 1 or width % heads or (position == "sincos2d" and width % 4):
        raise UserError(
            f"No vision transformer has width={width}, layers={layers}, heads={heads}, patch={patch}: give a variant "
            f"({', '.join(VARIANTS)}), or all four, with a width that heads divides (and 4, for sincos2d)."
        )
    choices = (
        ("pool", pool, POOLS),
        ("position", position, POSITIONS),
        ("attention_implementation", attention_implementation, ATTENTION),
    )
    for name, value, valid in choices:
        if value not in valid:
            raise UserError(f"Unknown {name} {value!r}; valid: {', '.join(map(repr, valid))}.")
    if attention_implementation == "cudnn" and dtype not in ("bfloat16", "float16"):
        raise UserError(f"cuDNN's attention takes bfloat16 or float16, not {dtype}; give dtype='bfloat16'.")
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
        attention_implementation=attention_implementation,
        dtype=jnp.dtype(dtype),
    )
