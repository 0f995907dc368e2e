"""The stage: stored features in, spectrum.npz and a line of results out."""

import json

import numpy as np
import pytest
from scipy.stats import entropy

from configs.analysis import spectrum as config_file
from nml_jax.core import artifacts, stage
from nml_jax.core.errors import UserError
from nml_jax.features import store


def save_features(directory, seed=0, **facts):
    x = np.random.default_rng(seed).standard_normal((30, 2, 6))
    store.save(directory, "test", x, {"label": np.arange(30) % 3}, {"label": 3}, **facts)
    made = {"stage": "features", "seed": seed}
    artifacts.write_json(directory / artifacts.CONFIG, made)
    artifacts.finish(directory, made)
    return x.astype(np.float32)


def make_config(features, **task):
    config = config_file.get_config("smoke")
    config.inputs.features = str(features)
    config.task.update({"name": "toy", **task})
    config.progress = False
    return config


def read(workdir):
    lines = (workdir / "results.jsonl").read_text().splitlines()
    assert len(lines) == 1
    with np.load(workdir / "spectrum.npz", allow_pickle=False) as arrays:
        return json.loads(lines[0]), arrays["singular_values"]


def test_stage_writes_the_spectrum_of_the_clean_view(tmp_path):
    encoder = {"objective": "supervised", "noise_ratio": 0.1, "pretrain_seed": 3, "kind": "not this"}
    x = save_features(tmp_path / "features", encoder=encoder)[:, 0].astype(np.float64)
    config = make_config(tmp_path / "features", suite="source")
    stage.execute(config, tmp_path / "out")
    record, s = read(tmp_path / "out")
    rows = x / np.linalg.norm(x, axis=1, keepdims=True)
    truth = np.linalg.svd(rows - rows.mean(axis=1, keepdims=True), compute_uv=False)
    np.testing.assert_allclose(s, truth, atol=1e-13)
    assert record["sve"] == pytest.approx(entropy(truth), rel=1e-9)
    assert record["lsvr"] == pytest.approx(-np.log(truth[0] / truth.sum()), rel=1e-9)
    assert record["sigma_1"] == pytest.approx(truth[0])
    assert record["nuclear_norm"] == pytest.approx(truth.sum())
    told = {k: record[k] for k in ("kind", "task", "suite", "split", "rows", "dim", "preprocess", "file")}
    assert told == {
        "kind": "spectrum",
        "task": "toy",
        "suite": "source",
        "split": "test",
        "rows": 30,
        "dim": 6,
        "preprocess": "official",
        "file": "spectrum.npz",
    }
    assert (record["objective"], record["noise_ratio"], record["pretrain_seed"]) == ("supervised", 0.1, 3)
    assert record["config_hash"] == artifacts.read_fingerprint(tmp_path / "out")


def test_a_finished_stage_is_not_run_again_and_not_mixed_up_with_other_features(tmp_path):
    save_features(tmp_path / "features")
    config = make_config(tmp_path / "features")
    stage.execute(config, tmp_path / "out")
    first, _ = read(tmp_path / "out")
    stamp = (tmp_path / "out" / "spectrum.npz").stat().st_mtime_ns
    stage.execute(config, tmp_path / "out")
    assert (tmp_path / "out" / "spectrum.npz").stat().st_mtime_ns == stamp
    save_features(tmp_path / "features", seed=1)
    with pytest.raises(UserError, match="from other inputs"):
        stage.execute(config, tmp_path / "out")
    assert read(tmp_path / "out")[0] == first


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"preprocess": "centre"}, "official, centred, none"),
        ({"task": {"suite": "ID"}}, "id, ood, source"),
        ({"inputs": {"features": ""}}, "No features given"),
    ],
)
def test_a_wrong_config_is_refused_before_the_work_directory_is_claimed(tmp_path, change, said):
    save_features(tmp_path / "features")
    config = make_config(tmp_path / "features")
    config.update(change)
    with pytest.raises(UserError, match=said):
        stage.execute(config, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_config_knows_its_arguments():
    assert config_file.get_config().to_dict() == config_file.get_config("smoke").to_dict()
    with pytest.raises(UserError, match="smoke"):
        config_file.get_config("smok")
