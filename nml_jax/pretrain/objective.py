"""What an objective hands to the pre-training stage."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from nml_jax.core import plugin
from nml_jax.core.errors import UserError
from nml_jax.core.task import Task
from nml_jax.data import augment
from nml_jax.data.source import Source


class Prepared(NamedTuple):
    """An objective on a data set."""

    task: Task
    targets: dict[str, np.ndarray]
    """Batch key -> (N, ...): what record i is trained towards."""
    evaluate: Callable[[Any, Source], dict[str, float]]
    """(state, clean test source) -> metrics."""


def image_encoder(config: Any, **options: Any) -> Any:
    """The Linen image encoder that `config.model` names; `options` complete its own.

    Raises:
      UserError: no such model, it encodes something else, or it has no such option.
    """
    module = plugin.find("models", config.model.name, "make")
    if module.ENCODES != "image":
        raise UserError(f"The model {config.model.name!r} encodes {module.ENCODES}, not images.")
    return plugin.call(module.make, "model.options", **config.model.options, **options)


def normalized(config: Any, image: jax.Array) -> jax.Array:
    """A uint8 image batch as the encoder takes it."""
    return augment.normalize(image, tuple(config.data.mean), tuple(config.data.std))


def trace(config: Any, task: Task, encode: Callable, **targets: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    """The shape of the features of two images, by tracing `task.init` and `encode`: no arithmetic is done.

    Raises:
      UserError: the model's options do not fit together or do not fit the image size.
    """
    size = config.data.evaluate.size
    images = jax.ShapeDtypeStruct((2, size, size, 3), "uint8")
    try:
        params, _, stats = jax.eval_shape(task.init, jax.random.key(0), {"image": images, **targets})
        return jax.eval_shape(encode, params, stats, images)
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise UserError(
            f"The model {config.model.name!r} with the options {dict(config.model.options)} cannot take images of "
            f"{size} x {size}: {error}. Correct config.model."
        ) from None
