"""The MLP baseline on stored features: NMTune's head without regularisers.

    python -m nml_jax.main --config=configs/tune/mlp.py --config.inputs.features=FEATURES --workdir=DIR

AdamW, lr 1e-3, weight decay 1e-4, 30 epochs, cosine to zero (ICLR 2024, appendix, and the README of the code);
batch 64 as in the code (and its seed 3907; the paper names no batch size). The head is the official code's: MLP with
BatchNorm and residual, two augmented views a step. With `:paper` it is the paper's: no BatchNorm, no residual, one
view (configs/tune/mlp.py:paper). Any of its values can be given, such as --config.head.expansion=2.
"""

from ml_collections import ConfigDict

from nml_jax.tune import mlp

ARGS = ("official", "paper", "smoke")


def get_config(arg: str | None = None) -> ConfigDict:
    """The config with the head "official" (also if none is named) or "paper".

    "smoke" is the official one with two epochs on a quarter of the data.
    """
    if arg not in (None, *ARGS):
        raise ValueError(f"Unknown config argument {arg!r}; valid: {', '.join(ARGS)}, or none.")
    config = ConfigDict()
    config.stage = "tune"
    config.method = "mlp"
    config.name = "mlp"  # how the report calls it
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
    config.head = ConfigDict(mlp.PRESETS["paper" if arg == "paper" else "official"])
    config.progress = True
    if arg == "smoke":
        config.epochs = 2
        config.fractions = (0.25,)
    return config.lock()
