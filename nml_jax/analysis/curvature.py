"""How sharp the minimum is that a head was tuned to: the Hessian of its loss on the training features."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from nml_jax.analysis import hessian
from nml_jax.core import plugin
from nml_jax.core.errors import UserError
from nml_jax.features import files, store
from nml_jax.tune import saved


def check(config: ConfigDict) -> None:
    """Raises a UserError for values that are not valid, and where the head or the data is not named."""
    given = [name for name in ("features", "train") if config.inputs[name]]
    if not config.inputs.head or len(given) != 1:
        raise UserError(
            "The curvature needs a head, --config.inputs.head=DIR/head.safetensors, and what it was tuned on: either "
            "--config.inputs.features=DIR or the file --config.inputs.train=a.npz."
        )
    if config.of not in hessian.OF:
        raise UserError(
            f"Unknown parameters {config.of!r}; valid: {', '.join(hessian.OF)}. Correct --config.of."
        )
    if config.top_k < 1 or config.samples < 2:
        raise UserError(
            f"top_k is {config.top_k} and samples is {config.samples}; valid are from 1 and 2 on."
        )


def analyse(config: ConfigDict, workdir: Path) -> dict[str, Any]:
    """The line, of kind "curvature"; see `hessian.of_head` for its numbers."""
    del workdir
    head = saved.load(config.inputs.head)
    if head.target is not None:
        raise UserError(
            f"The head in {config.inputs.head!r} is a regression, and the curvature is that of a classifier's loss. "
            "Give a classifier's head."
        )
    if config.inputs.train:
        x, labels = files.read(config.inputs.train)
        _, places, y = files.encode(head.classes, labels, names=("the head", repr(config.inputs.train)))
        y = np.argsort(places)[y]  # the head's own order of its classes
        data = store.Features(x, y, len(head.classes), {})
        store.check(x, y, len(head.classes), where=repr(config.inputs.train))
    else:
        data = store.load(config.inputs.features, config.split, config.label or None)
    dim, classes = data.x.shape[2], data.num_classes
    if (dim, classes) != (head.dim, len(head.classes)):
        raise UserError(
            f"The head has D={head.dim} and {len(head.classes)} classes, the features have D={dim} and {classes}. Give "
            "the features that it was tuned on."
        )
    task = plugin.find("tune", head.method, "make").make(dim=dim, num_classes=classes, **head.head)
    numbers = hessian.of_head(
        task,
        jax.tree.map(jnp.asarray, head.params),
        {},
        jax.tree.map(jnp.asarray, head.stats),
        data.clean,
        data.y,
        top_k=config.top_k,
        samples=config.samples,
        seed=config.seed,
        of=config.of,
        progress=config.progress,
    )
    encoder = data.manifest.get("encoder", {})
    facts = {"kind": "curvature", "method": head.method, "of": config.of, "rows": len(data.y), "dim": dim}
    return encoder | head.facts | facts | numbers
