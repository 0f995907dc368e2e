"""NMTune on stored features.

    python -m nml_jax.main --config=configs/tune/nmtune.py --config.inputs.features=FEATURES --workdir=DIR

AdamW, lr 1e-3, weight decay 1e-4, 30 epochs, cosine to zero (ICLR 2024, appendix, and the README of the code);
batch 64 as in the code (and its seed 3907; the paper names no batch size). Head and weights are the official code's:
MLP with BatchNorm and residual, two augmented views a step, weights 1.0, 0.04 and 0.001, five singular values. With
`:paper` they are those of eqs. 3-6: plain MLP, one view, 0.01 each, one singular value (configs/tune/nmtune.py:paper).
Any value can be given, such as --config.head.covariance_weight=0.1.
"""

from ml_collections import ConfigDict

from nml_jax.tune import nmtune

ARGS = ("official", "paper", "smoke")


def get_config(arg: str | None = None) -> ConfigDict:
    """The config with the head "official" (also if none is named) or "paper".

    "smoke" is the official one with two epochs on a quarter of the data.
    """
    if arg not in (None, *ARGS):
        raise ValueError(f"Unknown config argument {arg!r}; valid: {', '.join(ARGS)}, or none.")
    config = ConfigDict()
    config.stage = "tune"
    config.method = "nmtune"
    config.name = "nmtune"  # how the report calls it
    config.inputs = ConfigDict({"features": ""})  # the work directory of a features stage
    config.task = ConfigDict(
        {
            "name": "letters",
            "suite": "id",  # or "ood"
            "label": "label",
            "train": "train",
            "tests": ("test",),
            "source_tests": (),  # of an OOD task: test splits of the training split's own domain
        }
    )
    config.fractions = (1.0,)
    config.seed = 0
    config.batch_size = 64
    config.epochs = 30
    config.optim = ConfigDict(
        {
            "name": "adamw",
            "learning_rate": 1e-3,
            "weight_decay": 1e-4,
            "schedule": "cosine",
            "warmup_steps": 0,
        }
    )
    config.head = ConfigDict(nmtune.PRESETS["paper" if arg == "paper" else "official"])
    config.progress = True
    if arg == "smoke":
        config.epochs = 2
        config.fractions = (0.25,)
    return config.lock()
