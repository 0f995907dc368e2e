"""The stage "tune": stored features -> a tuned head for each data fraction -> results.jsonl."""

import os
import time
from typing import Any

import jax.numpy as jnp
from ml_collections import ConfigDict

from nml_jax.core import artifacts, metrics, plugin, runtime, writer
from nml_jax.core.errors import UserError
from nml_jax.features import store
from nml_jax.tune import fraction as fractions
from nml_jax.tune import trainer

SUITES = ("id", "ood")


def run(config: ConfigDict, workdir: str | os.PathLike) -> None:
    """Tunes on `config.task.train`, evaluates on each test split, writes one line each in `results.jsonl`.

    Does nothing where `workdir` is finished already. See `configs/tune/` for the values of a config.

    Raises:
      UserError: no features given, or not there, not finite or not fitting together; an unknown method, suite,
        fraction or option of the head; a work directory of another config.
    """
    method, splits = _check(config)
    config_hash = artifacts.fingerprint(config)
    workdir = artifacts.claim(workdir, config)
    if artifacts.is_finished(workdir) and artifacts.read_fingerprint(workdir) == config_hash:
        return
    head = config.head.to_dict()
    views = method.views(**head)
    train = store.load(config.inputs.features, config.task.train, config.task.label)
    tests = {split: _load_test(config, split, train) for split in splits}
    task = method.make(dim=train.x.shape[2], num_classes=train.num_classes, **head)
    x, y = jnp.asarray(train.x if views else train.x[:, :1]), jnp.asarray(train.y, jnp.int32)
    records = []
    with writer.progress_bar(
        len(config.fractions) * config.epochs, f"tune {config.name}", unit="epoch", show=config.progress
    ) as bar:
        for fraction in config.fractions:
            start = time.perf_counter()
            member = fractions.subset(train.y, fraction, config.seed)
            *state, history = trainer.fit(
                task,
                config.optim.to_dict(),
                x,
                y,
                views=views,
                batch_size=config.batch_size,
                epochs=config.epochs,
                seed=config.seed,
                subset=member,
                on_epoch=lambda epoch, means: bar.update(),
            )
            on_train = trainer.predict(task, state, train.clean[member])
            facts = {
                "fraction": fraction,
                "train_size": int(member.sum()),
                "train_accuracy": metrics.classification(train.y[member], on_train)["accuracy"],
                "final_loss": history[-1]["loss"],
            }
            for split, test in tests.items():
                scores = metrics.classification(test.y, trainer.predict(task, state, test.clean))
                records.append(_record(config, train, split, len(test.y), config_hash) | facts | scores)
            wall_time = round(time.perf_counter() - start, 3)
            for record in records[-len(tests) :]:
                record["wall_time_s"] = wall_time
    writer.write_lines(workdir / "results.jsonl", records)
    artifacts.finish(workdir, config)


def _check(config: ConfigDict) -> tuple[Any, tuple[str, ...]]:
    """The method's module, and the splits to evaluate on."""
    if not config.inputs.features:
        raise UserError(
            "No features to tune on. Give the work directory of a features stage: --config.inputs.features=DIR."
        )
    method = plugin.find("tune", config.method, "make")
    if config.task.suite not in SUITES:
        raise UserError(f"Unknown suite {config.task.suite!r}; valid: {', '.join(SUITES)}.")
    splits = tuple(dict.fromkeys((*config.task.tests, *config.task.source_tests)))
    if not splits or not config.fractions:
        raise UserError(
            "Nothing to do: config.task.tests and config.fractions each need at least one entry, such as ('test',) "
            "and (1.0,)."
        )
    for fraction in config.fractions:
        fractions.check(fraction)
    return method, splits


def _load_test(config: ConfigDict, split: str, train: store.Features) -> store.Features:
    test = store.load(config.inputs.features, split, config.task.label)
    ours, theirs = (train.x.shape[2], train.num_classes), (test.x.shape[2], test.num_classes)
    if ours != theirs:
        raise UserError(
            f"The splits do not fit together: {config.task.train!r} has D={ours[0]} and {ours[1]} classes, {split!r} "
            f"has D={theirs[0]} and {theirs[1]}. Both must come from the same encoder and have the same classes."
        )
    return test


def _record(config: ConfigDict, train: store.Features, split: str, test_size: int, config_hash: str) -> dict:
    """The line without what a fit gives; it begins with what the features say about their encoder."""
    encoder = train.manifest.get("encoder", {})
    return encoder | {
        "kind": "tune",
        "method": config.name,
        "task": config.task.name,
        "suite": "source" if split in config.task.source_tests else config.task.suite,
        "train_split": config.task.train,
        "test_split": split,
        "label": config.task.label,
        "seed": config.seed,
        "num_classes": train.num_classes,
        "dim": train.x.shape[2],
        "test_size": test_size,
        "config_hash": config_hash,
        "versions": runtime.versions(),
    }
