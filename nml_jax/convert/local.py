"""Runs a conversion in processes of this machine."""

import concurrent.futures
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Sequence
from typing import Any

from nml_jax.core.errors import UserError


def apply(
    function: Callable[[Any], None],
    items: Sequence[Any],
    *,
    title: str,
    progress: bool,
    workers: int = 0,
) -> None:
    """`function(item)` for each item, in any order.

    Args:
      workers: processes; 0: this one.

    Raises:
      UserError: `workers` is negative, or a worker was killed.
      Whatever `function` raises, with its traceback.
    """
    if workers < 0:
        raise UserError(f"runner.options.workers={workers}; valid are 0 (this process) or more.")
    from nml_jax.core import writer  # only here: workers import this module too, and need no TensorBoard

    if not items:
        return
    with writer.progress_bar(len(items), title, unit="shard", show=progress) as bar:
        if not workers:
            for item in items:
                function(item)
                bar.update()
            return
        before = set(multiprocessing.active_children())
        # Spawned, because JAX's threads do not survive a fork.
        pool = concurrent.futures.ProcessPoolExecutor(
            min(workers, max(1, len(items))), multiprocessing.get_context("spawn"), _start
        )
        try:
            waiting = [pool.submit(function, item) for item in items]
            for done in concurrent.futures.as_completed(waiting):
                done.result()
                bar.update()
            pool.shutdown()
        except BaseException as error:
            # What they are at is not worth waiting for: it is written aside, and made anew.
            for child in set(multiprocessing.active_children()) - before:
                child.kill()
            pool.shutdown(wait=False, cancel_futures=True)
            if isinstance(error, concurrent.futures.process.BrokenProcessPool):
                raise UserError(
                    "A worker was killed while it converted a shard, for example because the machine ran out of "
                    "memory. What was finished is whole, and the same command goes on from there; "
                    "--config.runner.options.workers takes fewer at a time."
                ) from None
            raise


def _start() -> None:
    """Prepares a worker: the parent decides when to stop, and nobody outlives it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_leave_with_parent, daemon=True).start()


def _leave_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)
