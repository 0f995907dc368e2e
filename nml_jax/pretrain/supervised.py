"""Supervised pre-training: noisy labels (the papers' "fully supervised" ImageNet models), by cross-entropy or BCE."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from nml_jax.core import metrics, plugin
from nml_jax.core.errors import UserError
from nml_jax.core.task import Batch, Task
from nml_jax.data import inference, mixing
from nml_jax.data.source import Source
from nml_jax.pretrain.objective import Prepared, image_encoder, normalized, trace

SUPERVISION = "labels"
LOSSES = ("cross_entropy", "binary_cross_entropy")


def prepare(config: ConfigDict, source: Source, supervision: np.ndarray, workdir: str) -> Prepared:
    """The objective on `source` with the noisy labels `supervision` (N,)."""
    del workdir
    classes = source.num_classes(config.data.label)
    model = image_encoder(config, num_classes=classes)
    task = make_task(config, model, classes)

    def evaluate(state: Any, test: Source) -> dict[str, float]:
        classify = lambda params, stats, image: task.predict(params, {}, stats, {"image": image})  # noqa: E731
        logits = inference.run(classify, state.tuned, test, config.data)
        labels = test.column(config.data.label)
        loss = optax.softmax_cross_entropy_with_integer_labels(
            jnp.asarray(logits), jnp.asarray(labels)
        ).mean()
        return metrics.classification(labels, logits) | {"loss": float(loss)}

    return Prepared(task, {"label": supervision.astype(np.int32)}, evaluate)


def check(config: ConfigDict) -> None:
    """Raises a UserError where the model, the loss or the mixing and their options do not work."""
    task = make_task(config, image_encoder(config, num_classes=2), 2)
    plugin.call(loss_function, "loss", **config.loss)
    wrong = [name for name in ("mixup", "cutmix") if config.mixing[name] < 0]
    if wrong:
        raise UserError(
            f"mixing.{wrong[0]}={config.mixing[wrong[0]]} is not 0 (off) or above. Correct config.mixing."
        )
    size = config.data.evaluate.size
    image, target = jax.ShapeDtypeStruct((2, size, size, 3), "uint8"), jax.ShapeDtypeStruct((2, 2), "float32")
    rng = jax.random.key(0)
    jax.eval_shape(lambda i, t: plugin.call(mixing.mix, "mixing", rng, i, t, **config.mixing), image, target)
    trace(config, task, encode(config))


def make_task(config: ConfigDict, model: Any, num_classes: int) -> Task:
    """The Task of `model` on {"image": (B, H, W, 3) uint8, "label": (B,)}.

    Label noise comes first, in the labels given; they are then smoothed and mixed (mixup, CutMix) as clean ones would
    be. `accuracy` compares with the noisy label of each image, of a mixed one the larger part's.
    """
    loss_fn = plugin.call(loss_function, "loss", **config.loss)

    def init(rng: jax.Array, batch: Batch) -> tuple[Any, Any, Any]:
        # Nothing of the parameters depends on the batch but the size of the images.
        image = normalized(config, jnp.zeros((2, *batch["image"].shape[1:]), jnp.uint8))
        variables = model.init(rng, image, train=False)
        return variables["params"], {}, variables.get("batch_stats", {})

    def mix(batch: Batch, rng: jax.Array) -> Batch:
        target = smoothed(batch["label"], num_classes, config.loss.label_smoothing)
        if not (config.mixing.mixup or config.mixing.cutmix):  # the image stays a quarter of the size
            return {"image": batch["image"], "target": target}
        image, target = mixing.mix(rng, batch["image"], target, **config.mixing)
        return {"image": image, "target": target}

    def loss(params: Any, frozen: Any, stats: Any, batch: Batch, rng: jax.Array):
        del frozen
        (logits, _), updated = model.apply(
            {"params": params, "batch_stats": stats},
            normalized(config, batch["image"]),
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": rng},
        )
        accuracy = (logits.argmax(-1) == batch["target"].argmax(-1)).mean()
        return loss_fn(logits, batch["target"]), (updated.get("batch_stats", {}), {"accuracy": accuracy})

    def predict(params: Any, frozen: Any, stats: Any, batch: Batch) -> jax.Array:
        del frozen
        image = normalized(config, batch["image"])
        return model.apply({"params": params, "batch_stats": stats}, image, train=False)[0]

    return Task(init, loss, predict, mix)


def smoothed(labels: jax.Array, num_classes: int, smoothing: float) -> jax.Array:
    """(B,) -> (B, C): 1 - s on the label, and s spread evenly over all C classes, the label among them."""
    return optax.smooth_labels(jax.nn.one_hot(labels, num_classes), smoothing)


def loss_function(
    *, name: str, label_smoothing: float, target_threshold: float
) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """(logits (B, C), targets (B, C)) -> the mean loss.

    Args:
      name: "cross_entropy", or "binary_cross_entropy" ("ResNet strikes back", Wightman et al. 2021), the mean over
        samples and classes as timm has it.
      label_smoothing: fraction in [0, 1) spread over all classes.
      target_threshold: with binary_cross_entropy, a target above it counts as 1 and any other as 0, so that both
        classes of a mixed image are wholly there; 0 leaves targets as they are.

    Raises:
      UserError: one of these is not as said.
    """
    if name not in LOSSES:
        raise UserError(f"Unknown loss {name!r}; valid: {', '.join(LOSSES)}. Correct config.loss.name.")
    if not 0 <= label_smoothing < 1 or not 0 <= target_threshold < 1:
        raise UserError(
            f"loss.label_smoothing={label_smoothing} and loss.target_threshold={target_threshold} must be in [0, 1)."
        )
    if name == "cross_entropy":
        if target_threshold:
            raise UserError(
                "loss.target_threshold is for binary_cross_entropy; with cross_entropy leave it at 0."
            )
        return lambda logits, targets: optax.softmax_cross_entropy(logits, targets).mean()

    def binary(logits: jax.Array, targets: jax.Array) -> jax.Array:
        if target_threshold:
            targets = (targets > target_threshold).astype(logits.dtype)
        return optax.sigmoid_binary_cross_entropy(logits, targets).mean()

    return binary


def encode(config: ConfigDict) -> Callable[[Any, Any, jax.Array], jax.Array]:
    """(params, stats, uint8 images (B, H, W, 3)) -> the pooled features before the classifier (B, D)."""
    model = image_encoder(config)

    def apply(params: Any, stats: Any, image: jax.Array) -> jax.Array:
        variables = {"params": params, "batch_stats": stats}
        return model.apply(variables, normalized(config, image), train=False)[1]["features"]

    return apply
