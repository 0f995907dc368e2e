"""Artefacts on disk: complete or absent, and each knows the fingerprint of what produced it.

A stage owns its work directory. `claim` writes `config.json` there and refuses a directory that another
config made; `finish` writes `done.json` when everything else is in place. What a stage reads from other
stages stands under `config.inputs`, by path; the fingerprint replaces each path by the fingerprint found
there, so that a study can be moved, and a change upstream changes everything downstream and nothing else.
"""

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from nml_jax.core.errors import UserError

CONFIG, DONE = "config.json", "done.json"
# Where things lie and how they are shown do not change what comes out. (`train` and `test` are files that stand among
# the inputs too, by what is in them.)
PLACES = ("inputs", "data_dir", "progress", "train", "test")


@contextlib.contextmanager
def replacing(path: str | os.PathLike, mode: str = "w") -> Iterator[Any]:
    """Opens a file beside `path` that takes its place when the block ends without an exception."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, aside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(aside, 0o644)
        os.replace(aside, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(aside)
        raise


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Writes `value` as indented JSON, whole or not at all."""
    with replacing(path) as file:
        json.dump(value, file, indent=2, sort_keys=True)
        file.write("\n")


def plain(config: ConfigDict | dict) -> dict:
    """A config as JSON has it: dicts, lists, numbers, strings."""
    return json.loads(config.to_json()) if isinstance(config, ConfigDict) else json.loads(json.dumps(config))


def digest(value: Any) -> str:
    """Sixteen hex digits of the SHA-256 of `value` in canonical JSON."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def fingerprint(config: ConfigDict | dict, inputs: dict[str, str] | None = None) -> str:
    """Names what `config` produces: its values, and the fingerprints of its inputs in place of their paths.

    Args:
      inputs: the inputs' fingerprints by name; None reads them at the paths in `config.inputs`.
    """
    values = plain(config)
    if inputs is None:
        inputs = {name: read_fingerprint(path) for name, path in values.get("inputs", {}).items() if path}
    return digest(_lasting(values) | {"inputs": inputs})


def read_fingerprint(workdir: str | os.PathLike) -> str:
    """The fingerprint of the finished artefact in `workdir`; of a file, one of its bytes.

    Raises:
      UserError: there is no finished artefact.
    """
    if os.path.isfile(workdir):
        with open(workdir, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:16]
    try:
        return json.loads((Path(workdir) / DONE).read_text("utf-8"))["fingerprint"]
    except (OSError, ValueError, KeyError):
        raise UserError(
            f"{os.fspath(workdir)!r} holds no finished artefact (no {DONE}). Run the stage that makes it to its "
            "end, with --workdir set to that directory, or give another path under --config.inputs."
        ) from None


def read_config(workdir: str | os.PathLike) -> dict:
    """The resolved config that made `workdir`, as plain JSON."""
    return json.loads((Path(workdir) / CONFIG).read_text("utf-8"))


def matches(workdir: str | os.PathLike, config: ConfigDict | dict) -> bool:
    """Whether `workdir` was made by `config`, wherever its inputs lay."""
    return _lasting(read_config(workdir)) == _lasting(plain(config))


def claim(workdir: str | os.PathLike, config: ConfigDict | dict, *, may_change: bool = False) -> Path:
    """Makes `workdir` and writes the config into it; the same config may come again.

    Args:
      may_change: another config of the same stage may come too.

    Raises:
      UserError: the directory holds another config's work, or files that no stage made.
    """
    workdir = Path(workdir)
    ours = plain(config)
    if (workdir / CONFIG).exists():
        theirs = read_config(workdir)
        changed = sorted(_changes(_lasting(theirs), _lasting(ours)))
        if changed and not (may_change and theirs.get("stage") == ours.get("stage")):
            more = f" and {len(changed) - 6} more" if len(changed) > 6 else ""
            raise UserError(
                f"The work directory {os.fspath(workdir)!r} was made by another config; they differ in "
                f"{', '.join(changed[:6])}{more}. Nothing was touched. Give another --workdir, or run with the "
                f"values in {os.fspath(workdir / CONFIG)!r} to go on with that one."
            )
    elif workdir.exists() and any(workdir.iterdir()):
        raise UserError(
            f"The work directory {os.fspath(workdir)!r} is not empty and holds no {CONFIG}, so it is not the work of "
            "this program. Nothing was touched. Give a new or empty directory as --workdir."
        )
    workdir.mkdir(parents=True, exist_ok=True)
    write_json(workdir / CONFIG, ours)
    return workdir


def finish(workdir: str | os.PathLike, config: ConfigDict | dict, **facts: Any) -> None:
    """Marks the artefact in `workdir` as complete."""
    write_json(Path(workdir) / DONE, {"fingerprint": fingerprint(config), **facts})


def is_finished(workdir: str | os.PathLike) -> bool:
    """Whether `workdir` holds a complete artefact."""
    return (Path(workdir) / DONE).exists()


def _lasting(values: dict) -> dict:
    return {k: v for k, v in values.items() if k not in PLACES}


def _changes(old: Any, new: Any, path: str = "") -> Iterator[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in old.keys() | new.keys():
            yield from _changes(old.get(key), new.get(key), f"{path}.{key}" if path else key)
    elif old != new:
        yield f"{path} ({json.dumps(old)} there, {json.dumps(new)} here)"
