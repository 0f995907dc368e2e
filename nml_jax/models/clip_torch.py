"""CLIP weights in the names of OpenAI's and open_clip's models, which are the same."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from nml_jax.core.errors import UserError
from nml_jax.models import clip_resnet, clip_vit, text_transformer
from nml_jax.models import torch_names as names

PyTree = Any
# A scalar each; the bias is that of the sigmoid loss. Both models hold the logarithm of the scale.
SCALARS = ("logit_scale", "logit_bias")
# Facts about the architecture that OpenAI's files hold among the weights.
FACTS = ("input_resolution", "context_length", "vocab_size")
IMAGE, TEXT = "visual.", "text."


def from_torch(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Both towers from a state dict of OpenAI's, or of open_clip's CLIP or CustomTextCLIP.

    The architecture is read off names and shapes. What they do not tell is the number of heads and the activation:
    give the models `activation="quick_gelu"` for OpenAI's weights and open_clip's "-quickgelu" models, and
    `read="highest"` for the text.

    Returns:
      {"image": (params, stats) of `models.clip_resnet` or `models.clip_vit`, "text": params of
      `models.text_transformer`, "logit_scale": () float32, the logarithm of what cosines are multiplied with, and
      "logit_bias" where there is one}.

    Raises:
      UserError: it is no such model: tensors are missing, unexpected or of the wrong shape.
    """
    image = {name: x for name, x in tensors.items() if name.startswith(IMAGE)}
    text = {n: x for n, x in tensors.items() if n not in image and n not in (*SCALARS, *FACTS)}
    prefix = TEXT if any(name.startswith(TEXT) for name in text) else ""
    if "logit_scale" not in tensors:
        raise UserError("These torch weights are no CLIP model's: logit_scale is missing.")
    tower = _resnet if f"{IMAGE}layer1.0.conv1.weight" in image else _vit
    scalars = {n: np.asarray(tensors[n]).astype(np.float32).reshape(()) for n in SCALARS if n in tensors}
    return {"image": tower(image), "text": _text(text, prefix)} | scalars


def to_torch(trees: Mapping[str, Any], *, prefix: str = "") -> dict[str, np.ndarray]:
    """The state dict that open_clip's CLIP loads, from what `from_torch` returns: its inverse.

    `prefix="text."` gives the names of its CustomTextCLIP. BatchNorm's `num_batches_tracked` is left out: it counts
    steps, and nothing uses it.

    Raises:
      UserError: the parameters are no such model's (a classifier, for example, has no name there).
    """
    params, stats = trees["image"]
    pairs = _vit_pairs(_count(params)) if "patch" in params else _resnet_pairs(_stages(params), params)
    text = _text_pairs(_count(trees["text"]), prefix)
    scalars = {n: np.asarray(trees[n], np.float32).reshape(()) for n in SCALARS if n in trees}
    return names.to_torch(params, stats, pairs) | names.to_torch(trees["text"], {}, text) | scalars


def _resnet(tensors: Mapping[str, Any]) -> tuple[PyTree, PyTree]:
    stages = [n for s in (1, 2, 3, 4) if (n := names.blocks(tensors, f"{IMAGE}layer{s}"))]
    width = _shape(tensors, f"{IMAGE}layer1.0.conv1.weight", 4)[0]
    tokens = _shape(tensors, f"{IMAGE}attnpool.positional_embedding", 2)[0]
    project = _shape(tensors, f"{IMAGE}attnpool.c_proj.weight", 2)[0]
    model = clip_resnet.make(stages=stages, width=width, heads=1, project=project)  # any number of heads
    # Where an image of one place has a stride of 2^(stages + 1): all but one of the tokens side by side.
    side = 2 ** (len(stages) + 1)
    return names.from_torch(tensors, _resnet_pairs(stages), model, names.image(side, side * (tokens - 1)))


def _vit(tensors: Mapping[str, Any]) -> tuple[PyTree, PyTree]:
    width, _, _, patch = _shape(tensors, f"{IMAGE}conv1.weight", 4)
    tokens = _shape(tensors, f"{IMAGE}positional_embedding", 2)[0]
    project = _shape(tensors, f"{IMAGE}proj", 2)[1]
    layers = names.blocks(tensors, f"{IMAGE}transformer.resblocks")
    model = clip_vit.make(width=width, layers=layers, heads=1, patch=patch, project=project)
    return names.from_torch(tensors, _vit_pairs(layers), model, names.image(patch, patch * (tokens - 1)))


def _text(tensors: Mapping[str, Any], prefix: str) -> PyTree:
    vocab_size, width = _shape(tensors, f"{prefix}token_embedding.weight", 2)
    length = _shape(tensors, f"{prefix}positional_embedding", 2)[0]
    project = _shape(tensors, f"{prefix}text_projection", 2)[1]
    layers = names.blocks(tensors, f"{prefix}transformer.resblocks")
    model = text_transformer.make(vocab_size=vocab_size, project=project, width=width, layers=layers, heads=1)
    tokens = jax.ShapeDtypeStruct((1, length), np.int32)
    return names.from_torch(tensors, _text_pairs(layers, prefix), model, tokens)[0]


def _shape(tensors: Mapping[str, Any], name: str, axes: int) -> tuple[int, ...]:
    if name not in tensors or len(tensors[name].shape) != axes:
        raise UserError(f"These torch weights are no CLIP model's: {name} ({axes} axes) is missing.")
    return tuple(tensors[name].shape)


def _count(params: PyTree) -> int:
    return sum(name.startswith("block") for name in params)


def _stages(params: PyTree) -> list[int]:
    stages = []
    while blocks := sum(name.startswith(f"stage{len(stages) + 1}_block") for name in params):
        stages.append(blocks)
    return stages


def _resnet_pairs(stages: list[int], params: PyTree | None = None) -> list[names.Pair]:
    """`params` says which blocks have a convolution in their shortcut; without it, the pairs are of all blocks."""
    pairs = []
    for layer in (1, 2, 3):
        pairs += names.conv(f"{IMAGE}conv{layer}", f"conv_stem{layer}")
        pairs += names.batch_norm(f"{IMAGE}bn{layer}", f"norm_stem{layer}")
    for stage, blocks in enumerate(stages):
        for index in range(blocks):
            linen, torch = f"stage{stage + 1}_block{index + 1}", f"{IMAGE}layer{stage + 1}.{index}"
            for layer in (1, 2, 3):
                pairs += names.conv(f"{torch}.conv{layer}", f"{linen}/conv{layer}")
                pairs += names.batch_norm(f"{torch}.bn{layer}", f"{linen}/norm{layer}")
            if params is None or "conv_shortcut" in params[linen]:
                pairs += names.conv(f"{torch}.downsample.0", f"{linen}/conv_shortcut")
                pairs += names.batch_norm(f"{torch}.downsample.1", f"{linen}/norm_shortcut")
    pool = f"{IMAGE}attnpool"
    pairs.append(names.Pair(f"{pool}.positional_embedding", ("params", "pool", "position")))
    for torch, linen in (("q", "query"), ("k", "key"), ("v", "value"), ("c", "out")):
        pairs += names.dense(f"{pool}.{torch}_proj", f"pool/{linen}")
    return pairs


def _vit_pairs(layers: int) -> list[names.Pair]:
    return [
        names.Pair(f"{IMAGE}class_embedding", ("params", "class_token")),
        names.Pair(f"{IMAGE}positional_embedding", ("params", "position")),
        *names.conv(f"{IMAGE}conv1", "patch"),
        *names.affine(f"{IMAGE}ln_pre", "norm_pre"),
        *_blocks(f"{IMAGE}transformer.resblocks", layers),
        *names.affine(f"{IMAGE}ln_post", "norm"),
        names.Pair(f"{IMAGE}proj", ("params", "project", "kernel")),
    ]


def _text_pairs(layers: int, prefix: str) -> list[names.Pair]:
    return [
        names.Pair(f"{prefix}token_embedding.weight", ("params", "token", "embedding")),
        names.Pair(f"{prefix}positional_embedding", ("params", "position")),
        *_blocks(f"{prefix}transformer.resblocks", layers),
        *names.affine(f"{prefix}ln_final", "norm"),
        names.Pair(f"{prefix}text_projection", ("params", "project", "kernel")),
    ]


def _blocks(prefix: str, layers: int) -> list[names.Pair]:
    pairs = []
    for index in range(layers):
        torch, linen = f"{prefix}.{index}", f"block{index + 1}"
        qkv = ("params", linen, "attention", "qkv")
        pairs += [
            names.Pair(f"{torch}.attn.in_proj_weight", (*qkv, "kernel"), names.DENSE),
            names.Pair(f"{torch}.attn.in_proj_bias", (*qkv, "bias")),
        ]
        pairs += names.dense(f"{torch}.attn.out_proj", f"{linen}/attention/out")
        pairs += names.affine(f"{torch}.ln_1", f"{linen}/norm1") + names.affine(
            f"{torch}.ln_2", f"{linen}/norm2"
        )
        pairs += names.dense(f"{torch}.mlp.c_fc", f"{linen}/fc1")
        pairs += names.dense(f"{torch}.mlp.c_proj", f"{linen}/fc2")
    return pairs
