"""The training loop: averages, evaluation, logs, what it refuses, what it survives."""

import contextlib
import json
import os
import resource
import shutil
import signal
from pathlib import Path

import jax
import numpy as np
import pytest

from nml_jax.core import checkpoint, loop, optim, writer
from nml_jax.core import mesh as meshes
from nml_jax.core.errors import Preempted, UserError
from tests.core import toy

ROWS = 32  # three batches an epoch, so that checkpoints fall within one


def train(workdir, *, steps=8, devices=8, data=None, evaluate=None, **options):
    """A run of the toy task; saves every two steps."""
    workdir.mkdir(exist_ok=True)
    defaults = {"total_steps": steps, "seed": 0, "save_every": 2, "log_every": 2, "progress": False}
    # A schedule that does not depend on where this run stops.
    tx = optim.make("adamw", learning_rate=1e-2, total_steps=100)
    with contextlib.closing(data or toy.iterator(ROWS)) as data:
        return loop.train(
            toy.task(0.2),
            tx,
            data,
            loop.Options(**defaults | options),
            batch_spec=toy.spec(ROWS),
            ids=toy.IDS,
            mesh=toy.mesh_of(devices),
            workdir=str(workdir),
            evaluate=evaluate,
        )


def equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(a), jax.device_get(b))


def losses(workdir):
    return {r["step"]: r["loss"] for r in writer.read_lines(workdir / "metrics.jsonl") if "loss" in r}


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_resume_is_bitwise(devices, accumulate, tmp_path):
    """Parameters, AdamW's moments, BatchNorm's statistics, averages and the place in the data, within an epoch."""
    options = {"devices": devices, "accumulate": accumulate, "average_decay": 0.9}
    whole = train(tmp_path / "whole", **options)
    train(tmp_path / "parts", steps=4, **options)
    equal(train(tmp_path / "parts", **options), whole)
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")


def test_the_average_follows_parameters_and_statistics(tmp_path):
    """Against the recursion in float64, over runs that stop after one, two and three steps."""

    def leaves(tree):
        return np.concatenate([np.ravel(x).astype(np.float64) for x in jax.tree.leaves(jax.device_get(tree))])

    states = [train(tmp_path / str(n), steps=n, average_decay=0.75, devices=1) for n in (1, 2, 3)]
    averages = [leaves(s.average) for s in states]
    values = [leaves({"params": s.params, "stats": s.stats}) for s in states]
    for step in (1, 2):
        expected = 0.75 * averages[step - 1] + 0.25 * values[step]
        np.testing.assert_allclose(averages[step], expected, rtol=1e-5, atol=1e-7)
    assert np.abs(averages[0] - values[0]).max() > 1e-3  # of what the run began with
    equal(states[-1].tuned, (states[-1].average["params"], states[-1].average["stats"]))
    assert train(tmp_path / "without", steps=1).average == {}


def test_evaluation_while_training(tmp_path):
    train(
        tmp_path / "w",
        steps=6,
        eval_every=3,
        evaluate=lambda state: {"accuracy": float(state.step)},
    )
    lines = [r for r in writer.read_lines(tmp_path / "w" / "metrics.jsonl") if "test_accuracy" in r]
    assert [(r["step"], r["test_accuracy"]) for r in lines] == [(3, 3.0), (6, 6.0)]


@pytest.mark.parametrize("accumulate", [1, 4])
def test_a_log_line_says_how_fast_and_the_program_what_it_needs(accumulate, tmp_path):
    train(tmp_path / "w", steps=2, accumulate=accumulate)
    (line,) = writer.read_lines(tmp_path / "w" / "metrics.jsonl")
    assert {"loss", "accuracy", "gradient_norm", "images_per_s", "step_s", "data_wait"} <= line.keys()
    np.testing.assert_allclose(line["images_per_s"] * line["step_s"], ROWS)
    program = json.loads((tmp_path / "w" / "program.json").read_text())
    # two layers of 16, one of 3, forward and backward (no gradient of the input), on each of 8 devices
    products = 2 * (ROWS // 8) * (2 * toy.DIM * 16 + 3 * 16 * 16 + 3 * 16 * 3)
    assert products <= program["flops"] <= 5 * products
    assert program["total"] >= program["arguments"] > 0


@pytest.mark.parametrize("steps", [8, 3])
def test_a_trace_on_demand(steps, tmp_path):
    """Also where the run ends before the trace would."""
    (tmp_path / "w").mkdir()
    (tmp_path / "w" / "profile").write_text("2\n")
    train(tmp_path / "w", steps=steps)
    assert not (tmp_path / "w" / "profile").exists()
    assert list((tmp_path / "w" / "traces" / "step_2").rglob("*.xplane.pb"))


def test_a_loss_that_is_not_finite_names_step_records_and_checkpoint(tmp_path):
    # record 17's first turn in the shuffled order decides which step it is
    order = toy.iterator(ROWS)
    batches = [next(order)["index"] for _ in range(8)]
    bad = int(batches[4][3])  # among the records of step 5, in the second epoch
    step = next(i for i, b in enumerate(batches) if bad in b) + 1
    with pytest.raises(UserError) as error:
        train(tmp_path / "w", data=toy.iterator(ROWS, nan=(bad,)))
    message = str(error.value)
    assert f"The loss is nan at step {step} of train" in message
    assert all(toy.IDS[i] in message for i in batches[step - 1])
    saved = (step - 1) // 2 * 2
    assert f"The last checkpoint is of step {saved or None}" in message
    assert sorted(p.name for p in (tmp_path / "w" / "checkpoints").glob("[0-9]*")) == (
        [str(saved)] if saved else []
    )


def test_undecodable_records_are_counted_once_and_limited(tmp_path, capsys):
    bad = (3, 50)
    train(tmp_path / "w", data=toy.iterator(ROWS, bad=bad), max_undecodable=0.03)
    assert (tmp_path / "w" / "undecodable.txt").read_text().split() == ["record_003", "record_050"]
    assert "2 of 96" in capsys.readouterr().err
    with pytest.raises(
        UserError, match=r"of 96 images cannot be decoded, more than data.max_undecodable=0.01"
    ):
        train(tmp_path / "strict", data=toy.iterator(ROWS, bad=bad), max_undecodable=0.01)


def test_sigterm_saves_and_stops_and_the_run_goes_on_bitwise(tmp_path, monkeypatch):
    whole = train(tmp_path / "whole")
    draws = []
    original = loop.Window.draw

    def draw(self, data, mesh):
        draws.append(1)
        if len(draws) == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, data, mesh)

    monkeypatch.setattr(loop.Window, "draw", draw)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Preempted, match="stopped at step 5 of 8, which is saved"):
        train(tmp_path / "parts")
    assert signal.getsignal(signal.SIGTERM) is before
    assert (tmp_path / "parts" / "checkpoints" / "5").is_dir()
    equal(train(tmp_path / "parts"), whole)


def files(checkpoint: Path):
    return sorted(str(p.relative_to(checkpoint)) for p in checkpoint.rglob("*") if p.is_file())


def restored(workdir):
    """(the newest step that can be read, its state, the batch that comes next)."""
    tx = optim.make("adamw", learning_rate=1e-2, total_steps=100)
    create = lambda rng: loop._create(toy.task(0.2), tx, None, rng, 0.0)  # noqa: E731
    shapes = jax.eval_shape(create, jax.random.key(0))
    replicated = meshes.replicated(toy.mesh_of(1))
    abstract = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=replicated), shapes)
    with (
        contextlib.closing(toy.iterator(ROWS)) as data,
        checkpoint.Checkpoints(workdir / "checkpoints", save_every=2) as checkpoints,
    ):
        state = checkpoints.restore(abstract, data)
        return int(state.step), state, next(data)


@pytest.mark.parametrize("sealed", [True, False])
def test_a_torn_checkpoint_gives_way_to_the_one_before(sealed, tmp_path, capfd):
    """Whichever of its files is cut short or missing. Not sealed: killed before the files' sizes were noted."""
    train(tmp_path / "w", steps=4)
    newest = tmp_path / "w" / "checkpoints" / "4"
    if not sealed:
        (newest / "sizes.json").unlink()
    good = {4: restored(tmp_path / "w")}
    copy = tmp_path / "older"
    shutil.copytree(tmp_path / "w", copy)
    shutil.rmtree(copy / "checkpoints" / "4")
    good[2] = restored(copy)
    outcomes = set()
    for i, name in enumerate(files(newest)):
        for damage in ("cut", "delete"):
            copy = tmp_path / f"{damage}{i}"
            shutil.copytree(tmp_path / "w", copy)
            victim = copy / "checkpoints" / "4" / name
            os.truncate(victim, victim.stat().st_size // 2) if damage == "cut" else victim.unlink()
            capfd.readouterr()
            found = restored(copy)
            step = found[0]
            equal(found, good[step])  # either all of step 4 or all of step 2, never a mixture
            outcomes.add(step)
            torn = step == 2
            assert (copy / "checkpoints_torn" / "4-0").is_dir() == torn
            assert ("the checkpoint of step 4 is torn" in capfd.readouterr().err) == torn
            if sealed and name != "sizes.json" and damage == "delete":
                assert torn
    assert 2 in outcomes


def test_a_deleted_checkpoint_gives_way_to_the_one_before(tmp_path):
    whole = train(tmp_path / "whole", steps=6)
    train(tmp_path / "w", steps=4)
    shutil.rmtree(tmp_path / "w" / "checkpoints" / "4")
    equal(train(tmp_path / "w", steps=6), whole)


def test_where_no_checkpoint_can_be_read_nothing_is_touched(tmp_path):
    train(tmp_path / "w", steps=4)
    for step in ("2", "4"):
        (tmp_path / "w" / "checkpoints" / step / "sizes.json").unlink(missing_ok=True)
        for name in files(tmp_path / "w" / "checkpoints" / step):
            os.truncate(tmp_path / "w" / "checkpoints" / step / name, 0)
    with pytest.raises(UserError, match=r"None of the checkpoints 2, 4 in .* can be read"):
        train(tmp_path / "w", steps=6)
    assert (tmp_path / "w" / "checkpoints" / "4").is_dir()


def test_a_full_disk_leaves_the_last_checkpoint_whole(tmp_path):
    """Simulated by a limit on the size of files, which the checkpoint's are above and the logs' are not."""
    whole = train(tmp_path / "whole", steps=6)
    train(tmp_path / "w", steps=4)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    try:
        with pytest.raises(
            UserError, match=r"of step 6 could not be written .* The last good one is of step 4, and is whole"
        ):
            train(tmp_path / "w", steps=6)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, ignored)
    equal(train(tmp_path / "w", steps=6), whole)
