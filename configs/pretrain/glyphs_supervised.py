"""Supervised pre-training of a small ResNet on the embedded glyphs, with symmetric label noise.

python -m nml_jax.main --config=configs/pretrain/glyphs_supervised.py --workdir=DIR --config.noise.ratio=0.1
"""

from ml_collections import ConfigDict

from nml_jax.data.augment import IMAGENET_MEAN, IMAGENET_STD


def get_config(arg: str | None = None) -> ConfigDict:
    if arg not in (None, "smoke"):
        raise ValueError(f"Unknown config argument {arg!r}; valid: smoke.")
    c = ConfigDict()
    c.stage = "pretrain"
    c.objective = "supervised"
    c.seed = 0
    c.data_dir = ""
    c.data = ConfigDict(
        {
            "name": "glyphs/pretrain",
            "train": "train",
            "test": "test",
            "label": "label",
            "caption": "caption",
            "mean": IMAGENET_MEAN,
            "std": IMAGENET_STD,
            "augment": {"name": "shift_crop", "size": 32, "padding": 2, "flip": False},
            "evaluate": {"size": 32, "crop_pct": 1.0},
            "eval_batch_size": 256,
            "in_memory": True,
            "num_workers": 0,
            "decoder": "pillow",
            "repeats": 1,  # how often a record comes in a batch, each time augmented anew
            "max_undecodable": 0.001,  # more images than this fraction that cannot be decoded end the run
        }
    )
    c.noise = ConfigDict({"name": "symmetric", "ratio": 0.0, "seed": 0, "options": {}})
    c.model = ConfigDict(
        {"name": "resnet", "options": {"stages": (1, 1, 1), "width": 16, "stem": "imagenet"}}
    )
    c.mixing = ConfigDict({"mixup": 0.0, "cutmix": 0.0, "probability": 1.0, "switch": 0.5})
    c.loss = ConfigDict({"name": "cross_entropy", "label_smoothing": 0.0, "target_threshold": 0.0})
    c.optim = ConfigDict(
        {
            "name": "adamw",
            "learning_rate": 5e-3,
            "weight_decay": 0.02,
            "decay": "matrices",
            "warmup_steps": 50,
        }
    )
    c.average_decay = 0.0  # of the moving average of the parameters that is evaluated and used; 0: none
    c.batch_size = 32
    c.accumulate = 1  # microbatches a step
    c.epochs = 2
    c.mesh = ConfigDict({"fsdp": 1})
    c.save_every = 250
    c.log_every = 25
    c.eval_every = 0  # steps between evaluations; 0: at the end only
    c.progress = True
    if arg == "smoke":
        c.data.train, c.data.test = "train[:512]", "test[:256]"
        c.batch_size, c.epochs, c.save_every, c.log_every = 128, 2, 4, 2
    return c
