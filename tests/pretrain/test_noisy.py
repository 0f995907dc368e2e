"""Noise models that want more than labels, on a source: what they are given, and what is recorded."""

import io

import numpy as np
import pytest
import tensorflow_datasets as tfds
from ml_collections import ConfigDict
from PIL import Image

from configs.pretrain import glyphs_supervised
from nml_jax.core.errors import UserError
from nml_jax.data.source import Source
from nml_jax.noise import record
from nml_jax.pretrain import noisy

NAMES = ["cat", "dog", "truck", "automobile"]


def made_source(bad: int | None = None) -> Source:
    """80 images of four colours; record `bad` is no image."""
    rng = np.random.default_rng(0)
    records = []
    for i in range(80):
        buffer = io.BytesIO()
        colour = np.eye(3, dtype=np.uint8)[i % 3] * 200 + rng.integers(0, 30, (8, 8, 3)).astype(np.uint8)
        Image.fromarray(colour).save(buffer, "PNG")
        image = b"no image" if i == bad else buffer.getvalue()
        records.append({"id": f"train_{i:05d}".encode(), "image": image, "label": i % 4})
    features = tfds.features.FeaturesDict(
        {
            "id": tfds.features.Text(),
            "image": tfds.features.Image(),
            "label": tfds.features.ClassLabel(names=NAMES),
        }
    )
    return Source("made", "train", records, features, in_memory=False)


def config(name: str, ratio: float, **options) -> ConfigDict:
    values = glyphs_supervised.get_config("smoke")
    values.noise = ConfigDict({"name": name, "ratio": ratio, "seed": 0, "options": options})
    values.data.evaluate.size = 8
    return values


def corrupted(source: Source, values: ConfigDict, tmp_path) -> tuple[np.ndarray, np.ndarray]:
    noisy.check_options(values, "labels", source)
    labels, ratio = noisy.supervision(values, source, "labels", str(tmp_path))
    found = record.read(tmp_path / "noise.npz")
    np.testing.assert_array_equal(found.noisy, labels)
    assert ratio == np.mean(found.clean != labels)
    return found.clean, labels


def test_instance_noise_sees_the_pixels(tmp_path):
    clean, labels = corrupted(made_source(bad=7), config("instance", 0.25), tmp_path)
    assert (clean != labels).sum() == 20
    # 8 x 8 pixels, normalised as for the encoder
    values = config("instance", 0.25)
    features = noisy._needed("features", values, made_source())
    assert features.shape == (80, 192)
    first = made_source().image(0)[0, 0] / 255
    np.testing.assert_allclose(features[0, :3], (first - values.data.mean) / values.data.std, rtol=1e-5)


def test_asymmetric_noise_by_class_names(tmp_path):
    pairs = (("cat", "dog"), ("truck", "automobile"))
    clean, labels = corrupted(made_source(), config("asymmetric", 0.2, pairs=pairs), tmp_path)
    changed = clean != labels
    assert set(zip(clean[changed].tolist(), labels[changed].tolist(), strict=True)) == {(0, 1), (2, 3)}
    with pytest.raises(UserError, match="lorry"):
        noisy.check_options(config("asymmetric", 0.2, pairs=(("lorry", "dog"),)), "labels", made_source())


def test_human_labels_by_the_number_in_the_id(tmp_path):
    given = np.arange(80) % 4
    given[[3, 10, 50]] = [0, 1, 1]
    np.savez(tmp_path / "human.npz", worse=given)
    options = {"file": str(tmp_path / "human.npz"), "column": "worse", "align": "id_number"}
    _, labels = corrupted(made_source(), config("human", 3 / 80, **options), tmp_path)
    np.testing.assert_array_equal(labels, given)
    with pytest.raises(UserError, match="no_such"):
        noisy.check_options(config("human", 0.1, file=str(tmp_path / "no_such.npz")), "labels", made_source())
