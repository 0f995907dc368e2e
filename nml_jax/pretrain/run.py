"""The pretrain stage: noisy records -> checkpoints, noise.npz, metrics.jsonl and a line in results.jsonl."""

import contextlib
import time

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from nml_jax.core import artifacts, loop, optim, plugin, runtime, writer
from nml_jax.core import mesh as meshes
from nml_jax.core.errors import UserError
from nml_jax.data import augment, decode, pipeline
from nml_jax.data import source as sources
from nml_jax.pretrain import noisy

EVERY_PROCESS, REPEATS = True, False


def check(config: ConfigDict) -> None:
    """Raises a UserError for a plug-in, option, data set, ratio or batch size that is not right."""
    objective = plugin.find("pretrain", config.objective, "prepare")
    noisy.check(config, objective.SUPERVISION)
    decode.check_decoder(config.data.decoder)
    augment.make(**config.data.augment)
    plugin.call(augment.center_crop, "data.evaluate", **config.data.evaluate)
    meshes.make(config.mesh.fsdp)
    meshes.local_batch_size(config.batch_size)
    plugin.call(optim.make, "optim", total_steps=1, **config.optim)
    if config.save_every % config.log_every:
        raise UserError(
            f"save_every={config.save_every} is not a multiple of log_every={config.log_every}. It must be, so that a "
            "resumed run averages its metrics over the same steps as an uninterrupted one."
        )
    if not 0 <= config.average_decay < 1:
        raise UserError(f"average_decay={config.average_decay} is not in [0, 1); 0 keeps no average.")
    if config.data.repeats < 1:
        raise UserError(f"data.repeats={config.data.repeats} is not 1 (none) or above.")
    _check_batches(config)
    objective.check(config)
    train, test = _open(config)
    for source in (train, test):
        if config.data.label:
            source.num_classes(config.data.label)
        if len(source) < config.batch_size and source.split == config.data.train:
            raise UserError(
                f"The split {source.split!r} of {source.name!r} has {len(source)} records, fewer than batch_size="
                f"{config.batch_size}. Take a smaller batch or a larger split."
            )
    noisy.check_options(config, objective.SUPERVISION, train)


def _check_batches(config: ConfigDict) -> None:
    """Raises a UserError where microbatches or repeated augmentations do not divide the batch."""
    if config.accumulate < 1 or config.batch_size % (config.accumulate * jax.device_count()):
        raise UserError(
            f"A batch of {config.batch_size} cannot be divided into accumulate={config.accumulate} microbatches on "
            f"{jax.device_count()} devices equally; batch_size must be a multiple of their product."
        )


def _open(config: ConfigDict) -> list[sources.Source]:
    return [
        sources.open(config.data.name, split, data_dir=config.data_dir, in_memory=config.data.in_memory)
        for split in (config.data.train, config.data.test)
    ]


def run(config: ConfigDict, workdir: str) -> None:
    """Pre-trains `config.model` with `config.objective` on `config.data` under `config.noise`."""
    started = time.perf_counter()
    objective = plugin.find("pretrain", config.objective, "prepare")
    source, test = _open(config)
    total_steps = config.epochs * len(source) // config.batch_size
    tx = plugin.call(optim.make, "optim", total_steps=total_steps, **config.optim)
    supervision, realised = noisy.supervision(config, source, objective.SUPERVISION, workdir)
    prepared = objective.prepare(config, source, supervision, workdir)
    data = pipeline.train_iterator(
        source,
        prepared.targets,
        augment=augment.make(**config.data.augment),
        batch_size=config.batch_size,
        seed=config.seed,
        num_workers=config.data.num_workers,
        repeats=config.data.repeats,
        decoder=config.data.decoder,
    )
    with contextlib.closing(data):
        state = loop.train(
            prepared.task,
            tx,
            data,
            loop.Options(
                total_steps=total_steps,
                seed=config.seed,
                save_every=config.save_every,
                log_every=config.log_every,
                eval_every=config.eval_every,
                accumulate=config.accumulate,
                average_decay=config.average_decay,
                max_undecodable=config.data.max_undecodable,
                description=f"pretrain {config.objective} {config.noise.name} {config.noise.ratio:.0%}",
                progress=config.progress,
            ),
            batch_spec=batch_spec(config, prepared.targets),
            ids=source.ids(),
            mesh=meshes.make(config.mesh.fsdp),
            workdir=workdir,
            evaluate=lambda state: prepared.evaluate(state, test),
        )
    metrics = prepared.evaluate(state, test)
    if runtime.is_lead():
        lines = [r for r in writer.read_lines(f"{workdir}/metrics.jsonl") if "loss" in r]
        facts = {
            **encoder_facts(config),
            "kind": "pretrain",
            "realised_ratio": realised,
            "steps": total_steps,
            "train_loss": lines[-1]["loss"],
            "images_per_s": lines[-1]["images_per_s"],
            "metrics": {f"test_{name}": value for name, value in metrics.items()},
            "wall_time_s": time.perf_counter() - started,
            "config_hash": artifacts.fingerprint(config),
            "versions": runtime.versions(),
        }
        writer.write_lines(f"{workdir}/results.jsonl", [facts])


def batch_spec(config: ConfigDict, targets: dict[str, np.ndarray]) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and dtypes of a global batch whose rows have the targets' rows."""
    rows, size = config.batch_size, config.data.augment.size
    spec = {"image": jax.ShapeDtypeStruct((rows, size, size, 3), jnp.uint8)}
    return spec | {k: jax.ShapeDtypeStruct((rows, *v.shape[1:]), v.dtype) for k, v in targets.items()}


def encoder_facts(config: ConfigDict) -> dict[str, str | float | int]:
    """What every result on this encoder's features says of it."""
    return {
        "objective": config.objective,
        "model": config.model.name,
        "pretrain_data": config.data.name,
        "noise": config.noise.name,
        "noise_ratio": config.noise.ratio,
        "pretrain_seed": config.seed,
    }
