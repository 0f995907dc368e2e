"""A tuned head as one safetensors file, which is loaded without a config and can be used without this package.

The tensors have the names of their places in the trees, the metadata holds one JSON document under "nml_jax": format,
method, head (its options), dim (D), classes, facts, version. By hand, with x (N, D):

    linear_probe   logits = x params/linear/kernel + params/linear/bias
    mlp, nmtune    h = x params/mlp/expand/kernel + params/mlp/expand/bias
                   with batch_norm: h = (h - mean) / sqrt(var + 1e-5) * params/mlp/norm/scale + params/mlp/norm/bias,
                       mean and var those of stats/batch_stats/mlp/norm
                   z = max(h, 0) params/mlp/project/kernel + params/mlp/project/bias
                   with residual: z = params/scale/scale * z + x
                   logits = z params/classifier/linear/kernel + params/classifier/linear/bias

A kernel is (in, out), the transpose of the weight of torch.nn.Linear.

A regression (head has "objective": "regression") has "classes": null and one logit, the standardised number; beside
them is "target": {"mean": m, "scale": s}, of the numbers it was tuned on. What it predicts, to be computed in float64:

    y = m + s * logits[:, 0]

Such a file has format 2, so that a version that knows classes only refuses it. A classifier has format 1 and no target.
"""

import functools
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
import scipy.special
from flax.traverse_util import flatten_dict, unflatten_dict

import nml_jax
from nml_jax.core import artifacts, plugin
from nml_jax.core.errors import UserError
from nml_jax.core.task import PyTree, Task
from nml_jax.tune import trainer
from nml_jax.tune.head import Head, features

FORMAT = 2
KEY = "nml_jax"


@dataclass(frozen=True, eq=False)
class SavedHead:
    """A tuned head, ready to be applied to features x (N, D): finite numbers, N >= 1.

    Its methods raise a UserError for any other x.
    """

    method: str
    head: dict[str, Any]
    """The options of the method."""
    classes: np.ndarray | None
    """(C,) integers, booleans or strings, in the order of the logits; None of a regression."""
    dim: int
    """D."""
    facts: dict[str, Any]
    """What was said when it was saved."""
    params: PyTree
    stats: PyTree
    target: tuple[float, float] | None = None
    """Mean and scale of the numbers that a regression was tuned on; None of a classifier."""

    def logits(self, x: np.ndarray) -> np.ndarray:
        """(N, C) float32, in evaluation mode; of a regression (N, 1), the standardised numbers."""
        task = _task(self.method, self.head, self.dim, _width(self.classes))
        return trainer.predict(task, (self.params, {}, self.stats), self._checked(x))

    def predict(self, x: np.ndarray) -> np.ndarray:
        """(N,): the class of each row's largest logit; of a regression its number, float64."""
        logits = self.logits(x)
        if self.target is None:
            return self.classes[logits.argmax(axis=1)]
        mean, scale = self.target
        return mean + scale * logits[:, 0].astype(np.float64)

    def predict_proba(self, x: np.ndarray) -> np.ndarray:
        """(N, C): softmax of the logits. A regression has none, and raises a UserError."""
        if self.target is not None:
            raise UserError(
                "The head is a regression, which predicts a number for each row and has no classes; valid is "
                "predict_proba of a classifier. Use predict."
            )
        return scipy.special.softmax(self.logits(x), axis=1)

    def transform(self, x: np.ndarray) -> np.ndarray:
        """(N, D) float32: the features as the head reshapes them, Z; a linear probe leaves them as they are."""
        x = self._checked(x)
        method = plugin.find("tune", self.method, "make")
        if not hasattr(method, "make_head"):
            return x
        reshape = _reshaper(method.make_head(num_classes=_width(self.classes), **self.head))
        return trainer.in_chunks(lambda part: reshape(self.params, self.stats, part), x)

    def _checked(self, x: np.ndarray) -> np.ndarray:
        x = np.asarray(x)
        numbers = jnp.issubdtype(x.dtype, np.floating) or jnp.issubdtype(x.dtype, np.integer)
        if not numbers or x.ndim != 2 or x.shape[1] != self.dim or len(x) == 0:
            raise UserError(
                f"x is {x.dtype} of shape {x.shape}; valid are numbers of shape (N, {self.dim}), N >= 1: features of "
                "the encoder that the head was tuned on, without views (of stored features, `clean`)."
            )
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite
            x = x.astype(np.float32)
        finite = np.isfinite(x).all(axis=1)
        if not finite.all():
            raise UserError(
                f"x holds NaN, infinity or numbers beyond float32, first in row {int(np.argmin(finite))}. Drop such "
                "rows, or find out why the encoder gave them."
            )
        return x


def save(
    path: str | os.PathLike,
    *,
    method: str,
    head: dict[str, Any],
    classes: np.ndarray | list | None,
    params: PyTree,
    stats: PyTree,
    target: tuple[float, float] | None = None,
    facts: dict[str, Any] | None = None,
) -> None:
    """Writes a tuned head; the file is there whole or not at all.

    Args:
      method: a file of `nml_jax.tune`, such as "nmtune".
      head: its options, as they were given to `make`.
      classes: (C,) different integers, booleans or strings, in the order of the logits; None of a regression.
      params, stats: as training returned them.
      target: of a regression the mean and the scale (above 0) by which its numbers were standardised.
      facts: anything else that JSON can say (data, accuracy, ...).

    Raises:
      UserError: one of these is not as said, or the tensors are not those of the method with these options.
    """
    tensors = {name: np.asarray(leaf, order="C") for name, leaf in _flat(params, stats).items()}
    labels, target = _checked_outputs(head, classes, target)
    dim = _dim(tensors)
    _compare(tensors, method, head, dim, labels)
    said = {"format": 1, "version": nml_jax.__version__, "method": method, "head": head, "dim": dim}
    said |= {"classes": labels, "facts": facts or {}}
    if target is not None:  # those without one are still read by a version that knows classes only
        said |= {"format": FORMAT, "target": {"mean": target[0], "scale": target[1]}}
    try:
        document = json.dumps(said)
    except TypeError as error:
        raise UserError(
            f"The head cannot be saved: in `head` or `facts`, {error}. Valid is what JSON can say: convert arrays with "
            "tolist(), NumPy's numbers with item(), paths with str()."
        ) from None
    with artifacts.replacing(path, "wb") as file:
        file.write(safetensors.numpy.save(tensors, {KEY: document}))


def load(path: str | os.PathLike) -> SavedHead:
    """Opens what `save` wrote.

    Raises:
      UserError: there is no such file, it holds no head or a newer format, or its tensors are not those of its method.
    """
    name = repr(os.fspath(path))
    document, tensors = _read(path, name)
    try:
        said = json.loads(document)
        if said["format"] > FORMAT:
            raise UserError(
                f"it has format {said['format']}, written by nml_jax {said['version']}, and this nml_jax "
                f"{nml_jax.__version__} reads formats up to {FORMAT}. Upgrade nml_jax."
            )
        labels, target = _read_outputs(said)
        _compare(tensors, said["method"], said["head"], said["dim"], labels)
        facts = dict(said["facts"])
    except UserError as error:
        raise UserError(f"The head in {name} cannot be loaded: {error}") from None
    except (ValueError, KeyError, TypeError, ArithmeticError) as error:
        raise UserError(
            f"The head in {name} cannot be loaded: its metadata {KEY!r} are not as they were written "
            f"({type(error).__name__}: {error}). Save it again with nml_jax.tune.saved.save."
        ) from None
    trees = {"params": {}, "stats": {}} | unflatten_dict(tensors, sep="/")
    classes = None if labels is None else np.array(labels)
    return SavedHead(said["method"], said["head"], classes, said["dim"], facts, **trees, target=target)


def _read(path: str | os.PathLike, name: str) -> tuple[str, dict[str, np.ndarray]]:
    """The JSON document and the tensors."""
    try:
        with safetensors.safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 it is no dict
    except FileNotFoundError:
        raise UserError(
            f"{name} does not exist; valid is a file that nml_jax.tune.saved.save wrote."
        ) from None
    except (OSError, safetensors.SafetensorError, AttributeError, TypeError) as error:
        raise UserError(
            f"{name} cannot be read as safetensors ({error}); it may be cut off or of another format. Copy or save it "
            "again."
        ) from None
    if KEY not in metadata:
        raise UserError(
            f"{name} is a safetensors file without the metadata {KEY!r}, which say what head its tensors are. Valid "
            "is a file that nml_jax.tune.saved.save wrote."
        )
    return metadata[KEY], tensors


def _task(method: str, head: dict[str, Any], dim: int, num_classes: int) -> Task:
    return plugin.find("tune", method, "make").make(dim=dim, num_classes=num_classes, **head)


@functools.cache
def _reshaper(head: Head) -> Callable[..., jax.Array]:
    return jax.jit(functools.partial(features, head))


def _flat(params: PyTree, stats: PyTree) -> dict[str, Any]:
    return flatten_dict({"params": params, "stats": stats}, sep="/")


def _dim(tensors: dict[str, np.ndarray]) -> int:
    """D, from the kernel (D, C) of `tune.head.Classifier`, which every head ends in."""
    kernels = [value for name, value in tensors.items() if name.endswith("linear/kernel")]
    if len(kernels) != 1:
        raise UserError(
            f"params have {len(kernels)} classifiers (linear/kernel) in {', '.join(tensors) or 'no tensors'}; a head "
            "has one. Give the params of one head, as training returned them."
        )
    return len(kernels[0])


def _compare(tensors: dict[str, np.ndarray], method: str, head: dict, dim: int, labels: list | None) -> None:
    """Raises a UserError unless the tensors have the names, shapes and types of the Task's own."""
    task = _task(method, head, dim, _width(labels))
    # `init` takes no more of the batch than that it is there.
    batch = {"x": jax.ShapeDtypeStruct((2, 1, dim), jnp.float32), "y": jax.ShapeDtypeStruct((2,), jnp.int32)}
    params, _, stats = jax.eval_shape(task.init, jax.random.key(0), batch)
    own = {name: f"{leaf.dtype}{list(leaf.shape)}" for name, leaf in _flat(params, stats).items()}
    there = {name: f"{leaf.dtype}{list(leaf.shape)}" for name, leaf in tensors.items()}
    wrong = sorted(own.items() ^ there.items())
    if wrong:
        name = wrong[0][0]
        outputs = "one number" if labels is None else f"{len(labels)} classes"
        raise UserError(
            f"a head {method!r} with the options {head}, D = {dim} and {outputs} has "
            f"{name}: {own.get(name, 'no such tensor')}, but given was {there.get(name, 'no such tensor')} "
            f"(names, shapes or types of {len({name for name, _ in wrong})} differ). The options and classes must be "
            "those that it was tuned with."
        )


def _checked_classes(classes: np.ndarray | list) -> list:
    values = [value.item() if isinstance(value, np.generic) else value for value in classes]
    if {type(value) for value in values} not in ({int}, {str}, {bool}) or len(set(values)) < len(values):
        raise UserError(
            f"classes are {values[:6]}{'...' if len(values) > 6 else ''}; valid are different integers, booleans or "
            "strings, all of one kind, in the order of the logits."
        )
    return values


def _width(classes: np.ndarray | list | None) -> int:
    """How many logits there are: C, or the one of a regression."""
    return 1 if classes is None else len(classes)


def _read_outputs(said: dict[str, Any]) -> tuple[list | None, tuple[float, float] | None]:
    """What a document says of the logits, as `_checked_outputs` gives it."""
    if said["format"] == 1:  # which knew no regression, whatever the head's options
        return _checked_classes(said["classes"]), None
    target = (said["target"]["mean"], said["target"]["scale"])
    return _checked_outputs(said["head"], said["classes"], target)


def _checked_outputs(
    head: dict[str, Any], classes: np.ndarray | list | None, target: tuple[float, float] | None
) -> tuple[list | None, tuple[float, float] | None]:
    """The classes, or else the mean and the scale of the target."""
    regression = "objective" in head and head["objective"] == "regression"  # every preset is a classification
    if (classes is None) != regression or (target is not None) != regression:
        given = [name for name, value in (("classes", classes), ("target", target)) if value is not None]
        valid = "target and no classes" if regression else "classes and no target"
        raise UserError(
            f"the objective of the head is {'regression' if regression else 'classification'}, and it comes with "
            f"{' and '.join(given) or 'neither classes nor target'}; valid is {valid}. Give what it was tuned with."
        )
    return (None, _checked_target(target)) if regression else (_checked_classes(classes), None)


def _checked_target(target: tuple[float, float]) -> tuple[float, float]:
    numbers = np.asarray(target)
    if (
        numbers.shape != (2,)
        or numbers.dtype.kind not in "iuf"
        or not np.isfinite(numbers).all()
        or numbers[1] <= 0
    ):
        raise UserError(
            f"target is {target}; valid are two finite numbers, the mean and the scale by which the numbers were "
            "standardised, the scale above 0."
        )
    return float(numbers[0]), float(numbers[1])
