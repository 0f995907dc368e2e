"""The clean column of a source, corrupted; what was done is recorded in noise.npz."""

import contextlib
import os

import numpy as np
from ml_collections import ConfigDict

from nml_jax.core import plugin, runtime
from nml_jax.core.errors import UserError
from nml_jax.data import augment, decode
from nml_jax.data.source import Source
from nml_jax.noise import record


def check(config: ConfigDict, supervision: str) -> None:
    """Raises a UserError if `config.noise` cannot corrupt `supervision` ("labels" or "captions")."""
    module = plugin.find("noise", config.noise.name, "corrupt")
    if supervision not in module.CORRUPTS:
        fitting = [
            name
            for name in plugin.names("noise", "corrupt")
            if supervision in plugin.find("noise", name, "corrupt").CORRUPTS
        ]
        raise UserError(
            f"The noise {config.noise.name!r} corrupts {' and '.join(module.CORRUPTS)}, but the objective "
            f"{config.objective!r} learns from {supervision}; valid for it: {', '.join(fitting)}."
        )
    if not 0 <= config.noise.ratio <= 1:
        raise UserError(
            f"noise.ratio={config.noise.ratio} is not a fraction; valid are numbers from 0 to 1 (0.1 is 10 %)."
        )


def check_options(config: ConfigDict, supervision: str, source: Source) -> None:
    """Raises a UserError for an option that the noise model does not have, or that does not fit the classes."""
    module = plugin.find("noise", config.noise.name, "corrupt")
    options = dict(config.noise.options)
    # A label of each class, or three captions: enough to find what is wrong with the options.
    common = {"ratio": 0.0, "seed": config.noise.seed, "ids": None}
    if supervision == "captions":
        plugin.call(module.sources, "noise.options", ["a", "b", "c"], **common, **options)
        return
    classes = source.num_classes(config.data.label)
    if hasattr(module, "check_options"):
        plugin.call(module.check_options, "noise.options", num_classes=classes, **options)
        return
    labels = np.arange(classes)
    needs = {"class_names": source.class_names(config.data.label), "features": np.ones((classes, 2))}
    needs = {name: value for name, value in needs.items() if name in getattr(module, "NEEDS", ())}
    plugin.call(module.corrupt, "noise.options", labels, num_classes=classes, **common, **needs, **options)


def supervision(config: ConfigDict, source: Source, kind: str, workdir: str) -> tuple[np.ndarray, float]:
    """(the noisy labels or captions (N,), the realised ratio); writes `noise.npz` into `workdir`.

    Args:
      kind: "labels" or "captions".
    """
    module = plugin.find("noise", config.noise.name, "corrupt")
    ids, seed = source.ids(), config.noise.seed
    options = dict(config.noise.options)
    common = {"ratio": config.noise.ratio, "seed": seed, "ids": ids}
    if kind == "labels":
        clean = source.column(config.data.label)
        classes = source.num_classes(config.data.label)
        needs = {name: _needed(name, config, source) for name in getattr(module, "NEEDS", ())}
        noisy = plugin.call(
            module.corrupt, "noise.options", clean, num_classes=classes, **common, **needs, **options
        )
        before, after = clean, noisy
    else:
        captions = source.captions(config.data.caption)
        before = np.arange(len(captions))
        after = plugin.call(module.sources, "noise.options", captions, **common, **options)
        noisy = captions[after]
    path = os.path.join(workdir, "noise.npz")
    if runtime.is_lead():
        record.write(
            path,
            name=config.noise.name,
            ids=ids,
            clean=before,
            noisy=after,
            ratio=config.noise.ratio,
            seed=seed,
        )
    return noisy, float(np.mean(before != after))


def _needed(name: str, config: ConfigDict, source: Source) -> list[str] | np.ndarray:
    """What a noise model takes beyond the labels."""
    if name == "class_names":
        return source.class_names(config.data.label)
    # "features": the pixels at no more than 32 x 32, normalised as the encoder gets them.
    size = min(config.data.evaluate.size, 32)
    transform = augment.center_crop(size=size, crop_pct=1.0)
    pixels = np.zeros((len(source), size * size * 3), np.uint8)
    for row in range(len(source)):
        # What cannot be decoded has no say in what it is taken for, and will be replaced anyway.
        with contextlib.suppress(decode.Undecodable):
            pixels[row] = transform(source.image(row)).reshape(-1)
    mean, std = (np.tile(np.asarray(v, np.float32), size * size) for v in (config.data.mean, config.data.std))
    return (pixels / np.float32(255) - mean) / std
