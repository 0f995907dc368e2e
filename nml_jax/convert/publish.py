"""Converted shards -> one data set: repeated ids dropped, files numbered, columns and description beside them.

The result is a TFDS folder, `<workdir>/<name>/1.0.0`, made aside and renamed when it is whole.
"""

import contextlib
import itertools
import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from nml_jax.convert import captioned, part
from nml_jax.convert.shard import Shard
from nml_jax.core import artifacts
from nml_jax.core.errors import UserError
from nml_jax.data import columns, texts

VERSION = "1.0.0"
ASIDE = "publishing"


@dataclass(frozen=True)
class Piece:
    """One file of the data set."""

    shard: Shard
    number: int
    repeated: tuple[int, ...]  # rows whose ids came before


@dataclass(frozen=True)
class Files:
    """Where the files go; it goes to every worker."""

    job: part.Job
    folder: str
    name: str
    split: str
    total: int

    def path(self, number: int) -> Path:
        """The file of that number, named as TFDS wants it."""
        return Path(self.folder) / f"{self.name}-{self.split}.array_record-{number:05d}-of-{self.total:05d}"

    def link(self, piece: Piece) -> bool:
        """The shard's file under its number too, if it needs no change and the file system has links."""
        with contextlib.suppress(OSError):
            if not piece.repeated:
                os.link(self.job.path(piece.shard, ".array_record"), self.path(piece.number))
                return True
        return False

    def copy(self, piece: Piece) -> None:
        """A copy of the shard's file under its number, without the repeated rows."""
        repeated = set(piece.repeated)
        with part.records_file(self.path(piece.number)) as write:
            for row, record in enumerate(part.read_records(self.job.path(piece.shard, ".array_record"))):
                if row not in repeated:
                    write(record)


def folder(workdir: str | os.PathLike, name: str) -> Path:
    """Where the data set is when it is whole."""
    return Path(workdir) / name / VERSION


def publish(
    job: part.Job,
    shards: Sequence[Shard],
    workdir: str,
    *,
    name: str,
    split: str,
    apply: Callable[[Callable[[Any], None], list[Any]], None],
    facts: dict[str, Any],
) -> dict[str, Any]:
    """Makes the data set from converted shards, and `report.json` and `dropped.jsonl` in `workdir`.

    Args:
      apply: runs a function on each of some items.
      facts: stand in the report too.

    Returns:
      The report.

    Raises:
      UserError: no pair is left.
    """
    reports = [job.report(shard) for shard in shards]
    if None in reports:
        changed = shards[reports.index(None)]
        raise UserError(f"{changed.path!r} changed while it was converted. Run the same command again.")
    repeated = _repeated(job, shards, reports)
    _list_dropped(job, shards, reports, repeated, Path(workdir) / "dropped.jsonl")
    for report, rows in zip(reports, repeated, strict=True):
        report["dropped"] += [("", "duplicate_id")] * len(rows)
        report["kept"] -= len(rows)
    report = part.counts(reports) | facts
    report["by_source"] = {
        source: part.counts([r for r in reports if r["shard"]["source"] == source])
        for source in sorted({shard.source for shard in shards})
    }
    if not report["kept"]:
        artifacts.write_json(Path(workdir) / "report.json", report)
        raise UserError(
            f"Of {report['samples']} pairs in {report['shards']} shards none can be kept: {summary(report)}. The "
            f"ids are in {os.path.join(workdir, 'dropped.jsonl')!r}. Correct config.keep or the shards."
        )
    shutil.rmtree(Path(workdir) / ASIDE, ignore_errors=True)
    aside = folder(Path(workdir) / ASIDE, name)
    aside.mkdir(parents=True)
    left = [i for i, report in enumerate(reports) if report["kept"]]
    files = Files(job, str(aside), name, split, len(left))
    pieces = [Piece(shards[i], number, tuple(repeated[i].tolist())) for number, i in enumerate(left)]
    apply(files.copy, [piece for piece in pieces if not files.link(piece)])
    _describe(files, [reports[i]["kept"] for i in left])
    _write_columns(files, [(shards[i], repeated[i]) for i in left])
    artifacts.write_json(Path(workdir) / "report.json", report)
    os.rename(Path(workdir) / ASIDE / name, Path(workdir) / name)
    shutil.rmtree(Path(workdir) / ASIDE, ignore_errors=True)
    return report


def summary(report: dict[str, Any]) -> str:
    """The dropped ones in words."""
    reasons = [
        f"{count} {reason} ({captioned.REASONS[reason]})" for reason, count in report["dropped"].items()
    ]
    faults = len(report["faulty_shards"])
    broken = [f"{faults} shards are damaged, and what lay behind the damage is lost"] if faults else []
    return "; ".join(reasons + broken) or "nothing dropped"


def _repeated(job: part.Job, shards: Sequence[Shard], reports: Sequence[dict]) -> list[np.ndarray]:
    """For each shard, the rows whose ids came before, in it or others; by their 64-bit words, as the noise has them."""
    words = np.concatenate([np.zeros(0, np.uint64), *(job.words(shard) for shard in shards)])
    again = np.ones(len(words), bool)
    again[np.unique(words, return_index=True)[1]] = False  # the first of each
    bounds = np.cumsum([0, *(report["kept"] for report in reports)])
    return [np.flatnonzero(again[a:b]) for a, b in itertools.pairwise(bounds)]


def _list_dropped(
    job: part.Job,
    shards: Sequence[Shard],
    reports: Sequence[dict],
    repeated: Sequence[np.ndarray],
    path: Path,
) -> None:
    """A line a dropped pair: its id, the reason, the shard."""
    with artifacts.replacing(path) as file:
        for shard, report, rows in zip(shards, reports, repeated, strict=True):
            dropped = [tuple(pair) for pair in report["dropped"]]
            if rows.size:
                ids = texts.unpack(job.columns(shard)[0])
                dropped += [(ids[row], "duplicate_id") for row in rows]
            for name, reason in dropped:
                line = {"id": name, "reason": reason, "shard": f"{shard.source}/{shard.name}"}
                file.write(json.dumps(line) + "\n")


def _describe(files: Files, lengths: list[int]) -> None:
    size = sum(files.path(number).stat().st_size for number in range(files.total))
    tfds.folder_dataset.write_metadata(
        data_dir=files.folder,
        features=captioned.features(files.job.rules.fields),
        split_infos=[tfds.core.SplitInfo(files.split, lengths, size)],
        version=VERSION,
        check_data=False,
        description="Image-text pairs.",
    )


def _write_columns(files: Files, shards: Sequence[tuple[Shard, np.ndarray]]) -> None:
    """Ids and captions where `Source.column` looks for them, so that no one reads all images to get at the texts."""
    found: dict[str, list[texts.Packed]] = {"id": [], "caption": []}
    for shard, repeated in shards:
        for field, packed in zip(found, files.job.columns(shard), strict=True):
            if repeated.size:
                packed = texts.pack_column(np.delete(texts.unpack(packed), repeated))
            found[field].append(packed)
    for field in list(found):
        path = columns.path(Path(files.folder) / columns.FOLDER, files.split, field, text=True)
        with artifacts.replacing(path, "wb") as file:
            texts.save(file, texts.concatenate(found.pop(field)))
