"""Linear probe on stored features.

    python -m nml_jax.main --config=configs/tune/linear_probe.py --config.inputs.features=FEATURES --workdir=DIR

AdamW, 30 epochs, cosine to zero. The official code and its README have lr 0.01, weight decay 1e-4, batch 64 (and
seed 3907), which is what stands here; the ICLR 2024 appendix prints lr 0.1 and weight decay 0, that is
--config.optim.learning_rate=0.1 --config.optim.weight_decay=0. The papers' curves over the amount of data have
--config.fractions='(0.1, 0.25, 0.5, 0.75, 1.0)'.
"""

from ml_collections import ConfigDict

ARGS = ("smoke",)


def get_config(arg: str | None = None) -> ConfigDict:
    """The config; "smoke" is the same with two epochs on a quarter of the data."""
    if arg not in (None, *ARGS):
        raise ValueError(f"Unknown config argument {arg!r}; valid: {', '.join(ARGS)}, or none.")
    config = ConfigDict()
    config.stage = "tune"
    config.method = "linear_probe"
    config.name = "linear_probe"  # how the report calls it
    config.train, config.test = "", ""  # files of embeddings and labels: .npz, .safetensors or .parquet; or
    config.inputs = ConfigDict({"features": ""})  # the work directory of a features stage
    config.inputs.train, config.inputs.test = config.get_ref("train"), config.get_ref("test")
    config.task = ConfigDict(
        {
            "name": "",  # empty: what the data is called
            "suite": "id",  # or "ood"
            "label": "label",
            "train": "train",
            "tests": ("test",),
            "source_tests": (),  # of an OOD task: test splits of the training split's own domain
        }
    )
    config.fractions = (1.0,)
    config.noise = ConfigDict({"name": "symmetric", "ratio": 0.0, "options": {}})  # wrong labels to tune on
    config.seed = 0
    config.batch_size = 64
    config.epochs = 30
    config.optim = ConfigDict(
        {
            "name": "adamw",
            "learning_rate": 0.01,
            "weight_decay": 1e-4,
            "schedule": "cosine",
            "warmup_steps": 0,
        }
    )
    config.head = ConfigDict()
    config.sweep = ConfigDict(dict.fromkeys(("noise_ratio", "seed", "learning_rate", "weight_decay"), ()))
    config.validation = (
        0.0  # fraction of the training rows to choose on among the heads of a sweep, and to stop early
    )
    config.patience = 0  # epochs without a better validation after which a head stops; 0: it does not
    config.save = ("head", "predictions")
    config.progress = True
    if arg == "smoke":
        config.epochs = 2
        config.fractions = (0.25,)
    return config
