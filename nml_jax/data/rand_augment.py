"""RandAugment (Cubuk et al. 2020, arXiv:1909.13719) as timm has it: 15 operations, levels 0 to 10.

timm's "rand-m7-mstd0.5-inc1" is `make(ops=2, magnitude=7, std=0.5, increasing=True)`. timm fills with the mean colour
of ImageNet what an operation leaves empty, and so does this.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from nml_jax.core.errors import UserError
from nml_jax.data.decode import INTERPOLATIONS

HIGHEST = 10.0
MEAN_COLOUR = (124, 116, 104)


class Look(NamedTuple):
    """How geometric operations draw pixels."""

    resample: Image.Resampling
    fill: tuple[int, int, int]  # RGB, where the image has been moved away


class Operation(NamedTuple):
    """An operation, and its argument at a level in [0, 10] and a sign of -1 or 1."""

    apply: Callable[[Image.Image, float, Look], Image.Image]
    argument: Callable[[float, int], float]


def make(
    *,
    ops: int,
    magnitude: float,
    std: float,
    increasing: bool,
    probability: float = 0.5,
    fill: tuple[int, int, int] = MEAN_COLOUR,
    interpolation: str = "bicubic",
) -> Callable[[np.ndarray, np.random.Generator], np.ndarray]:
    """(H, W, 3) uint8 -> the same, after `ops` operations drawn with replacement, each done with `probability`.

    Args:
      magnitude, std: of the normal distribution of the level, which is then cut off at 0 and 10.
      increasing: all operations distort more at higher levels; otherwise some distort less, as in the first code.
      interpolation: "bilinear", "bicubic" or "random".

    Raises:
      UserError: a value out of its range.
    """
    if not (ops >= 1 and 0 <= magnitude <= HIGHEST and std >= 0 and 0 <= probability <= 1):
        raise UserError(
            f"RandAugment cannot do ops={ops}, magnitude={magnitude}, std={std}, probability={probability}: ops is at "
            "least 1, magnitude in [0, 10], std not negative, probability in [0, 1]. Correct config.data.augment."
        )
    operations = tuple(OPERATIONS[increasing].values())
    kinds = tuple(INTERPOLATIONS) if interpolation == "random" else (interpolation,)

    def apply(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        picture = Image.fromarray(np.ascontiguousarray(image))
        for number in rng.integers(0, len(operations), size=ops):
            if rng.random() < probability:
                level = min(max(rng.normal(magnitude, std), 0.0), HIGHEST)
                sign = -1 if rng.random() < 0.5 else 1
                look = Look(INTERPOLATIONS[kinds[rng.integers(len(kinds))]], tuple(fill))
                operation = operations[number]
                picture = operation.apply(picture, operation.argument(level, sign), look)
        return np.asarray(picture)

    return apply


def _affine(image: Image.Image, matrix: tuple[float, ...], look: Look) -> Image.Image:
    """The pixel (x, y) of the result is that at (a x + b y + c, d x + e y + f)."""
    return image.transform(image.size, Image.Transform.AFFINE, matrix, look.resample, fillcolor=look.fill)


def shear_x(image: Image.Image, factor: float, look: Look) -> Image.Image:
    return _affine(image, (1, factor, 0, 0, 1, 0), look)


def shear_y(image: Image.Image, factor: float, look: Look) -> Image.Image:
    return _affine(image, (1, 0, 0, factor, 1, 0), look)


def translate_x(image: Image.Image, share: float, look: Look) -> Image.Image:
    return _affine(image, (1, 0, share * image.width, 0, 1, 0), look)


def translate_y(image: Image.Image, share: float, look: Look) -> Image.Image:
    return _affine(image, (1, 0, 0, 0, 1, share * image.height), look)


def rotate(image: Image.Image, degrees: float, look: Look) -> Image.Image:
    return image.rotate(degrees, look.resample, fillcolor=look.fill)


def auto_contrast(image: Image.Image, _: float, look: Look) -> Image.Image:
    return ImageOps.autocontrast(image)


def equalize(image: Image.Image, _: float, look: Look) -> Image.Image:
    return ImageOps.equalize(image)


def invert(image: Image.Image, _: float, look: Look) -> Image.Image:
    return ImageOps.invert(image)


def posterize(image: Image.Image, bits: float, look: Look) -> Image.Image:
    """Keeps the highest bits of each value; with 0 bits the image is black (newer Pillow's own refuses that)."""
    mask = 256 - 2 ** (8 - int(bits))
    return image.point([value & mask for value in range(256)] * 3)


def solarize(image: Image.Image, threshold: float, look: Look) -> Image.Image:
    """Inverts what is not below the threshold."""
    return ImageOps.solarize(image, threshold)


def solarize_add(image: Image.Image, amount: float, look: Look) -> Image.Image:
    """Brightens what is below 128."""
    values = np.arange(256)
    brighter = np.where(values < 128, np.minimum(values + int(amount), 255), values)
    return image.point(brighter.tolist() * 3)


def color(image: Image.Image, factor: float, look: Look) -> Image.Image:
    return ImageEnhance.Color(image).enhance(factor)


def contrast(image: Image.Image, factor: float, look: Look) -> Image.Image:
    return ImageEnhance.Contrast(image).enhance(factor)


def brightness(image: Image.Image, factor: float, look: Look) -> Image.Image:
    return ImageEnhance.Brightness(image).enhance(factor)


def sharpness(image: Image.Image, factor: float, look: Look) -> Image.Image:
    return ImageEnhance.Sharpness(image).enhance(factor)


def _none(level: float, sign: int) -> float:
    return 0.0


def _signed(highest: float) -> Callable[[float, int], float]:
    return lambda level, sign: sign * (level / HIGHEST) * highest


def _enhance(level: float, sign: int) -> float:
    """0.1 to 1.9; 1 changes nothing, and is the middle of the levels."""
    return level / HIGHEST * 1.8 + 0.1


def _enhance_increasing(level: float, sign: int) -> float:
    """From 1 either way, to 0.1 or 1.9."""
    return max(0.1, 1.0 + sign * (level / HIGHEST * 0.9))


_same = {
    "auto_contrast": Operation(auto_contrast, _none),
    "equalize": Operation(equalize, _none),
    "invert": Operation(invert, _none),
    "rotate": Operation(rotate, _signed(30.0)),
    "solarize_add": Operation(solarize_add, lambda level, sign: min(128, int(level / HIGHEST * 110))),
    "shear_x": Operation(shear_x, _signed(0.3)),
    "shear_y": Operation(shear_y, _signed(0.3)),
    "translate_x": Operation(translate_x, _signed(0.45)),
    "translate_y": Operation(translate_y, _signed(0.45)),
}
_enhancers = {"color": color, "contrast": contrast, "brightness": brightness, "sharpness": sharpness}
# increasing -> name -> operation
OPERATIONS = {
    False: _same
    | {name: Operation(function, _enhance) for name, function in _enhancers.items()}
    | {
        "posterize": Operation(posterize, lambda level, sign: int(level / HIGHEST * 4)),
        "solarize": Operation(solarize, lambda level, sign: min(256, int(level / HIGHEST * 256))),
    },
    True: _same
    | {name: Operation(function, _enhance_increasing) for name, function in _enhancers.items()}
    | {
        "posterize": Operation(posterize, lambda level, sign: 4 - int(level / HIGHEST * 4)),
        "solarize": Operation(solarize, lambda level, sign: 256 - min(256, int(level / HIGHEST * 256))),
    },
}
