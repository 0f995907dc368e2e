"""noise.npz: what is written comes back, and what is no record is refused."""

import numpy as np
import pytest

from nml_jax.core.errors import UserError
from nml_jax.noise import caption_swap, record, symmetric

CLEAN = np.arange(200) % 10


@pytest.mark.parametrize(
    "ids", [np.arange(200) + 5, np.array([f"a/{i}.png" for i in range(200)], object), None]
)
def test_round_trip_of_labels(tmp_path, ids):
    noisy = symmetric.corrupt(CLEAN, num_classes=10, ratio=0.12, seed=4, ids=ids)
    path = tmp_path / "noise.npz"
    record.write(path, name="symmetric", ids=ids, clean=CLEAN, noisy=noisy, ratio=0.12, seed=4)
    back = record.read(path)
    assert (back.name, back.requested_ratio, back.seed) == ("symmetric", 0.12, 4)
    assert back.realised_ratio == 0.1  # round(0.12 * 20) = 2 of 20 in each class
    np.testing.assert_array_equal(back.ids, np.arange(200) if ids is None else ids.astype(back.ids.dtype))
    np.testing.assert_array_equal(back.clean, CLEAN)
    np.testing.assert_array_equal(back.noisy, noisy)


def test_captions_are_recorded_as_rows(tmp_path):
    captions = [str(i) for i in range(50)]
    rows = caption_swap.sources(captions, ratio=0.2, seed=0)
    record.write(
        tmp_path / "n.npz", name="caption_swap", ids=None, clean=np.arange(50), noisy=rows, ratio=0.2, seed=0
    )
    back = record.read(tmp_path / "n.npz")
    assert back.realised_ratio == 0.2
    np.testing.assert_array_equal(back.noisy, rows)


def test_no_array_is_a_pickle(tmp_path):
    ids = np.array(["x", "yy"], object)
    record.write(tmp_path / "n.npz", name="none", ids=ids, clean=[0, 1], noisy=[0, 1], ratio=0, seed=0)
    with np.load(tmp_path / "n.npz", allow_pickle=False) as file:
        assert {file[name].dtype.kind for name in file.files} <= {"i", "f", "U"}
        assert set(file.files) == {
            "ids",
            "clean",
            "noisy",
            "requested_ratio",
            "realised_ratio",
            "seed",
            "name",
        }


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"noisy": CLEAN[:-1]}, "same N"),
        ({"clean": CLEAN.astype(float)}, "integers"),
        ({"ids": [1, 2]}, "one id"),
        ({"ids": np.zeros(200, int)}, "not unique"),
        ({"ratio": 2.0}, "fraction"),
        ({"seed": "x"}, "integer"),
    ],
)
def test_bad_input_writes_nothing(tmp_path, change, word):
    good = {"name": "symmetric", "ids": None, "clean": CLEAN, "noisy": CLEAN, "ratio": 0.0, "seed": 0}
    with pytest.raises(UserError, match=word):
        record.write(tmp_path / "noise.npz", **(good | change))
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_record_is_refused(tmp_path):
    (tmp_path / "text.npz").write_text("not a zip file")
    np.savez(tmp_path / "other.npz", clean=CLEAN)
    np.save(tmp_path / "array.npy", CLEAN)
    np.savez(tmp_path / "pickle.npz", ids=np.array([{}], object))
    (tmp_path / "cut.npz").write_bytes((tmp_path / "other.npz").read_bytes()[:100])
    for name in ("missing.npz", "text.npz", "other.npz", "array.npy", "pickle.npz", "cut.npz"):
        with pytest.raises(UserError, match="not a noise record"):
            record.read(tmp_path / name)
