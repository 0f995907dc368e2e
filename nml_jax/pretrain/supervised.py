"""Supervised pre-training: cross-entropy on noisy labels (the papers' "fully supervised" ImageNet models)."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from nml_jax.core import metrics
from nml_jax.core.task import Batch, Task
from nml_jax.data import inference
from nml_jax.data.source import Source
from nml_jax.pretrain.objective import Prepared, image_encoder, normalized, trace

SUPERVISION = "labels"


def prepare(config: ConfigDict, source: Source, supervision: np.ndarray, workdir: str) -> Prepared:
    """The objective on `source` with the noisy labels `supervision` (N,).

    `config.loss.label_smoothing` is applied to the noisy label.
    """
    del workdir
    classes = source.num_classes(config.data.label)
    model = image_encoder(config, num_classes=classes)
    task = make_task(config, model, classes)

    def evaluate(state: Any, test: Source) -> dict[str, float]:
        classify = lambda params, stats, image: task.predict(params, {}, stats, {"image": image})  # noqa: E731
        logits = inference.run(classify, (state.params, state.stats), test, config.data)
        labels = test.column(config.data.label)
        loss = optax.softmax_cross_entropy_with_integer_labels(
            jnp.asarray(logits), jnp.asarray(labels)
        ).mean()
        return metrics.classification(labels, logits) | {"loss": float(loss)}

    return Prepared(task, {"label": supervision.astype(np.int32)}, evaluate)


def check(config: ConfigDict) -> None:
    """Raises a UserError where the model and its options do not work."""
    trace(config, make_task(config, image_encoder(config, num_classes=2), 2), encode(config))


def make_task(config: ConfigDict, model: Any, num_classes: int) -> Task:
    """Cross-entropy of `model` on {"image": (B, H, W, 3) uint8, "label": (B,)}."""
    smoothing = config.loss.label_smoothing

    def init(rng: jax.Array, batch: Batch) -> tuple[Any, Any, Any]:
        image = normalized(config, jnp.zeros(batch["image"].shape, jnp.uint8))
        variables = model.init(rng, image, train=True)
        return variables["params"], {}, variables.get("batch_stats", {})

    def loss(params: Any, frozen: Any, stats: Any, batch: Batch, rng: jax.Array):
        del frozen, rng
        (logits, _), updated = model.apply(
            {"params": params, "batch_stats": stats},
            normalized(config, batch["image"]),
            train=True,
            mutable=["batch_stats"],
        )
        targets = optax.smooth_labels(jax.nn.one_hot(batch["label"], num_classes), smoothing)
        accuracy = (logits.argmax(-1) == batch["label"]).mean()
        value = optax.softmax_cross_entropy(logits, targets).mean()
        return value, (updated["batch_stats"], {"accuracy": accuracy})

    def predict(params: Any, frozen: Any, stats: Any, batch: Batch) -> jax.Array:
        del frozen
        image = normalized(config, batch["image"])
        return model.apply({"params": params, "batch_stats": stats}, image, train=False)[0]

    return Task(init, loss, predict)


def encode(config: ConfigDict) -> Callable[[Any, Any, jax.Array], jax.Array]:
    """(params, stats, uint8 images (B, H, W, 3)) -> the pooled features before the classifier (B, D)."""
    model = image_encoder(config)

    def apply(params: Any, stats: Any, image: jax.Array) -> jax.Array:
        variables = {"params": params, "batch_stats": stats}
        return model.apply(variables, normalized(config, image), train=False)[1]["features"]

    return apply
