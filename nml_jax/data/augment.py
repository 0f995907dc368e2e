"""Image transforms by name. RGB uint8 in, RGB uint8 of the model's size out, so that they run in Grain workers.

A training transform is (image, np.random.Generator) -> (H, W, 3); an evaluation transform is image -> (H, W, 3). An
image is an array (H, W, 3) or a picture of `decode`, of which only what is needed is decoded. Normalisation is on the
device (`normalize`).
"""

import math
from collections.abc import Callable, Mapping

import cv2
import jax
import jax.numpy as jnp
import numpy as np

from nml_jax.core import plugin
from nml_jax.core.errors import UserError
from nml_jax.data import decode
from nml_jax.data import rand_augment as rand_augments
from nml_jax.data.decode import Box, Encoded, Pixels

Image = np.ndarray | Pixels | Encoded
Augment = Callable[[Image, np.random.Generator], np.ndarray]

# The mean and standard deviation of ImageNet's pixels, which torchvision and timm normalise with.
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def make(name: str, **options) -> Augment:
    """The training transform `name`.

    Raises:
      UserError: there is no such transform, or it has no such option; the message lists those there are.
    """
    if name not in TRANSFORMS:
        raise UserError(f"Unknown augmentation {name!r}; valid: {', '.join(TRANSFORMS)}.")
    return plugin.call(TRANSFORMS[name], "data.augment", **options)


def shift_crop(*, size: int, padding: int, flip: bool) -> Augment:
    """CIFAR's: resize to `size`, pad by reflection, crop at random, and flip half of the images."""

    def apply(image: Image, rng: np.random.Generator) -> np.ndarray:
        image = _picture(image)
        image = image.crop_resized(Box(0, 0, image.height, image.width), size, size, "bicubic")
        top, left = rng.integers(0, 2 * padding + 1, size=2)
        padded = np.pad(image, ((padding, padding), (padding, padding), (0, 0)), mode="reflect")
        crop = padded[top : top + size, left : left + size]
        return mirrored(crop) if flip and rng.random() < 0.5 else crop

    return apply


def random_resized_crop(
    *,
    size: int,
    scale: tuple[float, float],
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    flip: bool,
    interpolation: str = "bicubic",
    rand_augment: Mapping | None = None,
) -> Augment:
    """Inception's crop as torchvision and timm have it, a flip of half of the images, and RandAugment.

    Args:
      scale: of the crop's area, as a share of the image's.
      ratio: of the crop's width to its height.
      interpolation: "bilinear", "bicubic", or "random": either, with even chances. RandAugment's is the same.
      rand_augment: options of `rand_augment.make`; None for none.

    Raises:
      UserError: there is no such interpolation, or RandAugment has no such option.
    """
    valid = (*decode.INTERPOLATIONS, "random")
    if interpolation not in valid:
        raise UserError(
            f"Unknown interpolation {interpolation!r}; valid: {', '.join(valid)}. Correct config.data.augment."
        )
    distort = (
        plugin.call(
            rand_augments.make, "data.augment.rand_augment", interpolation=interpolation, **rand_augment
        )
        if rand_augment
        else None
    )

    def apply(image: Image, rng: np.random.Generator) -> np.ndarray:
        image = _picture(image)
        box = random_box(image.height, image.width, scale, ratio, rng)
        flipped = flip and rng.random() < 0.5
        kind = rng.choice(tuple(decode.INTERPOLATIONS)) if interpolation == "random" else interpolation
        crop = image.crop_resized(box, size, size, kind)
        crop = mirrored(crop) if flipped else crop
        return distort(crop, rng) if distort else crop

    return apply


def random_box(
    height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float], rng: np.random.Generator
) -> Box:
    """A box with an area in `scale` (uniform) and an aspect in `ratio` (log-uniform), anywhere in the image."""
    for _ in range(10):
        area = height * width * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return Box(int(rng.integers(0, height - h + 1)), int(rng.integers(0, width - w + 1)), h, w)
    # No such crop fits: the central one of the nearest valid aspect.
    aspect = min(max(width / height, ratio[0]), ratio[1])
    w, h = min(width, round(height * aspect)), min(height, round(width / aspect))
    return Box((height - h) // 2, (width - w) // 2, h, w)


def mirrored(image: np.ndarray) -> np.ndarray:
    """The image with left and right exchanged; NumPy takes 30 times as long to copy it backwards."""
    return cv2.flip(np.ascontiguousarray(image), 1)


TRANSFORMS = {"shift_crop": shift_crop, "random_resized_crop": random_resized_crop}


def center_crop(*, size: int, crop_pct: float) -> Callable[[Image], np.ndarray]:
    """timm's evaluation transform: the short side to floor(size / crop_pct) by bicubic, then the centre.

    The long side is rounded down, and the centre's corner to the nearest even pixel where it falls between two, as
    torchvision does.
    """

    def apply(image: Image) -> np.ndarray:
        image = _picture(image).rgb()
        height, width = image.shape[:2]
        short = math.floor(size / crop_pct)
        if height <= width:
            height, width = short, int(short * width / height)
        else:
            height, width = int(short * height / width), short
        image = decode.resized(image, height, width)
        top, left = round((height - size) / 2), round((width - size) / 2)
        return image[top : top + size, left : left + size]

    return apply


def _picture(image: Image) -> Pixels | Encoded:
    return Pixels(image) if isinstance(image, np.ndarray) else image


def normalize(image: jax.Array, mean: tuple[float, ...], std: tuple[float, ...]) -> jax.Array:
    """uint8 [0, 255] -> float32, (image / 255 - mean) / std per channel."""
    mean, std = jnp.asarray(mean, jnp.float32), jnp.asarray(std, jnp.float32)
    return (image.astype(jnp.float32) / 255.0 - mean) / std
