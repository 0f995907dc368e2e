"""Zero-shot classification: an image belongs to the class whose prompts lie nearest.

A class is the mean of the unit embeddings of texts about it, made a unit vector again (CLIP's prompt ensemble): its
name in templates, or the clean captions of training images of it where there are no templates.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from nml_jax.core import metrics
from nml_jax.core.errors import UserError
from nml_jax.data.source import Source
from nml_jax.pretrain import templates
from nml_jax.pretrain.retrieval import unit


def evaluate(
    images: np.ndarray,
    labels: np.ndarray,
    prompts: np.ndarray,
    about: np.ndarray,
    embed_texts: Callable[[np.ndarray], np.ndarray],
) -> dict[str, float]:
    """Accuracies of zero-shot classification, in [0, 1].

    Args:
      images: image embeddings, (N, d).
      labels: (N,) their classes.
      prompts, about: (M,) texts and the classes that they describe.
      embed_texts: (M,) texts -> (M, d), L2-normalised.
    """
    classes = int(max(labels.max(), about.max())) + 1
    scores = unit(images) @ prototypes(embed_texts(prompts), about, classes).T
    scores[:, np.bincount(about, minlength=classes) == 0] = -np.inf  # of these classes nothing is said
    return metrics.classification(labels, scores)


def prototypes(texts: np.ndarray, about: np.ndarray, classes: int) -> np.ndarray:
    """(M, d) embeddings of prompts -> (C, d) unit vectors of the classes; zeros for one without a prompt."""
    sums = np.zeros((classes, texts.shape[1]))
    np.add.at(sums, about, texts)
    return unit(sums)


def prompts(config: ConfigDict, source: Source, label: str) -> tuple[np.ndarray, np.ndarray]:
    """Texts about the classes of `source`'s field `label`, and the classes: (M,) str and (M,) int.

    Raises:
      UserError: the file of class names cannot be read, or does not have a name for each class.
    """
    if not config.eval.templates:
        return _captions(
            source.column(config.data.caption), source.column(label), config.eval.prompts_per_class
        )
    names = _class_names(config, source, label)
    ensemble = _expanded(config.eval.templates)
    texts = [template.replace("{}", name) for name in names for template in ensemble]
    return np.array(texts), np.repeat(np.arange(len(names)), len(ensemble))


def check(config: ConfigDict) -> None:
    """Raises a UserError for a template without a place for the name, or an evaluation that is not complete."""
    for template in config.eval.templates:
        if template not in templates.SETS and "{}" not in template:
            raise UserError(
                f"eval.templates has {template!r}, which has no {{}} for the class's name and is not a set of "
                f"templates; sets are {', '.join(templates.SETS)}. () takes captions of training images."
            )
    if config.eval.prompts_per_class < 1:
        raise UserError(f"eval.prompts_per_class={config.eval.prompts_per_class} is not 1 or above.")
    if config.eval.data and not (config.eval.templates and config.eval.split and config.eval.label):
        raise UserError(
            f"Zero-shot classification of eval.data={config.eval.data!r} needs eval.templates, eval.split and "
            "eval.label."
        )


def _expanded(chosen: tuple[str, ...]) -> list[str]:
    return [t for template in chosen for t in templates.SETS.get(template, (template,))]


def _captions(captions: np.ndarray, about: np.ndarray, per_class: int) -> tuple[np.ndarray, np.ndarray]:
    """The first `per_class` captions of each class."""
    order = np.argsort(about, kind="stable")
    ordered = about[order]
    rank = np.arange(len(order)) - np.searchsorted(ordered, ordered)
    chosen = order[rank < per_class]
    return captions[chosen], about[chosen]


def _class_names(config: ConfigDict, source: Source, label: str) -> list[str]:
    """A line each of the file `config.eval.class_names`, or the data set's own with spaces for underscores."""
    if not config.eval.class_names:
        return [name.replace("_", " ") for name in source.class_names(label)]
    try:
        names = Path(config.eval.class_names).read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"eval.class_names={config.eval.class_names!r} cannot be read: {error}.") from None
    if len(names) != source.num_classes(label):
        raise UserError(
            f"{config.eval.class_names!r} has {len(names)} lines, but {source.name!r} has {source.num_classes(label)} "
            f"classes in {label!r}; give a line for each class, in the order of their numbers."
        )
    return names
