"""Where a program's batches come from: features in device memory, or on the host and read as they are needed.

Both run the same steps on the same batches, and give the same results.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nml_jax.core.task import TrainState
from nml_jax.tune.program import Lane, Metrics, Program


class Resident(NamedTuple):
    """Features x (N, V, D) on each device."""

    program: Program
    x: jax.Array

    def epoch(
        self, state: TrainState, lane: Lane, rows: int, steps: int, number: int
    ) -> tuple[TrainState, Metrics]:
        """The state after epoch `number`, and the metrics summed over its steps."""
        return self.program.epoch(state, lane, self.x, rows, steps, number)

    def clean(self, rows: np.ndarray) -> jax.Array:
        """View 0 of these rows (heads, R) -> (heads, R, D)."""
        return self.program.take(rows, self.x)


class Streamed(NamedTuple):
    """Features x (N, V, D) on the host, possibly memory-mapped; a block of batches has at most `block_bytes`."""

    program: Program
    x: np.ndarray
    block_bytes: int

    def epoch(
        self, state: TrainState, lane: Lane, rows: int, steps: int, number: int
    ) -> tuple[TrainState, Metrics]:
        """As `Resident.epoch`; the host reads a block while the devices work on the one before."""
        program, order = self.program, self.program.order(lane, number)
        batch = jax.eval_shape(program.pick, lane, order, number, rows, np.arange(1))[1].size
        size = max(1, min(steps, self.block_bytes // (batch * self.x.shape[2] * 4)))
        ahead = program.pick(lane, order, number, rows, np.arange(size))
        sums = None
        for first in range(0, steps, size):
            chosen, drawn = (np.asarray(part) for part in ahead)
            block = program.place(self._read(chosen[..., None], drawn), True)
            # Asked for before this block's steps are: the devices answer in order.
            ahead = program.pick(lane, order, number, rows, np.arange(first + size, first + 2 * size))
            count = min(size, steps - first)
            state, part = program.block(state, lane, block, program.place(chosen, True), number, first, count)
            sums = part if sums is None else jax.tree.map(jnp.add, sums, part)
        return state, sums

    def clean(self, rows: np.ndarray) -> jax.Array:
        """As `Resident.clean`."""
        return self.program.place(self._read(rows, 0), True)

    def _read(self, rows: np.ndarray, views: np.ndarray | int) -> np.ndarray:
        return np.asarray(self.x[rows, views], np.float32)
