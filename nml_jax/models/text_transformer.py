"""CLIP's text tower (Radford et al. 2021): a causal pre-LayerNorm transformer, read out at the end of the text."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from nml_jax.core.errors import UserError
from nml_jax.models import options, transformer

ENCODES = "text"
READS = ("last", "highest")

normal = nn.initializers.normal


class TextTransformer(nn.Module):
    """Tokens (B, L) with 0 as padding -> {"features": (B, project) float32}.

    The table of learned positions is made for the length of the captions that the model is initialised with.

    Attributes:
      read: where the text is read out. "last": at the last token that is not padding. "highest": at the first of the
        highest ids, which in CLIP's own vocabulary is the end of the text (OpenAI's way; both are the same there, but
        for captions that spell out "<end_of_text>").
      activation: a key of `transformer.ACTIVATIONS`.
      remat: the backward computes each block again from its input instead of keeping its activations.
      attention_implementation: as in `models.vit`.
      project: dimensions of the embedding; 0: the features are the normalised token itself.
    """

    vocab_size: int
    width: int
    layers: int
    heads: int
    project: int
    read: str
    activation: str
    remat: bool
    attention_implementation: str
    dtype: Any

    @nn.compact
    def __call__(self, tokens: jax.Array, *, train: bool) -> dict[str, jax.Array]:
        # Looked up in float32, whatever the computation: the gradient of an id sums over all its places.
        x = nn.Embed(self.vocab_size, self.width, embedding_init=normal(0.02), name="token")(tokens)
        position = transformer.position_table(self, tokens.shape[1], self.width, normal(0.01))
        x = (x + position).astype(self.dtype)
        block = nn.remat(transformer.Block) if self.remat else transformer.Block
        for index in range(self.layers):
            x = block(
                heads=self.heads,
                implementation=self.attention_implementation,
                initial=transformer.initial("clip", self.width, self.layers),
                causal=True,
                activation=self.activation,
                epsilon=1e-5,
                dtype=self.dtype,
                train=train,
                name=f"block{index + 1}",
            )(x)
        # LayerNorm is by token, so only the token that is read needs it.
        x = jnp.take_along_axis(x, self._end(tokens)[:, None, None], axis=1)[:, 0]
        features = nn.LayerNorm(epsilon=1e-5, dtype=jnp.float32, name="norm")(x)
        if self.project:
            start = normal(self.width**-0.5)
            features = nn.Dense(self.project, use_bias=False, kernel_init=start, name="project")(features)
        return {"features": features}

    def _end(self, tokens: jax.Array) -> jax.Array:
        """The place that is read, (B,)."""
        if self.read == "highest":
            return tokens.argmax(axis=1)
        # Not the number of tokens: 0 can stand within a caption (it is "!" in CLIP's vocabulary).
        return tokens.shape[1] - 1 - (tokens[:, ::-1] != 0).argmax(axis=1)


def make(
    *,
    vocab_size: int,
    project: int,
    width: int = 512,
    layers: int = 12,
    heads: int = 8,
    read: str = "last",
    activation: str = "gelu",
    remat: str = "none",
    attention_implementation: str = "",
    dtype: str = "float32",
) -> TextTransformer:
    """The text tower; the defaults are those of CLIP RN50, RN101, ViT-B/32 and B/16 (L/14: width 768, 12 heads).

    CLIP's own vocabulary has 49,408 ids and its captions 77 tokens. `activation` is "gelu" (open_clip's default) or
    "quick_gelu" (OpenAI's weights).

    Raises:
      UserError: an option that is not valid, or options that exclude each other.
    """
    if min(vocab_size, width, layers, heads) < 1 or project < 0 or width % heads:
        raise UserError(
            f"No text transformer has vocab_size={vocab_size}, project={project}, width={width}, layers={layers}, "
            f"heads={heads}: all are 1 or above, and heads divides width. Correct config.text."
        )
    return TextTransformer(
        vocab_size=vocab_size,
        width=width,
        layers=layers,
        heads=heads,
        project=project,
        read=options.choice(read, READS, "read"),
        activation=options.choice(activation, transformer.ACTIVATIONS, "activation"),
        remat=options.remat(remat),
        attention_implementation=options.attention(attention_implementation, dtype),
        dtype=jnp.dtype(dtype),
    )
