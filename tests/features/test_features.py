"""Extraction against a loop over single images, views that are the same whenever they are made, and bad files."""

import json

import jax
import numpy as np
import pytest

from configs.features import default
from configs.pretrain import glyphs_supervised
from nml_jax.core import artifacts, checkpoint, stage
from nml_jax.core import mesh as meshes
from nml_jax.core.errors import UserError
from nml_jax.data import augment, source
from nml_jax.features import store
from nml_jax.pretrain import supervised


@pytest.fixture(scope="module")
def pretrained(data_dir, tmp_path_factory) -> str:
    """A briefly pre-trained encoder."""
    config = glyphs_supervised.get_config("smoke")
    config.data_dir, config.progress, config.epochs = data_dir, False, 1
    workdir = str(tmp_path_factory.mktemp("encoder") / "w")
    stage.execute(config, workdir)
    return workdir


def make_config(pretrained: str, data_dir: str, **changes):
    config = default.get_config("smoke")
    config.inputs.pretrain, config.data_dir, config.progress = pretrained, data_dir, False
    config.update(changes)
    return config


def test_features_are_those_of_single_images(pretrained, data_dir, tmp_path):
    config = make_config(pretrained, data_dir, labels=("label", "font"))
    stage.execute(config, tmp_path / "f")
    train, test = (store.load(tmp_path / "f", split) for split in config.splits)
    assert train.x.shape == (96, 3, 64)
    assert test.x.shape == (64, 1, 64)
    assert train.num_classes == 30

    images = source.open("glyphs/letters", "test[:64]", data_dir=data_dir)
    encode = supervised.encode(glyphs_supervised.get_config("smoke"))
    params, stats = checkpoint.load_variables(f"{pretrained}/checkpoints", meshes.make())
    for i in (0, 17, 63):
        np.testing.assert_allclose(test.clean[i], encode(params, stats, images.image(i)[None])[0], atol=1e-4)
    np.testing.assert_array_equal(test.y, images.column("label"))
    fonts = store.load(tmp_path / "f", "test[:64]", "font")
    np.testing.assert_array_equal(fonts.y, images.column("font"))
    assert fonts.num_classes == 4
    assert train.manifest["encoder"]["objective"] == "supervised"

    # views are augmented copies of the same image: near each other, yet not equal
    apart = np.linalg.norm(train.x[:, 1] - train.x[:, 2], axis=1)
    strangers = np.linalg.norm(train.x[:, 1] - np.roll(train.x[:, 2], 1, axis=0), axis=1)
    assert (apart > 0).mean() > 0.9  # now and then two crops are the same
    assert apart.mean() < strangers.mean()


def test_views_depend_on_seed_view_and_index_only(pretrained, data_dir, tmp_path):
    for name, memory in (("a", False), ("b", True)):
        config = make_config(pretrained, data_dir)
        config.data.in_memory = memory
        stage.execute(config, tmp_path / name)
    one, two = (store.load(tmp_path / n, "train[:96]").x for n in "ab")
    np.testing.assert_array_equal(one, two)
    stage.execute(make_config(pretrained, data_dir, seed=1), tmp_path / "c")
    other = store.load(tmp_path / "c", "train[:96]").x
    np.testing.assert_array_equal(one[:, 0], other[:, 0])
    assert (np.abs(one[:, 1:] - other[:, 1:]).max(axis=2) > 0).mean() > 0.95


def test_splits_that_are_there_are_kept_when_a_run_was_cut_short(pretrained, data_dir, tmp_path):
    config = make_config(pretrained, data_dir)
    stage.execute(config, tmp_path / "f")
    kept = store.split_dir(tmp_path / "f", "train[:96]") / "x.npy"
    stamp = kept.stat().st_mtime_ns
    (tmp_path / "f" / "done.json").unlink()
    (store.split_dir(tmp_path / "f", "test[:64]") / "manifest.json").unlink()
    stage.execute(config, tmp_path / "f")
    assert kept.stat().st_mtime_ns == stamp
    assert len(store.load(tmp_path / "f", "test[:64]").y) == 64


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"inputs": {"pretrain": ""}}, "No encoder given"),
        ({"inputs": {"pretrain": "nowhere"}}, "holds no finished artefact"),
        ({"labels": ("label", "size")}, "it has label, font, colour"),
        ({"splits": ("train[:96]", "test[:64]", "valid")}, "it has test, train|it has train, test"),
        ({"augmented": ("valid",)}, "not among splits"),
        ({"data": {"name": "glyphs/numbers"}}, "glyphs/numbers"),
        ({"data": {"augment": {"scale": 1.0, "sale": 2}}}, "its options are size, scale"),
    ],
)
def test_refused_before_any_work(changes, message, pretrained, data_dir, tmp_path):
    config = make_config(pretrained, data_dir)
    with config.unlocked(), config.ignore_type():
        config.update(changes)
    with pytest.raises(UserError, match=message):
        stage.execute(config, tmp_path / "f")
    assert not (tmp_path / "f").exists()


def write(tmp_path, **changes) -> None:
    """Ten rows of two views and four dimensions; then some files are changed behind the store's back."""
    store.save(tmp_path, "train", np.ones((10, 2, 4)), {"label": np.zeros(10)}, {"label": 3})
    for name, value in changes.items():
        np.save(tmp_path / "train" / f"{name}.npy", value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"y": np.zeros(9, np.int64)}, r"x is \(10, 2, 4\), y is \(9,\)"),
        ({"x": np.zeros((10, 4), np.float32)}, "valid are x"),
        ({"y": np.full(10, 3)}, r"valid are integers in \[0, 3\)"),
        ({"y": np.zeros(10)}, "float64"),
        ({"x": np.where(np.arange(80).reshape(10, 2, 4) == 43, np.nan, 1.0)}, "first in row 5"),
        ({"x": np.where(np.arange(80).reshape(10, 2, 4) == 79, np.inf, 1.0)}, "first in row 9"),
        ({"x": np.array([{}], dtype=object)}, "cannot be read"),
    ],
)
def test_bad_feature_files_are_refused(changes, message, tmp_path):
    write(tmp_path, **changes)
    with pytest.raises(UserError, match=message):
        store.load(tmp_path, "train")


def test_missing_truncated_and_unknown_features(tmp_path):
    write(tmp_path)
    with pytest.raises(UserError, match="No features of split 'test'.*it has train"):
        store.load(tmp_path, "test")
    with pytest.raises(UserError, match="no label 'font'; they have label"):
        store.load(tmp_path, "train", "font")
    (tmp_path / "train" / "x.npy").write_bytes((tmp_path / "train" / "x.npy").read_bytes()[:100])
    with pytest.raises(UserError, match="cannot be read"):
        store.load(tmp_path, "train")
    (tmp_path / "train" / "manifest.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        store.load(tmp_path, "train")


def test_fingerprints_of_features_follow_the_encoder(pretrained, data_dir, tmp_path):
    config = make_config(pretrained, data_dir)
    stage.execute(config, tmp_path / "f")
    done = json.loads((tmp_path / "f" / "done.json").read_text())
    assert done["fingerprint"] == artifacts.fingerprint(
        config, {"pretrain": artifacts.read_fingerprint(pretrained)}
    )
    assert done["fingerprint"] != artifacts.fingerprint(config, {"pretrain": "another"})


def test_augment_of_the_views_is_the_named_transform(data_dir):
    """inference draws view v of image i from Philox(seed, [0, 0, v, i])."""
    from nml_jax.data import inference

    data = default.get_config("smoke").data
    images = source.open("glyphs/letters", "test[:8]", data_dir=data_dir)
    seen = inference.run(lambda image: image.astype("float32"), (), images, data, view=2, seed=5)
    apply = augment.make(**data.augment)
    for i in range(8):
        rng = np.random.Generator(np.random.Philox(key=5, counter=[0, 0, 2, i]))
        np.testing.assert_array_equal(seen[i], apply(images.image(i), rng))
    assert jax.device_count() == 8
