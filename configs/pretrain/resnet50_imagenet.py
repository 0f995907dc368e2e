"""ResNet-50 on ImageNet-1k with symmetric label noise: 90 epochs of SGD at 224 px.

    tfds build imagenet2012 --file_format=array_record --data_dir=DATA     (once; needs TensorFlow and the two archives)
    python -m nml_jax.main --config=configs/pretrain/resnet50_imagenet.py --workdir=DIR --config.data_dir=DATA \
        --config.noise.ratio=0.1

The recipe of Goyal et al. 2017 with label smoothing. Clean, its published accuracies are 76.4 to 76.7 % (the ResNet-50
example of flax) and 77.1 % (NVIDIA's, PyTorch). The papers' own models follow "ResNet strikes back" and reach 79.96 %
clean and 78.61, 76.27, 73.11 % at 10, 20, 30 % noise (ICLR 2024, Table 3). Not run here to its end: it takes hours on
a node of eight accelerators.
"""

from ml_collections import ConfigDict

from configs.pretrain import glyphs_supervised


def get_config(arg: str | None = None) -> ConfigDict:
    """The config; "smoke" is 64 px and a handful of steps."""
    config = glyphs_supervised.get_config()
    config.data.name = "imagenet2012"
    config.data.test = "validation"
    config.data.augment = ConfigDict(
        {"name": "random_resized_crop", "size": 224, "scale": (0.08, 1.0), "flip": True}
    )
    config.data.evaluate.update(size=224, crop_pct=0.875)
    config.data.in_memory = False
    config.data.num_workers = 16
    config.model.options = ConfigDict({"variant": "resnet50", "stem": "imagenet", "dtype": "bfloat16"})
    config.loss.label_smoothing = 0.1
    config.batch_size = 1024
    config.epochs = 90
    # 0.1 for a batch of 256, linearly scaled; five epochs of warm-up
    config.optim.update(learning_rate=0.4, weight_decay=1e-4, warmup_steps=5 * 1_281_167 // 1024)
    config.save_every = 1000
    config.log_every = 100
    if arg == "smoke":
        config.data.augment.size = config.data.evaluate.size = 64
        config.data.eval_batch_size = config.batch_size = 8
        config.data.num_workers, config.epochs, config.optim.warmup_steps = 0, 1, 1
        config.save_every, config.log_every = 2, 1
    elif arg is not None:
        raise ValueError(f"Unknown config argument {arg!r}; valid: smoke, or none.")
    return config
