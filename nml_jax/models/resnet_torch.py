"""ResNet weights in the names of torchvision and timm, which are the same."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from nml_jax.core.errors import UserError
from nml_jax.models import resnet
from nml_jax.models import torch_names as names

PyTree = Any


def from_torch(tensors: Mapping[str, Any]) -> tuple[PyTree, PyTree]:
    """(params, stats) of `models.resnet` from a state dict; the architecture is read off its names and shapes.

    ResNet-10 to -152, wide ones, with the ImageNet or the CIFAR stem, with or without a classifier.

    Raises:
      UserError: it is no such network: tensors are missing, unexpected or of the wrong shape.
    """
    for name in ("conv1.weight", "layer1.0.conv1.weight"):
        if name not in tensors or len(tensors[name].shape) != 4:
            raise UserError(f"These torch weights are no ResNet's: {name} (4 axes) is missing.")
    stages = [count for s in (1, 2, 3, 4) if (count := names.blocks(tensors, f"layer{s}"))]
    bottleneck = "layer1.0.conv3.weight" in tensors
    width, kernel = tensors["conv1.weight"].shape[0], tensors["conv1.weight"].shape[-1]
    inner = tensors["layer1.0.conv1.weight"].shape[0]
    head = tensors.get("fc.weight", tensors.get("fc.bias"))
    model = resnet.make(
        stages=stages,
        bottleneck=bottleneck,
        widen=max(inner // width, 1) if bottleneck else 1,
        width=width,
        stem="cifar" if kernel == 3 else "imagenet",
        num_classes=0 if head is None else head.shape[0],
    )
    pairs = _pairs(stages, bottleneck, head is not None, shortcut=lambda block: True)
    return names.from_torch(tensors, pairs, model, names.image(64, 64))


def to_torch(params: PyTree, stats: PyTree) -> dict[str, np.ndarray]:
    """The state dict that torchvision's and timm's ResNets load, from (params, stats).

    BatchNorm's `num_batches_tracked` is left out: it counts steps, and nothing uses it.

    Raises:
      UserError: the parameters are no such network's (a projection, for example, has no name there).
    """
    stages = []
    while blocks := sum(name.startswith(f"stage{len(stages) + 1}_block") for name in params):
        stages.append(blocks)
    bottleneck = "conv3" in params.get("stage1_block1", {})
    pairs = _pairs(
        stages, bottleneck, "classifier" in params, shortcut=lambda block: "conv_shortcut" in params[block]
    )
    return names.to_torch(params, stats, pairs)


def _pairs(
    stages: list[int], bottleneck: bool, classifier: bool, shortcut: Callable[[str], bool]
) -> list[names.Pair]:
    pairs = names.conv("conv1", "conv_stem") + names.batch_norm("bn1", "norm_stem")
    for stage, blocks in enumerate(stages):
        for index in range(blocks):
            linen = f"stage{stage + 1}_block{index + 1}"
            torch = f"layer{stage + 1}.{index}"
            for layer in (1, 2, 3) if bottleneck else (1, 2):
                pairs += names.conv(f"{torch}.conv{layer}", f"{linen}/conv{layer}")
                pairs += names.batch_norm(f"{torch}.bn{layer}", f"{linen}/norm{layer}")
            if shortcut(linen):
                pairs += names.conv(f"{torch}.downsample.0", f"{linen}/conv_shortcut")
                pairs += names.batch_norm(f"{torch}.downsample.1", f"{linen}/norm_shortcut")
    return pairs + (names.dense("fc", "classifier") if classifier else [])
