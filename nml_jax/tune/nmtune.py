"""NMTune: an MLP reshapes the frozen features under three regularisers (ICLR 2024, §3).

L = CE(classifier(Z), y) + a |F/|F| - Z/|Z||^2 + b (1/D) sum_{i != j} C(Z)_ij^2 - c mean(s_1 ... s_k) / sum_j s_j

with F the features, Z what the MLP makes of them, C the covariance of its columns, s its singular values. The
paper and its code differ in the head, the views and the weights; both are here as presets (protocol §5).
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from nml_jax.core.errors import UserError
from nml_jax.core.task import Batch, PyTree, Task
from nml_jax.tune import regularizers
from nml_jax.tune.head import Head

PRESETS: dict[str, dict[str, Any]] = {
    # The official code: two augmented views of each sample in one batch of 2B rows; cross-entropy, covariance and
    # singular values on all of them, consistency between Z of the second view and F of the first.
    "official": {
        "objective": "classification",
        "views": 2,
        "expansion": 4,
        "batch_norm": True,
        "residual": True,
        "residual_scale": 1.0,
        "consistency_weight": 1.0,
        "consistency_reduction": "mean",
        "covariance_weight": 0.04,
        "singular_value_weight": 0.001,
        "singular_value_top_k": 5,
        "singular_value_method": "gram",
    },
    # Eqs. 3-6 with lambda = 0.01 and the head of Fig. 17.
    "paper": {
        "objective": "classification",
        "views": 1,
        "expansion": 4,
        "batch_norm": False,
        "residual": False,
        "residual_scale": 1.0,
        "consistency_weight": 0.01,
        "consistency_reduction": "sum",
        "covariance_weight": 0.01,
        "singular_value_weight": 0.01,
        "singular_value_top_k": 1,
        "singular_value_method": "gram",
    },
}
OBJECTIVES = ("classification", "regression")
HEAD = ("expansion", "batch_norm", "residual", "residual_scale")
# What the heads of one sweep may differ in: an argument of the compiled program, in the Task's `frozen`.
SWEEPABLE = ("consistency_weight", "covariance_weight", "singular_value_weight")


def settings(preset: str = "official", **head: Any) -> dict[str, Any]:
    """The values of a preset with those in `head` in their place.

    Raises:
      UserError: an unknown preset, name or value.
    """
    if preset not in PRESETS:
        raise UserError(f"Unknown preset {preset!r} of nmtune; valid: {', '.join(PRESETS)}.")
    values = PRESETS[preset]
    unknown = sorted(head.keys() - values.keys())
    if unknown:
        raise UserError(f"nmtune has no option {', '.join(unknown)}; valid: preset, {', '.join(values)}.")
    values = values | head
    if values["objective"] not in OBJECTIVES:
        raise UserError(
            f"Unknown objective {values['objective']!r} of nmtune; valid: {', '.join(OBJECTIVES)}."
        )
    if values["views"] not in (0, 1, 2):
        raise UserError(
            f"nmtune was given views={values['views']}; valid: 2 (code), 1 (paper), 0 (the clean view)."
        )
    return values


def views(**head: Any) -> int:
    """How many augmented views a step draws."""
    return settings(**head)["views"]


def make_head(*, num_classes: int, **head: Any) -> Head:
    """The network of these settings, for `tune.head.features`."""
    values = settings(**head)
    return Head(num_classes, **{name: values[name] for name in HEAD})


@functools.cache
def make(*, dim: int, num_classes: int, **head: Any) -> Task:
    """The Task; its `frozen` has the weights of those regularisers that are not switched off by a weight of 0.

    Args:
      dim: D.
      num_classes: C; 1 for a regression.
      head: `preset` ("official" or "paper") and any value of it by name.

    Raises:
      UserError: an unknown preset, name or value.
    """
    model = make_head(num_classes=num_classes, **head)
    values = settings(**head)
    penalties = _penalties(values)
    objective = _cross_entropy if values["objective"] == "classification" else _squared_error
    weights = {f"{name}_weight": values[f"{name}_weight"] for name in penalties}

    def init(rng: jax.Array, batch: Batch) -> tuple[PyTree, PyTree, PyTree]:
        variables = model.init(rng, jnp.zeros((2, dim)))
        return variables.pop("params"), jax.tree.map(jnp.float32, weights), variables

    def loss(params: PyTree, frozen: PyTree, stats: PyTree, batch: Batch, rng: jax.Array):
        rows, n_views, _ = batch["x"].shape
        x = batch["x"].reshape(rows * n_views, dim)
        y = jnp.repeat(batch["y"], n_views)
        (z, logits), stats = model.apply({"params": params, **stats}, x, train=True, mutable=list(stats))
        fit, metrics = objective(logits, y)
        z = z.reshape(rows, n_views, dim)
        terms = {name: penalty(batch["x"], z) for name, penalty in penalties.items()}
        total = fit + sum(frozen[f"{name}_weight"] * term for name, term in terms.items())
        return total, (stats, {"loss": total, **metrics, **terms})

    def predict(params: PyTree, frozen: PyTree, stats: PyTree, batch: Batch) -> jax.Array:
        return model.apply({"params": params, **stats}, batch["x"])[1]

    return Task(init, loss, predict)


def _cross_entropy(logits: jax.Array, y: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Of logits (B, C) and classes (B,): the mean, and the metrics."""
    value = optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()
    return value, {"cross_entropy": value, "accuracy": (logits.argmax(axis=1) == y).mean()}


def _squared_error(outputs: jax.Array, y: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Of outputs (B, 1) and numbers (B,): the mean, and the metrics."""
    value = jnp.square(outputs[:, 0] - y).mean()
    return value, {"squared_error": value}


def _penalties(values: dict[str, Any]) -> dict[str, Callable[[jax.Array, jax.Array], jax.Array]]:
    """Name -> ((x (B, V, D), z (B, V, D)) -> scalar), of those whose weight is not zero."""
    reduction, top_k = values["consistency_reduction"], values["singular_value_top_k"]
    method = values["singular_value_method"]
    terms = {
        "consistency": lambda x, z: regularizers.consistency(x[:, 0], z[:, -1], reduction),
        "covariance": lambda x, z: regularizers.covariance(z.reshape(-1, z.shape[-1])),
        "singular_value": lambda x, z: regularizers.dominant_singular_value(
            z.reshape(-1, z.shape[-1]), top_k, method
        ),
    }
    return {name: term for name, term in terms.items() if values[f"{name}_weight"]}
