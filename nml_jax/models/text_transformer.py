"""CLIP's text tower (Radford et al. 2021): a causal pre-LayerNorm transformer, read out at the end token."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

ENCODES = "text"


class Block(nn.Module):
    """Self-attention and a four times wider MLP, each on normalised input and added to it; (B, L, D) -> (B, L, D)."""

    heads: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        # epsilon 1e-5 is torch.nn.LayerNorm's; flax's own is 1e-6
        y = nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, name="norm1")(x)
        y = nn.MultiHeadDotProductAttention(self.heads, dtype=self.dtype, name="attention")(y, mask=mask)
        x = x + y
        y = nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, name="norm2")(x)
        y = nn.Dense(4 * x.shape[-1], dtype=self.dtype, name="fc1")(y)
        return x + nn.Dense(x.shape[-1], dtype=self.dtype, name="fc2")(nn.gelu(y, approximate=False))


class TextTransformer(nn.Module):
    """Tokens (B, L) with 0 as padding -> {"features": (B, project)}, taken at the last token that is not padding."""

    vocab_size: int
    width: int
    layers: int
    heads: int
    project: int
    dtype: Any

    @nn.compact
    def __call__(self, tokens: jax.Array, *, train: bool) -> dict[str, jax.Array]:
        del train
        x = nn.Embed(self.vocab_size, self.width, dtype=self.dtype, name="token")(tokens)
        position = self.param("position", nn.initializers.normal(0.01), (tokens.shape[1], self.width))
        x = x + position.astype(self.dtype)
        mask = nn.make_causal_mask(tokens)
        for layer in range(self.layers):
            x = Block(self.heads, self.dtype, name=f"block{layer + 1}")(x, mask)
        x = nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, name="norm")(x)
        last = (tokens != 0).sum(axis=1) - 1
        x = jnp.take_along_axis(x, last[:, None, None], axis=1)[:, 0].astype(jnp.float32)
        return {"features": nn.Dense(self.project, use_bias=False, name="project")(x)}


def make(
    *,
    vocab_size: int,
    project: int,
    width: int = 512,
    layers: int = 12,
    heads: int = 8,
    dtype: str = "float32",
) -> TextTransformer:
    """The text tower; the defaults are those of CLIP RN50's (width 512, 12 layers, 8 heads)."""
    return TextTransformer(vocab_size, width, layers, heads, project, jnp.dtype(dtype))
