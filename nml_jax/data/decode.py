"""Encoded images -> RGB arrays."""

import io

import numpy as np
from PIL import Image, UnidentifiedImageError

from nml_jax.core.errors import UserError


def rgb(image: bytes | np.ndarray, *, name: str) -> np.ndarray:
    """(H, W, 3) uint8 from encoded bytes (JPEG, PNG, ...; grey and CMYK are converted) or a decoded array.

    Raises:
      UserError: the bytes are no image; `name` says which record it is.
    """
    if isinstance(image, np.ndarray) and image.ndim == 3:
        return np.repeat(image, 3, axis=2) if image.shape[2] == 1 else image
    encoded = image.tobytes() if isinstance(image, np.ndarray) else bytes(image)
    try:
        with Image.open(io.BytesIO(encoded)) as picture:
            return np.asarray(picture.convert("RGB"))
    except (UnidentifiedImageError, OSError) as error:
        raise UserError(
            f"The image of record {name} cannot be decoded ({error}). Prepare the data set again, or remove the record."
        ) from None
