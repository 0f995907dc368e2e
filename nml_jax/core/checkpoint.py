"""Orbax: train state and data iterator, saved together and atomically, before the next batch is drawn."""

import os
from pathlib import Path
from typing import Any

import flax.serialization
import jax
from jax.sharding import Mesh
from orbax.checkpoint import v1 as ocp

from nml_jax.core import mesh as meshes
from nml_jax.core.errors import UserError
from nml_jax.core.task import TrainState

_save = ocp.training.save_decision_policies
_keep = ocp.training.preservation_policies


class Checkpoints:
    """The checkpoints of one run, in `<directory>/<step>`; use it as a context manager."""

    def __init__(self, directory: str | os.PathLike, *, save_every: int, keep: int = 2):
        # Both policies are needed: Orbax's own are to save all the time and to keep everything.
        self._checkpointer = ocp.training.Checkpointer(
            os.path.abspath(directory),
            save_decision_policy=_save.FixedIntervalPolicy(save_every),
            preservation_policy=_keep.LatestN(keep),
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: Any) -> None:
        self._checkpointer.close()

    @property
    def latest_step(self) -> int | None:
        """The step of the newest complete checkpoint."""
        latest = self._checkpointer.latest
        return None if latest is None else latest.step

    def save(self, step: int, state: TrainState, data: Any, *, force: bool = False) -> None:
        """Saves if `step` is due, in the background; `data` is a Grain iterator."""
        if force and step == self.latest_step:
            return
        if force or self._checkpointer.should_save(step):
            content = {"state": flax.serialization.to_state_dict(state), "data": data}
            self._checkpointer.save_checkpointables_async(step, content, force=force)

    def restore(self, state: TrainState, data: Any) -> TrainState:
        """The newest saved state, laid out as `state` is; `data` goes on where it stopped.

        Args:
          state: shapes, dtypes and shardings (arrays or `jax.ShapeDtypeStruct`).
        """
        abstract = flax.serialization.to_state_dict(state)
        loaded = self._checkpointer.load_checkpointables(None, {"state": abstract, "data": data})
        return flax.serialization.from_state_dict(state, loaded["state"])


def load_variables(directory: str | os.PathLike, mesh: Mesh) -> tuple[Any, Any]:
    """(params, stats) of the newest checkpoint in `directory`, replicated over `mesh`.

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
    return state["params"], state["stats"]
