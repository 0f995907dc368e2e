"""Optimisers and schedules by name."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from nml_jax.core.errors import UserError

OPTIMIZERS = ("adamw", "lamb", "sgd")
SCHEDULES = ("cosine", "linear", "constant")
# What `make` also takes as a traced scalar, so that one compiled program serves every value.
TRACEABLE = ("learning_rate", "total_steps", "warmup_steps", "weight_decay")

Scalar = float | jax.Array


def make_schedule(
    learning_rate: Scalar, *, total_steps: Scalar, schedule: str = "cosine", warmup_steps: Scalar = 0
) -> Callable[[Scalar], jax.Array]:
    """Step -> learning rate: a linear warm-up from zero, then `schedule` down to zero at `total_steps`.

    The cosine is per step, lr(t) = lr/2 (1 + cos(pi t / T)), as in the official code (protocol §4).
    """
    if schedule not in SCHEDULES:
        raise UserError(f"Unknown schedule {schedule!r}; valid: {', '.join(SCHEDULES)}.")

    def rate(step: Scalar) -> jax.Array:
        done = jnp.clip((step - warmup_steps) / jnp.maximum(total_steps - warmup_steps, 1), 0.0, 1.0)
        if schedule == "cosine":
            factor = 0.5 * (1.0 + jnp.cos(jnp.pi * done))
        elif schedule == "linear":
            factor = 1.0 - done
        else:
            factor = 1.0
        rise = step / jnp.maximum(warmup_steps, 1)
        return learning_rate * jnp.where(step < warmup_steps, rise, factor)

    return rate


def make(
    name: str,
    *,
    learning_rate: Scalar,
    total_steps: Scalar,
    schedule: str = "cosine",
    warmup_steps: Scalar = 0,
    weight_decay: Scalar = 0.0,
    decay: str = "all",
    momentum: float = 0.9,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    clip_norm: float = 0.0,
) -> optax.GradientTransformation:
    """The optimiser `name`.

    Args:
      decay: which parameters decay: "all" as torch.optim does, or "matrices" (two dimensions or more), which
        spares biases and normalisation scales.
      clip_norm: gradients are scaled down to this global norm; 0 leaves them.
    """
    if decay not in ("all", "matrices"):
        raise UserError(f"Unknown decay {decay!r}; valid: all, matrices.")
    rate = make_schedule(learning_rate, total_steps=total_steps, schedule=schedule, warmup_steps=warmup_steps)
    mask = None if decay == "all" else lambda params: jax.tree.map(lambda p: p.ndim > 1, params)
    if name == "adamw":
        tx = optax.adamw(rate, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay, mask=mask)
    elif name == "lamb":
        tx = _lamb(rate, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay, mask=mask)
    elif name == "sgd":  # torch.optim.SGD: the decay is part of the gradient that momentum averages
        tx = optax.chain(optax.add_decayed_weights(weight_decay, mask), optax.sgd(rate, momentum=momentum))
    else:
        raise UserError(f"Unknown optimiser {name!r}; valid: {', '.join(OPTIMIZERS)}.")
    return optax.chain(optax.clip_by_global_norm(clip_norm), tx) if clip_norm else tx


def _lamb(rate: Callable, *, b1: float, b2: float, eps: float, weight_decay: Scalar, mask: Callable | None):
    """LAMB (You et al. 2020) as timm has it: what does not decay is not scaled by its norm either (plain Adam).

    optax.lamb scales all parameters. timm also clips the gradients to a global norm of 1 (`clip_norm=1.0` here).
    """
    ratio = optax.scale_by_trust_ratio()
    return optax.chain(
        optax.scale_by_adam(b1=b1, b2=b2, eps=eps),
        optax.add_decayed_weights(weight_decay, mask),
        optax.masked(ratio, mask) if mask else ratio,
        optax.scale_by_learning_rate(rate),
    )
