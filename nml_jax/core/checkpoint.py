"""Orbax: train state and data iterator, saved together and atomically, before the next batch is drawn."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import flax.serialization
import jax
from jax.sharding import Mesh
from orbax.checkpoint import v1 as ocp

from nml_jax.core import artifacts, runtime
from nml_jax.core import mesh as meshes
from nml_jax.core.errors import UserError
from nml_jax.core.task import TrainState

_save = ocp.training.save_decision_policies
_keep = ocp.training.preservation_policies
# In a complete checkpoint: its files and their sizes, so that a torn one is known before it is opened.
SEAL = "sizes.json"


class Checkpoints:
    """The checkpoints of one run, in `<directory>/<step>`; use it as a context manager.

    A newest checkpoint that is torn (its files missing, cut short, or not to be read) is moved to `<directory>_torn/`,
    with a warning, and the one before it takes its place.
    """

    def __init__(self, directory: str | os.PathLike, *, save_every: int, keep: int = 2):
        self._directory = Path(os.path.abspath(directory))
        with runtime.together():
            if runtime.is_lead():
                for step in _steps(self._directory):
                    torn = _torn(self._directory / str(step))
                    if torn:
                        self._set_aside(step, torn)
        # Both policies are needed: Orbax's own are to save all the time and to keep everything.
        self._checkpointer = ocp.training.Checkpointer(
            self._directory,
            save_decision_policy=_save.FixedIntervalPolicy(save_every),
            preservation_policy=_keep.LatestN(keep),
            cleanup_tmp_directories=True,
        )
        self._good = self._last = self.latest_step  # known to be on disk, and handed over to be written

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        try:
            self.wait()
        except UserError:
            if kind is None:  # otherwise what went wrong first is what is said
                raise
        finally:
            self._checkpointer.close()

    @property
    def latest_step(self) -> int | None:
        """The step of the newest checkpoint, complete or being written."""
        latest = self._checkpointer.latest
        return None if latest is None else latest.step

    def save(self, step: int, state: TrainState, data: Any, *, force: bool = False) -> None:
        """Saves if `step` is due, in the background; `data` is a Grain iterator.

        Raises:
          UserError: this checkpoint, or the last one, could not be written (a full disk); those before it are whole.
        """
        if force and step == self.latest_step:
            return
        if force or self._checkpointer.should_save(step):
            self.wait()
            self._last = step
            content = {"state": flax.serialization.to_state_dict(state), "data": data}
            try:
                self._checkpointer.save_checkpointables_async(step, content, force=force)
            except (OSError, ValueError, RuntimeError) as error:
                raise self._not_written(step, error) from error

    def wait(self) -> None:
        """Returns when what is being written is on disk.

        Raises:
          UserError: it could not be written.
        """
        try:
            self._checkpointer.wait()
        except (OSError, ValueError, RuntimeError) as error:
            raise self._not_written(self._last, error) from error
        if self._last != self._good:
            self._good = self._last
            if runtime.is_lead():
                _seal(self._directory / str(self._good))

    def restore(self, state: TrainState, data: Any) -> TrainState | None:
        """The newest saved state that can be read, laid out as `state` is; `data` goes on where it stopped.

        Args:
          state: shapes, dtypes and shardings (arrays or `jax.ShapeDtypeStruct`).

        Returns:
          None where there is no checkpoint.

        Raises:
          UserError: there are checkpoints, and none of them can be read.
        """
        abstract = flax.serialization.to_state_dict(state)
        steps, damaged = [c.step for c in self._checkpointer.checkpoints], {}
        for step in reversed(steps):
            loaded, trouble = None, ""
            try:
                loaded = self._checkpointer.load_checkpointables(step, {"state": abstract, "data": data})
            except Exception as error:  # whatever a damaged file leads to
                trouble = _first_line(error)
            if runtime.any_process(bool(trouble)):
                damaged[step] = trouble or "another process could not read it"
                continue
            with runtime.together():
                for torn, why in damaged.items():
                    if runtime.is_lead():
                        self._set_aside(torn, why)
            if damaged:
                self._checkpointer.reload()
            self._good = self._last = step
            return flax.serialization.from_state_dict(state, loaded["state"])
        if damaged:
            raise UserError(
                f"None of the checkpoints {', '.join(map(str, steps))} in {os.fspath(self._directory)!r} can be read "
                f"({damaged[steps[-1]]}). Nothing was touched. Give another --workdir to begin anew, or the versions "
                "that wrote them."
            )
        return None

    def _not_written(self, step: int, error: Exception) -> UserError:
        good = f"of step {self._good}" if self._good is not None else "none yet"
        return UserError(
            f"The checkpoint of step {step} could not be written to {os.fspath(self._directory)!r} "
            f"({_first_line(error)}). The last good one is {good}, "
            "and is whole. Make room on the disk, or see to its permissions; the same command then goes on from there."
        )

    def _set_aside(self, step: int, why: str) -> None:
        aside = self._directory.with_name(f"{self._directory.name}_torn")
        aside.mkdir(exist_ok=True)
        number = len(list(aside.iterdir()))
        os.rename(self._directory / str(step), aside / f"{step}-{number}")
        print(
            f"warning: the checkpoint of step {step} is torn ({why}); it was moved to {aside}, and the run goes on "
            "from the one before it.",
            file=sys.stderr,
            flush=True,
        )


def load_variables(directory: str | os.PathLike, mesh: Mesh) -> tuple[Any, Any]:
    """(params, stats) of the newest checkpoint in `directory`, or their averages, replicated over `mesh`.

    Raises:
      UserError: there is no complete checkpoint.
    """
    directory = Path(directory)
    latest = None
    if directory.is_dir():
        checkpointer = ocp.training.Checkpointer(directory.absolute())
        latest = checkpointer.latest
    if latest is None:
        raise UserError(
            f"{os.fspath(directory)!r} holds no complete checkpoint. Let the pretrain stage run to its end with "
            f"--workdir={os.fspath(directory.parent)}, or give another --config.inputs.pretrain."
        )
    with checkpointer:
        saved = checkpointer.checkpointables_metadata(latest.step).metadata["state"]
        abstract = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=meshes.replicated(mesh)), saved
        )
        state = checkpointer.load_checkpointables(latest.step, {"state": abstract})["state"]
    tuned = state.get("average") or state
    return tuned["params"], tuned["stats"]


def _steps(directory: Path) -> list[int]:
    return sorted(int(p.name) for p in directory.glob("*") if p.name.isdigit()) if directory.is_dir() else []


def _sizes(checkpoint: Path) -> dict[str, int]:
    return {
        str(p.relative_to(checkpoint)): p.stat().st_size
        for p in sorted(checkpoint.rglob("*"))
        if p.is_file() and p.name != SEAL
    }


def _seal(checkpoint: Path) -> None:
    artifacts.write_json(checkpoint / SEAL, _sizes(checkpoint))


def _torn(checkpoint: Path) -> str:
    """What is wrong with the files of a sealed checkpoint; "" where nothing is, or where it was not sealed yet."""
    seal = checkpoint / SEAL
    if not seal.exists():
        return ""
    try:
        expected = json.loads(seal.read_text("utf-8"))
    except ValueError:
        return f"{SEAL} is damaged"
    there = _sizes(checkpoint)
    wrong = [name for name, size in expected.items() if there.get(name) != size]
    return f"{wrong[0]} is {'cut short' if wrong[0] in there else 'missing'}" if wrong else ""


def _first_line(error: Exception) -> str:
    """Its kind, and the first line of its message without the middle: paths are long, and the reason comes last."""
    line = next(iter(str(error).strip().splitlines()), "")
    return f"{type(error).__name__}: {line if len(line) <= 200 else f'{line[:80]} ... {line[-120:]}'}"
