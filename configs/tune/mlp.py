"""The MLP baseline on stored features: NMTune's head without regularisers.

    python -m nml_jax.main --config=configs/tune/mlp.py --config.inputs.features=FEATURES --workdir=DIR

AdamW, lr 1e-3, weight decay 1e-4, 30 epochs, cosine to zero (ICLR 2024, appendix, and the README of the code);
batch 64 as in the code (and its seed 3907; the paper names no batch size). The head is the official code's: MLP with
BatchNorm and residual, two augmented views a step. With `:paper` it is the paper's: no BatchNorm, no residual, one
view (configs/tune/mlp.py:paper). Any of its values can be given, such as --config.head.expansion=2.
"""

from ml_collections import ConfigDict

from configs.tune import linear_probe
from nml_jax.tune import mlp

ARGS = ("official", "paper", "smoke")


def get_config(arg: str | None = None) -> ConfigDict:
    """The config with the head "official" (also if none is named) or "paper".

    "smoke" is the official one with two epochs on a quarter of the data.
    """
    if arg not in (None, *ARGS):
        raise ValueError(f"Unknown config argument {arg!r}; valid: {', '.join(ARGS)}, or none.")
    config = linear_probe.get_config("smoke" if arg == "smoke" else None)
    config.method = config.name = "mlp"
    config.optim.learning_rate = 1e-3
    config.head = ConfigDict(mlp.PRESETS["paper" if arg == "paper" else "official"])
    return config
