"""Image transforms by name. RGB uint8 in, RGB uint8 of the model's size out, so that they run in Grain workers.

A training transform is (image (H, W, 3), np.random.Generator) -> image; an evaluation transform is
image -> image. Normalisation is on the device (`normalize`).
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from nml_jax.core import plugin
from nml_jax.core.errors import UserError

Augment = Callable[[np.ndarray, np.random.Generator], np.ndarray]

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

    def apply(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        image = resize(image, size, size)
        top, left = rng.integers(0, 2 * padding + 1, size=2)
        padded = np.pad(image, ((padding, padding), (padding, padding), (0, 0)), mode="reflect")
        crop = padded[top : top + size, left : left + size]
        return crop[:, ::-1] if flip and rng.random() < 0.5 else crop

    return apply


def random_resized_crop(
    *, size: int, scale: tuple[float, float], ratio: tuple[float, float] = (3 / 4, 4 / 3), flip: bool
) -> Augment:
    """Inception's crop as torchvision has it: an area in `scale`, an aspect in `ratio`, resized by bicubic."""

    def apply(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        height, width = image.shape[:2]
        for _ in range(10):
            area = height * width * rng.uniform(*scale)
            aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
            w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 0 < w <= width and 0 < h <= height:
                top, left = rng.integers(0, height - h + 1), rng.integers(0, width - w + 1)
                break
        else:  # no such crop fits: the central one of the nearest valid aspect
            aspect = min(max(width / height, ratio[0]), ratio[1])
            w, h = min(width, round(height * aspect)), min(height, round(width / aspect))
            top, left = (height - h) // 2, (width - w) // 2
        crop = resize(image[top : top + h, left : left + w], size, size)
        return crop[:, ::-1] if flip and rng.random() < 0.5 else crop

    return apply


TRANSFORMS = {"shift_crop": shift_crop, "random_resized_crop": random_resized_crop}


def center_crop(*, size: int, crop_pct: float) -> Callable[[np.ndarray], np.ndarray]:
    """timm's evaluation transform: the short side to ceil(size / crop_pct) by bicubic, then the centre."""

    def apply(image: np.ndarray) -> np.ndarray:
        height, width = image.shape[:2]
        short = math.ceil(size / crop_pct)
        scale = short / min(height, width)
        image = resize(image, max(short, round(height * scale)), max(short, round(width * scale)))
        top, left = (image.shape[0] - size) // 2, (image.shape[1] - size) // 2
        return image[top : top + size, left : left + size]

    return apply


def resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bicubic with antialiasing (Pillow's); an image of that size is returned as it is."""
    if image.shape[:2] == (height, width):
        return image
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))


def normalize(image: jax.Array, mean: tuple[float, ...], std: tuple[float, ...]) -> jax.Array:
    """uint8 [0, 255] -> float32, (image / 255 - mean) / std per channel."""
    mean, std = jnp.asarray(mean, jnp.float32), jnp.asarray(std, jnp.float32)
    return (image.astype(jnp.float32) / 255.0 - mean) / std
