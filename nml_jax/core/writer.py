"""Where numbers go: JSON lines always, TensorBoard events beside them, and the progress bar."""

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter
from tqdm import tqdm

from nml_jax.core import artifacts


class MetricWriter:
    """`metrics.jsonl`, one line for each `write`, and TensorBoard events in `tensorboard/`.

    A resumed run starts at `start_step`: lines from there on were written by the part of the last run that
    no checkpoint holds, and are dropped, so that the file is that of an uninterrupted run. Where several
    processes train together, one of them is `enabled`.
    """

    def __init__(self, workdir: str | os.PathLike, *, start_step: int, enabled: bool = True):
        self._enabled = enabled
        if not enabled:
            return
        path = Path(workdir) / "metrics.jsonl"
        kept = [r for r in read_lines(path) if r["step"] <= start_step] if path.exists() else []
        write_lines(path, kept)
        self._lines = path.open("a", encoding="utf-8")
        self._events = SummaryWriter(os.path.join(workdir, "tensorboard"), purge_step=start_step)

    def __enter__(self) -> "MetricWriter":
        return self

    def __exit__(self, *_: Any) -> None:
        if self._enabled:
            self._lines.close()
            self._events.close()

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Records `scalars` at `step`."""
        if not self._enabled:
            return
        self._lines.write(json.dumps({"step": step, **scalars}) + "\n")
        self._lines.flush()
        for name, value in scalars.items():
            self._events.add_scalar(name, value, step)


def write_lines(path: str | os.PathLike, records: list[Mapping[str, Any]]) -> None:
    """Writes a JSON Lines file, whole or not at all."""
    with artifacts.replacing(path) as file:
        for record in records:
            file.write(json.dumps(record, sort_keys=True) + "\n")


def read_lines(path: str | os.PathLike) -> list[dict]:
    """The records of a JSON Lines file; a last line cut short by a crash is left out."""
    records = []
    lines = Path(path).read_text("utf-8").splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            if number < len(lines):
                raise
    return records


def progress_bar(total: int, description: str, *, unit: str, initial: int = 0, show: bool = True) -> tqdm:
    """A bar with rate and ETA on a terminal; a line every ten seconds elsewhere."""
    return tqdm(
        total=total,
        initial=initial,
        desc=description,
        unit=unit,
        disable=not show,
        dynamic_ncols=True,
        mininterval=0.5 if sys.stderr.isatty() else 10.0,
        leave=False,
    )
