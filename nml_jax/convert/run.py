"""The convert stage: image-text pairs as they were downloaded -> a data set in the work directory.

<workdir>/<name>/1.0.0/   the data set: give --config.data_dir=<workdir> --config.data.name=<name> to train on it
<workdir>/report.json     how many pairs were dropped and why, in all and by source; which shards are damaged
<workdir>/dropped.jsonl   the id of each dropped pair, and the reason
<workdir>/parts/, tables/ converted shards and copies of tables, until all is published
"""

import contextlib
import inspect
import json
import os
import re
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from nml_jax.convert import captioned, part, publish
from nml_jax.convert.shard import Shard
from nml_jax.core import artifacts, plugin
from nml_jax.core.errors import UserError

# One process starts the workers. Another number of them, or another runner, goes on with what is there.
EVERY_PROCESS, REPEATS = False, True
_OWN = ("parts", "tables")
_NAME = re.compile(r"[a-z][a-z0-9_]*")
_DOWNLOADS = ("count", "successes", "failed_to_download", "failed_to_resize")


def check(config: ConfigDict) -> None:
    """Raises a UserError for a name, source, rule, reader or runner that is not right."""
    for kind, name in {
        "name": config.name,
        "split": config.split,
        **{f"sources.{s}": s for s in config.sources},
    }.items():
        if not _NAME.fullmatch(name):
            raise UserError(f"{kind}={name!r}; valid are small letters, digits and _, a letter first.")
    if config.name in plugin.names("data", "builder"):
        raise UserError(f"name={config.name!r} is an embedded data set; choose another name.")
    if config.name in (*_OWN, publish.ASIDE):
        raise UserError(
            f"name={config.name!r} is a folder that the conversion uses itself; choose another name."
        )
    missing = [source for source, place in config.sources.items() if not place]
    if missing or not config.sources:
        source = missing[0] if missing else config.name
        raise UserError(
            f"--config.sources.{source} is empty. Give the folder where its pairs were downloaded to."
        )
    captioned.check(_rules(config))
    readers = plugin.find("convert", config.read.name, "samples")
    runner = plugin.find("convert", config.runner.name, "apply")
    _check_options(readers.samples, "read.options", config.read.options, given=2)
    _check_options(runner.apply, "runner.options", config.runner.options, given=2)


def run(config: ConfigDict, workdir: str) -> None:
    """Converts what is not converted yet, and publishes it as one data set.

    Raises:
      UserError: a source has no shards, no pair is left, or another data set stands in the work directory.
    """
    parts, tables, report_file = (Path(workdir) / name for name in (*_OWN, "report.json"))
    lasting = {k: v for k, v in artifacts.plain(config).items() if k not in ("runner", "progress")}
    fingerprint = artifacts.digest(lasting)
    published = publish.folder(workdir, config.name)
    if published.exists():
        report = json.loads(report_file.read_text("utf-8")) if report_file.exists() else {"fingerprint": ""}
        if report["fingerprint"] != fingerprint:
            raise UserError(
                f"{os.fspath(published)!r} was made by another config. Nothing was touched. Give another --workdir."
            )
        _tidy(parts, tables)
        _tell(config, workdir, report)
        return
    # A list is the same options as the tuple that became it.
    options = artifacts.plain(config.read.options)
    job = part.Job(str(parts), config.read.name, options, _rules(config))
    shards = _shards(config, options, str(tables))
    part.remove_leftovers(parts)

    def apply(function: Any, items: list[Any], title: str) -> None:
        runner = plugin.find("convert", config.runner.name, "apply")
        runner.apply(function, items, title=title, progress=config.progress, **config.runner.options)

    apply(job.convert, [shard for shard in shards if job.report(shard) is None], f"convert {config.name}")
    report = publish.publish(
        job,
        shards,
        workdir,
        name=config.name,
        split=config.split,
        apply=lambda function, items: apply(function, items, f"publish {config.name}"),
        facts={"fingerprint": fingerprint, "name": config.name, "downloads": _downloads(shards)},
    )
    _tidy(parts, tables)
    _tell(config, workdir, report)


def _tidy(*folders: Path) -> None:
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def _rules(config: ConfigDict) -> captioned.Rules:
    keep = dict(config.keep) | {"fields": tuple(config.keep.fields)}
    return plugin.call(captioned.Rules, "keep", **keep)


def _shards(config: ConfigDict, options: dict[str, Any], scratch: str) -> list[Shard]:
    reader = plugin.find("convert", config.read.name, "samples")
    found = []
    for source in sorted(config.sources):
        place = os.path.abspath(os.path.expanduser(config.sources[source]))
        if not os.path.exists(place):
            raise UserError(
                f"--config.sources.{source}={place!r} is not there. Give the folder of its pairs."
            )
        found += plugin.call(reader.shards, "read.options", source, place, scratch=scratch, **options)
    return found


def _check_options(function: Any, where: str, options: ConfigDict, given: int) -> None:
    """Raises a UserError for an option that the plug-in does not have."""
    parameters = list(inspect.signature(function).parameters)[given:]
    valid = [name for name in parameters if name not in ("title", "progress")]
    unknown = sorted(set(options) - set(valid))
    if unknown:
        raise UserError(
            f"{function.__module__} has no option {', '.join(unknown)}; its options are "
            f"{', '.join(valid) or 'none'}. Correct config.{where}."
        )


def _downloads(shards: list[Shard]) -> dict[str, int]:
    """What img2dataset wrote down beside its shards: how many URLs it tried, and what became of them."""
    total: Counter[str] = Counter()
    for shard in shards:
        with contextlib.suppress(OSError, ValueError, TypeError, AttributeError):
            stats = json.loads(Path(f"{shard.path.removesuffix('.tar')}_stats.json").read_text("utf-8"))
            total.update({key: int(stats.get(key, 0)) for key in _DOWNLOADS})
    return dict(total)


def _tell(config: ConfigDict, workdir: str, report: dict[str, Any]) -> None:
    downloads = report["downloads"]
    if downloads.get("count"):
        print(f"{downloads['successes']} of {downloads['count']} URLs were downloaded.")
    print(
        f"{config.name}: kept {report['kept']} of {report['samples']} pairs. Dropped: {publish.summary(report)}.\n"
        f"In words and by id: {workdir}/report.json, {workdir}/dropped.jsonl. To train on it: "
        f"--config.data_dir={workdir} --config.data.name={config.name}"
    )
