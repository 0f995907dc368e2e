"""Contrastive image-text pre-training (CLIP, Radford et al. 2021; SigLIP, Zhai et al. 2023) on noisy captions."""

import functools
import math
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from nml_jax.core import artifacts, plugin, runtime
from nml_jax.core import mesh as meshes
from nml_jax.core.errors import UserError
from nml_jax.core.task import Batch, Task
from nml_jax.data import inference, tokenize
from nml_jax.data import source as sources
from nml_jax.data.source import Source
from nml_jax.models.norm import widened
from nml_jax.pretrain import gradient_cache, pairwise, retrieval, zero_shot
from nml_jax.pretrain.objective import Prepared, image_encoder, normalized, trace
from nml_jax.pretrain.pairwise import info_nce, sigmoid_loss

__all__ = ["check", "encode", "info_nce", "make_task", "prepare", "sigmoid_loss", "towers"]

SUPERVISION = "captions"
# Loss -> what is learned beside the towers, at its start: CLIP's temperature 0.07; SigLIP's t' = log 10 and b = -10.
INITIAL = {
    "info_nce": {"log_scale": math.log(1 / 0.07)},
    "sigmoid": {"log_scale": math.log(10.0), "bias": -10.0},
}
LARGEST_SCALE = 100.0


def prepare(config: ConfigDict, source: Source, supervision: np.ndarray, workdir: str) -> Prepared:
    """The objective on `source` with the noisy captions `supervision` (N,) str.

    The tokenizer is saved in `workdir` as `tokenizer.json`. Evaluation is zero-shot classification, of
    `config.eval.data` or, where it has labels, of the test split; and retrieval among the pairs of the test split.
    """
    tokenizer = _tokenizer(config, supervision, workdir)
    image_model, text_model = towers(config)
    task = make_task(config, image_model, text_model)
    # One function of each for the whole run, so that each evaluation finds its program compiled.
    embed_images = encode(config)
    sharding = meshes.batch_sharding(meshes.make())
    embed = jax.jit(lambda params, tokens: _text(text_model, params, tokens), out_shardings=sharding)

    # Before training, so that what is wrong with the evaluation is known then.
    labelled, label = None, config.data.label
    if config.eval.data:
        labelled = sources.open(config.eval.data, config.eval.split, data_dir=config.data_dir)
        label = config.eval.label
    prompts = zero_shot.prompts(config, labelled or source, label) if label else ()

    def evaluate(state: Any, test: Source) -> dict[str, float]:
        params, stats = state.tuned
        images = functools.partial(inference.run, embed_images, (params, stats), data=config.data)
        found, of_test = {}, images(test)

        def texts(captions: np.ndarray) -> np.ndarray:
            tokens = tokenize.encode(tokenizer, captions, config.text.length)
            return _in_batches(functools.partial(embed, params), tokens, config.data.eval_batch_size)

        if prompts:
            of_labelled, labels = images(labelled) if labelled else of_test, (labelled or test).column(label)
            found |= zero_shot.evaluate(of_labelled, labels, *prompts, texts)
        if config.eval.retrieval:
            captions, group = np.unique(test.column(config.data.caption), return_inverse=True)
            found |= retrieval.evaluate(of_test, texts(captions)[group], group)
        return found

    tokens = tokenize.encode(tokenizer, supervision, config.text.length)
    return Prepared(task, {"tokens": tokens}, evaluate)


def check(config: ConfigDict) -> None:
    """Raises a UserError where the towers, the loss, the evaluation and their options do not work."""
    zero_shot.check(config)
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
    """`config.loss` of {"image": (B, H, W, 3) uint8, "tokens": (B, L) int32}.

    params are image, text, log_scale, and for the sigmoid loss bias. Microbatches go through the encoders alone: every
    pair is compared with all others of the global batch (`pretrain.gradient_cache`).
    """
    loss_of_pairs = plugin.call(loss_function, "loss", **config.loss)

    def init(rng: jax.Array, batch: Batch) -> tuple[Any, Any, Any]:
        rng_image, rng_text = jax.random.split(rng)
        image = normalized(config, jnp.zeros((2, *batch["image"].shape[1:]), jnp.uint8))
        image_variables = image_model.init(rng_image, image, train=False)
        tokens = jnp.ones((2, *batch["tokens"].shape[1:]), jnp.int32)
        text_variables = text_model.init(rng_text, tokens, train=False)
        learned = {name: jnp.asarray(value) for name, value in INITIAL[config.loss.name].items()}
        params = {"image": image_variables["params"], "text": text_variables["params"], **learned}
        return params, {}, {"image": image_variables.get("batch_stats", {})}

    def embed(
        params: Any, stats: Any, batch: Batch, rng: jax.Array
    ) -> tuple[tuple[jax.Array, jax.Array], Any]:
        (_, out), updated = image_model.apply(
            {"params": params["image"], "batch_stats": stats["image"]},
            normalized(config, batch["image"]),
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": rng},
        )
        text = _text(text_model, params, batch["tokens"])
        return (unit(out["features"]), text), {"image": updated.get("batch_stats", {})}

    def loss(params: Any, frozen: Any, stats: Any, batch: Batch, rng: jax.Array):
        del frozen
        embeddings, stats = embed(params, stats, batch, rng)
        value, metrics = loss_of_pairs(params, embeddings)
        return value, (stats, metrics)

    def gradients(*, accumulate: int, mesh: Mesh) -> Callable[..., Any]:
        on_mesh = functools.partial(loss_of_pairs, mesh=mesh)
        return gradient_cache.make(embed, on_mesh, accumulate=accumulate, mesh=mesh)

    def predict(params: Any, frozen: Any, stats: Any, batch: Batch) -> tuple[jax.Array, jax.Array]:
        del frozen
        image = encode(config)(params, stats, batch["image"])
        return unit(image), _text(text_model, params, batch["tokens"])

    return Task(init, loss, predict, gradients=gradients)


def loss_function(
    *, name: str, method: str, tile: int
) -> Callable[..., tuple[jax.Array, dict[str, jax.Array]]]:
    """(params, (image, text) unit embeddings, mesh=None) -> (loss, metrics).

    Args:
      name: "info_nce" or "sigmoid".
      method, tile: see `pretrain.pairwise`.

    Raises:
      UserError: one of these is not valid.
    """
    if name not in INITIAL:
        raise UserError(f"Unknown loss {name!r}; valid: {', '.join(INITIAL)}. Correct config.loss.name.")
    pairwise.check(method, tile)

    def loss(params: Any, embeddings: tuple[jax.Array, jax.Array], mesh: Mesh | None = None):
        learned = {"logit_scale": scale_of(params["log_scale"])}
        if name == "sigmoid":
            learned["logit_bias"] = params["bias"]
            function = pairwise.sigmoid_loss_and_accuracy
        else:
            function = pairwise.info_nce_and_accuracy
        value, accuracy = function(*embeddings, *learned.values(), method, tile=tile, mesh=mesh)
        return value, {"accuracy": accuracy, **learned}

    return loss


@jax.custom_vjp
def scale_of(log_scale: jax.Array) -> jax.Array:
    """exp(log_scale), at most `LARGEST_SCALE`.

    Where it is clamped, a gradient passes if following it would lower the scale: it can come back, and log_scale does
    not run away. (CLIP clamps the parameter after each step, to the same end.)
    """
    return jnp.minimum(jnp.exp(log_scale), LARGEST_SCALE)


def _scale_forward(log_scale: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    scale = scale_of(log_scale)
    return scale, (log_scale, scale)


def _scale_backward(saved: tuple[jax.Array, jax.Array], gradient: jax.Array) -> tuple[jax.Array]:
    log_scale, scale = saved
    passes = (log_scale < math.log(LARGEST_SCALE)) | (gradient > 0)
    return (jnp.where(passes, scale * gradient, 0),)


scale_of.defvjp(_scale_forward, _scale_backward)


def encode(config: ConfigDict) -> Callable[[Any, Any, jax.Array], jax.Array]:
    """(params, stats, uint8 images) -> the projected image embedding, not normalised (protocol §4), (B, d)."""
    model = image_encoder(config, project=config.embed_dim)

    def apply(params: Any, stats: Any, image: jax.Array) -> jax.Array:
        variables = {"params": params["image"], "batch_stats": stats["image"]}
        return model.apply(variables, normalized(config, image), train=False)[1]["features"]

    return apply


def unit(x: jax.Array) -> jax.Array:
    """Rows of length one in float32; a zero row stays zero."""
    x = widened(x)
    return x * jax.lax.rsqrt(jnp.maximum(jnp.square(x).sum(-1, keepdims=True), 1e-12))


def _text(model: Any, params: Any, tokens: jax.Array) -> jax.Array:
    return unit(model.apply({"params": params["text"]}, tokens, train=False)["features"])


def _tokenizer(config: ConfigDict, captions: np.ndarray, workdir: str) -> Any:
    """`config.text.tokenizer`: "trained" on the run's captions, or CLIP's: "clip", or the file of its vocabulary.

    Raises:
      UserError: CLIP's vocabulary is not found or is another, or the text model has too few embeddings for it.
    """
    path = os.path.join(workdir, "tokenizer.json")
    with runtime.together():
        if not os.path.exists(path) and runtime.is_lead():
            if config.text.tokenizer == "trained":
                tokenizer = tokenize.train(np.sort(captions), vocab_size=config.text.vocab_size)
            else:
                tokenizer = tokenize.clip("" if config.text.tokenizer == "clip" else config.text.tokenizer)
            tokenize.check(tokenizer, config.text.vocab_size)
            with artifacts.replacing(path) as file:
                file.write(tokenizer.to_str())
    return tokenize.load(path)


def _in_batches(embed: Callable[[Any], jax.Array], tokens: np.ndarray, batch_size: int) -> np.ndarray:
    """`embed` of all rows, on all devices, `batch_size` at a time: (N, d) on every process."""
    mesh = meshes.make()
    rows = -(-batch_size // mesh.size) * mesh.size
    local, outputs = meshes.local_batch_size(rows), []
    for start in range(0, len(tokens), rows):
        first = start + jax.process_index() * local
        chosen = np.minimum(np.arange(first, first + local), len(tokens) - 1)
        outputs.append(runtime.gather(embed(meshes.put_batch(mesh, tokens[chosen]))))
    return np.concatenate(outputs)[: len(tokens)]
