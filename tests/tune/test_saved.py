"""A saved head gives the same outputs anywhere: here, in a fresh process, and by hand from its tensors alone."""

import functools
import json
import subprocess
import sys

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import scipy.special

import nml_jax
from nml_jax.core import plugin
from nml_jax.core.errors import UserError
from nml_jax.tune import saved, trainer

D, C = 6, 3
RNG = np.random.default_rng(0)
X = RNG.normal(size=(7, D)).astype(np.float32)
CLASSES = ["cat", "dog", "zebra"]
CASES = {
    "linear_probe": ("linear_probe", {}),
    "mlp": ("mlp", {"preset": "paper", "expansion": 2}),
    "nmtune": ("nmtune", {"covariance_weight": 0.1}),
}
METHODS = pytest.mark.parametrize("case", CASES)
TARGET = (1e6, 1e-3)  # of such numbers float32 would keep nothing
REGRESSIONS = {
    "official regression": ("nmtune", {"objective": "regression", "expansion": 2}),
    "paper regression": ("nmtune", {"objective": "regression", "preset": "paper"}),
    "mlp regression": ("mlp", {"objective": "regression"}),
}


@functools.cache
def tuned(case):
    """The Task and (params, stats) as they might be after training: no value is at its start."""
    method, head = (CASES | REGRESSIONS)[case]
    width = 1 if case in REGRESSIONS else C
    task = plugin.find("tune", method, "make").make(dim=D, num_classes=width, **head)
    batch = {"x": X[:, None], "y": np.arange(7) % C}
    params, _, stats = jax.jit(task.init)(jax.random.key(0), batch)
    moved = lambda leaf: leaf + 0.3 * RNG.uniform(size=leaf.shape).astype(np.float32)  # noqa: E731
    return task, jax.tree.map(moved, params), jax.tree.map(moved, stats)


def save(path, case, **changes):
    method, head = (CASES | REGRESSIONS)[case]
    _, params, stats = tuned(case)
    outputs = {"classes": None, "target": TARGET} if case in REGRESSIONS else {"classes": CLASSES}
    given = {"method": method, "head": head, "params": params, "stats": stats} | outputs
    saved.save(path, **(given | changes))
    return path


def by_hand(file, x):
    """Z and the logits in float64 from the tensors of the file, as its documentation says."""
    w = {name: value.astype(np.float64) for name, value in safetensors.numpy.load_file(file).items()}
    if "params/linear/kernel" in w:
        return x, x @ w["params/linear/kernel"] + w["params/linear/bias"]
    h = x @ w["params/mlp/expand/kernel"] + w["params/mlp/expand/bias"]
    if "params/mlp/norm/scale" in w:
        mean, var = w["stats/batch_stats/mlp/norm/mean"], w["stats/batch_stats/mlp/norm/var"]
        h = (h - mean) / np.sqrt(var + 1e-5) * w["params/mlp/norm/scale"] + w["params/mlp/norm/bias"]
    z = np.maximum(h, 0) @ w["params/mlp/project/kernel"] + w["params/mlp/project/bias"]
    if "params/scale/scale" in w:
        z = w["params/scale/scale"] * z + x
    return z, z @ w["params/classifier/linear/kernel"] + w["params/classifier/linear/bias"]


@METHODS
def test_what_is_loaded_is_what_was_saved(case, tmp_path):
    file = save(tmp_path / "head.safetensors", case, facts={"accuracy": 0.5, "data": "pets"})
    head = saved.load(file)
    task, params, stats = tuned(case)
    for there, given in ((head.params, params), (head.stats, stats)):
        assert jax.tree.structure(there) == jax.tree.structure(given)
        jax.tree.map(np.testing.assert_array_equal, there, given)
    assert (head.method, head.head, head.dim) == (*CASES[case], D)
    assert head.facts == {"accuracy": 0.5, "data": "pets"}
    assert head.classes.tolist() == CLASSES
    np.testing.assert_array_equal(head.logits(X), trainer.predict(task, (params, {}, stats), X))
    assert [p.name for p in tmp_path.iterdir()] == ["head.safetensors"]


@METHODS
def test_results_are_those_of_the_tensors_by_hand(case, tmp_path):
    file = save(tmp_path / "head.safetensors", case)
    head = saved.load(file)
    x = np.concatenate([X] * 50)  # more rows than go through at once
    z, logits = by_hand(file, x.astype(np.float64))
    np.testing.assert_allclose(head.logits(x), logits, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(head.transform(x), z, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(head.predict_proba(x), scipy.special.softmax(logits, axis=1), atol=1e-6)
    np.testing.assert_array_equal(head.predict(x), np.array(CLASSES)[logits.argmax(axis=1)])
    assert head.transform(x).dtype == head.logits(x).dtype == np.float32
    if case == "linear_probe":
        np.testing.assert_array_equal(head.transform(x), x)


def test_a_fresh_process_needs_the_file_only(tmp_path):
    np.save(tmp_path / "x.npy", X)
    files = {case: str(save(tmp_path / f"{case}.safetensors", case)) for case in (*CASES, *REGRESSIONS)}
    program = (
        "import json, sys, numpy as np\n"
        "from nml_jax.tune import saved\n"
        "x = np.load(sys.argv[1])\n"
        "for case, file in json.loads(sys.argv[2]).items():\n"
        "    np.save(f'{file}.npy', saved.load(file).logits(x))\n"
    )
    arguments = [sys.executable, "-c", program, str(tmp_path / "x.npy"), json.dumps(files)]
    subprocess.run(arguments, check=True, timeout=300)
    for file in files.values():
        np.testing.assert_array_equal(np.load(f"{file}.npy"), saved.load(file).logits(X))


@pytest.mark.parametrize(
    ("classes", "expected"),
    [
        (np.array([7, -1, 2**40]), [7, -1, 2**40]),
        (np.array(["b", "a", "é"], object), ["b", "a", "é"]),
        ([np.int32(3), np.int32(1), np.int32(2)], [3, 1, 2]),
        (("x", "y", "z"), ["x", "y", "z"]),
    ],
)
def test_classes_come_back_in_their_order(classes, expected, tmp_path):
    head = saved.load(save(tmp_path / "a", "linear_probe", classes=classes))
    assert head.classes.tolist() == expected
    assert set(head.predict(X)) <= set(expected)


def test_arrays_in_another_memory_layout(tmp_path):
    _, params, _ = tuned("linear_probe")
    columns = jax.tree.map(np.asfortranarray, params)
    head = saved.load(save(tmp_path / "a", "linear_probe", params=columns))
    np.testing.assert_array_equal(head.params["linear"]["kernel"], params["linear"]["kernel"])


@pytest.mark.parametrize("dtype", [np.float64, np.float16, ml_dtypes.bfloat16, np.int8])
def test_numbers_of_other_types(dtype, tmp_path):
    file = save(tmp_path / "a", "linear_probe")
    x = (10 * X).astype(dtype)
    expected = by_hand(file, x.astype(np.float64))[1]
    np.testing.assert_allclose(saved.load(file).logits(x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("x", "word"),
    [
        (X[0], r"shape \(6,\); valid .* \(N, 6\)"),
        (X[:, :5], r"shape \(7, 5\)"),
        (X[:, None], r"shape \(7, 1, 6\); .* `clean`"),
        (X[:0], "N >= 1"),
        (X.astype(str), "x is <U"),
        (X.astype(object), "x is object"),
        (X > 0, "x is bool"),
        (X + 1j, "x is complex"),
        (np.where(X[4, 1] == X, np.nan, X), "first in row 4"),
        (X.astype(float) * 1e300, "first in row 0"),
    ],
)
def test_x_that_is_no_features(x, word, tmp_path):
    head = saved.load(save(tmp_path / "a", "mlp"))
    for apply in (head.logits, head.predict, head.predict_proba, head.transform):
        with pytest.raises(UserError, match=word):
            apply(x)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"method": "nmtun"}, "'nmtun' is not in .* Did you mean 'nmtune'"),
        ({"head": {"expansoin": 2}}, "no option expansoin"),
        ({"head": {"expansion": 3}}, r"mlp/expand/bias: float32\[18\], but given was float32\[24\]"),
        ({"head": {"residual": False}}, r"params/scale/scale: no such tensor, but given was float32\[6\]"),
        ({"method": "linear_probe", "head": {}}, "no such tensor"),
        ({"classes": ["a", "b"]}, "2 classes has params/classifier/linear/bias"),
        ({"classes": ["a", "b", "a"]}, "different"),
        ({"classes": [1, "b", "a"]}, "all of one kind"),
        ({"classes": [0.0, 1.0, 2.0]}, "valid are different integers"),
        ({"classes": []}, "valid are different integers"),
        ({"params": {}}, "have 0 classifiers"),
        ({"stats": {}}, "batch_stats/mlp/norm/mean"),
        ({"facts": {"accuracy": np.float32(1)}}, "float32 is not JSON serializable"),
    ],
)
def test_what_cannot_be_saved(changes, word, tmp_path):
    with pytest.raises(UserError, match=word):
        save(tmp_path / "a", "nmtune", **changes)
    assert not list(tmp_path.iterdir())


def metadata(file):
    with safetensors.safe_open(file, "np") as opened:
        return json.loads(opened.metadata()["nml_jax"])


def rewrite(file, change, drop=(), **tensors):
    """Changes the metadata's document and the tensors of a saved head."""
    document = metadata(file)
    there = safetensors.numpy.load_file(file) | tensors
    kept = {name: value for name, value in there.items() if name not in drop}
    safetensors.numpy.save_file(kept, file, {"nml_jax": json.dumps(document | change)})


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"format": 3, "version": "9.1"}, "format 3, written by nml_jax 9.1, .* up to 2. Upgrade"),
        ({"format": None}, "not as they were written"),
        ({"method": "prompt"}, "'prompt' is not in nml_jax/tune; it has linear_probe"),
        ({"method": None}, "metadata"),
        ({"head": {"depth": 3}}, "no option depth"),
        ({"head": {"views": [1]}}, "metadata"),
        ({"head": None}, "metadata"),
        ({"head": {"expansion": 0}}, "cannot be loaded"),
        ({"head": {"expansion": "many"}}, "metadata"),
        ({"head": {"dim": 3}}, "metadata"),
        ({"dim": 7}, r"linear/kernel: float32\[7, 3\], but given was float32\[6, 3\]"),
        ({"dim": -1}, "cannot be loaded"),
        ({"dim": 2**80}, "metadata"),
        ({"dim": "6"}, "metadata"),
        ({"classes": ["a"]}, "1 classes"),
        ({"classes": 3}, "metadata"),
        ({"facts": 3}, "metadata"),
    ],
)
def test_metadata_that_do_not_fit(change, word, tmp_path):
    rewrite(save(tmp_path / "a.safetensors", "nmtune"), change)
    with pytest.raises(UserError, match=word) as error:
        saved.load(tmp_path / "a.safetensors")
    assert "a.safetensors" in str(error.value)


@pytest.mark.parametrize(
    ("tensors", "drop", "word"),
    [
        (
            {},
            ["params/mlp/norm/scale"],
            r"norm/scale: float32\[24\], but given was no such tensor \(names, shapes or types of 1",
        ),
        ({"params/x": np.zeros(2, np.float32)}, [], r"params/x: no such tensor, but given was float32\[2\]"),
        ({"params": np.zeros(2, np.float32)}, [], "params: no such tensor"),
        ({"params/scale/scale": np.zeros(6)}, [], r"float32\[6\], but given was float64\[6\]"),
        ({"params/scale/scale": np.zeros(5, np.float32)}, [], r"given was float32\[5\]"),
        ({"params/scale/scale": np.zeros(6, ml_dtypes.bfloat16)}, [], r"given was bfloat16\[6\]"),
    ],
)
def test_tensors_that_do_not_fit(tensors, drop, word, tmp_path):
    rewrite(save(tmp_path / "a.safetensors", "nmtune"), {}, drop, **tensors)
    with pytest.raises(UserError, match=word):
        saved.load(tmp_path / "a.safetensors")


def test_files_that_are_no_saved_heads(tmp_path):
    whole = save(tmp_path / "whole", "linear_probe").read_bytes()
    broken = tmp_path / "broken.safetensors"
    for content in (b"", whole[:5], whole[:100], whole[:-1], b"no head", RNG.bytes(500), b"[" * 500):
        broken.write_bytes(content)
        with pytest.raises(UserError, match=r"broken.safetensors' cannot be read as safetensors"):
            saved.load(broken)
    with pytest.raises(UserError, match="does not exist"):
        saved.load(tmp_path / "nothing")
    with pytest.raises(UserError, match="cannot be read"):
        saved.load(tmp_path)
    safetensors.numpy.save_file({"x": X}, broken)
    with pytest.raises(UserError, match="without the metadata 'nml_jax'"):
        saved.load(broken)
    for text in ("", "{", "[]", "3", "{}"):
        safetensors.numpy.save_file({"x": X}, broken, {"nml_jax": text})
        with pytest.raises(UserError, match="not as they were written"):
            saved.load(broken)


def test_the_file_says_what_it_is(tmp_path):
    assert metadata(save(tmp_path / "a", "nmtune")) == {
        "format": 1,
        "version": nml_jax.__version__,
        "method": "nmtune",
        "head": {"covariance_weight": 0.1},
        "dim": D,
        "classes": CLASSES,
        "facts": {},
    }


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    file = save(tmp_path / "a", "linear_probe")
    old = file.read_bytes()

    def full(*_):
        raise OSError("disk full")

    monkeypatch.setattr(safetensors.numpy, "save", full)
    with pytest.raises(OSError, match="disk full"):
        save(file, "linear_probe", classes=[1, 2, 3])
    assert file.read_bytes() == old
    assert list(tmp_path.iterdir()) == [file]


# Regression


@pytest.mark.parametrize("case", REGRESSIONS)
def test_a_regression_gives_the_numbers(case, tmp_path):
    file = save(tmp_path / "head.safetensors", case, facts={"data": "sts-b"})
    head = saved.load(file)
    x = np.concatenate([X] * 50)
    z, outputs = by_hand(file, x.astype(np.float64))
    mean, scale = metadata(file)["target"].values()
    numbers = head.predict(x)
    assert (numbers.shape, numbers.dtype) == ((350,), np.float64)
    np.testing.assert_allclose((numbers - mean) / scale, outputs[:, 0], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(head.logits(x), outputs, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(head.transform(x), z, rtol=1e-5, atol=1e-5)
    assert (head.target, head.classes, head.facts, head.dim) == (TARGET, None, {"data": "sts-b"}, D)
    task, params, stats = tuned(case)
    np.testing.assert_array_equal(head.logits(x), trainer.predict(task, (params, {}, stats), x))


def test_a_regression_has_no_probabilities(tmp_path):
    head = saved.load(save(tmp_path / "a", "mlp regression"))
    with pytest.raises(UserError, match="is a regression, .* no classes; .* Use predict"):
        head.predict_proba(X)
    with pytest.raises(UserError, match=r"shape \(7, 5\)"):
        head.predict(X[:, :5])


def test_the_file_of_a_regression_says_what_it_is(tmp_path):
    file = save(tmp_path / "a", "paper regression", target=(np.float32(0.1), np.int64(3)))
    assert metadata(file) == {
        "format": 2,
        "version": nml_jax.__version__,
        "method": "nmtune",
        "head": {"objective": "regression", "preset": "paper"},
        "dim": D,
        "classes": None,
        "target": {"mean": float(np.float32(0.1)), "scale": 3.0},
        "facts": {},
    }


def test_the_file_is_a_header_and_numbers(tmp_path):
    """Nothing in it could be a pickle: after the JSON header all bytes belong to float32 tensors."""
    content = save(tmp_path / "a", "official regression").read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    tensors = json.loads(content[8:start])
    del tensors["__metadata__"]
    assert {tensor["dtype"] for tensor in tensors.values()} == {"F32"}
    places = sorted(tensor["data_offsets"] for tensor in tensors.values())
    assert [first for first, _ in places] == [0, *(last for _, last in places[:-1])]
    assert start + places[-1][1] == len(content)


@pytest.mark.parametrize(
    ("case", "changes", "word"),
    [
        ("mlp regression", {"target": None}, "is regression, .* neither classes nor target; valid is target"),
        ("mlp regression", {"classes": ["a"]}, "is regression, and it comes with classes and target"),
        ("mlp regression", {"classes": ["a"], "target": None}, "comes with classes; valid is target"),
        (
            "mlp",
            {"target": TARGET},
            "is classification, .* classes and target; valid is classes and no target",
        ),
        ("linear_probe", {"classes": None, "target": TARGET}, "is classification, and it comes with target"),
        ("nmtune", {"classes": None}, "neither classes nor target; valid is classes"),
        ("mlp regression", {"target": (0.0, 0.0)}, "the scale above 0"),
        ("mlp regression", {"target": (0.0, -1.0)}, "the scale above 0"),
        ("mlp regression", {"target": (np.nan, 1.0)}, "two finite numbers"),
        ("mlp regression", {"target": (0.0, np.inf)}, "two finite numbers"),
        ("mlp regression", {"target": (0.0,)}, "two finite numbers"),
        ("mlp regression", {"target": 3.0}, "two finite numbers"),
        ("mlp regression", {"target": ("0", "1")}, "two finite numbers"),
        (
            "mlp regression",
            {"head": {"objective": "regression", "expansion": 2}},
            r"one number has params/mlp/expand/bias: float32\[12\], but given was float32\[24\]",
        ),
    ],
)
def test_what_cannot_be_saved_of_a_regression(case, changes, word, tmp_path):
    with pytest.raises(UserError, match=word):
        save(tmp_path / "a", case, **changes)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"target": None}, "not as they were written"),
        ({"target": [0.0, 1.0]}, "not as they were written"),
        ({"target": {"mean": 0.0}}, "not as they were written"),
        ({"target": {"mean": 0.0, "scale": 0.0}}, "the scale above 0"),
        ({"target": {"mean": 0.0, "scale": -2.0}}, "the scale above 0"),
        ({"target": {"mean": float("nan"), "scale": 1.0}}, "two finite numbers"),
        ({"target": {"mean": 0.0, "scale": float("inf")}}, "two finite numbers"),
        ({"target": {"mean": 0.0, "scale": "1"}}, "two finite numbers"),
        ({"target": {"mean": 10**400, "scale": 1.0}}, "cannot be loaded"),
        ({"classes": ["a"]}, "comes with classes and target"),
        ({"format": 1}, "not as they were written"),
        ({"head": {}}, "is classification"),
        ({"head": None}, "not as they were written"),
        ({"head": {"objective": "ranking"}}, "is classification"),
        ({"dim": 7}, r"one number has .*linear/kernel: float32\[7, 1\], but given was float32\[6, 1\]"),
    ],
)
def test_metadata_that_do_not_fit_a_regression(change, word, tmp_path):
    rewrite(save(tmp_path / "a.safetensors", "mlp regression"), change)
    with pytest.raises(UserError, match=word) as error:
        saved.load(tmp_path / "a.safetensors")
    assert "a.safetensors" in str(error.value)


def test_files_of_format_1_are_read_as_ever(tmp_path):
    """Such a file could have one class of a head that was tuned as a regression: its logits are still there."""
    kernel, bias = np.eye(D, C, dtype=np.float32), np.arange(C, dtype=np.float32)
    said = '{"format": 1, "version": "0.1", "method": "linear_probe", "head": {}, "dim": 6, '
    said += '"classes": [5, 7, 9], "facts": {}}'
    tensors = {"params/linear/kernel": kernel, "params/linear/bias": bias}
    safetensors.numpy.save_file(tensors, tmp_path / "a", {"nml_jax": said})
    head = saved.load(tmp_path / "a")
    np.testing.assert_array_equal(head.predict(X), np.array([5, 7, 9])[(X[:, :C] + bias).argmax(axis=1)])
    assert head.target is None
    file = save(tmp_path / "b.safetensors", "mlp regression")
    rewrite(file, {"format": 1, "classes": ["score"], "target": None})
    assert saved.load(file).logits(X).shape == (7, 1)
