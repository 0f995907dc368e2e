"""Mixup (Zhang et al. 2018, arXiv:1710.09412) and CutMix (Yun et al. 2019, arXiv:1905.04899), on the device.

As timm's Mixup in its mode "batch": one choice and one weight for the whole batch, and the partner of row i is row
B - 1 - i.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Box(NamedTuple):
    """Rows top to bottom and columns left to right, the ends left out: int32 scalars."""

    top: jax.Array
    bottom: jax.Array
    left: jax.Array
    right: jax.Array


def mix(
    rng: jax.Array,
    image: jax.Array,
    target: jax.Array,
    *,
    mixup: float,
    cutmix: float,
    probability: float = 1.0,
    switch: float = 0.5,
) -> tuple[jax.Array, jax.Array]:
    """Each image and its target, mixed with those of the row opposite it in the batch.

    Args:
      image: (B, H, W, C) uint8 or float.
      target: (B, classes) float32.
      mixup, cutmix: alpha of the Beta(alpha, alpha) that the weight is drawn from; 0 switches one off.
      probability: of mixing a batch at all.
      switch: of CutMix where both are on.

    Returns:
      (B, H, W, C) float32 with the values of `image`, and (B, classes) float32.
    """
    if not (mixup or cutmix):
        return image.astype(jnp.float32), target
    weight_key, place_key, mix_key, switch_key = jax.random.split(rng, 4)
    share = switch if mixup and cutmix else float(bool(cutmix))
    cut = jax.random.uniform(switch_key) < share
    alpha = jnp.where(cut, cutmix or mixup, mixup or cutmix)
    weight = jax.random.beta(weight_key, alpha, alpha)
    weight = jnp.where(jax.random.uniform(mix_key) < probability, weight, 1.0)
    return blend(image, target, weight, cut, random_box(place_key, *image.shape[1:3], weight))


def random_box(rng: jax.Array, height: int, width: int, weight: jax.Array) -> Box:
    """A box of a share 1 - weight of the image, of its shape, around a uniform point, cut off at the borders."""
    side = jnp.sqrt(1.0 - weight)
    y_key, x_key = jax.random.split(rng)

    def span(key: jax.Array, length: int) -> tuple[jax.Array, jax.Array]:
        cut = (length * side).astype(jnp.int32)
        centre = jax.random.randint(key, (), 0, length)
        return jnp.clip(centre - cut // 2, 0, length), jnp.clip(centre + (cut + 1) // 2, 0, length)

    return Box(*span(y_key, height), *span(x_key, width))


def blend(
    image: jax.Array, target: jax.Array, weight: jax.Array, cut: jax.Array, box: Box
) -> tuple[jax.Array, jax.Array]:
    """CutMix with `box` where `cut`, else mixup with `weight` of the image and 1 - weight of its partner.

    The targets of CutMix have the weights of the areas that were realised.
    """
    height, width = image.shape[1:3]
    rows, columns = jnp.arange(height)[:, None], jnp.arange(width)
    inside = (box.top <= rows) & (rows < box.bottom) & (box.left <= columns) & (columns < box.right)
    area = (box.bottom - box.top) * (box.right - box.left)
    own = jnp.where(cut, jnp.where(inside, 0.0, 1.0), weight)[:, :, None]  # (H, W, 1)
    weight = jnp.where(cut, 1.0 - area / (height * width), weight)
    # Reversed as it came: rows of the batch lie on other devices, and a byte travels faster than a float.
    partner = jax.lax.optimization_barrier(image[::-1])
    mixed = own * image.astype(jnp.float32) + (1.0 - own) * partner.astype(jnp.float32)
    return mixed, weight * target + (1.0 - weight) * target[::-1]
