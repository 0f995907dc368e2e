"""What benchmarks share: timing in turns, tables, the machine in words, and sections of docs/benchmarks.md."""

import os
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np

DOCUMENT = Path(__file__).parent.parent / "docs" / "benchmarks.md"
NOT_MEASURED = "not measured: no GPU"


def in_turns(functions: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Seconds a call takes, median over `rounds` in which each function has its turn, after one call to warm up.

    A function returns when its work is done.
    """
    for function in functions.values():
        function()
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            seconds[name].append(time.perf_counter() - start)
    return {name: float(np.median(values)) for name, values in seconds.items()}


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def machine() -> str:
    """Processor, cores, memory, accelerator and versions."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [
            line.split(":")[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line
        ]
        model = names[0] if names else model
    gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    device = jax.devices()[0]
    accelerator = (
        "no accelerator" if device.platform == "cpu" else f"{len(jax.devices())} x {device.device_kind}"
    )
    versions = f"Python {platform.python_version()}, jax {jax.__version__}"
    return f"{model}, {os.cpu_count()} cores, {gib:.0f} GiB, {accelerator}; {versions}"


def write_section(name: str, text: str) -> None:
    """Prints `text`, and puts it in the place of the section `name` of docs/benchmarks.md, or at its end."""
    print(text, flush=True)
    begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->\n"
    there = DOCUMENT.read_text("utf-8") if DOCUMENT.exists() else "# Benchmarks\n"
    before, _, rest = there.partition(begin)
    after = rest.partition(end)[2]
    DOCUMENT.write_text(f"{before.rstrip()}\n\n{begin}{text.strip()}\n{end}{after}", "utf-8")
