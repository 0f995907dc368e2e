import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

from nml_jax.core.errors import UserError
from nml_jax.data import augment, decode, pipeline


class Numbered:
    """A source whose image i is filled with i, but for those that are broken."""

    name, split = "numbered", "train"

    def __init__(self, size: int, broken: tuple[int, ...] = ()):
        self.size, self.broken = size, broken

    def __len__(self) -> int:
        return self.size

    def picture(self, index: int, decoder: str) -> decode.Pixels:
        if index in self.broken:
            raise decode.Undecodable(f"The image of record {index} cannot be decoded.")
        return decode.Pixels(np.full((8, 8, 3), index, np.uint8))


def iterator(
    *, size=22, workers=0, seed=0, broken=(), targets=None, batch_size=8, padding=1, source=None, **options
):
    return pipeline.train_iterator(
        source or Numbered(size, broken),
        targets or {"label": 100 + np.arange(size)},
        augment=augment.make("shift_crop", size=8, padding=padding, flip=True),
        batch_size=batch_size,
        seed=seed,
        num_workers=workers,
        **options,
    )


def batches(count: int, **options) -> list[dict]:
    with contextlib.closing(iterator(**options)) as batches:
        return [next(batches) for _ in range(count)]


def same(one: list[dict], other: list[dict]) -> None:
    for a, b in zip(one, other, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])


def test_an_epoch_holds_every_record_once_with_its_own_target():
    seen = np.concatenate([b["label"] for b in batches(11)])
    images = np.concatenate([b["image"][:, 0, 0, 0] for b in batches(11)])
    np.testing.assert_array_equal(images + 100, seen)
    # 11 batches of 8 are four epochs of 22
    for epoch in seen.reshape(4, 22):
        np.testing.assert_array_equal(np.sort(epoch), 100 + np.arange(22))
    assert not np.array_equal(seen[:22], seen[22:44])


def test_the_same_seed_gives_the_same_batches_and_another_does_not():
    one, two, other = batches(3), batches(3), batches(3, seed=1)
    for a, b in zip(one, two, strict=True):
        np.testing.assert_array_equal(a["image"], b["image"])
    assert not np.array_equal(one[0]["label"], other[0]["label"])


@pytest.mark.slow
def test_workers_do_not_change_the_batches():
    options = {"broken": (3, 9), "targets": {"label": np.arange(22) % 4}}
    same(batches(6, **options), batches(6, workers=2, **options))


@pytest.mark.parametrize("processes", [2, 4])
@pytest.mark.parametrize("repeats", [1, 3])
def test_processes_share_the_batches_of_one_process(processes, repeats, monkeypatch):
    """Process k has consecutive rows, as `put_batch` lays them out: a row is the same however many share the batch."""
    whole = batches(5, repeats=repeats)
    parts = []
    for process in range(processes):
        monkeypatch.setattr(pipeline.jax, "process_index", lambda process=process: process)
        monkeypatch.setattr(pipeline.jax, "process_count", lambda: processes)
        parts.append(batches(5, repeats=repeats))
    assert all(len(b["label"]) == 8 // processes for part in parts for b in part)
    joined = [
        {name: np.concatenate([p[name] for p in rows]) for name in rows[0]}
        for rows in zip(*parts, strict=True)
    ]
    same(whole, joined)


def test_what_stays_on_the_host():
    for batch in batches(3):
        assert batch["index"].dtype == np.int64
        assert batch["replaced"].dtype == bool
        assert not batch["replaced"].any()
        np.testing.assert_array_equal(batch["index"] + 100, batch["label"])


# ------------------------------------------------------------------------------------------ repeated augmentation


def test_repeats_come_in_a_row_and_a_third_of_the_records_in_an_epoch():
    size = 24
    images = np.random.default_rng(0).integers(0, 256, (size, 8, 8, 3)).astype(np.uint8)
    source = Numbered(size)
    source.picture = lambda index, decoder: decode.Pixels(images[index])
    drawn = batches(9, size=size, repeats=3, padding=2, source=source)  # three epochs of 24 in batches of 8
    index = np.concatenate([b["index"] for b in drawn])
    image = np.concatenate([b["image"] for b in drawn])
    epochs = index.reshape(3, 24)
    for epoch in epochs:
        triples = epoch.reshape(8, 3)
        assert (triples == triples[:, :1]).all()
        assert len(set(triples[:, 0])) == 8
    assert len({tuple(epoch) for epoch in epochs}) == 3
    triples = image.reshape(-1, 3, 8, 8, 3)
    assert np.mean([len({copy.tobytes() for copy in triple}) for triple in triples]) > 2.5


def test_repeats_at_the_border_of_a_batch():
    one, two = batches(2, repeats=3)
    assert one["index"][-1] == one["index"][-2] == two["index"][0] != two["index"][1]


def test_refused_options():
    for repeats in (0, 23):
        with pytest.raises(UserError, match="give 1 \\(none\\) to 22"):
            iterator(repeats=repeats)
    with pytest.raises(UserError, match="valid: pillow, simplejpeg, opencv"):
        iterator(decoder="turbo")


# ----------------------------------------------------------------------------------------------- undecodable images


def test_undecodable_records_are_replaced_by_the_next_of_their_class():
    label = np.arange(22) % 4
    targets = {"label": label, "row": np.arange(22)}
    drawn = batches(11, broken=(5, 9, 20), targets=targets)  # four epochs
    index, row, replaced, image, labels = (
        np.concatenate([b[name] for b in drawn]) for name in ("index", "row", "replaced", "image", "label")
    )
    for epoch in index.reshape(4, 22):  # what is asked for is as it was
        np.testing.assert_array_equal(np.sort(epoch), np.arange(22))
    expected = np.where(
        np.isin(index, (5, 9)), 13, np.where(index == 20, 0, index)
    )  # 5 -> 9 (broken) -> 13; 20 -> 0
    np.testing.assert_array_equal(row, expected)
    np.testing.assert_array_equal(image[:, 0, 0, 0], expected)
    np.testing.assert_array_equal(replaced, np.isin(index, (5, 9, 20)))
    np.testing.assert_array_equal(labels, label[index])  # the class is that of the record asked for


def test_undecodable_records_without_labels_are_replaced_by_the_next():
    drawn = batches(11, broken=(21, 0), targets={"tokens": np.arange(44).reshape(22, 2)})
    index, tokens = (np.concatenate([b[name] for b in drawn]) for name in ("index", "tokens"))
    expected = np.where(np.isin(index, (0, 21)), 1, index)
    np.testing.assert_array_equal(tokens[:, 0], 2 * expected)


def test_a_class_without_an_image_is_an_error():
    label = np.where(np.isin(np.arange(22), (4, 7)), 1, 0)
    with pytest.raises(UserError, match="record [47] cannot be decoded. No other record can take its place"):
        batches(3, broken=(4, 7), targets={"label": label})


# ----------------------------------------------------------------------------------------------------------- resume


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_resume_from_orbax_is_bitwise_mid_epoch(workers, tmp_path):
    options = {"workers": workers, "broken": (3,), "targets": {"label": np.arange(22) % 4}, "repeats": 2}
    expected = batches(9, **options)
    with ocp.training.Checkpointer(tmp_path) as checkpointer:
        with contextlib.closing(iterator(**options)) as before:
            same(expected[:4], [next(before) for _ in range(4)])
            checkpointer.save_checkpointables(4, {"data": before})
        with contextlib.closing(iterator(**options)) as after:
            checkpointer.load_checkpointables(4, {"data": after})
            same(expected[4:], [next(after) for _ in range(5)])


# ------------------------------------------------------------------------------------------------------- what breaks


class Awkward(Exception):
    """Cannot be unpickled: its __init__ wants two arguments."""

    def __init__(self, one, two):
        super().__init__(f"{one} and {two}")


def test_an_error_in_a_worker_arrives_with_its_traceback():
    source = Numbered(22)

    def in_the_seventh(index, decoder):
        if index == 7:
            raise Awkward("seven", "no more")
        return decode.Pixels(np.zeros((8, 8, 3), np.uint8))

    source.picture = in_the_seventh
    for workers in (0, 1):
        with (
            contextlib.closing(iterator(source=source, workers=workers)) as batches,
            pytest.raises(RuntimeError, match="(?s)Traceback.*in in_the_seventh.*Awkward: seven and no more"),
        ):
            for _ in range(3):
                next(batches)


def test_a_killed_worker_is_an_error():
    started = time.perf_counter()
    with contextlib.closing(iterator(workers=2)) as batches:
        next(batches)
        workers = multiprocessing.active_children()
        assert len(workers) == 2
        os.kill(workers[0].pid, signal.SIGKILL)
        with pytest.raises(RuntimeError, match="terminated unexpectedly with exit code -9"):
            for _ in range(100):
                next(batches)
    assert time.perf_counter() - started < 30


def test_workers_leave_signals_to_the_training_process():
    """A launcher that preempts a job sends SIGTERM to all of its processes."""
    with contextlib.closing(iterator(workers=1)) as batches:
        next(batches)
        (worker,) = multiprocessing.active_children()
        for number in (signal.SIGTERM, signal.SIGINT):
            os.kill(worker.pid, number)
        for _ in range(20):
            next(batches)
        assert worker.is_alive()


TRAINING = """
import multiprocessing, sys, time
sys.path[:0] = [{tests!r}]
from absl import flags
from test_pipeline import iterator
if __name__ == "__main__":
    flags.FLAGS(sys.argv[:1])
    batches = iterator(workers=1)
    next(batches)
    print(multiprocessing.active_children()[0].pid, flush=True)
    time.sleep(60)
"""


@pytest.mark.slow
def test_workers_end_with_a_killed_training_process(tmp_path):
    script = tmp_path / "training.py"
    script.write_text(TRAINING.format(tests=str(Path(__file__).parent)))
    training = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    worker = int(training.stdout.readline())
    os.kill(worker, 0)
    training.kill()
    training.wait()
    for _ in range(100):
        time.sleep(0.1)
        try:
            os.kill(worker, 0)
        except ProcessLookupError:
            break
        # A zombie is gone too; it waits for a reaper that a container may not have.
        if (
            Path(f"/proc/{worker}/stat").exists()
            and Path(f"/proc/{worker}/stat").read_text().split()[2] == "Z"
        ):
            break
    else:
        os.kill(worker, signal.SIGKILL)
        pytest.fail("the worker outlived the training process")
