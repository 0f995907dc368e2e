"""The stage: a saved head and its features in, eigenvalues and trace in a line of results out."""

import numpy as np
import pytest

from configs.analysis import curvature as config_file
from nml_jax.core import stage, writer
from nml_jax.core.errors import UserError
from nml_jax.tune import saved

RNG = np.random.default_rng(0)
N, D, C = 40, 4, 3
X = RNG.normal(size=(N, D)).astype(np.float32)
Y = RNG.integers(C, size=N)
KERNEL = RNG.normal(size=(D, C)).astype(np.float32)
NAMES = np.array(["ant", "bee", "cat"])


def softmax_hessian():
    """Of softmax regression's mean cross-entropy in (kernel, bias), closed form, float64."""
    logits = X.astype(np.float64) @ KERNEL
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    x = np.concatenate([X, np.ones((N, 1))], axis=1)
    covariance = np.einsum("nc,cd->ncd", p, np.eye(C)) - np.einsum("nc,nd->ncd", p, p)
    return np.einsum("ni,nj,ncd->icjd", x, x, covariance).reshape(C * (D + 1), -1) / N


@pytest.fixture
def config(tmp_path):
    np.savez(tmp_path / "train.npz", x=X, y=NAMES[Y])
    params = {"linear": {"kernel": KERNEL, "bias": np.zeros(C, np.float32)}}
    saved.save(
        tmp_path / "head.safetensors",
        method="linear_probe",
        head={},
        classes=NAMES,
        params=params,
        stats={},
        facts={"seed": 3},
    )
    config = config_file.get_config()
    config.inputs.head, config.inputs.train = str(tmp_path / "head.safetensors"), str(tmp_path / "train.npz")
    config.top_k, config.samples, config.progress = 5, 50, False
    return config


def test_line(config, tmp_path):
    stage.execute(config, tmp_path / "curvature")
    (line,) = writer.read_lines(tmp_path / "curvature" / "results.jsonl")
    exact = softmax_hessian()
    values = np.linalg.eigvalsh(exact)[::-1]
    np.testing.assert_allclose(line["hessian_top"], values[:5], rtol=1e-3)
    assert abs(line["hessian_trace"] - np.trace(exact)) < 4 * line["hessian_trace_stderr"]
    assert (line["kind"], line["method"], line["seed"], line["rows"], line["dim"]) == (
        "curvature",
        "linear_probe",
        3,
        N,
        D,
    )


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"inputs": {"head": ""}}, "needs a head"),
        ({"inputs": {"features": "somewhere"}}, "either"),
        ({"of": "backbone"}, "all, classifier"),
        ({"top_k": 0}, "from 1 and 2 on"),
        ({"samples": 1}, "from 1 and 2 on"),
        ({"method": "hesian"}, "curvature, spectrum"),
    ],
)
def test_refused_before_any_work(config, tmp_path, changes, word):
    config.update(changes)
    with pytest.raises(UserError, match=word):
        stage.execute(config, tmp_path / "curvature")
    assert not (tmp_path / "curvature").exists()


def test_features_of_another_kind_are_refused(config, tmp_path):
    np.savez(tmp_path / "train.npz", x=X[:, :3], y=NAMES[Y])
    with pytest.raises(UserError, match="D=4 and 3 classes, the features have D=3"):
        stage.execute(config, tmp_path / "curvature")
