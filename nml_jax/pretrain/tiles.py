"""Sums over a matrix of logits that is never held: tile after tile of its columns, and again in the backward.

x (b, d) are this device's embeddings, y (B, d) all embeddings of the other kind; row i of x belongs to row first + i of
y. A tile is (b, T), and all that is kept from tile to tile is (b,).
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from nml_jax.core.gradients import varying

Pair = tuple[jax.Array, jax.Array]


def cosines(x: jax.Array, y: jax.Array) -> jax.Array:
    """x y^T at full precision, on every device."""
    return jnp.matmul(x, y.T, precision=jax.lax.Precision.HIGHEST)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def exponentials(
    tile: int, x: jax.Array, y: jax.Array, scale: jax.Array, first: jax.Array
) -> tuple[Pair, Pair, jax.Array, jax.Array]:
    """Of the cosines z = x y^T: what InfoNCE needs of each row and each column.

    A sum of exponentials comes as (top, total), with top the largest z and total the sum of exp(scale (z - top)), so
    log sum exp(scale z) = scale top + log total. In the derivative top counts as a constant, as it cancels. It is
    subtracted before the scale multiplies: of logits near 100 float32 has lost the digits that matter.

    Returns:
      (top, total) of the rows, (b,) each; of the columns, (B,) each; the paired z_i,first+i (b,); and the column of
      each row's largest z, (b,) int32.
    """
    return _exponentials(tile, x, y, scale, first)


def _exponentials(tile: int, x: jax.Array, y: jax.Array, scale: jax.Array, first: jax.Array):
    own = first + jnp.arange(len(x))

    def add(carry: tuple, start: jax.Array, y: jax.Array):
        top, total, paired, nearest = carry
        z = cosines(x, y)
        here, column_top = z.max(1), z.max(0)
        new_top = jnp.maximum(top, here)
        total = total * jnp.exp(scale * (top - new_top)) + jnp.exp(scale * (z - new_top[:, None])).sum(1)
        paired += jnp.where(_is_own(own, start, y), z, 0).sum(1)
        nearest = jnp.where(here > top, start + z.argmax(1).astype(jnp.int32), nearest)
        return (new_top, total, paired, nearest), (column_top, jnp.exp(scale * (z - column_top)).sum(0))

    zeros = jnp.zeros(len(x), x.dtype)
    # below every cosine, and finite, so that a scale of zero is nothing special
    start = varying((zeros - 2, zeros, zeros, jnp.zeros(len(x), jnp.int32)))
    (top, total, paired, nearest), columns = over_tiles(add, start, tile, y)
    return (top, total), columns, paired, nearest


def _exponentials_forward(tile: int, x: jax.Array, y: jax.Array, scale: jax.Array, first: jax.Array):
    out = _exponentials(tile, x, y, scale, first)
    (top, _), (column_top, _), _, _ = out
    return out, (x, y, scale, first, top, column_top)


def _exponentials_backward(tile: int, saved: tuple, cotangents: tuple):
    x, y, scale, first, top, column_top = saved
    (_, d_total), (_, d_column_total), d_paired, _ = cotangents
    own = first + jnp.arange(len(x))

    def add(carry: tuple, start: jax.Array, y: jax.Array, column_top: jax.Array, d_column_total: jax.Array):
        dx, d_scale = carry
        z = cosines(x, y)
        below, column_below = z - top[:, None], z - column_top
        by_row = d_total[:, None] * jnp.exp(scale * below)
        by_column = d_column_total * jnp.exp(scale * column_below)
        d_scale += (by_row * below + by_column * column_below).sum(1)
        dz = scale * (by_row + by_column) + jnp.where(_is_own(own, start, y), d_paired[:, None], 0)
        return (dx + cosines(dz, y.T), d_scale), cosines(dz.T, x.T)

    start = varying((jnp.zeros(x.shape, x.dtype), jnp.zeros(len(x), x.dtype)))
    (dx, d_scale), dy = over_tiles(add, start, tile, y, column_top, d_column_total)
    return dx, dy, d_scale.sum(), None


exponentials.defvjp(_exponentials_forward, _exponentials_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def softplus(
    tile: int, x: jax.Array, y: jax.Array, scale: jax.Array, bias: jax.Array, first: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Of z = scale x y^T + bias: what the sigmoid loss needs of each row.

    Returns:
      The sum of log(1 + exp z) over all columns but the paired one, (b,); the paired z_i,first+i (b,); and the column
      of each row's largest z, (b,) int32.
    """
    return _softplus(tile, x, y, scale, bias, first)


def _softplus(tile: int, x: jax.Array, y: jax.Array, scale: jax.Array, bias: jax.Array, first: jax.Array):
    own = first + jnp.arange(len(x))

    def add(carry: tuple, start: jax.Array, y: jax.Array):
        others, paired, top, nearest = carry
        logits = scale * cosines(x, y) + bias
        is_own, here = _is_own(own, start, y), logits.max(1)
        others += jnp.where(is_own, 0, jax.nn.softplus(logits)).sum(1)
        paired += jnp.where(is_own, logits, 0).sum(1)
        nearest = jnp.where(here > top, start + logits.argmax(1).astype(jnp.int32), nearest)
        return (others, paired, jnp.maximum(top, here), nearest), ()

    zeros = jnp.zeros(len(x), x.dtype)
    start = varying((zeros, zeros, zeros - jnp.inf, jnp.zeros(len(x), jnp.int32)))
    (others, paired, _, nearest), _ = over_tiles(add, start, tile, y)
    return others, paired, nearest


def _softplus_forward(tile: int, *arguments: jax.Array):
    return _softplus(tile, *arguments), arguments


def _softplus_backward(tile: int, saved: tuple, cotangents: tuple):
    x, y, scale, bias, first = saved
    d_others, d_paired, _ = cotangents
    own = first + jnp.arange(len(x))

    def add(carry: tuple, start: jax.Array, y: jax.Array):
        dx, d_scale, d_bias = carry
        z = cosines(x, y)
        logits = scale * z + bias
        d = d_others[:, None] * jax.nn.sigmoid(logits)
        d = jnp.where(_is_own(own, start, y), d_paired[:, None], d)
        carry = dx + cosines(d, y.T), d_scale + (d * z).sum(1), d_bias + d.sum(1)
        return carry, cosines(d.T, x.T)

    zeros = jnp.zeros(len(x), x.dtype)
    start = varying((jnp.zeros(x.shape, x.dtype), zeros, zeros))
    (dx, d_scale, d_bias), dy = over_tiles(add, start, tile, y)
    return scale * dx, scale * dy, d_scale.sum(), d_bias.sum(), None


softplus.defvjp(_softplus_forward, _softplus_backward)


def _is_own(own: jax.Array, start: jax.Array, y: jax.Array) -> jax.Array:
    """(b, T): whether column `start` + j is the one that row i belongs to."""
    return own[:, None] == start + jnp.arange(len(y))


def over_tiles(step: Callable, carry: Any, tile: int, *columns: jax.Array) -> tuple[Any, Any]:
    """`carry, out = step(carry, start, *columns[start : start + tile])` one after another; the last may be shorter.

    Args:
      columns: arrays with B rows each.

    Returns:
      The last carry, and the outputs one after another.
    """
    count = len(columns[0])
    tile = min(tile, count)
    full = count // tile * tile
    parts = [c[:full].reshape(-1, tile, *c.shape[1:]) for c in columns]
    starts = jnp.arange(0, full, tile, dtype=jnp.int32)
    carry, out = jax.lax.scan(lambda carry, part: step(carry, *part), carry, (starts, *parts))
    out = jax.tree.map(lambda o: o.reshape(full, *o.shape[2:]), out)
    if full < count:
        carry, last = step(carry, jnp.int32(full), *(c[full:] for c in columns))
        out = jax.tree.map(lambda o, end: jnp.concatenate([o, end]), out, last)
    return carry, out
