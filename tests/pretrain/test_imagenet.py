"""The ImageNet config, from records as TFDS keeps them to a checkpoint, on mocked data."""

import io

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from configs.pretrain import resnet50_imagenet
from nml_jax.core import artifacts, stage, writer
from nml_jax.data import source
from nml_jax.noise import record


def records(split: str) -> list[dict]:
    """JPEGs of several sizes, one of them grey and one CMYK, as ImageNet has them."""
    rng = np.random.default_rng(len(split))
    made = []
    for i in range(40 if split == "train" else 12):
        size = (int(rng.integers(60, 120)), int(rng.integers(60, 120)))
        image = Image.fromarray(rng.integers(0, 255, (*size, 3), np.uint8)).convert(
            ("RGB", "L", "CMYK")[i % 12 % 3]
        )
        buffer = io.BytesIO()
        image.save(buffer, "JPEG")
        made.append({"file_name": f"n{i:08d}.JPEG".encode(), "image": buffer.getvalue(), "label": i % 4})
    return made


@pytest.mark.slow
def test_imagenet_config_runs_on_mocked_data(tmp_path):
    source.open.cache_clear()
    config = resnet50_imagenet.get_config("smoke")
    config.data_dir, config.progress = str(tmp_path / "data"), False
    config.noise.ratio = 0.3
    # The width is the model's only change: ResNet-50's depth and blocks stay.
    config.model.options = {"variant": "resnet50", "stem": "imagenet", "dtype": "bfloat16", "width": 8}
    with tfds.testing.mock_data(as_data_source_fn=lambda self, split, *_, **__: records(split)):
        stage.execute(config, tmp_path / "w")
    source.open.cache_clear()
    noise = record.read(tmp_path / "w" / "noise.npz")
    assert noise.ids[0] == "n00000000.JPEG"
    # ten images of each of four classes; three of each are wrong
    np.testing.assert_array_equal(
        np.bincount(noise.clean[noise.clean != noise.noisy], minlength=4)[:4], [3, 3, 3, 3]
    )
    assert noise.noisy.max() < 1000
    assert artifacts.is_finished(tmp_path / "w")
    (result,) = writer.read_lines(tmp_path / "w" / "results.jsonl")
    assert result["realised_ratio"] == pytest.approx(0.3)
    assert result["steps"] == 5
