"""The features stage: encodes splits of a data set once, clean and in augmented views."""

import os

import numpy as np
from ml_collections import ConfigDict

from nml_jax.core import artifacts, checkpoint, plugin, runtime
from nml_jax.core import mesh as meshes
from nml_jax.core.errors import UserError
from nml_jax.data import augment, inference
from nml_jax.data import source as sources
from nml_jax.features import store
from nml_jax.pretrain.run import encoder_facts

EVERY_PROCESS, REPEATS = True, False


def check(config: ConfigDict) -> None:
    """Raises a UserError for an option, data set, split or label that is not right."""
    if not config.inputs.pretrain:
        raise UserError(
            "No encoder given: --config.inputs.pretrain is empty. Give the work directory of a pretrain stage."
        )
    unknown = sorted(set(config.augmented) - set(config.splits))
    if unknown:
        raise UserError(
            f"augmented={unknown} are not among splits={list(config.splits)}; name splits that are."
        )
    augment.make(**config.data.augment)
    plugin.call(augment.center_crop, "data.evaluate", **config.data.evaluate)
    for split in config.splits:
        source = _open(config, split)
        for label in config.labels:
            source.num_classes(label)


def _open(config: ConfigDict, split: str) -> sources.Source:
    return sources.open(config.data.name, split, data_dir=config.data_dir, in_memory=config.data.in_memory)


def run(config: ConfigDict, workdir: str) -> None:
    """Writes `<workdir>/<split>/` for each of `config.splits`.

    View 0 is the image under the evaluation transform; the splits in `config.augmented` get `config.views` more,
    each an augmented copy that depends on (seed, view, index) alone. A split that is there already is kept.

    Raises:
      UserError: no finished pre-training at `config.inputs.pretrain`.
    """
    pretrain_dir = config.inputs.pretrain
    artifacts.read_fingerprint(pretrain_dir)
    pretrain = ConfigDict(artifacts.read_config(pretrain_dir))
    encode = plugin.find("pretrain", pretrain.objective, "prepare").encode(pretrain)
    variables = checkpoint.load_variables(os.path.join(pretrain_dir, "checkpoints"), meshes.make())
    for split in config.splits:
        source = _open(config, split)
        if (store.split_dir(workdir, split) / "manifest.json").exists():
            continue
        columns = []
        for view in range(1 + config.views * (split in config.augmented)):
            title = f"features {config.data.name} {split} view {view}" if config.progress else ""
            columns.append(
                inference.run(
                    encode, variables, source, config.data, view=view, seed=config.seed, progress=title
                )
            )
        if runtime.is_lead():
            store.save(
                workdir,
                split,
                np.stack(columns, axis=1),
                {label: source.column(label) for label in config.labels},
                {label: source.num_classes(label) for label in config.labels},
                data=config.data.name,
                encoder=encoder_facts(pretrain),
                transforms=artifacts.plain(config.data),
                checkpoint=artifacts.read_fingerprint(pretrain_dir),
            )
