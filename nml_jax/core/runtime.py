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

from nml_jax.core import hosts
from nml_jax.core.errors import UserError


def start(*, compilation_cache: str = "", initialization_timeout: int = 300) -> None:
    """Joins the other processes of the job, if there are any, and sets up the compilation cache.

    They are known from plain variables, Slurm, Kubernetes, Open MPI or a TPU pod (`hosts`); where none of these says
    otherwise this is one process. Must run before the first use of a device.

    Args:
      initialization_timeout: seconds to wait for the other processes.

    Raises:
      UserError: what the environment says is incomplete or wrong, or the processes did not all come in time.
    """
    job = None if jax.distributed.is_initialized() else hosts.find(os.environ)
    if job is not None:
        hosts.join(job, initialization_timeout)
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
        any_process(True)
        raise
    if any_process(False):
        raise UserError("Another process stopped with an error; its message says what to do.")


def any_process(flag: bool) -> bool:
    """Whether `flag` is set in any process; all of them must ask."""
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


def gather_rows(rows: np.ndarray) -> np.ndarray:
    """The rows of all processes one after another, on every process; each process may have another number of them."""
    if jax.process_count() == 1:
        return rows
    counts = multihost_utils.process_allgather(np.array(len(rows)))
    padded = np.zeros((int(counts.max()), *rows.shape[1:]), rows.dtype)
    padded[: len(rows)] = rows
    parts = multihost_utils.process_allgather(padded)
    return np.concatenate([part[:count] for part, count in zip(parts, counts, strict=True)])
