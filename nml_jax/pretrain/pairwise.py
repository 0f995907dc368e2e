"""Losses over all pairs of a global batch of image and text embeddings: CLIP's InfoNCE and SigLIP's sigmoid loss.

method    largest array on each of n devices, with B pairs
naive     what XLA makes of the (B, B) matrix of logits
local     (B / n, B): each device has the logits of its images with all texts
chunked   (B / n, tile): the same, in tiles of texts that are computed again in the backward (`pretrain.tiles`)

The last two gather the texts, (B, d). InfoNCE also needs the sum of each text's exponentials over all images: the
devices gather each other's sums, two numbers a text, in the place of the image embeddings, so that each logit is
computed once and not for both directions. Gradients go back the same ways: a gather's transpose is a reduce-scatter.
Logits are in float32 at full precision, or in float64 if the embeddings are.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from nml_jax.core import gradients
from nml_jax.core import mesh as meshes
from nml_jax.core.errors import UserError
from nml_jax.models import shard
from nml_jax.models.norm import widened
from nml_jax.pretrain import tiles

METHODS = ("naive", "local", "chunked")
TILE = 512


def info_nce(
    image: jax.Array,
    text: jax.Array,
    logit_scale: jax.Array | float,
    method: str = "naive",
    *,
    tile: int = TILE,
    mesh: Mesh | None = None,
) -> jax.Array:
    """The symmetric InfoNCE loss (Radford et al. 2021) over the global batch, a scalar.

    With z = logit_scale image text^T: the mean over i of logsumexp_j z_ij - z_ii and logsumexp_j z_ji - z_ii, halved.

    Args:
      image, text: L2-normalised, (B, d); row i of one belongs to row i of the other. Within a jax.shard_map over the
        batch, this device's rows of them.
      logit_scale: what the cosines are multiplied with, not below 0.
      method: one of `METHODS`.
      tile: texts at a time, for "chunked"; it need not divide B.
      mesh: the devices that share the batch; None: those of jax.set_mesh, or all there are.

    Raises:
      UserError: no such method, a tile below 1, or devices that cannot share the batch equally.
    """
    return info_nce_and_accuracy(image, text, logit_scale, method, tile=tile, mesh=mesh)[0]


def sigmoid_loss(
    image: jax.Array,
    text: jax.Array,
    logit_scale: jax.Array | float,
    logit_bias: jax.Array | float,
    method: str = "naive",
    *,
    tile: int = TILE,
    mesh: Mesh | None = None,
) -> jax.Array:
    """SigLIP's loss (Zhai et al. 2023, arXiv 2303.15343, eq. 1) over the global batch, a scalar.

    -1/B sum_ij log sigmoid(y_ij (logit_scale image_i . text_j + logit_bias)), y_ij = 1 for i = j and -1 otherwise.
    The arguments are those of `info_nce`.
    """
    return sigmoid_loss_and_accuracy(image, text, logit_scale, logit_bias, method, tile=tile, mesh=mesh)[0]


def info_nce_and_accuracy(
    image: jax.Array,
    text: jax.Array,
    logit_scale: jax.Array | float,
    method: str = "naive",
    *,
    tile: int = TILE,
    mesh: Mesh | None = None,
) -> tuple[jax.Array, jax.Array]:
    """`info_nce`, and the fraction of the images whose largest logit is that of their own text."""
    check(method, tile)
    if method == "naive":
        return _whole(_naive_info_nce, image, text, logit_scale)
    statistics = _exponentials if method == "local" else functools.partial(tiles.exponentials, tile)
    return _divided(functools.partial(_info_nce_of_share, statistics), mesh, image, text, logit_scale)


def sigmoid_loss_and_accuracy(
    image: jax.Array,
    text: jax.Array,
    logit_scale: jax.Array | float,
    logit_bias: jax.Array | float,
    method: str = "naive",
    *,
    tile: int = TILE,
    mesh: Mesh | None = None,
) -> tuple[jax.Array, jax.Array]:
    """`sigmoid_loss`, and the fraction of the images whose largest logit is that of their own text."""
    check(method, tile)
    if method == "naive":
        return _whole(_naive_sigmoid_loss, image, text, logit_scale, logit_bias)
    statistics = _softplus if method == "local" else functools.partial(tiles.softplus, tile)
    return _divided(
        functools.partial(_sigmoid_loss_of_share, statistics), mesh, image, text, logit_scale, logit_bias
    )


def check(method: str, tile: int) -> None:
    """Raises a UserError for a method that there is not or a tile without texts."""
    if method not in METHODS:
        raise UserError(
            f"Unknown loss method {method!r}; valid: {', '.join(METHODS)}. Correct config.loss.method."
        )
    if tile < 1:
        raise UserError(f"loss.tile={tile} is not 1 or above: it is the number of texts compared at a time.")


def _whole(function: Callable, image: jax.Array, text: jax.Array, *scalars: jax.Array | float):
    """`function` of the whole batch; within a shard_map every device computes the whole of it."""
    image, text = widened(image), widened(text)
    if not shard.axes():
        return function(image, text, *scalars)
    return shard.mean(function(*_gathered((image, text)), *scalars))


def _divided(
    of_share: Callable, mesh: Mesh | None, image: jax.Array, text: jax.Array, *scalars: jax.Array | float
) -> tuple[jax.Array, jax.Array]:
    """`of_share` on each device, with its rows of the batch."""
    image, text = widened(image), widened(text)
    scalars = tuple(jnp.asarray(s, image.dtype) for s in scalars)
    if shard.axes():
        return of_share(image, text, *scalars)
    if mesh is None:
        context = jax.sharding.get_abstract_mesh()
        mesh = meshes.make() if context.empty else context
    if len(image) % mesh.size:
        raise UserError(f"A batch of {len(image)} pairs cannot be shared by {mesh.size} devices equally.")
    same, divided = PartitionSpec(), PartitionSpec(meshes.AXES)
    return jax.shard_map(
        of_share, mesh=mesh, in_specs=(divided, divided, *(same,) * len(scalars)), out_specs=same
    )(image, text, *scalars)


def _gathered(tree):
    """Each device's rows, one after another, on every device."""
    return jax.tree.map(lambda x: jax.lax.all_gather(x, meshes.AXES, tiled=True), tree)


def _naive_info_nce(image: jax.Array, text: jax.Array, scale: jax.Array) -> tuple[jax.Array, jax.Array]:
    z = tiles.cosines(image, text)
    paired = jnp.diagonal(z)
    by_image = jax.nn.logsumexp(scale * (z - paired[:, None]), axis=1)
    by_text = jax.nn.logsumexp(scale * (z - paired), axis=0)
    return _mean(by_image + by_text) / 2, (z.argmax(1) == jnp.arange(len(z))).mean()


def _naive_sigmoid_loss(
    image: jax.Array, text: jax.Array, scale: jax.Array, bias: jax.Array
) -> tuple[jax.Array, jax.Array]:
    logits = scale * tiles.cosines(image, text) + bias
    signs = 2 * jnp.eye(len(logits), dtype=logits.dtype) - 1
    losses = jax.nn.softplus(-signs * logits).sum(1)
    return _mean(losses), (logits.argmax(1) == jnp.arange(len(logits))).mean()


def _info_nce_of_share(
    statistics: Callable, image: jax.Array, text: jax.Array, scale: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Of the global batch, from this device's (b, d) of both."""
    rows, first = len(image), jax.lax.axis_index(meshes.AXES) * len(image)
    by_image, by_text, paired, nearest = statistics(image, _gathered(text), gradients.varying(scale), first)
    # (devices, 2, B): of the sums over each device's images, those of this device's texts are put together.
    parts = jax.lax.all_gather(jnp.stack(by_text), meshes.AXES)
    tops, totals = jnp.moveaxis(jax.lax.dynamic_slice_in_dim(parts, first, rows, axis=2), 1, 0)
    top = jax.lax.stop_gradient(tops.max(0))
    total = (totals * jnp.exp(scale * (jax.lax.stop_gradient(tops) - top))).sum(0)
    losses = jnp.log(by_image[1]) + jnp.log(total) + scale * ((by_image[0] - paired) + (top - paired))
    matched = (nearest == first + jnp.arange(rows)).astype(losses.dtype)
    return shard.mean((_mean(losses) / 2, matched.mean()))


def _sigmoid_loss_of_share(
    statistics: Callable, image: jax.Array, text: jax.Array, scale: jax.Array, bias: jax.Array
) -> tuple[jax.Array, jax.Array]:
    rows, first = len(image), jax.lax.axis_index(meshes.AXES) * len(image)
    scale, bias = gradients.varying((scale, bias))
    others, paired, nearest = statistics(image, _gathered(text), scale, bias, first)
    losses = others + jax.nn.softplus(-paired)
    matched = (nearest == first + jnp.arange(rows)).astype(losses.dtype)
    return shard.mean((_mean(losses), matched.mean()))


def _mean(losses: jax.Array) -> jax.Array:
    """The mean of numbers that are much alike: their differences are summed, which costs fewer of float32's digits."""
    first = jax.lax.stop_gradient(losses[0])
    return first + (losses - first).mean()


def _exponentials(x: jax.Array, y: jax.Array, scale: jax.Array, first: jax.Array):
    """`tiles.exponentials`, in one tile."""
    z = tiles.cosines(x, y)
    top, column_top = (jax.lax.stop_gradient(z.max(axis)) for axis in (1, 0))
    total, column_total = jnp.exp(scale * (z - top[:, None])).sum(1), jnp.exp(scale * (z - column_top)).sum(0)
    own = first + jnp.arange(len(x))
    paired = jnp.take_along_axis(z, own[:, None], axis=1)[:, 0]
    return (top, total), (column_top, column_total), paired, z.argmax(1)


def _softplus(x: jax.Array, y: jax.Array, scale: jax.Array, bias: jax.Array, first: jax.Array):
    """`tiles.softplus`, in one tile."""
    logits = scale * tiles.cosines(x, y) + bias
    own = (first + jnp.arange(len(x)))[:, None]
    paired = jnp.take_along_axis(logits, own, axis=1)[:, 0]
    others = jnp.where(own == jnp.arange(len(y)), 0, jax.nn.softplus(logits)).sum(1)
    return others, paired, logits.argmax(1)
