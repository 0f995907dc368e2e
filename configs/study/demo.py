"""The papers' study, small, on the embedded glyphs: what `make study` runs.

    python -m nml_jax.main --config=configs/study/demo.py --workdir=runs/demo

Noisy pre-training (supervised and contrastive), features of four in-domain and two out-of-domain tasks, linear probe,
MLP and NMTune on them, spectra, and the report.
"""

from ml_collections import ConfigDict

from configs.analysis import spectrum
from configs.features import default
from configs.pretrain import glyphs_contrastive, glyphs_supervised
from configs.tune import linear_probe, mlp, nmtune

DOMAINS = ("real", "sketch", "painting", "clipart")


def get_config(arg: str | None = None) -> ConfigDict:
    """The config; "smoke" is one seed, two noise ratios and a few steps of everything."""
    if arg not in (None, "smoke"):
        raise ValueError(f"Unknown config argument {arg!r}; valid: smoke, or none.")
    smoke = arg == "smoke"
    config = ConfigDict()
    config.stage = "study"
    config.name = "demo"
    config.title = "Noisy Model Learning on embedded glyphs"
    config.command = "make study"
    config.data_dir = ""
    config.noise_ratios = (0.0, 0.3) if smoke else (0.0, 0.1, 0.3)
    config.seeds = ConfigDict({"supervised": (0,) if smoke else (0, 1, 2), "contrastive": (0,)})
    config.objectives = ConfigDict(
        {"supervised": glyphs_supervised.get_config(arg), "contrastive": glyphs_contrastive.get_config(arg)}
    )

    letters = features("glyphs/letters", ("train", "test"), ("train",), ("label", "font", "colour"))
    digits = features("digits", ("train", "test"), ("train",))
    tests = tuple(f"{domain}_test" for domain in DOMAINS)
    sources = ("real_train", "sketch_train")
    domains = features("glyphs/domains", sources + tests, sources)
    config.features = ConfigDict({"letters": letters, "digits": digits, "domains": domains})

    config.tasks = ConfigDict(
        {
            "letters": task("letters", "id", "label", "train", ("test",)),
            "font": task("letters", "id", "font", "train", ("test",)),
            "colour": task("letters", "id", "colour", "train", ("test",)),
            "digits": task("digits", "id", "label", "train", ("test",)),
        }
    )
    for source in ("real", "sketch"):
        targets = tuple(f"{domain}_test" for domain in DOMAINS if domain != source)
        config.tasks[f"domains_{source}"] = task(
            "domains", "ood", "label", f"{source}_train", targets, (f"{source}_test",)
        )
    if smoke:  # one task of each suite
        for name in ("font", "colour", "domains_sketch", "letters"):
            del config.tasks[name]
        del config.features["letters"]

    probe = linear_probe.get_config(arg)
    if not smoke:
        probe.fractions = (0.1, 0.25, 0.5, 0.75, 1.0)
    config.methods = ConfigDict(
        {"linear_probe": probe, "mlp": mlp.get_config(arg), "nmtune": nmtune.get_config(arg)}
    )
    for method in config.methods.values():
        method.save = ()
    config.analysis = spectrum.get_config(arg)
    config.progress = True
    return config


def features(
    name: str, splits: tuple[str, ...], augmented: tuple[str, ...], labels: tuple[str, ...] = ("label",)
) -> ConfigDict:
    """What a study extracts of one data set."""
    config = default.get_config()
    config.data.name, config.splits, config.augmented, config.labels = name, splits, augmented, labels
    config.views = 3
    config.data.in_memory = True
    return config


def task(
    features: str,
    suite: str,
    label: str,
    train: str,
    tests: tuple[str, ...],
    source_tests: tuple[str, ...] = (),
) -> ConfigDict:
    """A downstream task: which features and label, trained on which split, tested on which."""
    return ConfigDict(
        {
            "features": features,
            "suite": suite,
            "label": label,
            "train": train,
            "tests": tests,
            "source_tests": source_tests,
        }
    )
