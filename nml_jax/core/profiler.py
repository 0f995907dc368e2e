"""A profiler trace on demand: `touch WORKDIR/profile` while the run goes on, then open `WORKDIR/traces` in XProf."""

import contextlib
from pathlib import Path
from typing import Any

import jax

REQUEST, TRACES = "profile", "traces"
STEPS = 5


class Profiler:
    """Traces the next steps when the file `profile` appears in the work directory; a number in it says how many."""

    def __init__(self, workdir: str):
        self._workdir = Path(workdir)
        self._until: int | None = None

    def poll(self, step: int, total_steps: int) -> None:
        """Starts a trace before `step` if one is asked for. Looks at the disk, so not to be called at every step."""
        request = self._workdir / REQUEST
        if self._until is not None or step >= total_steps or not request.exists():
            return
        words = request.read_text("utf-8").split()
        steps = int(words[0]) if words and words[0].isdigit() else STEPS
        self._until = min(step + steps, total_steps)  # a trace that is not ended is not written
        jax.profiler.start_trace(self._workdir / TRACES / f"step_{step}")
        with contextlib.suppress(FileNotFoundError):  # of several processes, the first one removes it
            request.unlink()

    def stop(self, step: int, result: Any) -> None:
        """Ends the trace when `step` is its last, once `result` is computed."""
        if self._until is not None and step >= self._until:
            jax.block_until_ready(result)
            jax.profiler.stop_trace()
            self._until = None
