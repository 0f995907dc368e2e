"""ResNet-18 on CIFAR-10 with the labels that people gave (CIFAR-10N, Wei et al. 2022).

    python -m nml_jax.main --config=configs/pretrain/cifar10_human.py --workdir=DIR --config.data_dir=DATA \
        --config.noise.options.file=cifar10n.npz --config.noise.ratio=0.1

CIFAR-10N's labels come as CIFAR-10_human.pt, a pickle. Where you trust it, once:

    python -c "import numpy, torch; numpy.savez('cifar10n.npz', **torch.load('CIFAR-10_human.pt', weights_only=False))"

Its columns are aggre_label, random_label1, random_label2, random_label3 and worse_label: 9.0, 17.2, 18.1, 17.6 and
40.2 % wrong. A ratio below that takes so many of the wrong ones; for all of a column as it is, give
`--config.noise.options.mode=all` and its rate as the ratio. TFDS shuffles the images, but names them by their
original order, by which labels and images are brought together, and the file's clean labels are compared.

A class-conditional matrix in place of labels: `--config.noise.options.transition_file=counts.npz` and its name in it as
`column`, with no `file`.
Time and accuracy: as configs/pretrain/cifar10.py, less what the wrong labels cost.
"""

from ml_collections import ConfigDict

from configs.pretrain import cifar10


def get_config(arg: str | None = None) -> ConfigDict:
    """The config; "smoke" is two epochs of 512 images."""
    config = cifar10.get_config(arg)
    config.noise = ConfigDict(
        {
            "name": "human",
            "ratio": 0.0,
            "seed": 0,
            "options": {
                "file": "",
                "transition_file": "",
                "column": "worse_label",
                "clean_column": "clean_label",
                "align": "id_number",
                "mode": "exact",
            },
        }
    )
    return config
