"""Human labels from files: aligned, exact, nested, and refused where they cannot be right."""

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet
from sklearn.metrics import confusion_matrix

from nml_jax.core.errors import UserError
from nml_jax.noise import human

N, C = 1000, 5
RNG = np.random.default_rng(0)
CLEAN = RNG.integers(0, C, N)
# People confuse class c with class c + 1, the more the higher c is.
WRONG = RNG.random(N) < 0.1 * (CLEAN + 1)
HUMAN = np.where(WRONG, (CLEAN + 1) % C, CLEAN)
RATE = WRONG.mean()
IDS = np.array([f"train_{i:05d}" for i in range(N)])
ORDER = RNG.permutation(N)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("human")
    np.savez(folder / "all.npz", noisy=HUMAN, clean=CLEAN, id=IDS)
    np.save(folder / "all.npy", HUMAN.astype(np.uint8))
    lines = [f"{i},{h},{c}" for i, h, c in zip(IDS, HUMAN, CLEAN, strict=True)]
    (folder / "all.csv").write_text("id,noisy,clean\n" + "\n".join(lines) + "\n")
    shuffled = {"id": IDS[ORDER].tolist(), "noisy": HUMAN[ORDER].tolist(), "clean": CLEAN[ORDER].tolist()}
    parquet.write_table(pyarrow.table(shuffled), folder / "all.parquet")
    counts = confusion_matrix(CLEAN, HUMAN)
    np.savez(folder / "counts.npz", counts=counts)
    np.savetxt(folder / "counts.csv", counts, delimiter=",")
    np.save(folder / "dictionary.npy", {"noisy": HUMAN})
    return folder


def corrupt(labels=CLEAN, ratio=0.1, seed=0, **options):
    return human.corrupt(labels, num_classes=C, ratio=ratio, seed=seed, **options)


FILES = pytest.mark.parametrize(
    "options",
    [
        {"file": "all.npz", "column": "noisy", "clean_column": "clean"},
        {"file": "all.npy"},
        {"file": "all.csv", "column": "noisy", "clean_column": "clean"},
        {"file": "all.parquet", "column": "noisy", "align": "id", "id_column": "id", "clean_column": "clean"},
        {"file": "all.npz", "column": "noisy", "align": "id_number"},
    ],
)


@FILES
def test_all_labels_as_they_are(folder, options):
    options = options | {"file": folder / options["file"], "ids": IDS}
    noisy = corrupt(ratio=RATE, mode="all", **options)
    np.testing.assert_array_equal(noisy, HUMAN)
    assert noisy.dtype == np.int64
    np.testing.assert_array_equal(corrupt(ratio=0, mode="all", **options), CLEAN)
    np.testing.assert_array_equal(corrupt(ratio=RATE, **options), HUMAN)


@FILES
def test_exactly_so_many_of_the_human_errors(folder, options):
    options = options | {"file": folder / options["file"], "ids": IDS}
    last = np.zeros(N, bool)
    for ratio in (0.0, 0.05, 0.123, 0.25):
        noisy = corrupt(ratio=ratio, **options)
        changed = noisy != CLEAN
        assert changed.sum() == round(ratio * N)
        np.testing.assert_array_equal(noisy[changed], HUMAN[changed])
        assert not (last & ~changed).any()
        last = changed
    assert (corrupt(ratio=0.1, seed=1, **options) != corrupt(ratio=0.1, **options)).any()


@pytest.mark.parametrize("align", ["id", "id_number"])
def test_rows_in_another_order_and_a_part_of_them(folder, align):
    options = {"file": folder / "all.npz", "column": "noisy", "align": align}
    options |= {"id_column": "id"} if align == "id" else {}
    straight = corrupt(ratio=RATE, ids=IDS, **options)
    np.testing.assert_array_equal(
        corrupt(CLEAN[ORDER], ratio=0.1, ids=IDS[ORDER], **options),
        corrupt(ratio=0.1, ids=IDS, **options)[ORDER],
    )
    part = ORDER[:300]
    rate = WRONG[part].mean()
    np.testing.assert_array_equal(
        corrupt(CLEAN[part], ratio=rate, mode="all", ids=IDS[part], **options), straight[part]
    )


def test_the_classes_that_people_confuse_more_are_wrong_more_often(folder):
    changed = corrupt(ratio=0.15, file=folder / "all.npy") != CLEAN
    share = np.bincount(CLEAN[changed], minlength=C) / changed.sum()
    own = np.bincount(CLEAN[WRONG], minlength=C) / WRONG.sum()
    assert np.abs(share - own).max() < 0.08
    assert share[4] > 2 * share[0]


@pytest.mark.parametrize(
    "matrix", [{"transition_file": "counts.npz", "column": "counts"}, {"transition_file": "counts.csv"}]
)
def test_a_matrix(folder, matrix):
    options = matrix | {"transition_file": folder / matrix["transition_file"], "ids": IDS}
    noisy = corrupt(ratio=0.2, **options)
    sizes = np.bincount(CLEAN, minlength=C)
    assert np.bincount(CLEAN[noisy != CLEAN], minlength=C).tolist() == [
        round(0.2 * n) for n in sizes.tolist()
    ]
    assert set((noisy - CLEAN)[noisy != CLEAN] % C) == {1}
    # All of it: the same confusions as the people's, in number.
    np.testing.assert_array_equal(
        confusion_matrix(CLEAN, corrupt(ratio=RATE, mode="all", **options)), confusion_matrix(CLEAN, HUMAN)
    )
    np.testing.assert_array_equal(corrupt(ratio=0, mode="all", **options), CLEAN)
    with pytest.raises(UserError, match=f"Set the ratio to {RATE:.4f}"):
        corrupt(ratio=RATE + 0.01, mode="all", **options)


def test_what_people_got_wrong_is_all_there_is(folder):
    with pytest.raises(UserError, match=f"asks for 500 wrong labels of 1000.*own rate is {RATE:.4f}"):
        corrupt(ratio=0.5, file=folder / "all.npy")
    for ratio in (RATE + 0.006, RATE - 0.006, 0.01):
        with pytest.raises(UserError, match=f"Set the ratio to {RATE:.4f}"):
            corrupt(ratio=ratio, mode="all", file=folder / "all.npy")


def test_rows_in_the_wrong_order_are_noticed(folder):
    with pytest.raises(UserError, match="in another order"):
        corrupt(CLEAN[ORDER], file=folder / "all.npz", column="noisy")
    with pytest.raises(UserError, match="differs from the data's clean labels"):
        corrupt(CLEAN[ORDER], file=folder / "all.npz", column="noisy", clean_column="clean")


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({}, "neither"),
        ({"file": "all.npy", "transition_file": "counts.csv"}, "both"),
        ({"file": "nothing.npz", "column": "x"}, "cannot be read"),
        ({"file": "all.npz", "column": "noisier"}, "no column 'noisier'; it has noisy, clean, id"),
        ({"file": "all.csv", "column": "noisier"}, "it has id, noisy, clean"),
        ({"file": "all.parquet", "column": "noisier"}, "it has id, noisy, clean"),
        ({"file": "all.npy", "column": "noisy"}, "one without a name"),
        ({"file": "dictionary.npy"}, "may run code"),
        ({"file": "labels.pt"}, r"numpy\.savez"),
        ({"file": "all.npz", "column": "id"}, "id of .*integers"),
        ({"file": "all.npy", "mode": "some"}, "valid: exact, all"),
        ({"file": "all.npy", "align": "name"}, "valid: row, id_number, id"),
        ({"file": "all.npz", "column": "noisy", "align": "id"}, "id_column"),
        ({"file": "all.npz", "column": "noisy", "id_column": "id"}, "align='id'"),
        ({"transition_file": "all.npy"}, "shape"),
    ],
)
def test_bad_options(folder, options, word):
    (folder / "labels.pt").write_bytes(b"x")
    options = {k: folder / v if "file" in k else v for k, v in options.items()}
    with pytest.raises(UserError, match=word):
        corrupt(ids=IDS, **options)
    with pytest.raises(UserError, match=word):  # seen before there are labels, too
        human.check_options(num_classes=C, **options)


def test_labels_that_do_not_fit_the_data(folder):
    part = {"file": folder / "all.npy", "ids": IDS[:10]}
    with pytest.raises(UserError, match="1000 labels for 10 samples"):
        corrupt(CLEAN[:10], **part)
    options = {"file": folder / "all.npz", "column": "noisy", "align": "id_number"}
    for ids, word in (
        ([f"{i}.png" for i in range(1, N + 1)], "means row 1000"),
        ([f"{i}/3" for i in range(N)], "means row 3"),
        ([f"{'x' * i}" for i in range(N)], "means row -1"),
    ):
        with pytest.raises(UserError, match=word):
            corrupt(ids=ids, **options)
    with pytest.raises(UserError, match="1 of 1000 ids are not in 'id'.*'x'"):
        corrupt(ids=["x", *IDS[1:]], **options | {"align": "id", "id_column": "id"})
    with pytest.raises(UserError, match=r"labels go from 0 to 4; valid are \[0, 3\)"):
        human.corrupt(CLEAN % 3, num_classes=3, ratio=0.1, seed=0, file=folder / "all.npy")
