"""NMTune beside PyTorch: the same initial values and batches give the same losses and weights."""

import jax
import numpy as np
import optax
import pytest

from nml_jax.core import optim
from nml_jax.tune import nmtune

STEPS, B, D, C, LR, DECAY = 50, 16, 12, 4, 1e-3, 1e-4


def batches():
    rng = np.random.default_rng(0)
    for _ in range(STEPS):
        y = rng.integers(C, size=B)
        yield (rng.normal(size=(B, 2, D)) + np.eye(D)[y][:, None]).astype(np.float32), y


def ours(task, params, frozen, stats):
    tx = optim.make("adamw", learning_rate=LR, total_steps=STEPS, weight_decay=DECAY)

    @jax.jit
    def step(params, stats, opt_state, batch):
        (loss, (stats, _)), grads = jax.value_and_grad(task.loss, has_aux=True)(
            params, frozen, stats, batch, jax.random.key(0)
        )
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), stats, opt_state, loss

    opt_state, losses = tx.init(params), []
    for x, y in batches():
        params, stats, opt_state, loss = step(params, stats, opt_state, {"x": x, "y": y})
        losses.append(float(loss))
    return losses, params, stats


@pytest.mark.peers
def test_fifty_steps_of_the_official_preset():
    torch = pytest.importorskip("torch")
    task = nmtune.make(dim=D, num_classes=C)
    params, frozen, stats = jax.jit(task.init)(jax.random.key(0), {})
    losses, tuned, stats = ours(task, params, frozen, stats)

    def load(layer, values):
        layer.weight.data = torch.tensor(np.array(values["kernel"])).T.contiguous()
        layer.bias.data = torch.tensor(np.array(values["bias"]))
        return layer

    expand = load(torch.nn.Linear(D, 4 * D), params["mlp"]["expand"])
    project = load(torch.nn.Linear(4 * D, D), params["mlp"]["project"])
    classify = load(torch.nn.Linear(D, C), params["classifier"]["linear"])
    norm, scale = torch.nn.BatchNorm1d(4 * D), torch.nn.Parameter(torch.ones(D))
    mlp = torch.nn.Sequential(expand, norm, torch.nn.ReLU(), project)
    optimizer = torch.optim.AdamW(
        [*mlp.parameters(), *classify.parameters(), scale], lr=LR, weight_decay=DECAY
    )
    unit = torch.nn.functional.normalize
    theirs = []
    for t, (x, y) in enumerate(batches()):
        optimizer.param_groups[0]["lr"] = 0.5 * LR * (1 + np.cos(np.pi * t / STEPS))
        f = torch.tensor(np.concatenate([x[:, 0], x[:, 1]]))
        z = scale * mlp(f) + f
        loss = torch.nn.functional.cross_entropy(classify(z), torch.tensor(np.tile(y, 2)))
        loss = loss + torch.nn.functional.mse_loss(unit(z[B:]), unit(f[:B]))
        covariance = torch.cov(z.T)
        loss = loss + 0.04 * (covariance - torch.diag(covariance.diag())).square().sum() / D
        s = torch.linalg.svd(z, full_matrices=False).S
        loss = loss - 0.001 * (s / s.sum())[:5].mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        theirs.append(loss.item())

    np.testing.assert_allclose(losses, theirs, rtol=2e-5)
    np.testing.assert_allclose(tuned["mlp"]["expand"]["kernel"], expand.weight.detach().numpy().T, atol=1e-4)
    np.testing.assert_allclose(tuned["scale"]["scale"], scale.detach().numpy(), atol=1e-4)
    # Not the running mean: BatchNorm takes the bias before it out again, so that bias has a gradient of rounding noise,
    # which AdamW scales to whole steps, and the running mean follows the bias.
    np.testing.assert_allclose(
        stats["batch_stats"]["mlp"]["norm"]["var"], norm.running_var.numpy(), rtol=1e-4
    )
