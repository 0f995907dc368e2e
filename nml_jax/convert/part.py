"""One shard -> one ArrayRecord file beside a list of what was dropped; complete or absent, and made once.

`<parts>/<shard>.array_record` has the records, `.npz` their ids and captions, `.json`, written last, says that it is
done: counts, what was dropped and why, what is wrong with the shard.
"""

import contextlib
import errno
import json
import os
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from array_record.python import array_record_module

from nml_jax.convert import captioned
from nml_jax.convert.shard import Shard
from nml_jax.core import artifacts, plugin
from nml_jax.data import texts
from nml_jax.noise import keys

# A record a group, as TFDS has it: what is read at random is read one at a time.
_GROUPS = "group_size:1"
ASIDE = ".aside"


@dataclass(frozen=True)
class Job:
    """How shards are converted; it goes to every worker."""

    parts: str  # a folder
    reader: str  # a plug-in's name
    options: dict[str, Any]  # the reader's
    rules: captioned.Rules

    def path(self, shard: Shard, suffix: str) -> Path:
        """The shard's file of that kind."""
        return Path(self.parts) / shard.source / f"{quote(shard.name, safe='')}{suffix}"

    def convert(self, shard: Shard) -> None:
        """Converts a shard that is not there yet."""
        if self.report(shard) is not None:
            return
        stamp = shard.stamp()
        faults: list[str] = []
        dropped: list[tuple[str, str]] = []
        ids: list[str] = []
        captions: list[str] = []
        path = self.path(shard, ".array_record")
        path.parent.mkdir(parents=True, exist_ok=True)
        with records_file(path) as write:
            for record in self._records(shard, faults, dropped):
                write(record.coded)
                ids.append(record.id)
                captions.append(record.caption)
        with artifacts.replacing(self.path(shard, ".npz"), "wb") as file:
            _save_columns(file, ids, captions)
        report = {
            "made_from": self._made_from(stamp),
            "shard": asdict(shard),
            "kept": len(ids),
            "bytes": path.stat().st_size,
            "dropped": dropped,
            "faults": faults,
        }
        artifacts.write_json(self.path(shard, ".json"), report)

    def report(self, shard: Shard) -> dict | None:
        """What became of the shard, or None if it must be converted, maybe because it is another one now."""
        try:
            report = json.loads(self.path(shard, ".json").read_text("utf-8"))
        except (OSError, ValueError):
            return None
        return report if report["made_from"] == self._made_from(shard.stamp()) else None

    def words(self, shard: Shard) -> np.ndarray:
        """The words of its ids, (N,) uint64, as the noise has them."""
        with np.load(self.path(shard, ".npz")) as file:
            return file["words"]

    def columns(self, shard: Shard) -> tuple[texts.Packed, texts.Packed]:
        """(ids, captions)."""
        with np.load(self.path(shard, ".npz")) as file:
            ids = texts.Packed(file["id_text"], file["id_ends"])
            return ids, texts.Packed(file["caption_text"], file["caption_ends"])

    def _made_from(self, stamp: list[int]) -> list:
        return [stamp, artifacts.digest([self.reader, self.options, self.rules._asdict()])]

    def _records(
        self, shard: Shard, faults: list[str], dropped: list[tuple[str, str]]
    ) -> Iterator[captioned.Record]:
        reader = plugin.find("convert", self.reader, "samples")
        known: set[str] = set()
        for sample in reader.samples(shard, faults, **self.options):
            record = captioned.record(shard.source, sample, self.rules)
            if not isinstance(record, str) and record.id in known:
                record = "duplicate_id"
            if isinstance(record, str):
                name = captioned.identity(shard.source, sample, self.rules)
                dropped.append((name or f"{shard.source}/{ascii(sample.key)[1:-1]}", record))
                continue
            known.add(record.id)
            yield record


@contextlib.contextmanager
def records_file(path: Path) -> Iterator[Any]:
    """A function that appends a record to an ArrayRecord file, which stands at `path` when the block has ended well.

    Raises:
      OSError: the disk is full.
    """
    handle, aside = tempfile.mkstemp(dir=path.parent, suffix=ASIDE)
    os.close(handle)
    try:
        writer = array_record_module.ArrayRecordWriter(aside, _GROUPS)
        try:
            yield writer.write
        finally:
            writer.close()
        os.chmod(aside, 0o644)
        os.replace(aside, path)
    except BaseException as error:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(aside)
        for number in (errno.ENOSPC, errno.EDQUOT):  # the writer says it in words only
            if isinstance(error, RuntimeError) and os.strerror(number) in str(error):
                raise OSError(number, os.strerror(number), os.fspath(path)) from None
        raise


def read_records(path: Path) -> Iterator[bytes]:
    """The records of an ArrayRecord file, in order."""
    reader = array_record_module.ArrayRecordReader(os.fspath(path))
    try:
        count = reader.num_records()
        for start in range(0, count, 256):
            yield from reader.read(start, min(start + 256, count))
    finally:
        reader.close()


def remove_leftovers(parts: Path) -> None:
    """Deletes what a killed run left half-written."""
    for path in parts.rglob(f"*{ASIDE}"):
        path.unlink(missing_ok=True)


def counts(reports: list[dict]) -> dict[str, Any]:
    """Sums over shards: samples seen, kept, dropped by reason, shards with something wrong."""
    dropped = Counter(reason for report in reports for _, reason in report["dropped"])
    kept = sum(report["kept"] for report in reports)
    return {
        "shards": len(reports),
        "samples": kept + dropped.total(),
        "kept": kept,
        "dropped": {reason: dropped[reason] for reason in captioned.REASONS if dropped[reason]},
        "faulty_shards": {
            f"{report['shard']['source']}/{report['shard']['name']}": report["faults"]
            for report in reports
            if report["faults"]
        },
    }


def _save_columns(file: Any, ids: list[str], captions: list[str]) -> None:
    named, texted = texts.pack(ids), texts.pack(captions)
    np.savez(
        file,
        words=keys.words(np.array(ids, object), len(ids)),
        id_text=named.text,
        id_ends=named.ends,
        caption_text=texted.text,
        caption_ends=texted.ends,
    )
