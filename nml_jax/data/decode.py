"""Encoded images -> RGB arrays, decoding no more than what is asked for.

Decoders of JPEG files, by name:
  pillow      Pillow decodes and resizes: the pixels that timm and torchvision have.
  simplejpeg  libjpeg-turbo decodes the same pixels, OpenCV resizes the crop: fast, and close to Pillow's.
  opencv      the same with OpenCV's reader, which decodes whole images and does not see damage amid the data.

What the fast ones do not take (CMYK, PNG, unusual JPEG, damage) they leave to Pillow: an image is undecodable where
Pillow says so. A file that lacks its end is undecodable whatever part of it is asked for; damage amid the data of a
JPEG counts where the part reaches it.
"""

import io
from typing import NamedTuple

import numpy as np
from PIL import Image

from nml_jax.core.errors import UserError
from nml_jax.data import fast_jpeg, jpeg

DECODERS = ("pillow", *fast_jpeg.DECODERS)
# What Pillow may open. It knows others, of which some run programs (EPS) or are no photographs.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
INTERPOLATIONS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


class Undecodable(UserError):
    """The bytes of a record are no image, or only a part of one."""


class Box(NamedTuple):
    """A part of an image, in pixels."""

    top: int
    left: int
    height: int
    width: int


def check_decoder(name: str) -> None:
    """Raises a UserError if there is no decoder `name`."""
    if name not in DECODERS:
        raise UserError(
            f"Unknown decoder {name!r}; valid: {', '.join(DECODERS)}. Correct config.data.decoder."
        )


def rgb(image: bytes | np.ndarray, *, name: str) -> np.ndarray:
    """(H, W, 3) uint8 from encoded bytes (JPEG, PNG, ...; grey and CMYK are converted) or a decoded array.

    Raises:
      Undecodable: the bytes are no image; `name` says which record it is.
    """
    return picture(image, name=name).rgb()


def picture(image: bytes | np.ndarray, *, name: str, decoder: str = "pillow") -> "Pixels | Encoded":
    """An image whose size is known, and whose pixels are decoded when they are asked for.

    Args:
      image: encoded bytes, or a decoded array (H, W, 1 or 3) uint8.
      name: of its record, for messages.

    Raises:
      Undecodable: the bytes are no image; what has a good beginning only is found out when its pixels are asked for.
    """
    if isinstance(image, np.ndarray) and image.ndim == 3:
        return Pixels(np.repeat(image, 3, axis=2) if image.shape[2] == 1 else image)
    return Encoded(image.tobytes() if isinstance(image, np.ndarray) else bytes(image), name, decoder)


def resized(pixels: np.ndarray, height: int, width: int, interpolation: str = "bicubic") -> np.ndarray:
    """Pillow's resize, with antialiasing; an image of that size is returned as it is."""
    if pixels.shape[:2] == (height, width):
        return pixels
    return np.asarray(Image.fromarray(pixels).resize((width, height), INTERPOLATIONS[interpolation]))


class Pixels:
    """A decoded image."""

    def __init__(self, pixels: np.ndarray):
        self._pixels = pixels
        self.height, self.width = pixels.shape[:2]

    def rgb(self) -> np.ndarray:
        """(H, W, 3) uint8."""
        return self._pixels

    def crop_resized(self, box: Box, height: int, width: int, interpolation: str) -> np.ndarray:
        """The part `box`, resized to (height, width, 3) uint8."""
        return resized(_part(self._pixels, box), height, width, interpolation)


class Encoded:
    """An encoded image; a JPEG's size is read off its header."""

    def __init__(self, encoded: bytes, name: str, decoder: str):
        self._encoded, self._name = encoded, name
        self._fast = fast_jpeg.DECODERS.get(decoder)
        self._frame = jpeg.frame(encoded)
        # Pillow refuses sizes that only damaged or malicious files claim; Image.MAX_IMAGE_PIXELS is its limit.
        if self._frame and self._frame.height * self._frame.width > Image.MAX_IMAGE_PIXELS:
            self._frame = None
        if self._frame is None:
            self.width, self.height = self._pillow(encoded, decode=False).size
        else:
            self.height, self.width = self._frame.height, self._frame.width

    def rgb(self) -> np.ndarray:
        """(H, W, 3) uint8.

        Raises:
          Undecodable: the image is truncated or corrupt.
        """
        pixels = self._pixels(Box(0, 0, self.height, self.width), 1)
        return np.asarray(self._pillow(self._encoded)) if pixels is None else pixels

    def crop_resized(self, box: Box, height: int, width: int, interpolation: str) -> np.ndarray:
        """The part `box`, resized to (height, width, 3) uint8.

        Raises:
          Undecodable: the image is truncated or corrupt.
        """
        # JPEG's blocks of 8 x 8 decode to 4 x 4, 2 x 2 or 1 x 1 for less: as small as leaves enough pixels to the crop.
        factor = 8
        while factor > 1 and (box.height < factor * height or box.width < factor * width):
            factor //= 2
        pixels = self._pixels(box, factor)
        if pixels is not None:
            return fast_jpeg.resized(pixels, height, width, interpolation)
        encoded = self._encoded
        if self._frame is not None:
            encoded = jpeg.cut(encoded, self._frame, box.top + box.height)
        corners = (box.left, box.top, box.left + box.width, box.top + box.height)
        part = self._pillow(encoded).crop(corners)
        return np.asarray(part.resize((width, height), INTERPOLATIONS[interpolation]))

    def _pixels(self, box: Box, factor: int) -> np.ndarray | None:
        """The box in an image that is `factor` times smaller, or None if this is not for a fast decoder."""
        if self._fast is None or self._frame is None or self._frame.components not in (1, 3):
            return None
        pixels = self._fast(self._encoded, self._frame, box.top + box.height, factor)
        if pixels is None:
            return None
        # Where the image is smaller, the box's sides move to whole pixels of it.
        top, left = round(box.top / factor), round(box.left / factor)
        bottom, right = round((box.top + box.height) / factor), round((box.left + box.width) / factor)
        return _part(pixels, Box(top, left, max(1, bottom - top), max(1, right - left)))

    def _pillow(self, encoded: bytes, *, decode: bool = True) -> Image.Image:
        try:
            image = Image.open(io.BytesIO(encoded), formats=FORMATS)
            if not decode:
                return image
            image.load()
            return image if image.mode == "RGB" else image.convert("RGB")
        except MemoryError:
            raise
        except Exception as error:  # Pillow's readers raise all kinds on what is broken
            raise Undecodable(
                f"The image of record {self._name} cannot be decoded ({error}). Prepare the data set again, or remove "
                "the record."
            ) from None


def _part(pixels: np.ndarray, box: Box) -> np.ndarray:
    return pixels[box.top : box.top + box.height, box.left : box.left + box.width]
