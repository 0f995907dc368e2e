import numpy as np
import pytest
from ml_collections import ConfigDict
from pictures import encoded, photo

from nml_jax.core.errors import UserError
from nml_jax.data import augment, decode, inference, pipeline

FILES = [encoded(photo(40 + i, 60 - i, seed=i)) for i in range(21)]


class Files:
    """A source of JPEG files that are not in memory."""

    name, split, in_memory = "files", "test", False

    def __init__(self, files: list[bytes]):
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    def picture(self, index: int, decoder: str = "pillow") -> decode.Pixels | decode.Encoded:
        return decode.picture(self.files[index], name=f"im{index}", decoder=decoder)


def data(workers: int, batch_size: int = 8) -> ConfigDict:
    return ConfigDict(
        {
            "augment": {"name": "random_resized_crop", "size": 24, "scale": (0.3, 1.0), "flip": True},
            "evaluate": {"size": 24, "crop_pct": 0.9},
            "eval_batch_size": batch_size,
            "num_workers": workers,
        }
    )


def images(workers: int, view: int = 0, batch_size: int = 8) -> np.ndarray:
    add = lambda one, image: image.astype("float32") + one  # noqa: E731
    source = Files(FILES)
    return inference.run(add, (1.0,), source, data(workers, batch_size), view=view, seed=3) - 1


@pytest.mark.parametrize(("view", "workers"), [(0, 0), (2, 0), pytest.param(2, 2, marks=pytest.mark.slow)])
def test_every_image_once_in_order(view, workers):
    """21 images in batches of 8: the last batch has 5."""
    seen = images(workers, view)
    assert seen.shape == (21, 24, 24, 3)
    evaluate, training = augment.center_crop(size=24, crop_pct=0.9), augment.make(**data(0).augment)
    for i, file in enumerate(FILES):
        image = decode.rgb(file, name="x")
        rng = np.random.Generator(np.random.Philox(key=3, counter=[0, 0, 2, i]))
        np.testing.assert_array_equal(seen[i], training(image, rng) if view else evaluate(image))


@pytest.mark.parametrize("batch_size", [1, 16, 24, 400])
def test_the_batch_size_does_not_matter(batch_size):
    np.testing.assert_array_equal(images(0, batch_size=batch_size), images(0))


@pytest.mark.parametrize("count", [1, 8, 15, 16, 17])
def test_processes_have_their_rows_of_each_batch(count, monkeypatch):
    parts = []
    for process in range(4):
        monkeypatch.setattr(pipeline.jax, "process_index", lambda process=process: process)
        monkeypatch.setattr(pipeline.jax, "process_count", lambda: 4)
        rows = pipeline.in_order(lambda i: np.full((2, 2, 3), i), count, batch_size=8, num_workers=0)
        parts.append(np.stack(list(rows))[:, :, 0, 0, 0])
    batches = np.concatenate(parts, axis=1)
    assert batches.shape == (-(-count // 8), 8)
    np.testing.assert_array_equal(batches.ravel(), np.minimum(np.arange(batches.size), count - 1))


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_nothing_is_replaced(workers):
    files = [*FILES[:6], FILES[6][:-300], *FILES[7:]]
    with pytest.raises(UserError, match="record im6 cannot be decoded"):
        inference.run(lambda image: image, (), Files(files), data(workers))
