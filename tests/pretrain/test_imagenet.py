"""The ImageNet config, from records as TFDS keeps them to a checkpoint, on mocked data."""

import io

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from configs.pretrain import resnet50_a1, resnet50_imagenet, vit_s16_imagenet
from nml_jax.core import artifacts, stage, writer
from nml_jax.data import source
from nml_jax.noise import record

# The recipes as they are, but for how deep and wide the models are.
RECIPES = {
    "resnet50": (
        resnet50_imagenet,
        {"variant": "resnet50", "stem": "imagenet", "dtype": "bfloat16", "width": 8},
    ),
    "a1": (
        resnet50_a1,
        {"stages": (1, 1), "bottleneck": True, "width": 8, "drop_path": 0.05, "dtype": "bfloat16"},
    ),
    "vit": (
        vit_s16_imagenet,
        {
            **{"width": 32, "layers": 2, "heads": 2, "patch": 16, "dtype": "bfloat16"},
            **{"pool": "mean", "class_token": False, "position": "sincos2d"},
        },
    ),
}


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
@pytest.mark.parametrize("recipe", RECIPES)
def test_imagenet_config_runs_on_mocked_data(recipe, tmp_path):
    source.open.cache_clear()
    module, options = RECIPES[recipe]
    config = module.get_config("smoke")
    config.data_dir, config.progress = str(tmp_path / "data"), False
    config.noise.ratio = 0.3
    with config.unlocked():
        config.model.options = options
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
