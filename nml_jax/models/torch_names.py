"""A torch state dict against the parameter tree of a Linen model: one list of pairs, read in both directions."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from nml_jax.core.errors import UserError

PyTree = Any
# A counter of torch's BatchNorm, which has no part in its arithmetic where the momentum is fixed.
IGNORED = "num_batches_tracked"


class Pair(NamedTuple):
    """A torch tensor and the Linen array with the same numbers."""

    torch: str
    """Name in the state dict."""
    linen: tuple[str, ...]
    """Path: "params" or "batch_stats", then module names, then the array's."""
    axes: tuple[int, ...] | None = None
    """The Linen array is the tensor with its axes in this order; None: as they are."""


CONV, DENSE = (2, 3, 1, 0), (1, 0)  # (O, I, H, W) -> (H, W, I, O); (O, I) -> (I, O)


def conv(torch: str, linen: str) -> list[Pair]:
    """The kernel of a convolution without bias."""
    return [Pair(f"{torch}.weight", ("params", *linen.split("/"), "kernel"), CONV)]


def dense(torch: str, linen: str) -> list[Pair]:
    """A Dense with bias."""
    path = ("params", *linen.split("/"))
    return [Pair(f"{torch}.weight", (*path, "kernel"), DENSE), Pair(f"{torch}.bias", (*path, "bias"))]


def affine(torch: str, linen: str) -> list[Pair]:
    """The scale and bias of a normalisation."""
    path = ("params", *linen.split("/"))
    return [Pair(f"{torch}.weight", (*path, "scale")), Pair(f"{torch}.bias", (*path, "bias"))]


def batch_norm(torch: str, linen: str) -> list[Pair]:
    """Scale, bias and the running statistics."""
    path = ("batch_stats", *linen.split("/"))
    running = [Pair(f"{torch}.running_{name}", (*path, name)) for name in ("mean", "var")]
    return affine(torch, linen) + running


def image(height: int, width: int) -> jax.ShapeDtypeStruct:
    """An example for `from_torch`: one float32 image."""
    return jax.ShapeDtypeStruct((1, height, width, 3), np.float32)


def blocks(tensors: Iterable[str], prefix: str) -> int:
    """How many blocks `prefix.0`, `prefix.1`, ... the names speak of."""
    found = [name[len(prefix) + 1 :].split(".")[0] for name in tensors if name.startswith(f"{prefix}.")]
    return max((int(index) + 1 for index in found if index.isdigit()), default=0)


def from_torch(
    tensors: Mapping[str, Any], pairs: list[Pair], model: Any, example: jax.ShapeDtypeStruct
) -> tuple[PyTree, PyTree]:
    """(params, stats) of `model` for inputs such as `example`, float32, from the tensors that `pairs` names.

    Pairs whose Linen array the model has not are left out: a tensor of theirs is unexpected.

    Raises:
      UserError: a tensor is missing, is not of this model, or does not have the shape that the model needs.
    """
    shapes = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), example)
    shapes = {_path(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(shapes)}
    pairs = [pair for pair in pairs if pair.linen in shapes]
    named = {pair.torch for pair in pairs}
    missing = sorted(named - tensors.keys())
    unexpected = sorted(n for n in tensors.keys() - named if n.rpartition(".")[2] != IGNORED)
    wrong = [
        f"{pair.torch} {tuple(tensors[pair.torch].shape)} in place of {needed}"
        for pair in pairs
        if pair.torch in tensors
        and tuple(tensors[pair.torch].shape) != (needed := _torch_shape(pair, shapes))
    ]
    problems = (("missing", missing), ("unexpected", unexpected), ("of another shape", wrong))
    if found := "; ".join(f"{what}: {_few(names)}" for what, names in problems if names):
        raise UserError(
            f"The torch weights are not those of this {type(model).__name__} (tensors {found}). Give the state dict of "
            "the same architecture, in the names of torchvision, timm or open_clip."
        )
    trees: dict[str, PyTree] = {"params": {}, "batch_stats": {}}
    for pair in pairs:
        value = np.asarray(tensors[pair.torch]).astype(np.float32)
        _put(trees, pair.linen, np.ascontiguousarray(value.transpose(pair.axes) if pair.axes else value))
    return trees["params"], trees["batch_stats"]


def to_torch(params: PyTree, stats: PyTree, pairs: list[Pair]) -> dict[str, np.ndarray]:
    """The state dict with the numbers of (params, stats): the inverse of `from_torch`.

    Raises:
      UserError: the trees have arrays that the torch model has not, or lack some that it has.
    """
    leaves = jax.tree_util.tree_leaves_with_path({"params": params, "batch_stats": stats})
    arrays = {_path(path): leaf for path, leaf in leaves}
    linen = {pair.linen for pair in pairs}
    problems = (("missing", linen - arrays.keys()), ("without a name there", arrays.keys() - linen))
    if found := "; ".join(f"{what}: {_few(sorted(map('/'.join, p)))}" for what, p in problems if p):
        raise UserError(
            f"These parameters are not those of a model that torchvision, timm or open_clip has ({found})."
        )
    result = {}
    for pair in pairs:
        value = np.asarray(arrays[pair.linen])
        result[pair.torch] = np.ascontiguousarray(
            value.transpose(np.argsort(pair.axes)) if pair.axes else value
        )
    return result


def _torch_shape(pair: Pair, shapes: dict[tuple[str, ...], tuple[int, ...]]) -> tuple[int, ...]:
    shape = shapes[pair.linen]
    return tuple(shape[i] for i in np.argsort(pair.axes)) if pair.axes else shape


def _path(path: tuple[Any, ...]) -> tuple[str, ...]:
    return tuple(key.key for key in path)


def _put(tree: PyTree, path: tuple[str, ...], value: np.ndarray) -> None:
    for name in path[:-1]:
        tree = tree.setdefault(name, {})
    tree[path[-1]] = value


def _few(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
