"""Images for tests: like photographs, so that JPEG and resizing have something to get wrong; and files of all kinds."""

import io

import numpy as np
from PIL import Image


def photo(height: int, width: int, seed: int = 0) -> np.ndarray:
    """(height, width, 3) uint8: structure at all scales, edges, and a little noise."""
    rng = np.random.default_rng(seed)
    image = np.zeros((height, width, 3))
    for cells, strength in ((3, 60), (12, 40), (48, 20)):
        small = np.uint8(128 + np.clip(rng.normal(0, strength, (cells, cells, 3)), -128, 127))
        image += np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)) - 128.0
    image[height // 3 : height // 2, width // 4 : width // 2] += 60
    return np.uint8(np.clip(image + 128 + rng.normal(0, 3, (height, width, 1)), 0, 255))


def encoded(image: np.ndarray, kind: str = "JPEG", mode: str = "RGB", **options) -> bytes:
    """A file with the image converted to `mode`."""
    options = {"quality": 92, "subsampling": "4:2:0"} | options if kind == "JPEG" else options
    buffer = io.BytesIO()
    Image.fromarray(image).convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


def by_pillow(file: bytes) -> np.ndarray:
    """What timm and torchvision decode."""
    return np.asarray(Image.open(io.BytesIO(file)).convert("RGB"))
