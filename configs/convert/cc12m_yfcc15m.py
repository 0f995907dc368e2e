"""CC12M and YFCC15M as one data set, for the ViT-B/16 of the journal version: about 26 million pairs, to ArrayRecord.

    python -m nml_jax.main --config=configs/convert/cc12m_yfcc15m.py --workdir=DIR \
        --config.sources.cc12m=SHARDS --config.sources.yfcc15m=MORE_SHARDS

and then train with --config.data_dir=DIR --config.data.name=cc12m_yfcc15m. How to get the shards: cc12m.py, yfcc15m.py.
"""

from ml_collections import ConfigDict

from configs.convert import pairs


def get_config(arg: str | None = None) -> ConfigDict:
    """The config; `arg` as in pairs.py."""
    return pairs.webdataset("cc12m_yfcc15m", ("cc12m", "yfcc15m"), arg)
