"""Files of embeddings as other programs write them, and each way in which they can be wrong."""

import hashlib
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import save_file

from nml_jax.core.errors import UserError
from nml_jax.features import files

RNG = np.random.default_rng(0)
N, D = 12, 4
X = RNG.normal(size=(N, D)).astype(np.float32)
Y = np.arange(N) % 3
NAMES = np.array(["cat", "dog", "zebra"])[Y]


def write(path, x=X, y=Y):
    match path.suffix:
        case ".npz":
            np.savez(path, x=x, y=y)
        case ".safetensors":
            save_file({"x": x, "y": y}, path)
        case ".parquet":
            pq.write_table(pa.table({"embedding": x.tolist(), "label": y}), path)
    return path


SUFFIXES = pytest.mark.parametrize("suffix", [".npz", ".safetensors", ".parquet"])


@SUFFIXES
def test_what_is_read_is_what_was_written(suffix, tmp_path):
    x, y = files.read(write(tmp_path / f"a{suffix}"))
    assert (x.shape, x.dtype) == ((N, 1, D), np.float32)
    np.testing.assert_array_equal(x[:, 0], X)
    np.testing.assert_array_equal(y, Y)
    assert y.dtype == np.int64


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_views_are_kept_and_other_numbers_become_float32(suffix, tmp_path):
    views = RNG.normal(size=(N, 3, D))
    np.testing.assert_array_equal(
        files.read(write(tmp_path / f"a{suffix}", views))[0], views.astype(np.float32)
    )
    pixels = RNG.integers(256, size=(N, D)).astype(np.uint8)
    np.testing.assert_array_equal(files.read(write(tmp_path / f"b{suffix}", pixels))[0][:, 0], pixels)


@pytest.mark.peers
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_half_precision_from_torch(dtype, tmp_path):
    torch = pytest.importorskip("torch")
    x = torch.from_numpy(X).to(getattr(torch, dtype))
    pytest.importorskip("safetensors.torch").save_file(
        {"x": x, "y": torch.from_numpy(Y)}, tmp_path / "a.safetensors"
    )
    np.testing.assert_array_equal(files.read(tmp_path / "a.safetensors")[0][:, 0], x.float().numpy())


@pytest.mark.parametrize(
    ("labels", "kind"), [(NAMES, "U"), (Y > 0, "b"), (Y.astype(np.uint8), "u"), (Y.astype(np.float32), "i")]
)
@pytest.mark.parametrize("suffix", [".npz", ".parquet"])
def test_labels_stay_as_they_are(labels, kind, suffix, tmp_path):
    y = files.read(write(tmp_path / f"a{suffix}", y=labels))[1]
    np.testing.assert_array_equal(y, labels)
    assert y.dtype.kind == kind


def tables(path):
    """The same embeddings and names as pandas, polars and Arrow write them."""
    pd, pl = pytest.importorskip("pandas"), pytest.importorskip("polars")
    rows, text = list(X), [f"A sentence about a {name}." for name in NAMES]
    ragged_text = [[name, name] for name in NAMES]
    pd.DataFrame({"vector": rows, "topic": pd.Categorical(NAMES)}, index=np.arange(N)[::-1]).to_parquet(
        path / "pandas.parquet"
    )
    pl.DataFrame({"text": text, "label": NAMES, "embedding": X}).write_parquet(path / "polars.parquet")
    categories = pl.Series(NAMES, dtype=pl.Categorical)
    pl.DataFrame({"y": categories, "x": X.tolist(), "other": X}).write_parquet(path / "lists.parquet")
    fixed = pa.FixedSizeListArray.from_arrays(X.ravel(), D)
    large = pa.array(X.astype(np.float64).tolist(), pa.large_list(pa.float64()))
    names = pa.array(NAMES.tolist()).dictionary_encode()
    for name, column in {"fixed": fixed, "large": large}.items():
        table = pa.table({"label": names, "tags": ragged_text, "v": column})
        pq.write_table(table, path / f"{name}.parquet", row_group_size=5)
    half = pa.array([row.tolist() for row in X.astype(np.float16)], pa.list_(pa.float16()))
    pq.write_table(pa.table({"v.1": half, "topic.name": NAMES}), path / "half.parquet")
    return sorted(path.glob("*.parquet"))


def test_parquet_of_other_programs(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "BATCH_ROWS", 5)  # the last batch is smaller, row groups end within batches
    written = tables(tmp_path)
    assert len(written) == 6
    for path in written:
        x, y = files.read(path)
        expected = X.astype(np.float16) if path.stem == "half" else X
        np.testing.assert_array_equal(x[:, 0], expected, err_msg=path.name)
        np.testing.assert_array_equal(y, NAMES, err_msg=path.name)


def test_load_numbers_the_labels_and_says_where_they_are_from(tmp_path):
    train = write(tmp_path / "train.parquet", y=NAMES)
    few = np.array(["zebra", "cat"])
    test = write(tmp_path / "test.npz", np.stack([X[:2], X[2:4]], axis=1), few)
    features, tests, classes = files.load(train, {"held out": test})
    assert classes.tolist() == ["cat", "dog", "zebra"]
    np.testing.assert_array_equal(features.y, Y)
    np.testing.assert_array_equal(features.clean, X)
    assert tests["held out"].y.tolist() == [2, 0]
    np.testing.assert_array_equal(tests["held out"].clean, X[:2])
    assert tests["held out"].x.shape == (2, 2, D)
    assert {split.num_classes for split in (features, *tests.values())} == {3}
    assert features.manifest == {
        "file": "train.parquet",
        "sha256": hashlib.sha256(train.read_bytes()).hexdigest(),
    }


@pytest.mark.parametrize(
    ("train", "other", "places"),
    [
        ([7, -2, 7, 100], [100, -2], ([1, 0, 1, 2], [2, 0])),
        ([True, False], [False], ([1, 0], [0])),
        (["b", "a"], ["a", "b", "a"], ([1, 0], [0, 1, 0])),
        ([3, 2], [], ([1, 0], [])),
    ],
)
def test_encode(train, other, places):
    classes, *indices = files.encode(np.array(train), np.array(other))
    assert classes.tolist() == sorted(set(train))
    assert [i.tolist() for i in indices] == list(places)
    assert all(i.dtype == np.int64 for i in indices)


@pytest.mark.parametrize(
    ("train", "other", "word"),
    [
        ([1, 1], [1], "All labels of train are 1; .* at least two"),
        ([1, 2], [2, 1, 3], "out of range: row 2 of split 1 has the label 3, .* 2 classes are 1, 2"),
        ([1, 2], ["1"], "row 0 of split 1 has the label '1'"),
        (["1", "2"], [2], "row 0 of split 1 has the label 2"),
        (["a", "b"], ["a", "bb"], "row 1 of split 1 has the label 'bb'"),
        (np.arange(9), [-1], "0, 1, 2, 3, 4, 5, ..."),
    ],
)
def test_labels_out_of_range(train, other, word):
    with pytest.raises(UserError, match=word):
        files.encode(np.array(train), np.array(other))


@pytest.mark.parametrize(
    ("x", "y", "word"),
    [
        (np.float32(1), Y, r"shape \(\)"),
        (X, np.int64(1), r"y .* shape \(\)"),
        (X[0], Y, r"shape \(4,\)"),
        (X[:0], Y[:0], "at least one row"),
        (X[:, :0], Y, "none of them zero"),
        (X[:, None][:, :0], Y, "none of them zero"),
        (X, Y[:5], "12 embeddings and 5 labels"),
        (X, Y[:, None], r"y .* shape \(12, 1\)"),
        (X.astype(str), Y, "x in .* are <U"),
        (X > 0, Y, "are bool"),
        (X, Y + 0.5, "row 0 has 0.5, which is no whole number"),
        (X, np.where(Y == 2, np.nan, Y), "row 2 has nan"),
        (X, np.where(Y == 2, np.inf, Y), "row 2 has inf"),
        (X, Y.astype("M8[s]"), "are datetime64"),
        (X, NAMES.astype(object), "pickled"),
        (X.astype(object), Y, "pickled"),
    ],
)
def test_contents_that_are_no_embeddings_and_labels(x, y, word, tmp_path):
    with pytest.raises(UserError, match=word) as error:
        files.read(write(tmp_path / "a.npz", x, y))
    assert "a.npz" in str(error.value)


@SUFFIXES
def test_files_that_are_not_whole(suffix, tmp_path):
    whole = write(tmp_path / f"whole{suffix}").read_bytes()
    broken = tmp_path / f"broken{suffix}"
    garbage = RNG.bytes(len(whole))
    middle = len(whole) // 2
    flipped = whole[:4] + bytes(200) + whole[204:]
    for content in (b"", b"PK", whole[:9], whole[:middle], whole[:-1], garbage, flipped):
        broken.write_bytes(content)
        with pytest.raises(UserError, match=f"broken{suffix}"):
            files.read(broken)


def test_no_file_a_directory_another_suffix(tmp_path):
    with pytest.raises(UserError, match=r"a.npz' does not exist"):
        files.read(tmp_path / "a.npz")
    with pytest.raises(UserError, match="is a directory"):
        files.read(tmp_path)
    (tmp_path / "a.csv").write_text("1,2")
    with pytest.raises(UserError, match=r"'.csv'; valid are .npz, .safetensors and .parquet"):
        files.read(tmp_path / "a.csv")


def test_a_pickle_or_one_array_under_the_name_of_an_archive(tmp_path):
    np.save(tmp_path / "array.npy", X)
    (tmp_path / "array.npy").rename(tmp_path / "array.npz")
    (tmp_path / "pickle.npz").write_bytes(pickle.dumps({"x": X, "y": Y}))
    for name in ("array.npz", "pickle.npz"):
        with pytest.raises(UserError, match=f"{name}' is no .npz archive; .* refused"):
            files.read(tmp_path / name)


def test_missing_names_are_said(tmp_path):
    np.savez(tmp_path / "a.npz", embeddings=X, labels=Y)
    save_file({"x": X, "target": Y}, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match="holds embeddings, labels; needed"):
        files.read(tmp_path / "a.npz")
    with pytest.raises(UserError, match="holds target, x; needed"):
        files.read(tmp_path / "a.safetensors")


ROWS = X.tolist()


@pytest.mark.parametrize(
    ("columns", "word"),
    [
        ({"embedding": [*ROWS[:7], [1.0], *ROWS[8:]], "label": Y}, "row 0 .* has 4 numbers, row 7 has 1"),
        ({"embedding": [*ROWS[:7], None, *ROWS[8:]], "label": Y}, "Row 7 of .* has no embedding"),
        ({"embedding": [*ROWS[:7], [1.0, None, 1, 1], *ROWS[8:]], "label": Y}, "Row 7 of .* has no number"),
        ({"embedding": ROWS, "label": [*NAMES[:5], None, *NAMES[6:]]}, "Row 5 of .* has no label"),
        ({"a": ROWS, "b": ROWS, "label": Y}, r"not clear .* 'a' \(list<.*double>\), 'b' .* Rename"),
        ({"x": ROWS, "embedding": ROWS, "label": Y}, "not clear"),
        ({"x": ROWS, "one": Y, "two": Y}, r"not clear .* 'two' \(int64\)"),
        ({"x": ROWS, "y": Y, "label": Y}, "not clear"),
        ({"x": ROWS}, "not clear"),
        ({"x": X[:, 0], "y": Y}, r"not clear .* 'x' \(float\)"),
        ({"x": X.astype(str).tolist(), "y": Y}, "not clear"),
        ({"x": pa.array([[]] * N, pa.list_(pa.float32())), "y": Y}, r"\(12, 0\)"),
        ({"x": ROWS, "y": [[n] for n in NAMES]}, "are object"),
        ({"x": pa.array([], pa.list_(pa.float32())), "y": pa.array([], pa.int64())}, "at least one row"),
    ],
)
def test_parquet_tables_that_are_wrong(columns, word, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "BATCH_ROWS", 5)
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=word) as error:
        files.read(tmp_path / "a.parquet")
    assert "a.parquet" in str(error.value)


@pytest.mark.parametrize(
    ("x", "y", "word"),
    [
        (X[:, :3], Y, "test.npz' has embeddings of 3 numbers, .*train.npz' of 4"),
        (np.where(X[5, 2] == X, np.nan, X), Y, "test.npz' hold NaN or infinity, first in row 5"),
        (X.astype(float) * 1e300, Y, "test.npz' hold NaN or infinity, first in row 0"),
        (
            X,
            np.where(Y == 1, 9, Y),
            "row 1 of '.*test.npz' has the label 9, which no row of '.*train.npz' has",
        ),
        (X, NAMES, "row 0 of '.*test.npz' has the label 'cat'"),
    ],
)
def test_splits_that_do_not_go_together(x, y, word, tmp_path):
    train, test = write(tmp_path / "train.npz"), write(tmp_path / "test.npz", x, y)
    with pytest.raises(UserError, match=word):
        files.load(train, {"test": test})


def test_one_class_in_the_training_set(tmp_path):
    with pytest.raises(UserError, match="All labels of '.*a.npz' are 0"):
        files.load(write(tmp_path / "a.npz", y=0 * Y), {})
