"""NMTune on stored features.

    python -m nml_jax.main --config=configs/tune/nmtune.py --config.inputs.features=FEATURES --workdir=DIR

AdamW, lr 1e-3, weight decay 1e-4, 30 epochs, cosine to zero (ICLR 2024, appendix, and the README of the code);
batch 64 as in the code (and its seed 3907; the paper names no batch size). Head and weights are the official code's:
MLP with BatchNorm and residual, two augmented views a step, weights 1.0, 0.04 and 0.001, five singular values. With
`:paper` they are those of eqs. 3-6: plain MLP, one view, 0.01 each, one singular value (configs/tune/nmtune.py:paper).
Any value can be given, such as --config.head.covariance_weight=0.1.
"""

from ml_collections import ConfigDict

from configs.tune import linear_probe
from nml_jax.tune import nmtune

ARGS = ("official", "paper", "smoke")


def get_config(arg: str | None = None) -> ConfigDict:
    """The config with the head "official" (also if none is named) or "paper".

    "smoke" is the official one with two epochs on a quarter of the data.
    """
    if arg not in (None, *ARGS):
        raise ValueError(f"Unknown config argument {arg!r}; valid: {', '.join(ARGS)}, or none.")
    config = linear_probe.get_config("smoke" if arg == "smoke" else None)
    config.method = config.name = "nmtune"
    config.optim.learning_rate = 1e-3
    config.sweep.update(dict.fromkeys(nmtune.SWEEPABLE, ()))
    config.head = ConfigDict(nmtune.PRESETS["paper" if arg == "paper" else "official"])
    return config
