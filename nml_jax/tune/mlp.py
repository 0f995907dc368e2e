"""The MLP baseline: the head of NMTune without regularisers (ICLR 2024, §3; the code with its weights at zero)."""

import functools
from typing import Any

from nml_jax.core.errors import UserError
from nml_jax.core.task import Task
from nml_jax.tune import nmtune
from nml_jax.tune.head import Head

OPTIONS = ("objective", "views", *nmtune.HEAD)
NO_PENALTIES = {"consistency_weight": 0.0, "covariance_weight": 0.0, "singular_value_weight": 0.0}

SWEEPABLE = ()
PRESETS = {preset: {name: values[name] for name in OPTIONS} for preset, values in nmtune.PRESETS.items()}


def views(**head: Any) -> int:
    """How many augmented views a step draws; the cross-entropy is over all of them."""
    return nmtune.views(**_checked(head))


def make_head(*, num_classes: int, **head: Any) -> Head:
    """The network of these settings, for `tune.head.features`."""
    return nmtune.make_head(num_classes=num_classes, **_checked(head))


@functools.cache
def make(*, dim: int, num_classes: int, **head: Any) -> Task:
    """The Task.

    Args:
      head: `preset` ("official" or "paper") and any value of it by name.

    Raises:
      UserError: an unknown preset, name or value.
    """
    return nmtune.make(dim=dim, num_classes=num_classes, **_checked(head), **NO_PENALTIES)


def _checked(head: dict[str, Any]) -> dict[str, Any]:
    unknown = sorted(head.keys() - {"preset", *OPTIONS})
    if unknown:
        raise UserError(f"mlp has no option {', '.join(unknown)}; valid: preset, {', '.join(OPTIONS)}.")
    return head
