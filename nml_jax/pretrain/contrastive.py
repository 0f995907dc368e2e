"""Contrastive image-text pre-training (CLIP, Radford et al. 2021) on noisy captions."""

import math
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from nml_jax.core import artifacts, plugin, runtime
from nml_jax.core.errors import UserError
from nml_jax.core.task import Batch, Task
from nml_jax.data import inference, tokenize
from nml_jax.data.source import Source
from nml_jax.pretrain import zero_shot
from nml_jax.pretrain.objective import Prepared, image_encoder, normalized, trace

SUPERVISION = "captions"
# CLIP starts at temperature 0.07 and keeps the scale at or below 100.
INITIAL_SCALE, LARGEST_SCALE = 1 / 0.07, 100.0


def info_nce(image: jax.Array, text: jax.Array, logit_scale: jax.Array) -> jax.Array:
    """The symmetric InfoNCE loss over the global batch, a scalar.

    Args:
      image, text: L2-normalised, (B, d); row i of one belongs to row i of the other.
      logit_scale: what the cosines are multiplied with.
    """
    logits = logit_scale * jnp.matmul(image, text.T, precision=jax.lax.Precision.HIGHEST)
    labels = jnp.arange(len(logits))
    by_image = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
    by_text = optax.softmax_cross_entropy_with_integer_labels(logits.T, labels).mean()
    return (by_image + by_text) / 2


def prepare(config: ConfigDict, source: Source, supervision: np.ndarray, workdir: str) -> Prepared:
    """The objective on `source` with the noisy captions `supervision` (N,) str.

    The tokenizer is trained on the captions and saved as `tokenizer.json`.
    """
    path = os.path.join(workdir, "tokenizer.json")
    with runtime.together():
        if not os.path.exists(path) and runtime.is_lead():
            tokenizer = tokenize.train(np.sort(supervision), vocab_size=config.text.vocab_size)
            with artifacts.replacing(path) as file:
                file.write(tokenizer.to_str())
    tokenizer = tokenize.load(path)
    image_model, text_model = towers(config)
    task = make_task(config, image_model, text_model)

    def evaluate(state: Any, test: Source) -> dict[str, float]:
        params, stats = state.tuned
        embed = jax.jit(lambda params, tokens: _text(text_model, params, tokens))

        def texts(captions: np.ndarray) -> np.ndarray:
            return np.asarray(embed(params, tokenize.encode(tokenizer, captions, config.text.length)))

        images = inference.run(encode(config), (params, stats), test, config.data)
        return zero_shot.evaluate(images, test.column(config.data.label), texts, source, config)

    tokens = tokenize.encode(tokenizer, supervision, config.text.length)
    return Prepared(task, {"tokens": tokens}, evaluate)


def check(config: ConfigDict) -> None:
    """Raises a UserError where the towers and their options do not work."""
    if config.accumulate > 1:
        raise UserError(
            f"accumulate={config.accumulate} is not possible here: every pair is compared with all others of the "
            "batch, which microbatches do not see. Give 1, and a smaller batch or --config.model.options.remat=block."
        )
    tokens = jax.ShapeDtypeStruct((2, config.text.length), "int32")
    trace(config, make_task(config, *towers(config)), encode(config), tokens=tokens)


def towers(config: ConfigDict) -> tuple[Any, Any]:
    """The image and the text encoder, both to `config.embed_dim` dimensions."""
    module = plugin.find("models", config.text.name, "make")
    if module.ENCODES != "text":
        raise UserError(f"The model {config.text.name!r} encodes {module.ENCODES}, not text.")
    text = plugin.call(
        module.make,
        "text.options",
        vocab_size=config.text.vocab_size,
        project=config.embed_dim,
        **config.text.options,
    )
    return image_encoder(config, project=config.embed_dim), text


def make_task(config: ConfigDict, image_model: Any, text_model: Any) -> Task:
    """InfoNCE on {"image": (B, H, W, 3) uint8, "tokens": (B, L) int32}; params are image, text and log_scale."""

    def init(rng: jax.Array, batch: Batch) -> tuple[Any, Any, Any]:
        rng_image, rng_text = jax.random.split(rng)
        image = normalized(config, jnp.zeros((2, *batch["image"].shape[1:]), jnp.uint8))
        image_variables = image_model.init(rng_image, image, train=False)
        tokens = jnp.ones((2, *batch["tokens"].shape[1:]), jnp.int32)
        text_variables = text_model.init(rng_text, tokens, train=False)
        params = {
            "image": image_variables["params"],
            "text": text_variables["params"],
            "log_scale": jnp.asarray(math.log(INITIAL_SCALE)),
        }
        return params, {}, {"image": image_variables.get("batch_stats", {})}

    def loss(params: Any, frozen: Any, stats: Any, batch: Batch, rng: jax.Array):
        del frozen
        (_, out), updated = image_model.apply(
            {"params": params["image"], "batch_stats": stats["image"]},
            normalized(config, batch["image"]),
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": rng},
        )
        image, text = unit(out["features"]), _text(text_model, params, batch["tokens"])
        scale = jnp.minimum(jnp.exp(params["log_scale"]), LARGEST_SCALE)
        matched = ((image @ text.T).argmax(-1) == jnp.arange(len(image))).mean()
        value = info_nce(image, text, scale)
        return value, ({"image": updated.get("batch_stats", {})}, {"accuracy": matched, "logit_scale": scale})

    def predict(params: Any, frozen: Any, stats: Any, batch: Batch) -> tuple[jax.Array, jax.Array]:
        del frozen
        image = encode(config)(params, stats, batch["image"])
        return unit(image), _text(text_model, params, batch["tokens"])

    return Task(init, loss, predict)


def encode(config: ConfigDict) -> Callable[[Any, Any, jax.Array], jax.Array]:
    """(params, stats, uint8 images) -> the projected image embedding, not normalised (protocol §4), (B, d)."""
    model = image_encoder(config, project=config.embed_dim)

    def apply(params: Any, stats: Any, image: jax.Array) -> jax.Array:
        variables = {"params": params["image"], "batch_stats": stats["image"]}
        return model.apply(variables, normalized(config, image), train=False)[1]["features"]

    return apply


def unit(x: jax.Array) -> jax.Array:
    """Rows of length one; a zero row stays zero."""
    return x * jax.lax.rsqrt(jnp.maximum(jnp.square(x).sum(-1, keepdims=True), 1e-12))


def _text(model: Any, params: Any, tokens: jax.Array) -> jax.Array:
    return unit(model.apply({"params": params["text"]}, tokens, train=False)["features"])
