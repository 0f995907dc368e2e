"""A sweep: which heads a config asks for, and which of them are chosen, on rows held out from training."""

import itertools
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from nml_jax.core import plugin
from nml_jax.core.errors import UserError
from nml_jax.noise import choice
from nml_jax.tune import fraction as fractions
from nml_jax.tune.runs import Run
from nml_jax.tune.trainer import Fitted

OPTIM = ("learning_rate", "weight_decay")
# Heads that differ in these are different experiments; among those that differ in anything else one is chosen.
EXPERIMENT = ("fraction", "noise_ratio", "seed")


class Planned(NamedTuple):
    """One head: where it stands in the sweep, what it is trained on, and the realised noise among its labels."""

    point: dict[str, float]
    run: Run
    realised_noise: float

    @property
    def experiment(self) -> tuple[float, ...]:
        """What heads have in common that are compared with each other."""
        return tuple(self.point[name] for name in EXPERIMENT)


def check(config: ConfigDict, sweepable: tuple[str, ...]) -> None:
    """Raises a UserError for a sweep that the method cannot do, or whose heads nothing could choose among.

    Args:
      sweepable: the method's own.
    """
    for fraction in config.fractions:
        fractions.check(fraction)
    if not 0.0 <= config.validation < 1.0:
        raise UserError(
            f"config.validation is {config.validation}; valid is a fraction in [0, 1), such as 0.1."
        )
    valid = (*EXPERIMENT[1:], *OPTIM, *sweepable)
    unknown = sorted(name for name, values in config.sweep.items() if values and name not in valid)
    if unknown:
        raise UserError(f"{config.method} cannot sweep over {', '.join(unknown)}; valid: {', '.join(valid)}.")
    chosen = [name for name, values in config.sweep.items() if len(values) > 1 and name not in EXPERIMENT]
    if chosen and not config.validation:
        raise UserError(
            f"A sweep over {', '.join(chosen)} needs rows to choose on, held out from the training set; the test set "
            "is never used for it. Give --config.validation=0.1."
        )
    if "labels" not in plugin.find("noise", config.noise.name, "corrupt").CORRUPTS:
        raise UserError(
            f"The noise {config.noise.name!r} does not corrupt labels; take 'symmetric', for example."
        )
    for ratio in _axis(config, "noise_ratio", config.noise.ratio):
        choice.check_ratio(ratio)


def plan(config: ConfigDict, y: np.ndarray, num_classes: int) -> list[Planned]:
    """The heads of a config: the product of `config.fractions` and of all that `config.sweep` lists.

    For each fraction and seed the rows are chosen first, class by class; the noise then goes over the chosen rows,
    and the rows that are held out have noisy labels too, as they would outside of an experiment.

    Args:
      y: (N,) class indices of the training set.
    """
    axes = {"fraction": config.fractions}
    axes |= {name: _axis(config, name, value) for name, value in _defaults(config).items()}
    planned = []
    for values in itertools.product(*axes.values()):
        point = dict(zip(axes, values, strict=True))
        seed = int(point["seed"])
        member = np.flatnonzero(fractions.subset(y, point["fraction"], seed))
        held_out = np.zeros(len(member), bool)
        if config.validation:
            held_out = fractions.held_out(y[member], config.validation, seed)
        noisy = y.copy()
        noisy[member] = _corrupt(config, y[member], num_classes, point["noise_ratio"], seed, member)
        run = Run(
            noisy,
            seed=seed,
            train=member[~held_out],
            validation=member[held_out],
            optim={name: point[name] for name in OPTIM},
            frozen={name: point[name] for name in axes if name not in (*EXPERIMENT, *OPTIM)},
        )
        planned.append(Planned(point, run, float(np.mean(noisy[run.train] != y[run.train]))))
    return planned


def choose(planned: list[Planned], fitted: list[Fitted]) -> list[int]:
    """For each experiment the number of its best head on the validation rows, in the order of `planned`.

    The higher accuracy is the better, then the lower loss, then the earlier head.
    """
    best: dict[tuple[float, ...], int] = {}
    for i, (one, head) in enumerate(zip(planned, fitted, strict=True)):
        there = best.setdefault(one.experiment, i)
        if head.validation > fitted[there].validation:
            best[one.experiment] = i
    lost = [planned[i].point for i in best.values() if fitted[i].lost]
    if lost:
        raise UserError(
            f"The loss of every head with {lost[0]} became NaN or infinite. Lower the learning rate, or lengthen the "
            "warm-up."
        )
    return list(best.values())


def _defaults(config: ConfigDict) -> dict[str, Any]:
    """The axes but the fraction, with the values they have where the sweep does not list any."""
    own = {name for name, values in config.sweep.items() if values} - {*EXPERIMENT, *OPTIM}
    return {
        "noise_ratio": config.noise.ratio,
        "seed": config.seed,
        **{name: config.optim[name] for name in OPTIM},
        **dict.fromkeys(sorted(own)),
    }


def _axis(config: ConfigDict, name: str, default: Any) -> tuple[Any, ...]:
    return tuple(dict.fromkeys(config.sweep[name])) or (default,)


def _corrupt(
    config: ConfigDict, y: np.ndarray, num_classes: int, ratio: float, seed: int, ids: np.ndarray
) -> np.ndarray:
    corrupt = plugin.find("noise", config.noise.name, "corrupt").corrupt
    return plugin.call(
        corrupt,
        "noise.options",
        y,
        num_classes=num_classes,
        ratio=ratio,
        seed=seed,
        ids=ids,
        **config.noise.options,
    )
