"""ResNet-18 on CIFAR-10 with instance-dependent label noise (Xia et al. 2020).

    python -m nml_jax.main --config=configs/pretrain/cifar10_instance.py --workdir=DIR --config.data_dir=DATA \
        --config.noise.ratio=0.2

What an image looks like decides which wrong label it gets. `--config.noise.options.mode=official` draws every label
with its own rate, as the published code does: 10.1, 12.9, 20.6 and 30.0 % are then wrong for 0.05, 0.1, 0.2 and 0.3.
Time and accuracy: as configs/pretrain/cifar10.py, less what the wrong labels cost.
"""

from ml_collections import ConfigDict

from configs.pretrain import cifar10


def get_config(arg: str | None = None) -> ConfigDict:
    """The config; "smoke" is two epochs of 512 images."""
    config = cifar10.get_config(arg)
    config.noise = ConfigDict(
        {"name": "instance", "ratio": 0.0, "seed": 0, "options": {"mode": "exact", "deviation": 0.1}}
    )
    return config
