"""Runs one stage in its work directory: claimed before, marked as finished after, skipped when it is.

The contract of `nml_jax/<stage>/run.py`:

    check(config)           raises a UserError for what can be seen to be wrong before any long work
    run(config, workdir)    the work; what it writes is complete or absent
    EVERY_PROCESS           all processes compute together; otherwise the lead works and the others wait
    REPEATS                 may run again in its work directory, with a changed config too, because what it
                            writes is derived from what others keep
"""

import importlib
import importlib.util
import os
import pkgutil
from types import ModuleType

from ml_collections import ConfigDict

import nml_jax
from nml_jax.core import artifacts, runtime
from nml_jax.core.errors import UserError


def names() -> list[str]:
    """The stages: the rooms with a `run` module."""
    rooms = (m.name for m in pkgutil.iter_modules(nml_jax.__path__) if m.ispkg)
    return sorted(r for r in rooms if importlib.util.find_spec(f"nml_jax.{r}.run"))


def find(name: str) -> ModuleType:
    """The `run` module of the stage `name`.

    Raises:
      UserError: no such stage.
    """
    if name not in names():
        raise UserError(f"Unknown stage {name!r}; valid: {', '.join(names())}.")
    return importlib.import_module(f"nml_jax.{name}.run")


def execute(config: ConfigDict, workdir: str | os.PathLike) -> None:
    """Checks and runs the stage `config.stage` with `workdir` as its own.

    Raises:
      UserError: no such stage, something wrong in the config, or the work directory belongs to another config.
    """
    module = find(config.stage)
    workdir = os.path.abspath(workdir)
    with runtime.together():
        # Before the directory is claimed: a config with a mistake in it must not own one.
        module.check(config)
        if not module.REPEATS:
            _check_inputs(config, workdir)
    with runtime.together():
        if runtime.is_lead():
            artifacts.claim(workdir, config, may_change=module.REPEATS)
    if artifacts.is_finished(workdir) and not module.REPEATS:
        return
    with runtime.together():
        if module.EVERY_PROCESS or runtime.is_lead():
            module.run(config, workdir)
    with runtime.together():
        if runtime.is_lead() and not module.REPEATS:
            artifacts.finish(workdir, config)


def _check_inputs(config: ConfigDict, workdir: str) -> None:
    """Raises a UserError where an input is not finished, or not the one that `workdir` was made from."""
    fingerprint = artifacts.fingerprint(config)
    same_config = artifacts.is_finished(workdir) and artifacts.matches(workdir, config)
    if same_config and artifacts.read_fingerprint(workdir) != fingerprint:
        raise UserError(
            f"The work in {workdir!r} was made by this config from other inputs than those now at "
            f"{', '.join(artifacts.plain(config)['inputs'].values())}. Nothing was touched. Give another --workdir."
        )
