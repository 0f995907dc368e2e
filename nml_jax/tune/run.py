"""The stage "tune": stored features -> a tuned head for each data fraction -> results.jsonl."""

import os
import time

import jax.numpy as jnp
from ml_collections import ConfigDict

from nml_jax.core import artifacts, metrics, optim, plugin, runtime, writer
from nml_jax.core.errors import UserError
from nml_jax.features import store
from nml_jax.tune import fraction as fractions
from nml_jax.tune import trainer

EVERY_PROCESS, REPEATS = False, False
SUITES = ("id", "ood")


def check(config: ConfigDict) -> None:
    """Raises a UserError for an unknown method, suite, fraction, or option of the head or the optimiser."""
    if not config.inputs.features:
        raise UserError(
            "No features to tune on. Give the work directory of a features stage: --config.inputs.features=DIR."
        )
    method = plugin.find("tune", config.method, "make")
    if config.task.suite not in SUITES:
        raise UserError(f"Unknown suite {config.task.suite!r}; valid: {', '.join(SUITES)}.")
    if not _splits(config) or not config.fractions:
        raise UserError(
            "Nothing to do: config.task.tests and config.fractions each need at least one entry, such as ('test',) "
            "and (1.0,)."
        )
    for fraction in config.fractions:
        fractions.check(fraction)
    # Two features and two classes: enough to find what is wrong with the options.
    plugin.call(method.make, "head", dim=2, num_classes=2, **config.head)
    plugin.call(optim.make, "optim", total_steps=1, **config.optim)


def _splits(config: ConfigDict) -> tuple[str, ...]:
    """The splits to evaluate on, each once."""
    return tuple(dict.fromkeys((*config.task.tests, *config.task.source_tests)))


def run(config: ConfigDict, workdir: str | os.PathLike) -> None:
    """Tunes on `config.task.train`, evaluates on each test split, writes one line each in `results.jsonl`.

    See `configs/tune/` for the values of a config.

    Raises:
      UserError: the features are not there, not finite, or do not fit together.
    """
    method = plugin.find("tune", config.method, "make")
    config_hash = artifacts.fingerprint(config)
    head = config.head.to_dict()
    views = method.views(**head)
    train = store.load(config.inputs.features, config.task.train, config.task.label)
    tests = {split: _load_test(config, split, train) for split in _splits(config)}
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
    writer.write_lines(os.path.join(workdir, "results.jsonl"), records)


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
