"""One contract for each room, held by every plug-in file that is found there."""

import inspect

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs.pretrain import glyphs_contrastive, glyphs_supervised
from nml_jax.core import plugin, stage
from nml_jax.core.errors import UserError

LABELS = np.repeat(np.arange(5), 40)
CAPTIONS = np.array([f"caption {i // 2}" for i in range(200)])


@pytest.fixture(scope="module")
def needs(tmp_path_factory) -> dict[str, dict]:
    """What a noise model cannot do without, beyond the common arguments."""
    human = tmp_path_factory.mktemp("human") / "labels.npy"
    np.save(human, np.where(np.arange(200) % 2, LABELS, (LABELS + 1) % 5))
    return {
        "asymmetric": {"related": [(0, 1), (2, 3, 4)]},
        "human": {"file": str(human)},
        "instance": {"features": np.random.default_rng(0).standard_normal((200, 6))},
    }


def noise(name: str, needs: dict, **changes):
    module = plugin.find("noise", name, "corrupt")
    options = (
        {"ratio": 0.0 if name == "none" else 0.2, "seed": 3, "ids": None} | needs.get(name, {}) | changes
    )
    if "labels" in module.CORRUPTS:
        return LABELS, module.corrupt(LABELS, num_classes=5, **options)
    return CAPTIONS, np.asarray(module.corrupt(CAPTIONS, **options))


@pytest.mark.parametrize("name", plugin.names("noise", "corrupt"))
def test_noise(name, needs):
    clean, noisy = noise(name, needs)
    module = plugin.find("noise", name, "corrupt")
    assert set(module.CORRUPTS) <= {"labels", "captions"}
    assert set(getattr(module, "NEEDS", ())) <= {"features", "class_names"}
    assert noisy.shape == clean.shape
    assert (clean != noisy).sum() == (0 if name == "none" else 40)
    np.testing.assert_array_equal(noisy, noise(name, needs)[1])
    np.testing.assert_array_equal(clean, noise(name, needs, ratio=0.0)[1])
    for ratio in (-0.1, 1.5, float("nan")):
        with pytest.raises(UserError):
            noise(name, needs, ratio=ratio)
    with pytest.raises(UserError):
        noise(name, needs, ids=np.zeros(200, int))


@pytest.mark.parametrize("name", plugin.names("tune", "make"))
def test_tuning_method(name):
    module = plugin.find("tune", name, "make")
    views = module.views()
    task = module.make(dim=6, num_classes=3)
    assert task is module.make(dim=6, num_classes=3)  # programs are shared by it
    rng = np.random.default_rng(0)
    batch = {"x": rng.standard_normal((8, max(1, views), 6)).astype(np.float32), "y": np.arange(8) % 3}
    params, frozen, stats = task.init(jax.random.key(0), batch)
    loss, (new_stats, metrics) = task.loss(params, frozen, stats, batch, jax.random.key(1))
    assert np.isfinite(loss)
    assert {"loss", "accuracy"} <= metrics.keys()
    assert jax.tree.structure(new_stats) == jax.tree.structure(stats)
    assert task.predict(params, frozen, stats, {"x": batch["x"][:, 0]}).shape == (8, 3)
    with pytest.raises(UserError, match="no option depht"):
        module.make(dim=6, num_classes=3, depht=2)


@pytest.mark.parametrize("name", plugin.names("data", "builder"))
def test_data_set(name, tmp_path):
    module = plugin.find("data", name, "builder")
    assert list(inspect.signature(module.builder).parameters) == ["name", "data_dir"]
    with pytest.raises(UserError):
        module.builder(f"{name}/no_such_config", str(tmp_path))


@pytest.mark.parametrize("name", plugin.names("convert", "samples"))
def test_reader(name, tmp_path):
    module = plugin.find("convert", name, "samples")
    shards, samples = (
        inspect.signature(module.shards).parameters,
        inspect.signature(module.samples).parameters,
    )
    assert list(shards)[:3] == ["source", "place", "scratch"]
    assert list(samples)[:2] == ["shard", "faults"]
    assert list(shards)[3:] == list(samples)[2:]  # the same options
    with pytest.raises(UserError):
        module.shards("empty", str(tmp_path), scratch=str(tmp_path))


@pytest.mark.parametrize("name", plugin.names("convert", "apply"))
def test_runner(name):
    parameters = inspect.signature(plugin.find("convert", name, "apply").apply).parameters
    assert list(parameters)[:4] == ["function", "items", "title", "progress"]


@pytest.mark.parametrize("name", plugin.names("pretrain", "prepare"))
def test_objective(name):
    module = plugin.find("pretrain", name, "prepare")
    assert module.SUPERVISION in ("labels", "captions")
    config = {"supervised": glyphs_supervised, "contrastive": glyphs_contrastive}[name].get_config("smoke")
    module.check(config)
    config.model.name = "text_transformer"
    with pytest.raises(UserError, match="not images"):
        module.check(config)


@pytest.mark.parametrize("name", stage.names())
def test_stage(name):
    module = stage.find(name)
    assert {module.EVERY_PROCESS, module.REPEATS} <= {True, False}
    assert list(inspect.signature(module.run).parameters) == ["config", "workdir"]
    assert list(inspect.signature(module.check).parameters) == ["config"]


def test_an_unknown_stage_lists_the_valid_ones(tmp_path):
    with pytest.raises(UserError, match="valid: analysis, convert, features, pretrain, report, study, tune"):
        stage.execute(ConfigDict({"stage": "train"}), tmp_path)
