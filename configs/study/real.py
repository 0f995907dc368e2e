"""The study on real images: 32 px ImageNet of 200 classes, CIFAR-10 and CIFAR-100 (ID), emoji in four styles (OOD).

    python -m nml_jax.main --config=configs/study/real.py --workdir=runs/real --config.data_dir=DATA

DATA holds the TFDS folders `tiny_imagenet32`, `cifar10`, `cifar100` and `emoji_styles` in array_record format. The two
CIFARs are in TFDS's catalogue (`tfds build cifar10 --file_format=array_record --data_dir=DATA`).
"""

from ml_collections import ConfigDict

from configs.pretrain import tiny_imagenet32
from configs.study import demo

STYLES = ("noto", "twemoji", "openmoji", "openmoji_black")


def get_config(arg: str | None = None) -> ConfigDict:
    """The config; "smoke" is one seed, two noise ratios and a few steps of everything."""
    config = demo.get_config(arg)
    smoke = arg == "smoke"
    config.name = "real"
    config.title = "Noisy Model Learning on real images"
    config.command = (
        "python -m nml_jax.main --config=configs/study/real.py --workdir=runs/real --config.data_dir=DATA"
    )
    config.objectives = ConfigDict({"supervised": tiny_imagenet32.get_config(arg)})
    config.seeds = ConfigDict({"supervised": (0,) if smoke else (0, 1, 2)})

    train, test = ("train[:256]", "test[:128]") if smoke else ("train[:5000]", "test")
    cifar10 = _features("cifar10", (train, test), (train,), flip=True)
    cifar100 = _features("cifar100", (train, test), (train,), flip=True)
    tests = tuple(f"{style}_test" for style in STYLES)
    emoji = _features("emoji_styles", ("noto_train", *tests), ("noto_train",), flip=True)
    emoji.labels = ("group",)
    config.features = ConfigDict({"cifar10": cifar10, "cifar100": cifar100, "emoji": emoji})
    config.tasks = ConfigDict(
        {
            "cifar10": demo.task("cifar10", "id", "label", train, (test,)),
            "cifar100": demo.task("cifar100", "id", "label", train, (test,)),
            "emoji": demo.task("emoji", "ood", "group", "noto_train", tests[1:], tests[:1]),
        }
    )
    return config


def _features(name: str, splits: tuple[str, ...], augmented: tuple[str, ...], *, flip: bool) -> ConfigDict:
    config = demo.features(name, splits, augmented)
    config.data.augment.flip = flip
    return config
