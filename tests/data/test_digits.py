"""The digits builder against scikit-learn's table."""

import io

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from sklearn.datasets import load_digits

from nml_jax.core.errors import UserError
from nml_jax.data import digits, source


@pytest.fixture(scope="module")
def records(data_dir: str) -> dict[str, list[dict]]:
    source.open("digits", "train", data_dir=data_dir)  # one process prepares it
    builder = digits.builder("digits", data_dir)
    decoders = {"image": tfds.decode.SkipDecoding()}
    return {split: list(builder.as_data_source(split, decoders=decoders)) for split in ("train", "test")}


def row(record: dict) -> int:
    return int(record["id"].decode().split("/")[-1])


def test_splits_cover_the_table_once(records):
    assert {split: len(rows) for split, rows in records.items()} == {"train": 1197, "test": 600}
    assert sorted(row(r) for rows in records.values() for r in rows) == list(range(1797))
    assert all(
        r["id"].decode().startswith(f"digits/{split}/") for split, rows in records.items() for r in rows
    )


def test_images_and_labels_are_scikit_learns(records):
    table = load_digits()
    for record in records["train"] + records["test"]:
        assert record["label"] == table.target[row(record)]
    for record in records["test"]:
        image = Image.open(io.BytesIO(record["image"]))
        assert image.size == (32, 32)
        assert image.mode == "RGB"
        pixels = np.asarray(image, np.float64)
        assert (pixels == pixels[..., :1]).all()
        blocks = pixels[..., 0].reshape(8, 4, 8, 4).mean((1, 3)) / 255 * 16
        truth = table.images[row(record)]
        # Bicubic enlarging moves a little of a pixel into its neighbours; means of 4x4 blocks stay close.
        assert np.abs(blocks - truth).mean() < 1.1
        assert np.corrcoef(blocks.ravel(), truth.ravel())[0, 1] > 0.975


def test_split_is_stratified(records):
    shares = np.bincount(load_digits().target) * 600 / 1797
    assert np.abs(np.bincount([r["label"] for r in records["test"]]) - shares).max() <= 1


def test_a_config_is_an_error(tmp_path):
    with pytest.raises(UserError, match="digits/small"):
        digits.builder("digits/small", str(tmp_path))
