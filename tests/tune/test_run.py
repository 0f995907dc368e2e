"""The stage: lines in results.jsonl from features on disk, and what it refuses."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from nml_jax.core import artifacts, plugin, stage, writer
from nml_jax.core.errors import UserError
from nml_jax.features import store
from nml_jax.tune import nmtune

CONFIGS = Path(__file__).parents[2] / "configs" / "tune"
METHODS = ["linear_probe", "mlp", "nmtune"]
ENCODER = {
    "objective": "supervised",
    "model": "resnet",
    "noise": "symmetric",
    "noise_ratio": 0.1,
    "pretrain_seed": 3,
}


def load_config(name, arg=None):
    spec = importlib.util.spec_from_file_location(name, CONFIGS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(arg)


def draw(rows, seed, dim=8):
    rng = np.random.default_rng(seed)
    y = rng.integers(3, size=rows)
    x = 0.3 * rng.normal(size=(rows, 4, dim)) + np.eye(dim)[y][:, None]
    return x.astype(np.float32), y


@pytest.fixture
def features(tmp_path):
    """Separable features as the features stage leaves them."""
    folder = tmp_path / "features"
    for seed, (split, rows) in enumerate({"train": 90, "test": 40, "moved": 30}.items()):
        x, y = draw(rows, seed)
        store.save(folder, split, x, {"label": y, "other": y % 2}, {"label": 3, "other": 2}, encoder=ENCODER)
    artifacts.finish(folder, {"stage": "features"})
    return folder


def smoke(name, features, **changes):
    config = load_config(name, "smoke")
    config.inputs.features = str(features)
    config.batch_size = 16
    config.progress = False
    config.update(changes)
    return config


def test_lines(features, tmp_path):
    config = smoke("linear_probe", features, fractions=(0.5, 1.0), epochs=30)
    config.optim.learning_rate = 0.1
    config.task.update({"suite": "ood", "tests": ("test", "moved"), "source_tests": ("test",)})
    stage.execute(config, tmp_path / "tune")
    lines = writer.read_lines(tmp_path / "tune" / "results.jsonl")
    assert [(r["fraction"], r["test_split"], r["suite"]) for r in lines] == [
        (0.5, "test", "source"),
        (0.5, "moved", "ood"),
        (1.0, "test", "source"),
        (1.0, "moved", "ood"),
    ]
    y = store.load(features, "train").y
    half = sum(int(n * 0.5) for n in np.bincount(y))
    for line in lines:
        assert line.items() >= ENCODER.items()
        assert line["kind"] == "tune"
        assert (line["method"], line["task"], line["label"], line["seed"]) == (
            "linear_probe",
            "letters",
            "label",
            0,
        )
        assert (line["train_split"], line["num_classes"], line["dim"]) == ("train", 3, 8)
        assert line["train_size"] == (half if line["fraction"] == 0.5 else 90)
        assert line["test_size"] == (40 if line["test_split"] == "test" else 30)
        assert min(line["accuracy"], line["mean_per_class"], line["macro_f1"], line["train_accuracy"]) > 0.85
        assert 0 < line["final_loss"] < 0.5
        assert line["wall_time_s"] > 0
        assert (
            line["config_hash"]
            == artifacts.fingerprint(config)
            == artifacts.read_fingerprint(tmp_path / "tune")
        )
        assert {"jax", "flax", "nml_jax"} <= line["versions"].keys()


def test_second_call_does_nothing_and_another_config_is_refused(features, tmp_path):
    config = smoke("linear_probe", features)
    stage.execute(config, tmp_path / "tune")
    results = tmp_path / "tune" / "results.jsonl"
    before = (results.stat().st_mtime_ns, results.read_text())
    stage.execute(config, tmp_path / "tune")
    assert (results.stat().st_mtime_ns, results.read_text()) == before
    config.seed = 1
    with pytest.raises(UserError, match="seed"):
        stage.execute(config, tmp_path / "tune")


def test_other_labels_of_the_same_images(features, tmp_path):
    config = smoke("linear_probe", features)
    config.task.label = "other"
    stage.execute(config, tmp_path / "tune")
    (line,) = writer.read_lines(tmp_path / "tune" / "results.jsonl")
    assert (line["label"], line["num_classes"]) == ("other", 2)


def test_nmtune_learns(features, tmp_path):
    stage.execute(smoke("nmtune", features, fractions=(1.0,), epochs=40), tmp_path / "tune")
    (line,) = writer.read_lines(tmp_path / "tune" / "results.jsonl")
    assert line["method"] == "nmtune"
    assert min(line["accuracy"], line["train_accuracy"]) > 0.85


def test_nan_is_refused(features, tmp_path):
    x, y = draw(40, 1)
    x[7, 2, 1] = np.nan
    store.save(features, "test", x, {"label": y}, {"label": 3})
    with pytest.raises(UserError, match="row 7"):
        stage.execute(smoke("linear_probe", features), tmp_path / "tune")
    assert not artifacts.is_finished(tmp_path / "tune")


def test_rows_that_do_not_match_are_refused(features, tmp_path):
    np.save(store.split_dir(features, "train") / "y.npy", np.zeros(89, np.int64))
    with pytest.raises(UserError, match="do not fit together"):
        stage.execute(smoke("linear_probe", features), tmp_path / "tune")


@pytest.mark.parametrize(("dim", "classes"), [(9, 3), (8, 4)])
def test_splits_of_different_kind_are_refused(features, tmp_path, dim, classes):
    x, y = draw(40, 1, dim)
    store.save(features, "test", x, {"label": y}, {"label": classes})
    with pytest.raises(UserError, match=f"D={dim} and {classes}"):
        stage.execute(smoke("linear_probe", features), tmp_path / "tune")


def test_too_few_views_are_refused(features, tmp_path):
    x, y = draw(90, 0)
    store.save(features, "train", x[:, :2], {"label": y}, {"label": 3})
    with pytest.raises(UserError, match="the clean one"):
        stage.execute(smoke("mlp", features), tmp_path / "tune")


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"inputs": {"features": ""}}, "--config.inputs.features=DIR"),
        ({"inputs": {"features": "nowhere"}}, "no finished artefact"),
        ({"method": "knn"}, "linear_probe, mlp, nmtune"),
        ({"fractions": (0.5, 0.0)}, "fraction"),
        ({"fractions": ()}, "Nothing to do"),
        ({"task": {"tests": ()}}, "Nothing to do"),
        ({"task": {"suite": "far"}}, "id, ood"),
    ],
)
def test_refused_before_any_work(features, tmp_path, changes, word):
    with pytest.raises(UserError, match=word):
        stage.execute(smoke("linear_probe", features, **changes), tmp_path / "tune")
    assert not (tmp_path / "tune").exists()


@pytest.mark.parametrize("name", METHODS)
def test_configs(name):
    config, small = load_config(name), load_config(name, "smoke")
    assert config.method == name
    assert small.epochs < config.epochs == 30
    method = plugin.find("tune", config.method, "make")
    assert method.make(dim=4, num_classes=2, **config.head) is not None
    json.dumps(artifacts.plain(config))
    with pytest.raises(ValueError, match="smoke, or none"):
        load_config(name, "tiny")


def test_paper_config_has_the_paper_head():
    assert load_config("nmtune", "paper").head.to_dict() == nmtune.PRESETS["paper"]
    assert load_config("nmtune").head.to_dict() == nmtune.PRESETS["official"]
    assert load_config("mlp", "paper").head.views == 1


def test_plug_ins_are_the_method_files():
    assert set(METHODS) <= set(plugin.names("tune", "make"))
    assert not {"run", "trainer", "head", "regularizers", "fraction"} & set(plugin.names("tune", "make"))
