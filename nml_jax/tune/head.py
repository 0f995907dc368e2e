"""The networks on top of frozen features, with PyTorch's initial values and BatchNorm."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from nml_jax.models.norm import BatchNorm

PyTree = Any

# nn.Linear: kaiming_uniform(a=sqrt(5)) is U(-1/sqrt(fan_in), 1/sqrt(fan_in)).
_LINEAR_KERNEL = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


class Classifier(nn.Module):
    """Linear(D -> C): the head of the official code, weights torch's kaiming_uniform(a=0), bias zero.

    That is U(-sqrt(6/D), sqrt(6/D)), wider than nn.Linear's default by sqrt(6).
    """

    num_classes: int

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """(N, D) -> logits (N, C)."""
        return nn.Dense(self.num_classes, kernel_init=nn.initializers.he_uniform(), name="linear")(x)


class Head(nn.Module):
    """Z = MLP(F), or Z = s * MLP(F) + F with a learnable s for each dimension; then a `Classifier` on Z.

    MLP is Linear(D -> expansion D), BatchNorm if `batch_norm`, ReLU, Linear(-> D) (ICLR 2024, Fig. 17; BatchNorm
    and the residual are the official code's). The two Linears start as nn.Linear does.
    """

    num_classes: int
    expansion: int
    batch_norm: bool
    residual: bool
    residual_scale: float

    def setup(self) -> None:
        self.classifier = Classifier(self.num_classes)
        self.mlp = MLP(self.expansion, self.batch_norm)
        if self.residual:
            self.scale = Scale(self.residual_scale)

    def reshape(self, features: jax.Array, *, train: bool = False) -> jax.Array:
        """F (N, D) -> Z (N, D)."""
        z = self.mlp(features, train=train)
        return self.scale(z) + features if self.residual else z

    def __call__(self, features: jax.Array, *, train: bool = False) -> tuple[jax.Array, jax.Array]:
        """F (N, D) -> Z (N, D) and logits (N, C); `train` takes BatchNorm's statistics from these N rows."""
        z = self.reshape(features, train=train)
        return z, self.classifier(z)


class MLP(nn.Module):
    """Linear(D -> expansion D) - [BatchNorm] - ReLU - Linear(-> D)."""

    expansion: int
    batch_norm: bool

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """(N, D) -> (N, D)."""
        dim = x.shape[-1]
        hidden = self.expansion * dim
        x = nn.Dense(hidden, kernel_init=_LINEAR_KERNEL, bias_init=_linear_bias(dim), name="expand")(x)
        if self.batch_norm:
            x = BatchNorm(name="norm")(x, train=train)
        x = nn.relu(x)
        return nn.Dense(dim, kernel_init=_LINEAR_KERNEL, bias_init=_linear_bias(hidden), name="project")(x)


class Scale(nn.Module):
    """A learnable factor for each dimension."""

    initial: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(N, D) -> (N, D)."""
        return x * self.param("scale", nn.initializers.constant(self.initial), (x.shape[-1],))


def features(head: Head, params: PyTree, stats: PyTree, x: jax.Array) -> jax.Array:
    """What the tuned head makes of features F (N, D), in evaluation mode: Z (N, D)."""
    return head.apply({"params": params, **stats}, x, method=Head.reshape)


def _linear_bias(fan_in: int) -> nn.initializers.Initializer:
    bound = fan_in**-0.5
    return lambda rng, shape, dtype=jnp.float32: jax.random.uniform(rng, shape, dtype, -bound, bound)
