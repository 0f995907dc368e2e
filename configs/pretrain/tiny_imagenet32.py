"""Supervised pre-training on 32 px ImageNet images of 200 classes (a TFDS folder `tiny_imagenet32` in the data folder).

    python -m nml_jax.main --config=configs/pretrain/tiny_imagenet32.py --workdir=DIR --config.data_dir=DATA

A small ResNet for two CPU cores; give `--config.model.options.width=64 --config.epochs=40` where there is a GPU.
"""

from ml_collections import ConfigDict

from configs.pretrain import glyphs_supervised


def get_config(arg: str | None = None) -> ConfigDict:
    """The config; "smoke" is two epochs of 512 images."""
    config = glyphs_supervised.get_config(arg)
    config.data.name = "tiny_imagenet32"
    config.data.test = "validation"
    config.data.augment = ConfigDict({"name": "shift_crop", "size": 32, "padding": 4, "flip": True})
    config.batch_size = 64
    config.epochs = 2
    config.save_every = 500
    config.log_every = 100
    if arg == "smoke":
        config.data.test = "validation[:256]"
        config.epochs, config.save_every, config.log_every = 2, 4, 2
    return config
