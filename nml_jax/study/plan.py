"""The jobs of a study: noise ratio x seed x objective, and for each encoder its features, tuned heads and spectra.

A job's directory is named by the fingerprint of what it produces. So what is there already is not done again, a
changed config redoes what it touches and nothing else, and nothing is overwritten.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict

from nml_jax.core import artifacts
from nml_jax.core.errors import UserError


class Job(NamedTuple):
    """One stage on one config, in one directory."""

    title: str
    directory: Path
    config: ConfigDict
    fingerprint: str


def jobs(config: ConfigDict, workdir: Path) -> list[Job]:
    """The jobs of a study in an order in which each comes after its inputs.

    Raises:
      UserError: the study's tables do not fit together.
    """
    check(config)
    planned = []
    for objective in config.objectives:
        for ratio in config.noise_ratios:
            for seed in config.seeds[objective]:
                planned.extend(_encoder_jobs(config, workdir, objective, ratio, seed))
    return planned


def check(config: ConfigDict) -> None:
    """Raises a UserError where a task names features, or a split of them, that the study does not have."""
    for needed in ("objectives", "noise_ratios", "seeds", "features", "tasks", "methods"):
        if not config[needed]:
            raise UserError(f"The study's {needed} are empty; at least one is needed.")
    if set(config.seeds) != set(config.objectives):
        raise UserError(
            f"The study's seeds are for {sorted(config.seeds)}, its objectives are {sorted(config.objectives)}; "
            "name the seeds of each objective."
        )
    for name, task in config.tasks.items():
        if task.features not in config.features:
            valid = ", ".join(config.features)
            raise UserError(f"Task {name!r} uses the features {task.features!r}; the study has {valid}.")
        splits = config.features[task.features].splits
        missing = {task.train, *task.tests, *task.source_tests} - set(splits)
        if missing:
            raise UserError(
                f"Task {name!r} uses the splits {sorted(missing)}; the features {task.features!r} have "
                f"{', '.join(splits)}. Add them there, or correct the task."
            )


def _encoder_jobs(
    config: ConfigDict, workdir: Path, objective: str, ratio: float, seed: int
) -> Iterator[Job]:
    """Everything that one pre-trained encoder leads to."""
    encoder = f"{objective}-{100 * ratio:g}-seed{seed}"
    pretrain_config = _changed(config.objectives[objective], seed=seed, data_dir=config.data_dir)
    pretrain_config.noise.update(ratio=ratio, seed=seed)
    pretrain = _job(workdir, encoder, pretrain_config, progress=config.progress)
    yield pretrain

    features = {}
    for name, features_config in config.features.items():
        changed = _changed(features_config, data_dir=config.data_dir)
        features[name] = _job(
            workdir, f"{encoder}-{name}", changed, pretrain=pretrain, progress=config.progress
        )
        yield features[name]

    for name, task in config.tasks.items():
        facts = {k: v for k, v in task.items() if k != "features"}
        source = features[task.features]
        for method, method_config in config.methods.items():
            changed = _changed(
                method_config, name=method, seed=seed, task=ConfigDict({"name": name, **facts})
            )
            yield _job(workdir, f"{encoder}-{name}-{method}", changed, features=source)

        suites = dict.fromkeys(task.tests, task.suite) | dict.fromkeys(task.source_tests, "source")
        for split, suite in suites.items():
            spectrum = _changed(
                config.analysis,
                task=ConfigDict({"name": name, "suite": suite}),
                split=split,
                label=task.label,
            )
            yield _job(workdir, f"{encoder}-{name}-{split}", spectrum, features=source)


def _changed(config: ConfigDict, **values: object) -> ConfigDict:
    """A copy with `values` in place of what it has; ConfigDict(config) would share its inner dicts."""
    copy = config.copy_and_resolve_references()
    with copy.unlocked():
        copy.update(values)
    return copy


def _job(workdir: Path, title: str, config: ConfigDict, *, progress: bool = False, **inputs: Job) -> Job:
    config = _changed(config, progress=progress)
    with config.unlocked():
        config.update({"inputs": {name: str(job.directory) for name, job in inputs.items()}})
    fingerprint = artifacts.fingerprint(config, {name: job.fingerprint for name, job in inputs.items()})
    directory = workdir / config.stage / f"{title}-{fingerprint[:8]}"
    return Job(f"{config.stage} {title}", directory, config, fingerprint)
