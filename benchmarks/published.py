"""The peer: the published NMTune in PyTorch, written anew from what its code is known to do.

Head D -> 4D, BatchNorm, ReLU, -> D, residual with a learnable scale; two augmented views a step; cross-entropy on
both, mean-squared error between the normalised Z of view 2 and F of view 1, covariance 0.04, singular values by a full
SVD 0.001; AdamW, cosine per step. The images are augmented and encoded anew in every step.
"""

import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F


class Head(nn.Module):
    """Features (2B, D) -> Z (2B, D), logits (2B, C)."""

    def __init__(self, dim: int, num_classes: int):
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(dim, 4 * dim), nn.BatchNorm1d(4 * dim), nn.ReLU(), nn.Linear(4 * dim, dim)
        )
        self.scale = nn.Parameter(torch.ones(dim))
        self.classifier = nn.Linear(dim, num_classes)
        nn.init.kaiming_uniform_(self.classifier.weight)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        z = self.scale * self.mlp(features) + features
        return z, self.classifier(z)


def loss(head: Head, features: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Of features (2B, D), the second half the other view of the first, and labels (B,)."""
    rows, dim = len(y), features.shape[1]
    z, logits = head(features)
    consistency = F.mse_loss(F.normalize(z[rows:]), F.normalize(features[:rows].detach()))
    centred = z - z.mean(dim=0)
    covariance = centred.T @ centred / (2 * rows - 1)
    off_diagonal = covariance.flatten()[:-1].view(dim - 1, dim + 1)[:, 1:].flatten()
    s = torch.svd(z)[1]
    return (
        F.cross_entropy(logits, y.repeat(2))
        + consistency
        + 0.04 * off_diagonal.pow(2).sum() / dim
        - 0.001 * (s / s.sum())[:5].mean()
    )


def stepper(
    head: Head, *, learning_rate: float, weight_decay: float, total_steps: int, compiled: bool = False
) -> Callable[[torch.Tensor, torch.Tensor], None]:
    """A function that makes one step on features (2B, D) and labels (B,)."""
    optimizer = torch.optim.AdamW(head.parameters(), lr=learning_rate, weight_decay=weight_decay)
    step_loss = torch.compile(loss) if compiled else loss
    count = 0

    def step(features: torch.Tensor, y: torch.Tensor) -> None:
        nonlocal count
        rate = 0.5 * learning_rate * (1 + math.cos(math.pi * count / total_steps))
        for group in optimizer.param_groups:
            group["lr"] = rate
        value = step_loss(head, features, y)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        count += 1

    return step


class Block(nn.Module):
    """The basic block of `nml_jax.models.resnet`."""

    def __init__(self, inside: int, outside: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outside)
        self.conv2 = nn.Conv2d(outside, outside, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outside)
        if inside != outside:
            self.conv_shortcut = nn.Conv2d(inside, outside, 1, stride, bias=False)
            self.norm_shortcut = nn.BatchNorm2d(outside)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        return F.relu(
            y + (self.norm_shortcut(self.conv_shortcut(x)) if hasattr(self, "norm_shortcut") else x)
        )


class Encoder(nn.Module):
    """`nml_jax.models.resnet` with stem "cifar" and basic blocks, with its parameters."""

    def __init__(self, params: dict, stats: dict, stages: tuple[int, ...], width: int, mean, std):
        super().__init__()
        self.conv_stem = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        self.norm_stem = nn.BatchNorm2d(width)
        inside, self.blocks = width, []
        for stage, blocks in enumerate(stages):
            for index in range(blocks):
                name = f"stage{stage + 1}_block{index + 1}"
                outside = width * 2**stage
                self.add_module(name, Block(inside, outside, 2 if stage > 0 and index == 0 else 1))
                self.blocks.append(name)
                inside = outside
        self.mean, self.std = (torch.tensor(v).view(1, 3, 1, 1) for v in (mean, std))
        _load(self, params, stats)
        self.eval().requires_grad_(False)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """uint8 (B, H, W, 3) -> features (B, D)."""
        x = (image.permute(0, 3, 1, 2).float() / 255 - self.mean) / self.std
        x = F.relu(self.norm_stem(self.conv_stem(x)))
        for name in self.blocks:
            x = getattr(self, name)(x)
        return x.mean(dim=(2, 3))


def _load(module: nn.Module, params: dict, stats: dict) -> None:
    for name, child in module.named_children():
        if isinstance(child, nn.Conv2d):
            child.weight.data = torch.tensor(np.asarray(params[name]["kernel"]).transpose(3, 2, 0, 1).copy())
        elif isinstance(child, nn.BatchNorm2d):
            child.weight.data, child.bias.data = (
                torch.tensor(np.array(params[name][k])) for k in ("scale", "bias")
            )
            child.running_mean, child.running_var = (
                torch.tensor(np.array(stats[name][k])) for k in ("mean", "var")
            )
        else:
            _load(child, params[name], stats[name])


def random_resized_crop(image: Image.Image, size: int, rng: np.random.Generator) -> np.ndarray:
    """torchvision's RandomResizedCrop(size, scale=(0.8, 1)) by bicubic, and a flip of half of the images."""
    width, height = image.size
    for _ in range(10):
        area = height * width * rng.uniform(0.8, 1.0)
        aspect = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, top = rng.integers(0, width - w + 1), rng.integers(0, height - h + 1)
            break
    else:
        w, h, left, top = width, height, 0, 0
    crop = image.resize((size, size), Image.Resampling.BICUBIC, box=(left, top, left + w, top + h))
    pixels = np.asarray(crop)
    return pixels[:, ::-1] if rng.random() < 0.5 else pixels


def batches(size: int, batch_size: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Row numbers of the batches of one epoch, in random order; the last one may be smaller."""
    order = rng.permutation(size)
    yield from (order[first : first + batch_size] for first in range(0, size, batch_size))
