"""The one entry point:

python -m nml_jax.main --config=configs/<stage>/<name>.py[:smoke] --workdir=DIR [--config.a.b=value]
"""

import difflib
import errno
import os
import runpy
import signal
import sys
import textwrap
from pathlib import Path
from types import FrameType

from absl import flags, logging
from ml_collections import ConfigDict, config_flags

from nml_jax.core.errors import Preempted, UserError

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "configs/<stage>/<name>.py[:smoke]", lock_config=True
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Where the stage keeps its work; made when it is not there.")
_CACHE = flags.DEFINE_string("compilation_cache", "", "A folder that keeps compiled programs between runs.")


def main(argv: list[str]) -> int:
    """Parses flags and runs the stage; returns the exit status (2: something given by the user is wrong)."""
    if {"-h", "--help"} & set(argv[1:]):
        print(f"{__doc__}\n{flags.FLAGS.main_module_help()}")
        return 0
    try:
        signal.signal(signal.SIGTERM, _terminated)
        _parse(argv)
        # Imported only now: a mistyped flag should not wait for JAX.
        from nml_jax.core import runtime, stage

        logging.set_verbosity(logging.ERROR)
        runtime.start(compilation_cache=_CACHE.value)
        stage.execute(_CONFIG.value, _WORKDIR.value)
    except UserError as error:
        text = textwrap.fill(f"error: {error}", 100, break_long_words=False, break_on_hyphens=False)
        print(text, file=sys.stderr)
        return 2
    except Preempted as stopped:
        print(f"\nSIGTERM: {stopped} The same command goes on from here.", file=sys.stderr)
        return 0
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        print(
            f"error: the disk is full ({error}). What was finished is whole; make room, and the same command goes on.",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        print("\nInterrupted. The same command goes on from here.", file=sys.stderr)
        return 130
    return 0


def _terminated(number: int, frame: FrameType | None) -> None:
    """While training, `core.preemption` listens in its place; elsewhere nothing is lost by stopping at once."""
    raise Preempted("nothing was being trained.")


def _parse(argv: list[str]) -> None:
    """Parses the flags; whatever is wrong with them is a UserError that says what is valid."""
    usage = __doc__.splitlines()[2].strip()
    given = dict(a.lstrip("-").partition("=")[::2] for a in argv[1:] if a.startswith("-"))
    for needed in ("config", "workdir"):
        if not given.get(needed):
            raise UserError(f"--{needed} is missing. Usage: {usage}")
    config = _load(given["config"])
    for name in given:
        if name.startswith("config."):
            _check_key(config, name)
    # ml_collections wants --config before the flags that change values of it, and reads these from sys.argv itself.
    sys.argv = [argv[0], *sorted(argv[1:], key=lambda a: not a.startswith("--config="))]
    try:
        rest = flags.FLAGS(sys.argv)[1:]
    except flags.UnrecognizedFlagError as error:
        raise UserError(f"There is no flag --{error.flagname}. Usage: {usage}") from None
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{error.args[0] if error.args else error}. Usage: {usage}") from None
    if rest:
        raise UserError(f"Unknown arguments: {' '.join(rest)}. Usage: {usage}")


def _load(value: str) -> ConfigDict:
    """What `--config=PATH[:ARGUMENT]` says before anything is changed by other flags."""
    path, _, argument = value.partition(":")
    if not os.path.isfile(path):
        there = sorted(str(p) for p in Path("configs").glob("*/*.py"))
        near = difflib.get_close_matches(path, there, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise UserError(
            f"There is no config file {path!r}.{hint} Those here are: {', '.join(there) or 'none'}."
        )
    try:
        return runpy.run_path(path)["get_config"](argument or None)
    except (ImportError, KeyError, SyntaxError, TypeError, ValueError) as error:
        raise UserError(f"The config {value!r} cannot be loaded: {error}") from None


def _check_key(config: ConfigDict, name: str) -> None:
    """Walks `config.a.b[0]` as far as it goes."""
    *_, keys = name.partition(".")
    for key in keys.split("."):
        key = key.split("[")[0]
        if not isinstance(config, ConfigDict) or key not in config:
            valid = sorted(config) if isinstance(config, ConfigDict) else []
            near = difflib.get_close_matches(key, valid, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise UserError(
                f"--{name}: the config has no {key!r} there; valid: {', '.join(valid) or 'nothing'}.{hint}"
            )
        config = config[key]


if __name__ == "__main__":
    status = main(sys.argv)
    sys.stdout.flush()
    sys.stderr.flush()
    if status:
        # Stopped half-way, threads may still be at work that crash while the interpreter is torn down.
        os._exit(status)
