"""The layers that the vision transformers and CLIP's text transformer have in common."""

from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from nml_jax.core.errors import UserError
from nml_jax.models.drop_path import Dropout, DropPath

Initializer = nn.initializers.Initializer


def quick_gelu(x: jax.Array) -> jax.Array:
    """x sigmoid(1.702 x): the approximation of GELU that OpenAI's CLIP models were trained with."""
    return x * nn.sigmoid(1.702 * x)


ACTIVATIONS = {"gelu": partial(nn.gelu, approximate=False), "quick_gelu": quick_gelu}


class Initial(NamedTuple):
    """Initial values of a block's four matrices, and of the two biases of its MLP. All other biases start at zero."""

    qkv: Initializer
    out: Initializer
    fc1: Initializer
    fc2: Initializer
    bias1: Initializer = nn.initializers.zeros
    bias2: Initializer = nn.initializers.zeros


def initial(kind: str, width: int, layers: int) -> Initial:
    """The initial values of a published implementation.

    "timm": N(0, 0.02^2) everywhere. (Its trunc_normal_ cuts at -2 and 2, a hundred standard deviations: it is the
    normal distribution.) "torch": those of torch's own layers, which open_clip's vision transformer keeps. "clip":
    those of CLIP's text transformer, narrower by sqrt(2 layers) where a branch is added to the residual stream.
    """
    normal, bias1, bias2 = nn.initializers.normal, uniform(width**-0.5), uniform((4 * width) ** -0.5)
    if kind == "timm":
        return Initial(*[normal(0.02)] * 4)
    if kind == "torch":
        return Initial(uniform((6 / (4 * width)) ** 0.5), bias1, bias1, bias2, bias1, bias2)
    residual = width**-0.5 * (2 * layers) ** -0.5
    return Initial(
        normal(width**-0.5), normal(residual), normal((2 * width) ** -0.5), normal(residual), bias1, bias2
    )


def uniform(bound: float) -> Initializer:
    """U(-bound, bound)."""
    return lambda rng, shape, dtype=jnp.float32: jax.random.uniform(rng, shape, dtype, -bound, bound)


class Attention(nn.Module):
    """Multi-head self-attention, (B, N, D) -> (B, N, D); queries, keys and values from one Dense.

    Attributes:
      causal: each token sees itself and those before it.
    """

    heads: int
    causal: bool
    implementation: str
    initial: Initial
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        batch, tokens, width = x.shape
        x = nn.Dense(3 * width, dtype=self.dtype, kernel_init=self.initial.qkv, name="qkv")(x)
        query, key, value = jnp.moveaxis(x.reshape(batch, tokens, 3, self.heads, -1), 2, 0)
        x = jax.nn.dot_product_attention(
            query, key, value, is_causal=self.causal, implementation=self.implementation or None
        )
        return nn.Dense(width, dtype=self.dtype, kernel_init=self.initial.out, name="out")(
            x.reshape(batch, tokens, width)
        )


class Block(nn.Module):
    """Attention and a four times wider MLP, each on normalised input and added to it; (B, N, D) -> (B, N, D).

    Attributes:
      activation: a key of ACTIVATIONS.
      epsilon: of the LayerNorms; timm has 1e-6, torch 1e-5.
      dropout: after the attention and both layers of the MLP.
      drop_path: stochastic depth of both branches.
    """

    heads: int
    implementation: str
    initial: Initial
    dtype: Any
    train: bool
    causal: bool = False
    activation: str = "gelu"
    epsilon: float = 1e-6
    dropout: float = 0.0
    drop_path: float = 0.0

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        def drop(y: jax.Array) -> jax.Array:
            return Dropout(self.dropout)(y, train=self.train)

        norm = partial(nn.LayerNorm, epsilon=self.epsilon, dtype=self.dtype)
        dense = partial(nn.Dense, dtype=self.dtype)
        start, width = self.initial, x.shape[-1]
        attention = Attention(
            self.heads, self.causal, self.implementation, start, self.dtype, name="attention"
        )
        y = drop(attention(norm(name="norm1")(x)))
        x = x + DropPath(self.drop_path)(y, train=self.train)
        y = norm(name="norm2")(x)
        y = dense(4 * width, kernel_init=start.fc1, bias_init=start.bias1, name="fc1")(y)
        y = drop(ACTIVATIONS[self.activation](y))
        y = drop(dense(width, kernel_init=start.fc2, bias_init=start.bias2, name="fc2")(y))
        return x + DropPath(self.drop_path)(y, train=self.train)


def position_table(module: nn.Module, tokens: int, width: int, init: Initializer) -> jax.Array:
    """The learned positions of `module` (in its compact call), (tokens, width) float32: its parameter "position".

    Raises:
      UserError: the module was initialised for another number of tokens.
    """
    if module.has_variable("params", "position"):
        learned = len(module.get_variable("params", "position"))
        if learned != tokens:
            raise UserError(
                f"This {type(module).__name__} has {learned} learned positions and is given {tokens} tokens; give "
                "inputs of the size it was trained with (images of one height and width, captions of one length)."
            )
    return module.param("position", init, (tokens, width), jnp.float32)
