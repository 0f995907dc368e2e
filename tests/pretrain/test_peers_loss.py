"""The losses of the recipes beside timm's, on mixed and smoothed targets."""

import jax.numpy as jnp
import numpy as np
import pytest

from nml_jax.pretrain import supervised
from tests import torch_peers

pytestmark = pytest.mark.peers
LABELS = np.array([0, 3, 2, 1, 4, 4])


def timm_loss():
    torch_peers.timm()
    import timm.loss

    return timm.loss


def targets(smoothing: float) -> np.ndarray:
    """Labels smoothed, then mixed with those of the opposite row."""
    one_hot = np.eye(5)[LABELS] * (1 - smoothing) + smoothing / 5
    return (0.7 * one_hot + 0.3 * one_hot[::-1]).astype(np.float32)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("threshold", [0.0, 0.2])
def test_binary_cross_entropy(smoothing, threshold):
    torch, loss = pytest.importorskip("torch"), timm_loss()
    logits = np.random.default_rng(0).standard_normal((6, 5)).astype(np.float32)
    theirs = loss.BinaryCrossEntropy(target_threshold=threshold or None)(
        torch.tensor(logits), torch.tensor(targets(smoothing))
    )
    ours = supervised.loss_function(
        name="binary_cross_entropy", label_smoothing=smoothing, target_threshold=threshold
    )
    np.testing.assert_allclose(
        ours(jnp.asarray(logits), jnp.asarray(targets(smoothing))), theirs.item(), rtol=1e-5
    )


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy(smoothing):
    torch, loss = pytest.importorskip("torch"), timm_loss()
    logits = np.random.default_rng(1).standard_normal((6, 5)).astype(np.float32)
    ours = supervised.loss_function(name="cross_entropy", label_smoothing=smoothing, target_threshold=0.0)
    mixed = targets(smoothing)
    theirs = loss.SoftTargetCrossEntropy()(torch.tensor(logits), torch.tensor(mixed))
    np.testing.assert_allclose(ours(jnp.asarray(logits), jnp.asarray(mixed)), theirs.item(), rtol=1e-5)
    smoothed = supervised.smoothed(jnp.asarray(LABELS), 5, smoothing)
    theirs = torch.nn.CrossEntropyLoss(label_smoothing=smoothing)(torch.tensor(logits), torch.tensor(LABELS))
    np.testing.assert_allclose(ours(jnp.asarray(logits), smoothed), theirs.item(), rtol=1e-5)
