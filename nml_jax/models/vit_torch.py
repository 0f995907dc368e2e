"""Vision transformer weights in timm's names."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from nml_jax.core.errors import UserError
from nml_jax.models import torch_names as names
from nml_jax.models import vit

PyTree = Any
PATCH, POSITION, TOKEN = "patch_embed.proj.weight", "pos_embed", "cls_token"


def from_torch(tensors: Mapping[str, Any]) -> tuple[PyTree, PyTree]:
    """(params, {}) of `models.vit` from a state dict of timm's; the architecture is read off its names and shapes.

    Raises:
      UserError: it is no such network: tensors are missing, unexpected or of the wrong shape.
    """
    for name, axes in ((PATCH, 4), (POSITION, 3)):
        if name not in tensors or len(tensors[name].shape) != axes:
            raise UserError(
                f"These torch weights are no vision transformer's: {name} ({axes} axes) is missing."
            )
    width, patch, token = tensors[PATCH].shape[0], tensors[PATCH].shape[-1], TOKEN in tensors
    layers = names.blocks(tensors, "blocks")
    head = tensors.get("head.weight", tensors.get("head.bias"))
    pool = "mean" if "fc_norm.weight" in tensors else "token"
    model = vit.make(
        width=width,
        layers=layers,
        heads=1,  # as many as one likes: the weights are the same
        patch=patch,
        pool=pool,
        class_token=token,
        num_classes=0 if head is None else head.shape[0],
    )
    image = names.image(patch * (tensors[POSITION].shape[1] - token), patch)
    tensors = {n: t[0] if n == POSITION else t[0, 0] if n == TOKEN else t for n, t in tensors.items()}
    return names.from_torch(tensors, _pairs(layers, pool, token, head is not None), model, image)


def to_torch(params: PyTree, stats: PyTree) -> dict[str, np.ndarray]:
    """The state dict that timm's VisionTransformer loads, from (params, {}).

    Raises:
      UserError: the parameters are no such network's (fixed positions and a projection have no name there).
    """
    layers = sum(name.startswith("block") for name in params)
    pool, token = ("mean" if "fc_norm" in params else "token"), "class_token" in params
    tensors = names.to_torch(params, stats, _pairs(layers, pool, token, "classifier" in params))
    tensors[POSITION] = tensors[POSITION][None]
    return tensors | ({TOKEN: tensors[TOKEN][None, None]} if token else {})


def _pairs(layers: int, pool: str, token: bool, classifier: bool) -> list[names.Pair]:
    pairs = [names.Pair(TOKEN, ("params", "class_token"))] if token else []
    pairs += [
        names.Pair(POSITION, ("params", "position")),
        names.Pair(PATCH, ("params", "patch", "kernel"), names.CONV),
        names.Pair("patch_embed.proj.bias", ("params", "patch", "bias")),
    ]
    for index in range(layers):
        torch, linen = f"blocks.{index}", f"block{index + 1}"
        pairs += names.affine(f"{torch}.norm1", f"{linen}/norm1")
        pairs += names.dense(f"{torch}.attn.qkv", f"{linen}/attention/qkv")
        pairs += names.dense(f"{torch}.attn.proj", f"{linen}/attention/out")
        pairs += names.affine(f"{torch}.norm2", f"{linen}/norm2")
        pairs += names.dense(f"{torch}.mlp.fc1", f"{linen}/fc1")
        pairs += names.dense(f"{torch}.mlp.fc2", f"{linen}/fc2")
    norm = "fc_norm" if pool == "mean" else "norm"
    return pairs + names.affine(norm, norm) + (names.dense("head", "classifier") if classifier else [])
