"""SIGTERM: what a scheduler sends some seconds or minutes before it takes the machine away."""

import signal
import threading
from types import FrameType
from typing import Any

import jax
from jax.experimental import multihost_utils


class Notice:
    """Whether the machine is about to be taken away; use it as a context manager.

    Of several processes, one notice is enough: JAX's coordinator tells the others, and all hear of it at the same step,
    one that none of them has passed.
    """

    def __init__(self) -> None:
        self._received = False

    def __enter__(self) -> "Notice":
        # With several processes JAX itself listens for SIGTERM. Only the main thread may set a handler.
        self._listens = jax.process_count() == 1 and threading.current_thread() is threading.main_thread()
        if self._listens:
            self._before = signal.signal(signal.SIGTERM, self._receive)
        return self

    def __exit__(self, *_: Any) -> None:
        if self._listens:
            signal.signal(signal.SIGTERM, self._before)

    def reached(self, step: int) -> bool:
        """Whether to save and stop before `step`; to be asked at every step, by all processes."""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._received

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self._received = True
