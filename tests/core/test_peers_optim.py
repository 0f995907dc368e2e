"""Optimisers beside PyTorch's and timm's, step by step on the same gradients."""

import jax
import numpy as np
import optax
import pytest

from nml_jax.core import optim
from tests import torch_peers

pytestmark = pytest.mark.peers
STEPS = 12


def gradients(step: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(step)
    scale = 10.0 if step % 3 == 0 else 0.05  # above and below the norm that LAMB clips to
    return {
        name: scale * rng.standard_normal(value.shape).astype(np.float32) for name, value in initial().items()
    }


def initial() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(100)
    return {
        "kernel": rng.standard_normal((4, 5)).astype(np.float32),
        "bias": rng.standard_normal(5).astype(np.float32),
    }


def ours(**options) -> dict[str, np.ndarray]:
    tx = optim.make(**options, total_steps=STEPS, schedule="constant")
    params = jax.tree.map(jax.numpy.asarray, initial())
    state = tx.init(params)
    for step in range(STEPS):
        updates, state = tx.update(gradients(step), state, params)
        params = optax.apply_updates(params, updates)
    return params


def theirs(make) -> dict[str, np.ndarray]:
    torch = pytest.importorskip("torch")
    params = {name: torch.nn.Parameter(torch.tensor(value)) for name, value in initial().items()}
    optimizer = make(torch, [params["kernel"]], [params["bias"]])
    for step in range(STEPS):
        for name, gradient in gradients(step).items():
            params[name].grad = torch.tensor(gradient)
        optimizer.step()
    return {name: p.detach().numpy() for name, p in params.items()}


def groups(decaying, others):
    return [{"params": decaying, "weight_decay": 0.02}, {"params": others, "weight_decay": 0.0}]


def test_lamb_is_that_of_timm():
    torch_peers.timm()
    import timm.optim

    expected = theirs(lambda torch, a, b: timm.optim.Lamb(groups(a, b), lr=5e-2, eps=1e-6))
    found = ours(
        name="lamb", learning_rate=5e-2, weight_decay=0.02, decay="matrices", eps=1e-6, clip_norm=1.0
    )
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6), found, expected)


def test_sgd_and_adamw_are_those_of_torch():
    expected = theirs(lambda torch, a, b: torch.optim.SGD(groups(a, b), lr=1e-2, momentum=0.9))
    found = ours(name="sgd", learning_rate=1e-2, weight_decay=0.02, decay="matrices")
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5), found, expected)
    expected = theirs(lambda torch, a, b: torch.optim.AdamW(groups(a, b), lr=1e-2))
    found = ours(name="adamw", learning_rate=1e-2, weight_decay=0.02, decay="matrices")
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6), found, expected)
