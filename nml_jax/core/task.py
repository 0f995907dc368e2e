"""What a training loop needs of a method, and what it carries from step to step."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.struct
import jax

PyTree = Any
Batch = dict[str, jax.Array]


class Task(NamedTuple):
    """A method in three pure functions.

    `params` is what the optimiser moves, `frozen` what it must not (a backbone), `stats` what a forward pass
    updates (BatchNorm statistics). `frozen` is an argument of the jitted step, never a closure, which would
    bake it into the program as constants.
    """

    init: Callable[[jax.Array, PyTree], tuple[PyTree, PyTree, PyTree]]
    """(rng, batch of `jax.ShapeDtypeStruct` or arrays) -> (params, frozen, stats)."""
    loss: Callable[..., tuple[jax.Array, tuple[PyTree, dict[str, jax.Array]]]]
    """(params, frozen, stats, batch, rng) -> (loss, (new stats, scalar metrics))."""
    predict: Callable[..., Any]
    """(params, frozen, stats, batch) -> logits (B, C), or what the objective's evaluation wants."""


class TrainState(flax.struct.PyTreeNode):
    """All that a step reads and writes; nothing random is in it (see `core.runtime.key`)."""

    step: jax.Array
    params: PyTree
    frozen: PyTree
    stats: PyTree
    opt_state: PyTree
