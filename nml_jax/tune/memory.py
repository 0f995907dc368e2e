"""How much fits into a device's memory: features, and heads at once."""

import contextlib
import math
import os
from pathlib import Path

import jax
import numpy as np

from nml_jax.core.task import Task

# A host works best on as many heads side by side as its caches hold the parameters and moments of: at D = 64 some
# thirty, from D = 256 on each alone (measured with benchmarks/heads.py). Accelerators work on all.
CACHE = 12 * 2**20
# What is left for XLA's own buffers and for what the bounds below do not see.
SHARE = 0.75


def free(device: jax.Device) -> int:
    """Bytes that may be filled: a share of what is free on an accelerator, half of what is free on a host."""
    stats = device.memory_stats()
    if stats and "bytes_limit" in stats:
        return int(SHARE * (stats["bytes_limit"] - stats.get("bytes_in_use", 0)))
    return _host() // 2


def head(task: Task, batch: dict[str, jax.ShapeDtypeStruct], rows: int, kept: bool) -> int:
    """A bound on the bytes that the training of one head takes.

    The parameters and AdamW's two moments, twice, the gradient and the update; the best parameters, if these are
    `kept`; every array that a step's loss and gradient compute, as if none were fused or freed; labels and order of
    the `rows`.
    """
    params, frozen, stats = jax.eval_shape(lambda key: task.init(key, batch), jax.random.key(0))
    step = jax.make_jaxpr(jax.grad(task.loss, has_aux=True))(params, frozen, stats, batch, jax.random.key(0))
    computed = sum(_bytes(out.aval) for equation in step.jaxpr.eqns for out in equation.outvars)
    state = sum(_bytes(leaf) for leaf in jax.tree.leaves(params))
    return (8 + kept) * state + computed + 24 * rows


def width(task: Task, batch: dict[str, jax.ShapeDtypeStruct], device: jax.Device) -> int:
    """How many heads a device best trains side by side."""
    if device.platform != "cpu":
        return 1 << 30
    params = jax.eval_shape(lambda key: task.init(key, batch)[0], jax.random.key(0))
    return max(1, CACHE // (3 * sum(_bytes(leaf) for leaf in jax.tree.leaves(params))))


def _bytes(array: jax.ShapeDtypeStruct) -> int:
    if jax.dtypes.issubdtype(array.dtype, jax.dtypes.prng_key):
        return 8 * math.prod(array.shape)
    return math.prod(array.shape) * np.dtype(array.dtype).itemsize


def _host() -> int:
    """Free bytes of this machine, or of the container's share of it."""
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = 1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    with contextlib.suppress(OSError, ValueError):  # "max" where the container has no limit
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
        free = min(free, limit - int(Path("/sys/fs/cgroup/memory.current").read_text()))
    return max(free, 0)
