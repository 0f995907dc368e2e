"""What a compiled program costs: device memory, arithmetic, and how much of the device's peak it uses."""

import time
from typing import Any, NamedTuple

import jax

from nml_jax.core.errors import UserError

# Peak of dense bfloat16 (V100: float16) matrix products, FLOP/s a device as JAX counts them (v2 and v3 have two to a
# chip), from the makers' data sheets. The first entry whose name is in `device_kind` counts.
PEAK_FLOPS = {
    "H200": 989e12,
    "H100": 989e12,
    "A100": 312e12,
    "V100": 125e12,
    "TPU v6 lite": 918e12,
    "TPU v5 lite": 197e12,
    "TPU v5p": 459e12,
    "TPU v5": 459e12,
    "TPU v4": 275e12,
    "TPU v3": 61.5e12,
    "TPU v2": 23e12,
}


class Cost(NamedTuple):
    """Of one call, on each device."""

    compile_s: float
    flops: float
    """Floating-point operations, as XLA counts them: a multiply-add is two."""
    bytes_accessed: float
    """Bytes that XLA expects to be read and written."""
    arguments: int
    """Bytes of the arguments: parameters, optimiser, batch."""
    temporary: int
    """Bytes of activations and other scratch space."""
    total: int
    """Bytes in all, donated arguments once."""


def compile(function: Any, *arguments: Any) -> tuple[jax.stages.Compiled, Cost]:
    """Compiles the jitted `function` ahead of time for (abstract) `arguments`.

    Raises:
      UserError: the program needs more memory than the device has.
    """
    started = time.perf_counter()
    compiled = function.lower(*arguments).compile()
    seconds = time.perf_counter() - started
    memory, counted = compiled.memory_analysis(), compiled.cost_analysis() or {}
    needed = 0
    if memory is not None:
        needed = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
        needed -= memory.alias_size_in_bytes
    cost = Cost(
        compile_s=seconds,
        flops=float(counted.get("flops", 0)),
        bytes_accessed=float(counted.get("bytes accessed", 0)),
        arguments=memory.argument_size_in_bytes if memory else 0,
        temporary=memory.temp_size_in_bytes if memory else 0,
        total=needed,
    )
    limit = memory_limit()
    if limit and needed > limit:
        raise UserError(
            f"A training step needs {_gib(needed)} on each device, {_gib(cost.temporary)} of it for activations, and a "
            f"{jax.devices()[0].device_kind} has {_gib(limit)} for it. Give --config.accumulate=2 or more, a smaller "
            "batch_size, --config.model.options.remat=block, or more devices (--config.mesh.fsdp divides the "
            "parameters)."
        )
    return compiled, cost


def memory_limit() -> int | None:
    """Bytes that programs may use on each device; None where the device does not say."""
    stats = jax.local_devices()[0].memory_stats()
    return stats.get("bytes_limit") if stats else None


def peak_flops() -> float | None:
    """FLOP/s of one device's dense bfloat16 peak; None for a device that is not in the table."""
    kind = jax.devices()[0].device_kind
    return next((peak for name, peak in PEAK_FLOPS.items() if name in kind), None)


def described(cost: Cost) -> str:
    """One line for people."""
    limit = memory_limit()
    of = f" of {_gib(limit)}" if limit else ""
    return (
        f"compiled in {cost.compile_s:.0f} s; a step on each device: {cost.flops / 1e9:,.1f} GFLOP, "
        f"{cost.bytes_accessed / 2**30:,.2f} GiB moved, {_gib(cost.total)}{of} held "
        f"({_gib(cost.arguments)} state and batch, {_gib(cost.temporary)} activations)"
    )


def _gib(count: float) -> str:
    return f"{count / 2**30:.2f} GiB"
