"""Plug-ins: a file in a room is a plug-in, and its name is its config value."""

import difflib
import importlib
import inspect
import pkgutil
from collections.abc import Callable
from types import ModuleType
from typing import Any

from nml_jax.core.errors import UserError


def names(room: str, contract: str) -> list[str]:
    """Names of the plug-ins of `nml_jax.<room>`: its modules that define the function `contract`."""
    package = importlib.import_module(f"nml_jax.{room}")
    found = (module.name for module in pkgutil.iter_modules(package.__path__))
    return sorted(n for n in found if hasattr(importlib.import_module(f"{package.__name__}.{n}"), contract))


def find(room: str, name: str, contract: str) -> ModuleType:
    """The module `nml_jax.<room>.<name>`, which has the room's `contract` function.

    Raises:
      UserError: no such plug-in; the message lists those there are.
    """
    valid = names(room, contract)
    if name not in valid:
        near = difflib.get_close_matches(name, valid, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise UserError(
            f"{name!r} is not in nml_jax/{room}; it has {', '.join(valid)}.{hint} To add one, write "
            f"nml_jax/{room}/{name}.py with a function `{contract}` (see nml_jax/{room}/__init__.py)."
        )
    return importlib.import_module(f"nml_jax.{room}.{name}")


def call(function: Callable, where: str, *args: Any, **options: Any) -> Any:
    """`function(*args, **options)`, for options that stand in a config under `where`.

    Raises:
      UserError: an option that `function` does not have, or one that it needs is missing.
    """
    parameters = dict(list(inspect.signature(function).parameters.items())[len(args) :])
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return function(*args, **options)
    unknown = sorted(options.keys() - parameters.keys())
    missing = [n for n, p in parameters.items() if p.default is p.empty and n not in options]
    if unknown or missing:
        wrong = f"has no option {', '.join(unknown)}" if unknown else f"needs {', '.join(missing)}"
        name = f"{function.__module__}.{function.__name__}"
        raise UserError(f"{name} {wrong}; its options are {', '.join(parameters)}. Correct config.{where}.")
    return function(*args, **options)
