"""What a training loop needs of a method, and what it carries from step to step."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.struct
import jax

PyTree = Any
Batch = dict[str, jax.Array]


def _as_it_is(batch: Batch, rng: jax.Array) -> Batch:
    del rng
    return batch


class Task(NamedTuple):
    """A method in three pure functions; two more where the device changes the batch first, or rows depend on rows.

    `params` is what the optimiser moves, `frozen` what it must not (a backbone), `stats` what a forward pass
    updates (BatchNorm statistics). `frozen` is an argument of the jitted step, never a closure, which would
    bake it into the program as constants.
    """

    init: Callable[[jax.Array, PyTree], tuple[PyTree, PyTree, PyTree]]
    """(rng, batch of `jax.ShapeDtypeStruct` or arrays) -> (params, frozen, stats)."""
    loss: Callable[..., tuple[jax.Array, tuple[PyTree, dict[str, jax.Array]]]]
    """(params, frozen, stats, batch, rng) -> (loss, (new stats, scalar metrics)): means over the rows of the batch."""
    predict: Callable[..., Any]
    """(params, frozen, stats, batch) -> logits (B, C), or what the objective's evaluation wants."""
    prepare: Callable[[Batch, jax.Array], Batch] = _as_it_is
    """(batch, rng) -> batch: what mixes rows of the whole global batch (mixup), before it is cut into microbatches."""
    gradients: Callable[..., Any] | None = None
    """(accumulate=, mesh=) -> what `core.gradients.make` returns, in its place: where the loss is no mean over rows."""


class TrainState(flax.struct.PyTreeNode):
    """All that a step reads and writes; nothing random is in it (see `core.runtime.key`)."""

    step: jax.Array
    params: PyTree
    frozen: PyTree
    stats: PyTree
    opt_state: PyTree
    average: PyTree
    """{"params", "stats"}: exponential moving averages of both, or {} where there are none."""

    @property
    def tuned(self) -> tuple[PyTree, PyTree]:
        """(params, stats) to evaluate with: their averages where there are some."""
        return (self.average["params"], self.average["stats"]) if self.average else (self.params, self.stats)
