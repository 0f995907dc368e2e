"""Supervised pre-training on the embedded glyphs with asymmetric noise: labels flip within their script.

    python -m nml_jax.main --config=configs/pretrain/glyphs_asymmetric.py --workdir=DIR --config.noise.ratio=0.1

A Latin letter is mistaken for another Latin letter, a symbol for another symbol. In place of `related`, the options
take `transition`, a matrix of class x class.
"""

from ml_collections import ConfigDict

from configs.pretrain import glyphs_supervised
from nml_jax.data import glyphs


def get_config(arg: str | None = None) -> ConfigDict:
    """The config; "smoke" is two epochs of 512 images."""
    config = glyphs_supervised.get_config(arg)
    scripts = [glyphs.script(name) for name in glyphs.CLASSES["glyphs/pretrain"]]
    related = tuple(tuple(i for i, s in enumerate(scripts) if s == script) for script in glyphs.SCRIPTS)
    config.noise = ConfigDict(
        {"name": "asymmetric", "ratio": 0.0, "seed": 0, "options": {"related": related}}
    )
    return config
