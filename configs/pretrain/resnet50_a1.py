"""ResNet-50 on ImageNet-1k with label noise, "ResNet strikes back" A1: 600 epochs at 224 px, 80.4 % clean.

    python -m nml_jax.main --config=configs/pretrain/resnet50_a1.py --workdir=DIR --config.data_dir=DATA \
        --config.noise.ratio=0.1

Source: Wightman et al. 2021 (arXiv 2110.00476), Tables 1 and 2: LAMB, binary cross-entropy, mixup, CutMix, RandAugment,
repeated augmentation, stochastic depth; 80.4 % (hours: its Table 1). The papers on noise follow it without saying
which of A1, A2 and A3 (their clean model has 79.96 %). Not run here: that is days on a node of accelerators. There is
no moving average in it; --config.average_decay=0.9999 keeps one. `:asymmetric`, the data: see resnet50_imagenet.py.
"""

from ml_collections import ConfigDict

from configs.pretrain import resnet50_imagenet


def get_config(arg: str | None = None) -> ConfigDict:
    """The config; `arg` as in resnet50_imagenet.py."""
    config = strikes_back(epochs=600, learning_rate=5e-3, weight_decay=0.01, magnitude=7.0, mixup=0.2)
    config.model.options.drop_path = 0.05
    config.data.repeats = 3
    config.loss.label_smoothing = 0.1
    return resnet50_imagenet.variant(config, arg)


def strikes_back(
    *, epochs: int, learning_rate: float, weight_decay: float, magnitude: float, mixup: float, size: int = 224
) -> ConfigDict:
    """What A1, A2 and A3 share."""
    config = resnet50_imagenet.imagenet(batch_size=2048, epochs=epochs, size=size, crop_pct=0.95)
    config.data.augment.rand_augment = ConfigDict(
        {"ops": 2, "magnitude": magnitude, "std": 0.5, "increasing": True, "probability": 0.5}
    )
    config.mixing.update(mixup=mixup, cutmix=1.0)
    config.loss.name = "binary_cross_entropy"
    config.optim = ConfigDict(
        {
            "name": "lamb",
            "learning_rate": learning_rate,
            "weight_decay": weight_decay,
            "decay": "matrices",
            "eps": 1e-6,
            "clip_norm": 1.0,  # part of timm's LAMB
            "warmup_steps": 5 * resnet50_imagenet.IMAGES // 2048,
        }
    )
    return config
