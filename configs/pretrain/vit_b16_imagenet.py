"""ViT-B/16 on ImageNet-1k with label noise: 300 epochs of AdamW at 224 px, after AugReg.

    python -m nml_jax.main --config=configs/pretrain/vit_b16_imagenet.py --workdir=DIR --config.data_dir=DATA \
        --config.noise.ratio=0.1

Source: Steiner et al. 2021, "How to train your ViT?" (arXiv 2106.10270), in batches of 4096 with its "medium2"
augmentation for B/16: RandAugment of two operations, mixup 0.5. RandAugment's level 15 there goes beyond timm's scale,
whose highest, 10, stands here. The papers on noise do not publish the recipe of their ViT-B/16, which has 78.70, 78.13,
77.19, 74.67, 68.12 % at 0, 5, 10, 20, 30 % noise (TPAMI 2025, Table 1). Not run here: days on a pod slice of
accelerators. `:asymmetric` and the data: see resnet50_imagenet.py. Where memory is short: --config.accumulate=4, or
--config.model.options.remat=block.
"""

from ml_collections import ConfigDict

from configs.pretrain import resnet50_imagenet, vit_s16_imagenet


def get_config(arg: str | None = None) -> ConfigDict:
    """The config; `arg` as in resnet50_imagenet.py."""
    config = vit_s16_imagenet.vit(variant="vit_b16", batch_size=4096, epochs=300, magnitude=10.0, mixup=0.5)
    return resnet50_imagenet.variant(config, arg)
