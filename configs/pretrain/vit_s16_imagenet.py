"""ViT-S/16 on ImageNet-1k with label noise: 90 epochs of AdamW at 224 px, 76.5 % clean.

    python -m nml_jax.main --config=configs/pretrain/vit_s16_imagenet.py --workdir=DIR --config.data_dir=DATA \
        --config.noise.ratio=0.1

Source: Beyer et al. 2022, "Better plain ViT baselines for ImageNet-1k" (arXiv 2205.01580): 76.5 % in 6 to 7 h on a TPU
v3-8; with --config.epochs=300 80.0 %. Mean pooling and fixed sine-cosine positions, RandAugment, mixup 0.2. Not run
here. `:asymmetric` and the data: see resnet50_imagenet.py.
"""

from ml_collections import ConfigDict

from configs.pretrain import resnet50_imagenet


def get_config(arg: str | None = None) -> ConfigDict:
    """The config; `arg` as in resnet50_imagenet.py."""
    config = vit(variant="vit_s16", batch_size=1024, epochs=90, magnitude=10.0, mixup=0.2)
    config.model.options.update(pool="mean", class_token=False, position="sincos2d")
    return resnet50_imagenet.variant(config, arg)


def vit(*, variant: str, batch_size: int, epochs: int, magnitude: float, mixup: float) -> ConfigDict:
    """What the ViT recipes share."""
    config = resnet50_imagenet.imagenet(batch_size=batch_size, epochs=epochs)
    config.data.mean = config.data.std = (0.5, 0.5, 0.5)
    config.data.augment.scale = (0.05, 1.0)
    config.data.augment.rand_augment = ConfigDict(
        {"ops": 2, "magnitude": magnitude, "std": 0.0, "increasing": False, "probability": 1.0}
    )
    config.mixing.mixup = mixup
    config.model = ConfigDict(
        {
            "name": "vit",
            "options": {
                "variant": variant,
                "pool": "token",
                "class_token": True,
                "position": "learned",
                "dtype": "bfloat16",
                "drop_path": 0.0,
                "remat": "none",
            },
        }
    )
    config.optim = ConfigDict(
        {
            "name": "adamw",
            "learning_rate": 1e-3,
            "weight_decay": 0.1,  # 1e-4 of the parameter a step at the full learning rate
            "decay": "matrices",
            "clip_norm": 1.0,
            "warmup_steps": 10_000,
        }
    )
    return config
