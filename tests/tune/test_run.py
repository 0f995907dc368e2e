"""The stage: lines in results.jsonl from features on disk, and what it refuses."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict

from nml_jax.core import artifacts, plugin, stage, writer
from nml_jax.core.errors import UserError
from nml_jax.features import store
from nml_jax.tune import nmtune, saved

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
    config.task.update(
        {"name": "letters", "suite": "ood", "tests": ("test", "moved"), "source_tests": ("test",)}
    )
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


@pytest.fixture
def embeddings(tmp_path):
    """What somebody has who has embeddings: two files, the labels are words."""
    names = np.array(["cat", "dog", "emu"])
    paths = {}
    for seed, (split, rows) in enumerate({"train": 90, "test": 40}.items()):
        x, y = draw(rows, seed)
        paths[split] = str(tmp_path / f"{split}.npz")
        np.savez(paths[split], x=x[:, 0], y=names[y])
    return paths


def on_files(name, paths, **changes):
    config = smoke(name, "", **({"epochs": 30, "fractions": (1.0,)} | changes))
    config.train, config.test = paths["train"], paths["test"]
    config.optim.learning_rate = 0.01
    return config


@pytest.mark.parametrize("name", METHODS)
def test_files_in_files_out(embeddings, tmp_path, name):
    config = on_files(name, embeddings)
    stage.execute(config, tmp_path / "tune")
    (line,) = writer.read_lines(tmp_path / "tune" / "results.jsonl")
    assert (line["task"], line["train_size"], line["test_size"], line["num_classes"]) == ("train", 90, 40, 3)
    assert line["accuracy"] > 0.85
    assert line["config_hash"] == artifacts.read_fingerprint(tmp_path / "tune")
    with np.load(embeddings["test"]) as test:
        x, y = test["x"], test["y"]
    with np.load(tmp_path / "tune" / "predictions.npz", allow_pickle=False) as predictions:
        assert np.mean(predictions["test/predicted"] == y) == pytest.approx(line["accuracy"])
        np.testing.assert_array_equal(predictions["test/y"], y)
        assert predictions["classes"].tolist() == ["cat", "dog", "emu"]
        np.testing.assert_allclose(predictions["test/probabilities"].sum(axis=1), 1, atol=1e-5)
        head = saved.load(tmp_path / "tune" / "head.safetensors")
        np.testing.assert_array_equal(head.predict(x), predictions["test/predicted"])
    assert head.facts["config_hash"] == line["config_hash"]
    assert head.transform(x).shape == x.shape


def test_a_study_of_files_knows_what_is_in_them(embeddings, tmp_path):
    """Moved files are the same input, changed ones are not."""
    config = on_files("linear_probe", embeddings, epochs=2)
    stage.execute(config, tmp_path / "tune")
    made = artifacts.fingerprint(config)
    moved = tmp_path / "moved.npz"
    Path(embeddings["train"]).rename(moved)
    config.train = str(moved)
    assert artifacts.fingerprint(config) == made
    stage.execute(config, tmp_path / "tune")
    x, y = draw(90, 7)
    np.savez(moved, x=x[:, 0], y=y)
    with pytest.raises(UserError, match="from other inputs"):
        stage.execute(config, tmp_path / "tune")


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"test": ""}, "--config.train=a.npz --config.test=b.npz"),
        ({"train": "nowhere.npz"}, "no file 'nowhere.npz'"),
        ({"inputs": {"features": "somewhere"}}, "or two files"),
    ],
)
def test_files_that_are_not_there_are_refused(embeddings, tmp_path, changes, word):
    config = on_files("linear_probe", embeddings)
    config.update(changes)
    with pytest.raises(UserError, match=word):
        stage.execute(config, tmp_path / "tune")
    assert not (tmp_path / "tune").exists()


def test_fewer_samples_than_a_batch_are_refused(features, tmp_path):
    with pytest.raises(UserError, match="rows to train on, fewer than a batch of 64"):
        stage.execute(smoke("linear_probe", features, batch_size=64), tmp_path / "tune")


def test_a_sweep_chooses_on_rows_of_the_training_set(features, tmp_path):
    config = smoke("linear_probe", features, fractions=(0.8, 1.0), epochs=5, validation=0.2)
    config.sweep.update({"seed": (0, 1), "learning_rate": (1e-5, 0.1), "weight_decay": (0.0, 1e-4)})
    config.save = ("head", "predictions")
    stage.execute(config, tmp_path / "tune")
    tried = writer.read_lines(tmp_path / "tune" / "sweep.jsonl")
    lines = writer.read_lines(tmp_path / "tune" / "results.jsonl")
    assert len(tried) == 16
    assert [(r["fraction"], r["seed"]) for r in lines] == [(0.8, 0), (0.8, 1), (1.0, 0), (1.0, 1)]
    y = store.load(features, "train").y
    for line in lines:
        rivals = [t for t in tried if (t["fraction"], t["seed"]) == (line["fraction"], line["seed"])]
        best = max(rivals, key=lambda t: (t["validation_accuracy"], -t["validation_loss"]))
        assert [t["chosen"] for t in rivals] == [t == best for t in rivals]
        assert line["learning_rate"] == best["learning_rate"] == 0.1
        assert line["validation_accuracy"] == best["validation_accuracy"]
        assert line["heads"] == 16
        held_out = sum(round(0.2 * int(n * line["fraction"])) for n in np.bincount(y))
        assert line["validation_size"] == held_out
        assert line["train_size"] == sum(int(n * line["fraction"]) for n in np.bincount(y)) - held_out
        stem = f"-fraction_{line['fraction']:g}-seed_{line['seed']}"
        assert saved.load(tmp_path / "tune" / f"head{stem}.safetensors").facts["learning_rate"] == 0.1
        assert (tmp_path / "tune" / f"predictions{stem}.npz").exists()


def test_a_sweep_over_the_weights_of_the_regularisers(features, tmp_path):
    config = smoke("nmtune", features, fractions=(1.0,), validation=0.2)
    config.sweep.covariance_weight = (0.0, 0.04, 10.0)
    stage.execute(config, tmp_path / "tune")
    tried = writer.read_lines(tmp_path / "tune" / "sweep.jsonl")
    assert [t["covariance_weight"] for t in tried] == [0.0, 0.04, 10.0]
    assert len({t["validation_loss"] for t in tried}) == 3
    (line,) = writer.read_lines(tmp_path / "tune" / "results.jsonl")
    assert line["covariance_weight"] in (0.0, 0.04, 10.0)


def test_downstream_label_noise(features, tmp_path):
    """Exactly so many wrong labels in the chosen rows, for each ratio; the tests stay clean."""
    config = smoke("linear_probe", features, fractions=(1.0,), epochs=2)
    config.sweep.noise_ratio = (0.0, 0.2, 0.4)
    stage.execute(config, tmp_path / "tune")
    lines = writer.read_lines(tmp_path / "tune" / "results.jsonl")
    counts = np.bincount(store.load(features, "train").y)
    for line, ratio in zip(lines, (0.0, 0.2, 0.4), strict=True):
        assert line["label_noise_ratio"] == ratio
        assert line["label_noise_realised"] == pytest.approx(np.rint(ratio * counts).sum() / 90)
    # The authors' way: the ratio is redrawn over all three classes, so a third of it stays right.
    config.noise.options = {"mode": "official"}
    stage.execute(config, tmp_path / "official")
    official = writer.read_lines(tmp_path / "official" / "results.jsonl")
    assert 0.4 / 3 < official[2]["label_noise_realised"] < 0.4


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"sweep": {"learning_rate": (0.1, 0.2)}}, "--config.validation=0.1"),
        ({"validation": 1.0}, "fraction in"),
        ({"sweep": {"noise_ratio": (0.1, 1.5)}}, "noise ratio"),
        ({"noise": {"name": "caption_swap"}}, "does not corrupt labels"),
        ({"noise": {"name": "symetric"}}, "Did you mean 'symmetric'"),
    ],
)
def test_bad_sweeps_are_refused_before_any_work(features, tmp_path, changes, word):
    with pytest.raises(UserError, match=word):
        stage.execute(smoke("linear_probe", features, **changes), tmp_path / "tune")
    assert not (tmp_path / "tune").exists()


def test_a_probe_has_no_weights_to_sweep_over(features, tmp_path):
    config = smoke("nmtune", features, method="linear_probe", validation=0.1)
    config.head = ConfigDict()
    config.sweep.covariance_weight = (0.1, 1.0)
    with pytest.raises(UserError, match="linear_probe cannot sweep over covariance_weight"):
        stage.execute(config, tmp_path / "tune")
