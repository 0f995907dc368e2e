"""Zero-shot classification: an image belongs to the class whose captions lie nearest.

A class is the mean of the text embeddings of captions about it, CLIP's prompt ensemble, with the clean captions
of training images in the place of templates.
"""

from collections.abc import Callable

import numpy as np
from ml_collections import ConfigDict

from nml_jax.core import metrics
from nml_jax.data.source import Source

PROMPTS_PER_CLASS = 20


def evaluate(
    images: np.ndarray,
    labels: np.ndarray,
    embed_texts: Callable[[np.ndarray], np.ndarray],
    prompts: Source,
    config: ConfigDict,
) -> dict[str, float]:
    """Accuracies of zero-shot classification, in [0, 1].

    Args:
      images: image embeddings, (N, d).
      labels: (N,) their classes.
      embed_texts: (M,) captions -> (M, d), L2-normalised.
      prompts: the source whose clean captions describe the classes.
    """
    classes = prompts.num_classes(config.data.label)
    captions, about = prompts.column(config.data.caption), prompts.column(config.data.label)
    order = np.argsort(about, kind="stable")
    first = np.searchsorted(about[order], np.arange(classes))
    rank = np.arange(len(order)) - first[about[order]]
    chosen = order[rank < PROMPTS_PER_CLASS]
    texts = embed_texts(captions[chosen])
    prototypes = np.zeros((classes, texts.shape[1]))
    np.add.at(prototypes, about[chosen], texts)
    prototypes /= np.linalg.norm(prototypes, axis=1, keepdims=True) + 1e-12
    directions = images / (np.linalg.norm(images, axis=1, keepdims=True) + 1e-12)
    return metrics.classification(labels, directions @ prototypes.T)
