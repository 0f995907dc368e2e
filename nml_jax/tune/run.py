"""The stage "tune": stored features, or files of embeddings -> tuned heads -> results.jsonl, heads and predictions."""

import os
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy.special
from ml_collections import ConfigDict

from nml_jax.core import artifacts, metrics, optim, plugin, runtime, writer
from nml_jax.core.errors import UserError
from nml_jax.features import files, store
from nml_jax.tune import saved, sweep, trainer

EVERY_PROCESS, REPEATS = False, False
SUITES = ("id", "ood")


class Data(NamedTuple):
    """A training split, its test splits by name, the classes (C,) as the user calls them, what the task is called."""

    train: store.Features
    tests: dict[str, store.Features]
    classes: np.ndarray
    name: str


def check(config: ConfigDict) -> None:
    """Raises a UserError for unknown values, for options that the method lacks, and for data that is not there."""
    given = [bool(config.inputs.features), bool(config.train or config.test)]
    if (given != [False, True] and given != [True, False]) or bool(config.train) != bool(config.test):
        raise UserError(
            f"Features to tune on are given as features={config.inputs.features!r}, train={config.train!r}, "
            f"test={config.test!r}; valid is the work directory of a features stage, --config.inputs.features=DIR, or "
            "two files of embeddings and labels, --config.train=a.npz --config.test=b.npz (or .safetensors, .parquet)."
        )
    for path in filter(None, (config.train, config.test)):
        if not os.path.isfile(path):
            raise UserError(f"There is no file {path!r}. Correct --config.train or --config.test.")
    method = plugin.find("tune", config.method, "make")
    if config.task.suite not in SUITES:
        raise UserError(f"Unknown suite {config.task.suite!r}; valid: {', '.join(SUITES)}.")
    if not _splits(config) or not config.fractions:
        raise UserError(
            "Nothing to do: config.task.tests and config.fractions each need at least one entry, such as ('test',) "
            "and (1.0,)."
        )
    # Two features and two classes: enough to find what is wrong with the options.
    plugin.call(method.make, "head", dim=2, num_classes=2, **config.head)
    if artifacts.plain(config.head).get("objective", "classification") != "classification":
        raise UserError(
            f"head.objective={config.head.objective!r} is for numbers, and this stage tunes on class labels; valid: "
            "classification. For numbers there is nml_jax.NMTuneRegressor."
        )
    plugin.call(optim.make, "optim", total_steps=1, **config.optim)
    sweep.check(config, method.SWEEPABLE)


def _splits(config: ConfigDict) -> tuple[str, ...]:
    """The splits to evaluate on, each once."""
    return tuple(dict.fromkeys((*config.task.tests, *config.task.source_tests)))


def run(config: ConfigDict, workdir: str | os.PathLike) -> None:
    """Tunes the heads of the config's sweep, chooses by validation, evaluates the chosen ones on each test split.

    Writes `results.jsonl`, a line for each chosen head and test split; for each chosen head, if `config.save` says so,
    `head.safetensors` (see `tune.saved`) and `predictions.npz`; and `sweep.jsonl`, a line for each head of the sweep,
    if there were rows to validate on. See `configs/tune/` for the values of a config.

    Raises:
      UserError: the features are not there, not finite, or do not fit together.
    """
    workdir = Path(workdir)
    method = plugin.find("tune", config.method, "make")
    data = _open(config)
    head = _head(config, data.train)
    dim = data.train.x.shape[2]
    task = method.make(dim=dim, num_classes=len(data.classes), **head)
    planned = sweep.plan(config, data.train.y, len(data.classes))
    start = time.perf_counter()
    title = f"tune {config.name}"
    with writer.progress_bar(len(planned) * config.epochs, title, unit="epoch", show=config.progress) as bar:
        fitted = trainer.fit(
            task,
            data.train.x,
            [one.run for one in planned],
            views=method.views(**head),
            batch_size=config.batch_size,
            epochs=config.epochs,
            optim=config.optim.to_dict(),
            patience=config.patience,
            on_epoch=lambda heads, means: bar.update(heads),
        )
    chosen = sweep.choose(planned, fitted)
    records = []
    for i in chosen:
        stem = _stem(planned, chosen, i)
        facts = _facts(task, data, planned[i], fitted[i])
        logits = {
            name: trainer.predict(task, fitted[i].state, test.clean) for name, test in data.tests.items()
        }
        if "head" in config.save:
            said = {"task": data.name, "config_hash": artifacts.fingerprint(config)} | facts
            options = {"method": config.method, "head": head, "classes": data.classes, "facts": said}
            saved.save(
                workdir / f"head{stem}.safetensors", params=fitted[i].params, stats=fitted[i].stats, **options
            )
        if "predictions" in config.save:
            _save_predictions(workdir / f"predictions{stem}.npz", data, logits)
        for split, test in data.tests.items():
            scores = metrics.classification(test.y, logits[split])
            records.append(_record(config, data, split) | facts | scores)
    wall_time = round(time.perf_counter() - start, 3)
    common = {"heads": len(planned), "wall_time_s": wall_time, "config_hash": artifacts.fingerprint(config)}
    if config.validation:
        lines = [
            _sweep_line(one, head, i in chosen)
            for i, (one, head) in enumerate(zip(planned, fitted, strict=True))
        ]
        writer.write_lines(workdir / "sweep.jsonl", lines)
    writer.write_lines(workdir / "results.jsonl", [record | common for record in records])


def _open(config: ConfigDict) -> Data:
    if config.train:
        train, tests, classes = files.load(config.train, {"test": config.test})
        return Data(train, tests, classes, config.task.name or Path(config.train).stem)
    train = store.load(config.inputs.features, config.task.train, config.task.label)
    tests = {split: _load_test(config, split, train) for split in _splits(config)}
    return Data(
        train, tests, np.arange(train.num_classes), config.task.name or train.manifest.get("data", "")
    )


def _load_test(config: ConfigDict, split: str, train: store.Features) -> store.Features:
    test = store.load(config.inputs.features, split, config.task.label)
    ours, theirs = (train.x.shape[2], train.num_classes), (test.x.shape[2], test.num_classes)
    if ours != theirs:
        raise UserError(
            f"The splits do not fit together: {config.task.train!r} has D={ours[0]} and {ours[1]} classes, {split!r} "
            f"has D={theirs[0]} and {theirs[1]}. Both must come from the same encoder and have the same classes."
        )
    return test


def _head(config: ConfigDict, train: store.Features) -> dict[str, Any]:
    """The options of the method: without augmented views it is tuned on the clean one."""
    head = config.head.to_dict()
    if train.x.shape[1] == 1 and head.get("views"):
        if config.progress:
            print(
                f"tune {config.name}: the features have no augmented views, so views=0: the clean one.",
                flush=True,
            )
        head["views"] = 0
    return head


def _stem(planned: list[sweep.Planned], chosen: list[int], i: int) -> str:
    """What tells the files of one chosen head from those of the others; empty if there is one."""
    varying = [name for name in sweep.EXPERIMENT if len({planned[j].point[name] for j in chosen}) > 1]
    return "".join(f"-{name}_{planned[i].point[name]:g}" for name in varying)


def _facts(task: trainer.Task, data: Data, one: sweep.Planned, head: trainer.Fitted) -> dict[str, Any]:
    """What a results line says of the training."""
    on_train = trainer.predict(task, head.state, data.train.clean[one.run.train])
    last = head.history[head.epoch]
    facts = {name: value for name, value in one.point.items() if name != "noise_ratio"} | {
        "label_noise_ratio": one.point["noise_ratio"],
        "label_noise_realised": one.realised_noise,
        "train_size": len(one.run.train),
        "train_accuracy": metrics.classification(one.run.y[one.run.train], on_train)["accuracy"],
        "final_loss": last["loss"],
        "epoch": head.epoch,
    }
    validation = {
        "validation_size": len(one.run.validation),
        "validation_accuracy": last.get("validation_accuracy"),
    }
    return facts | validation if len(one.run.validation) else facts


def _sweep_line(one: sweep.Planned, head: trainer.Fitted, chosen: bool) -> dict[str, Any]:
    accuracy, loss = head.validation
    scores = {"validation_accuracy": accuracy, "validation_loss": -loss} if not head.lost else {}
    return one.point | {"epoch": head.epoch, "lost": head.lost, "chosen": chosen} | scores


def _save_predictions(path: Path, data: Data, logits: dict[str, np.ndarray]) -> None:
    """For each split `<split>/predicted` and `<split>/y` (N,) and `<split>/probabilities` (N, C); and `classes`."""
    arrays = {"classes": data.classes}
    for split, values in logits.items():
        arrays[f"{split}/predicted"] = data.classes[values.argmax(axis=1)]
        arrays[f"{split}/probabilities"] = scipy.special.softmax(values, axis=1)
        arrays[f"{split}/y"] = data.classes[data.tests[split].y]
    with artifacts.replacing(path, "wb") as file:
        np.savez(file, **arrays)


def _record(config: ConfigDict, data: Data, split: str) -> dict[str, Any]:
    """The line without what a fit gives; it begins with what the features say about their encoder."""
    encoder = data.train.manifest.get("encoder", {})
    return encoder | {
        "kind": "tune",
        "method": config.name,
        "task": data.name,
        "suite": "source" if split in config.task.source_tests else config.task.suite,
        "train_split": config.task.train,
        "test_split": split,
        "label": config.task.label,
        "num_classes": len(data.classes),
        "dim": data.train.x.shape[2],
        "test_size": len(data.tests[split].y),
        "versions": runtime.versions(),
    }
