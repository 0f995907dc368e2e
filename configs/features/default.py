"""Features of a data set under a pre-trained encoder: clean, and in augmented views for training.

    python -m nml_jax.main --config=configs/features/default.py --workdir=DIR \
        --config.inputs.pretrain=PRETRAINED --config.data.name=glyphs/letters

The head methods that train on augmented images (MLP, NMTune) draw from the stored views, where the official code
encodes the images anew in each of its 30 epochs.
"""

from ml_collections import ConfigDict


def get_config(arg: str | None = None) -> ConfigDict:
    """The config; "smoke" takes a few images."""
    if arg not in (None, "smoke"):
        raise ValueError(f"Unknown config argument {arg!r}; valid: smoke, or none.")
    config = ConfigDict()
    config.stage = "features"
    config.inputs = ConfigDict({"pretrain": ""})  # the work directory of a pretrain stage
    config.data_dir = ""  # empty: $TFDS_DATA_DIR, or ~/tensorflow_datasets
    config.data = ConfigDict(
        {
            "name": "glyphs/letters",
            "augment": {"name": "random_resized_crop", "size": 32, "scale": (0.8, 1.0), "flip": False},
            "evaluate": {"size": 32, "crop_pct": 1.0},
            "eval_batch_size": 256,
            "num_workers": 0,  # processes that decode and transform; 0: a thread, which small images want
            "in_memory": False,  # keep decoded and augmented images, for small data sets under many encoders
        }
    )
    config.splits = ("train", "test")
    config.labels = ("label",)  # the first is y.npy, others y_<label>.npy
    config.augmented = ("train",)
    config.views = 4
    config.seed = 0
    config.progress = True
    if arg == "smoke":
        config.splits, config.augmented, config.views = ("train[:96]", "test[:64]"), ("train[:96]",), 2
    return config
