"""Processes, devices, random streams, versions."""

import contextlib
import hashlib
import importlib.metadata
import os
import platform
from collections.abc import Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils

from nml_jax.core.errors import UserError


def start(*, compilation_cache: str = "") -> None:
    """Joins the other processes, if the launcher named a coordinator, and sets up the compilation cache.

    `launch/` sets JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID; without them this is one
    process. Must run before the first use of a device.
    """
    if "JAX_COORDINATOR_ADDRESS" in os.environ and not jax.distributed.is_initialized():
        jax.distributed.initialize(
            num_processes=int(os.environ["JAX_NUM_PROCESSES"]), process_id=int(os.environ["JAX_PROCESS_ID"])
        )
    if compilation_cache:
        jax.config.update("jax_compilation_cache_dir", os.path.abspath(compilation_cache))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def is_lead() -> bool:
    """Whether this process writes the files that one process writes."""
    return jax.process_index() == 0


@contextlib.contextmanager
def together() -> Iterator[None]:
    """A block that the processes leave together: when all are through, or when one of them failed.

    Raises:
      UserError: in the processes that did not fail themselves, so that none waits for ever.
    """
    try:
        yield
    except Exception:
        _any_process(True)
        raise
    if _any_process(False):
        raise UserError("Another process stopped with an error; its message says what to do.")


def _any_process(flag: bool) -> bool:
    if jax.process_count() == 1:
        return flag
    return bool(np.any(multihost_utils.process_allgather(np.array(flag))))


def key(seed: int, stream: str, step: int | jax.Array = 0) -> jax.Array:
    """The random key of `stream` at `step`: a function of its arguments, so a checkpoint stores no keys."""
    number = int.from_bytes(hashlib.blake2b(stream.encode(), digest_size=4).digest(), "little")
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), number), step)


def versions() -> dict[str, str]:
    """Versions that a result depends on."""
    packages = ("nml_jax", "jax", "flax", "optax", "numpy")
    return {"python": platform.python_version()} | {p: importlib.metadata.version(p) for p in packages}


def machine() -> str:
    """The machine in words, for reports."""
    devices = jax.devices()
    kind = devices[0].device_kind
    return f"{len(devices)} x {kind}, {os.cpu_count()} CPU cores, {platform.system()} {platform.machine()}"


def gather(array: jax.Array) -> np.ndarray:
    """A global array as NumPy, on every process."""
    if jax.process_count() > 1:
        return np.asarray(multihost_utils.process_allgather(array, tiled=True))
    return np.asarray(array)
