"""Torch models for comparisons, with weights as trained ones could be, and images for them."""

import numpy as np
import pytest


def images(count: int, size: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, size, size, 3)).astype(np.float32)


def chw(image: np.ndarray):
    torch = pytest.importorskip("torch")
    return torch.tensor(image.transpose(0, 3, 1, 2).copy())


def random_norms(model, size: int):
    """The torch model with BatchNorms as a trained network's could be."""
    torch = pytest.importorskip("torch")
    generator = torch.Generator().manual_seed(0)
    norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    # Those at the end of a residual branch: large ones make a deep network amplify rounding (torch's own float32
    # is then 8e-4 from its float64 at ResNet-152).
    last = [getattr(m, "bn3", m.bn2) for m in model.modules() if hasattr(m, "bn2")]
    with torch.no_grad():
        for norm in norms:
            low, high = (0.1, 0.5) if any(norm is m for m in last) else (0.5, 1.5)
            norm.weight.uniform_(low, high, generator=generator)
            norm.bias.normal_(0, 0.2, generator=generator)
            norm.momentum = 1.0
        model.train()(chw(images(8, size, seed=1)))
        for norm in norms:
            norm.momentum = 0.1
            for statistic in (norm.running_mean, norm.running_var):
                statistic.mul_(torch.rand(len(statistic), generator=generator) * 0.4 + 0.8)
    return model.eval()


def parameters(model) -> int:
    return sum(p.numel() for p in model.parameters())
