"""Losses against NumPy, training on 1 and 8 devices, and what a run leaves behind."""

import contextlib
import json

import jax
import numpy as np
import pytest

from configs.pretrain import glyphs_contrastive, glyphs_supervised
from nml_jax.core import artifacts, checkpoint, loop, optim, stage, writer
from nml_jax.core import mesh as meshes
from nml_jax.core.errors import UserError
from nml_jax.data import augment, pipeline, source
from nml_jax.noise import record
from nml_jax.pretrain import contrastive, run, supervised
from nml_jax.pretrain.objective import image_encoder

OBJECTIVES = {"supervised": glyphs_supervised, "contrastive": glyphs_contrastive}


def smoke(objective: str, data_dir: str, **changes):
    config = OBJECTIVES[objective].get_config("smoke")
    config.data_dir, config.progress = data_dir, False
    config.noise.ratio = 0.25
    config.update(changes)
    return config


def test_info_nce_against_numpy():
    rng = np.random.default_rng(0)
    image, text = (rng.standard_normal((6, 5)) for _ in range(2))
    image /= np.linalg.norm(image, axis=1, keepdims=True)
    text /= np.linalg.norm(text, axis=1, keepdims=True)
    logits = 14.0 * image @ text.T
    log_rows = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    log_columns = logits - np.log(np.exp(logits).sum(0, keepdims=True))
    expected = -(np.trace(log_rows) + np.trace(log_columns)) / 12
    loss = contrastive.info_nce(image.astype(np.float32), text.astype(np.float32), np.float32(14.0))
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_cross_entropy_with_smoothing_against_numpy(data_dir):
    config = smoke("supervised", data_dir)
    config.loss.label_smoothing = 0.1
    model = image_encoder(config, num_classes=7)
    task = supervised.make_task(config, model, 7)
    batch = {
        "image": np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3)).astype(np.uint8),
        "label": np.arange(8) % 7,
    }
    params, _, stats = task.init(jax.random.key(0), batch)
    prepared = task.prepare(batch, jax.random.key(2))
    loss, (_, metrics) = task.loss(params, {}, stats, prepared, jax.random.key(1))
    image = augment.normalize(batch["image"], augment.IMAGENET_MEAN, augment.IMAGENET_STD)
    (logits, _), _ = model.apply(
        {"params": params, "batch_stats": stats}, image, train=True, mutable=["batch_stats"]
    )
    logits = np.asarray(logits, np.float64)
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    expected = -np.mean(0.9 * log_p[np.arange(8), batch["label"]] + 0.1 * log_p.mean(1))
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    assert metrics["accuracy"] == np.mean(logits.argmax(1) == batch["label"])


def train(config, data_dir: str, workdir, *, mesh, steps: int):
    """A few steps of the loop on `mesh`."""
    workdir.mkdir(exist_ok=True)
    data = source.open(config.data.name, "train[:512]", data_dir=data_dir, in_memory=True)
    prepared = supervised.prepare(config, data, data.column("label"), str(workdir))
    config.batch_size = 64
    iterator = pipeline.train_iterator(
        data,
        prepared.targets,
        augment=augment.make(**config.data.augment),
        batch_size=64,
        seed=0,
        num_workers=config.data.num_workers,
    )
    with contextlib.closing(iterator):
        return loop.train(
            prepared.task,
            optim.make("sgd", learning_rate=2e-3, total_steps=12),
            iterator,
            loop.Options(
                total_steps=steps,
                seed=0,
                save_every=3,
                log_every=2 - steps % 2,
                progress=False,
                average_decay=config.average_decay,
            ),
            batch_spec=run.batch_spec(config, prepared.targets),
            ids=data.ids(),
            mesh=mesh,
            workdir=str(workdir),
        )


def meshes_to_compare():
    axes = {"axis_types": (jax.sharding.AxisType.Auto,) * 2}
    one = jax.make_mesh((1, 1), meshes.AXES, devices=jax.devices()[:1], **axes)
    return {"1": one, "8": meshes.make(), "4x2": meshes.make(2)}


def test_eight_devices_train_like_one(data_dir, tmp_path, monkeypatch):
    """With plain SGD and small steps: Adam's first steps are signs, which turn rounding into steps of full size."""
    monkeypatch.setattr(meshes, "SMALLEST_SHARDED", 0)  # so that the small model's parameters are sharded too
    config = smoke("supervised", data_dir)
    states = {
        n: train(config, data_dir, tmp_path / n, mesh=m, steps=6) for n, m in meshes_to_compare().items()
    }
    losses = {n: [r["loss"] for r in writer.read_lines(tmp_path / n / "metrics.jsonl")] for n in states}
    np.testing.assert_allclose(losses["8"], losses["1"], rtol=1e-4)
    np.testing.assert_allclose(losses["4x2"], losses["1"], rtol=1e-4)
    specs = {str(p.sharding.spec) for p in jax.tree.leaves(states["4x2"].params)}
    assert any("fsdp" in s for s in specs)


@pytest.mark.parametrize(("devices", "workers"), [("1", 0), ("8", 0), ("8", 2)])
def test_resume_is_bitwise(devices, workers, data_dir, tmp_path):
    """Mixed images, averages, and the data's position within an epoch of 8 steps, with worker processes too."""
    mesh = meshes_to_compare()[devices]
    config = smoke("supervised", data_dir)
    config.mixing.update(mixup=0.2, cutmix=1.0)
    config.average_decay, config.data.num_workers = 0.9, workers
    whole = train(config, data_dir, tmp_path / "whole", mesh=mesh, steps=10)
    train(config, data_dir, tmp_path / "parts", mesh=mesh, steps=6)
    parts = train(config, data_dir, tmp_path / "parts", mesh=mesh, steps=10)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(whole), jax.device_get(parts))

    def metrics(name):
        lines = writer.read_lines(tmp_path / name / "metrics.jsonl")
        speeds = ("images_per_s", "step_s", "data_wait")
        return [{k: v for k, v in line.items() if k not in speeds} for line in lines]

    assert metrics("whole") == metrics("parts")


def test_workers_change_nothing(data_dir, tmp_path):
    config = smoke("supervised", data_dir)
    mesh = meshes_to_compare()["8"]
    states = []
    for workers in (0, 2):
        config.data.num_workers = workers
        states.append(train(config, data_dir, tmp_path / str(workers), mesh=mesh, steps=4))
    jax.tree.map(np.testing.assert_array_equal, *map(jax.device_get, states))


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_run_leaves_noise_checkpoint_metrics_and_result(objective, data_dir, tmp_path):
    config = smoke(objective, data_dir)
    stage.execute(config, tmp_path / "w")
    data = source.open("glyphs/pretrain", "train[:512]", data_dir=data_dir)
    noise = record.read(tmp_path / "w" / "noise.npz")
    np.testing.assert_array_equal(noise.ids, data.ids())
    if objective == "supervised":
        np.testing.assert_array_equal(noise.clean, data.column("label"))
    else:
        captions = data.column("caption")
        changed = captions[noise.noisy] != captions
        assert changed.sum() == round(0.25 * 512)
    (result,) = writer.read_lines(tmp_path / "w" / "results.jsonl")
    assert result["realised_ratio"] == pytest.approx(np.mean(noise.clean != noise.noisy))
    assert result["noise_ratio"] == 0.25
    assert np.isfinite(result["metrics"]["test_accuracy"])
    assert [r["step"] for r in writer.read_lines(tmp_path / "w" / "metrics.jsonl")] == [2, 4, 6, 8]
    assert list((tmp_path / "w" / "tensorboard").glob("events*"))
    params, stats = checkpoint.load_variables(tmp_path / "w" / "checkpoints", meshes.make())
    assert jax.tree.leaves(params)
    assert jax.tree.leaves(stats)
    assert artifacts.is_finished(tmp_path / "w")
    # done already: nothing is touched, whatever the clock says
    before = (tmp_path / "w" / "results.jsonl").stat().st_mtime_ns
    stage.execute(config, tmp_path / "w")
    assert (tmp_path / "w" / "results.jsonl").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"noise": {"name": "caption_swap"}},
            "corrupts captions, but the objective 'supervised' learns from labels",
        ),
        ({"noise": {"ratio": 1.5}}, r"noise.ratio=1.5 is not a fraction; valid are numbers from 0 to 1"),
        ({"noise": {"name": "symetric"}}, "Did you mean 'symmetric'"),
        ({"objective": "supervized"}, "Did you mean 'supervised'"),
        ({"model": {"name": "text_transformer"}}, "encodes text, not images"),
        ({"model": {"options": {"width": 0}}}, "Correct config.model"),
        ({"mixing": {"mixup": -1.0}}, "mixup"),
        ({"loss": {"name": "hinge"}}, "valid: cross_entropy, binary_cross_entropy"),
        ({"loss": {"target_threshold": 0.2}}, "is for binary_cross_entropy"),
        ({"accumulate": 3}, "multiple of their product"),
        ({"average_decay": 1.0}, r"average_decay=1.0 is not in \[0, 1\)"),
        ({"data": {"decoder": "nvjpeg"}}, "pillow"),
        ({"data": {"repeats": 0}}, "repeats=0"),
        ({"optim": {"name": "adam"}}, "valid: adamw, lamb, sgd"),
        ({"optim": {"schedule": "step"}}, "its options are|valid: cosine"),
        ({"batch_size": 1000}, "has 512 records, fewer than batch_size=1000"),
        ({"batch_size": 100}, "multiple of the number of devices"),
        ({"save_every": 5}, "save_every=5 is not a multiple of log_every=2"),
        ({"data": {"label": "size"}}, "it has label, font, colour"),
        ({"data": {"augment": {"name": "flip"}}}, "valid: shift_crop"),
    ],
)
def test_a_wrong_config_is_refused_before_a_directory_is_made(changes, message, data_dir, tmp_path):
    config = smoke("supervised", data_dir)
    with config.unlocked():
        config.update(changes)
    with pytest.raises(UserError, match=message):
        stage.execute(config, tmp_path / "w")
    assert not (tmp_path / "w").exists()


def test_a_loss_that_explodes_stops_the_run_and_names_the_checkpoint(data_dir, tmp_path):
    config = smoke("supervised", data_dir)
    config.optim.update(learning_rate=1e30, warmup_steps=0)
    config.log_every = 1
    with pytest.raises(UserError, match=r"The loss is (nan|inf) at step \d of pretrain supervised"):
        stage.execute(config, tmp_path / "w")


def test_another_config_does_not_take_over_a_work_directory(data_dir, tmp_path):
    config = smoke("supervised", data_dir)
    stage.execute(config, tmp_path / "w")
    before = json.loads((tmp_path / "w" / "config.json").read_text())
    with pytest.raises(UserError, match="made by another config"):
        stage.execute(smoke("supervised", data_dir, seed=3), tmp_path / "w")
    assert json.loads((tmp_path / "w" / "config.json").read_text()) == before
