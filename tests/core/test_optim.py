"""Schedules against optax's own and the formula of the official code; traced arguments against plain ones."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nml_jax.core import optim
from nml_jax.core.errors import UserError

STEPS = jnp.arange(0, 130)


def rates(**options):
    return jax.vmap(optim.make_schedule(0.3, total_steps=100, **options))(STEPS)


def test_cosine_is_that_of_the_official_code():
    t = np.minimum(np.arange(130), 100)
    np.testing.assert_allclose(rates(), 0.5 * (1 + np.cos(np.pi * t / 100)) * 0.3, atol=1e-7)


@pytest.mark.parametrize(
    ("schedule", "main"),
    [
        ("cosine", optax.cosine_decay_schedule(0.3, 80)),
        ("linear", optax.linear_schedule(0.3, 0.0, 80)),
        ("constant", optax.constant_schedule(0.3)),
    ],
)
def test_warm_up_and_schedule_equal_those_of_optax(schedule, main):
    joined = optax.join_schedules([optax.linear_schedule(0.0, 0.3, 20), main], [20])
    np.testing.assert_allclose(rates(schedule=schedule, warmup_steps=20), jax.vmap(joined)(STEPS), atol=1e-7)


@pytest.mark.parametrize("name", optim.OPTIMIZERS)
def test_traced_scalars_give_the_same_updates(name):
    params = {"w": jnp.arange(6.0).reshape(2, 3), "b": jnp.ones(3)}
    scalars = {"learning_rate": 0.1, "total_steps": 10, "warmup_steps": 2, "weight_decay": 0.01}

    def train(scalars):
        tx = optim.make(name, **scalars)
        state, p = tx.init(params), params
        for _ in range(4):
            updates, state = tx.update(jax.tree.map(jnp.sin, p), state, p)
            p = optax.apply_updates(p, updates)
        return p

    traced = jax.jit(train)({k: jnp.float32(v) for k, v in scalars.items()})
    plain = jax.jit(lambda: train(scalars))()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), traced, plain)
    assert set(scalars) == set(optim.TRACEABLE)


def test_decay_of_matrices_spares_vectors():
    params = {"w": jnp.ones((2, 2)), "b": jnp.ones(2)}
    tx = optim.make("adamw", learning_rate=0.1, total_steps=10, weight_decay=0.5, decay="matrices")
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    np.testing.assert_allclose(updates["w"], -0.05, rtol=1e-6)
    np.testing.assert_array_equal(updates["b"], 0.0)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"name": "adam"}, "adamw, lamb, sgd"),
        ({"name": "adamw", "schedule": "step"}, "cosine, linear, constant"),
        ({"name": "adamw", "decay": "none"}, "all, matrices"),
    ],
)
def test_unknown_names_list_the_valid_ones(options, word):
    with pytest.raises(UserError, match=word):
        optim.make(**options, learning_rate=0.1, total_steps=10)
