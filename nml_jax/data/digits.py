"""Digits: scikit-learn's handwritten digits (1,797 of them, 8x8, 17 grey levels), enlarged to 32x32 RGB.

Fields: id (its number is the row in `sklearn.datasets.load_digits`), image (PNG), label. Nothing is downloaded.
"""

import functools
import io
from collections.abc import Iterator

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from sklearn.datasets import load_digits

from nml_jax.core.errors import UserError

VERSION = "1.0.0"
EXAMPLES = {"train": 1_197, "test": 600}
SIZE = 32


@functools.cache
def rows(split: str) -> np.ndarray:
    """Rows of `load_digits` in the split, (N,) int64: the classes have the same shares in both splits, to one."""
    labels = load_digits().target
    order = np.random.Generator(np.random.Philox(key=0)).permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    # 600 positions evenly spaced along the rows sorted by class.
    steps = np.arange(len(order) + 1) * EXAMPLES["test"] // len(order)
    in_test = np.diff(steps) > 0
    return np.sort(order[in_test if split == "test" else ~in_test])


def enlarged(image: np.ndarray) -> Image.Image:
    """An (8, 8) image with values 0 to 16 as a 32x32 RGB picture with values 0 to 255, by bicubic interpolation."""
    grey = Image.fromarray((image * (255 / 16)).round().astype(np.uint8))
    return grey.resize((SIZE, SIZE), Image.Resampling.BICUBIC).convert("RGB")


class Digits(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """The TFDS builder; preparing takes a second and neither network nor TensorFlow."""

    VERSION = tfds.core.Version(VERSION)

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "id": tfds.features.Text(),
            "image": tfds.features.Image(shape=(SIZE, SIZE, 3), encoding_format="png"),
            "label": tfds.features.ClassLabel(names=[str(digit) for digit in range(10)]),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description=__doc__,
            features=tfds.features.FeaturesDict(features),
            supervised_keys=("image", "label"),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        return {split: self._generate_examples(split) for split in EXAMPLES}

    def _generate_examples(self, split: str) -> Iterator[tuple[str, dict]]:
        digits = load_digits()
        for row in rows(split):
            png = io.BytesIO()
            enlarged(digits.images[row]).save(png, "PNG", compress_level=1)
            png.seek(0)
            key = f"digits/{split}/{row:06d}"
            yield key, {"id": key, "image": png, "label": int(digits.target[row])}


def builder(name: str, data_dir: str) -> tfds.core.DatasetBuilder:
    """The builder of "digits", prepared or not.

    Raises:
      UserError: `name` asks for a config; there are none.
    """
    if name != "digits":
        raise UserError(
            f"There is no data set {name!r}: this one has no configs or versions to choose; say digits."
        )
    return Digits(data_dir=data_dir, file_format="array_record")
