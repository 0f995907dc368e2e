"""ResNet-18 on CIFAR-10 with label noise: 30 epochs of SGD at 32 px.

    python -m nml_jax.main --config=configs/pretrain/cifar10.py --workdir=DIR --config.data_dir=DATA \
        --config.noise.ratio=0.1

DATA has CIFAR-10 in array_record format (`tfds build cifar10 --file_format=array_record --data_dir=DATA`). The network
is ResNet-18 with a 3x3 stem; the aim is 93 % clean in 30 epochs, not measured yet. What a shortened
run reached on two CPU cores is in docs/pretraining.md.
"""

from ml_collections import ConfigDict

from configs.pretrain import glyphs_supervised


def get_config(arg: str | None = None) -> ConfigDict:
    """The config; "smoke" is two epochs of 512 images."""
    config = glyphs_supervised.get_config(arg)
    config.data.name = "cifar10"
    config.data.mean, config.data.std = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
    config.data.augment = ConfigDict({"name": "shift_crop", "size": 32, "padding": 4, "flip": True})
    config.model.options = ConfigDict(
        {"variant": "resnet18", "width": 64, "stem": "cifar", "dtype": "float32"}
    )
    config.optim = ConfigDict(
        {
            "name": "sgd",
            "learning_rate": 0.1,
            "momentum": 0.9,
            "weight_decay": 5e-4,
            "decay": "matrices",
            "warmup_steps": 500,
        }
    )
    config.batch_size = 128
    config.epochs = 30
    config.save_every = 390
    config.log_every = 30
    config.eval_every = 390
    if arg == "smoke":
        config.data.test = "test[:256]"
        config.model.options.width, config.optim.warmup_steps = 8, 2
        config.epochs, config.save_every, config.log_every, config.eval_every = 2, 4, 2, 4
    return config
