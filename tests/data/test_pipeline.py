import numpy as np
import pytest

from nml_jax.core.errors import UserError
from nml_jax.data import augment, pipeline


class Numbered:
    """A source whose image i is filled with i."""

    name, split = "numbered", "train"

    def __init__(self, size: int):
        self.size = size

    def __len__(self) -> int:
        return self.size

    def image(self, index: int) -> np.ndarray:
        return np.full((8, 8, 3), index, np.uint8)


def batches(count: int, *, size: int = 22, workers: int = 0, seed: int = 0, skip: int = 0) -> list[dict]:
    iterator = pipeline.train_iterator(
        Numbered(size),
        {"label": 100 + np.arange(size)},
        augment=augment.make("shift_crop", size=8, padding=1, flip=True),
        batch_size=8,
        seed=seed,
        num_workers=workers,
    )
    return [next(iterator) for _ in range(count)][skip:]


def test_an_epoch_holds_every_record_once_with_its_own_target():
    seen = np.concatenate([b["label"] for b in batches(11)])
    images = np.concatenate([b["image"][:, 0, 0, 0] for b in batches(11)])
    np.testing.assert_array_equal(images + 100, seen)
    # 11 batches of 8 are four epochs of 22
    for epoch in seen.reshape(4, 22):
        np.testing.assert_array_equal(np.sort(epoch), 100 + np.arange(22))
    assert not np.array_equal(seen[:22], seen[22:44])


def test_the_same_seed_gives_the_same_batches_and_another_does_not():
    one, two, other = batches(3), batches(3), batches(3, seed=1)
    for a, b in zip(one, two, strict=True):
        np.testing.assert_array_equal(a["image"], b["image"])
    assert not np.array_equal(one[0]["label"], other[0]["label"])


@pytest.mark.slow
def test_workers_do_not_change_the_batches():
    for a, b in zip(batches(6), batches(6, workers=2), strict=True):
        np.testing.assert_array_equal(a["image"], b["image"])
        np.testing.assert_array_equal(a["label"], b["label"])


def test_processes_share_the_batches_of_one_process(monkeypatch):
    whole = batches(5)
    parts = []
    for process in range(2):
        monkeypatch.setattr(pipeline.jax, "process_index", lambda process=process: process)
        monkeypatch.setattr(pipeline.jax, "process_count", lambda: 2)
        parts.append(batches(5))
    for together, first, second in zip(whole, *parts, strict=True):
        assert len(first["label"]) == len(second["label"]) == 4
        joined = {k: np.concatenate([first[k], second[k]]) for k in together}
        ours, theirs = np.argsort(together["label"]), np.argsort(joined["label"])
        np.testing.assert_array_equal(together["label"][ours], joined["label"][theirs])
        np.testing.assert_array_equal(together["image"][ours], joined["image"][theirs])


def test_position_can_be_saved_and_restored():
    iterator = pipeline.train_iterator(
        Numbered(22),
        {"label": np.arange(22)},
        augment=augment.make("shift_crop", size=8, padding=1, flip=True),
        batch_size=8,
        seed=0,
        num_workers=0,
    )
    for _ in range(4):
        next(iterator)
    state = iterator.get_state()
    ahead = [next(iterator)["label"] for _ in range(3)]
    iterator.set_state(state)
    np.testing.assert_array_equal(ahead, [next(iterator)["label"] for _ in range(3)])


def test_shift_crop_moves_and_mirrors_but_keeps_the_size():
    image = np.arange(32 * 32 * 3, dtype=np.uint32).astype(np.uint8).reshape(32, 32, 3)
    apply = augment.make("shift_crop", size=32, padding=0, flip=True)
    results = [apply(image, np.random.default_rng(i)) for i in range(20)]
    assert all(np.array_equal(r, image) or np.array_equal(r, image[:, ::-1]) for r in results)
    assert len({r.tobytes() for r in results}) == 2


def test_random_resized_crop_takes_areas_in_its_scale():
    """The crop of a ramp tells its width and height by the range of its values."""
    ramp = np.stack([*np.meshgrid(np.arange(200), np.arange(200)), np.zeros((200, 200))], -1).astype(np.uint8)
    apply = augment.make("random_resized_crop", size=64, scale=(0.25, 0.5), flip=True)
    for seed in range(50):
        crop = apply(ramp, np.random.default_rng(seed)).astype(float)
        width = abs(crop[:, -1, 0] - crop[:, 0, 0]).mean()
        height = abs(crop[-1, :, 1] - crop[0, :, 1]).mean()
        assert crop.shape == (64, 64, 3)
        assert 0.24 < width * height / 200**2 < 0.52
        assert 0.7 < width / height < 1.4


def test_center_crop_is_the_middle():
    image = np.zeros((40, 60, 3), np.uint8)
    image[4:36, 14:46] = 255
    assert (augment.center_crop(size=32, crop_pct=0.8)(image) == 255).mean() > 0.9
    same = np.random.default_rng(0).integers(0, 255, (32, 32, 3)).astype(np.uint8)
    np.testing.assert_array_equal(augment.center_crop(size=32, crop_pct=1.0)(same), same)


def test_normalize_against_numpy():
    image = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 3)).astype(np.uint8)
    expected = (image / 255 - np.array(augment.IMAGENET_MEAN)) / np.array(augment.IMAGENET_STD)
    result = augment.normalize(image, augment.IMAGENET_MEAN, augment.IMAGENET_STD)
    np.testing.assert_allclose(result, expected, atol=1e-5)


def test_unknown_augmentation_and_option():
    with pytest.raises(UserError, match="valid: shift_crop, random_resized_crop"):
        augment.make("rotate")
    with pytest.raises(UserError, match="its options are size, padding, flip"):
        augment.make("shift_crop", size=8, padding=1, flip=True, angle=3)
