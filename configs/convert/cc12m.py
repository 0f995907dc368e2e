"""CC12M, Conceptual 12M (Changpinyo et al. 2021): 12.4 million pairs, from img2dataset's shards to ArrayRecord.

    wget https://storage.googleapis.com/conceptual_12m/cc12m.tsv      # 2.6 GB; put a line url<TAB>caption before it
    img2dataset --url_list=cc12m.tsv --input_format=tsv --url_col=url --caption_col=caption \
        --output_format=webdataset --output_folder=SHARDS --image_size=256 --processes_count=16 --thread_count=64
    python -m nml_jax.main --config=configs/convert/cc12m.py --workdir=DIR --config.sources.cc12m=SHARDS

and then train with --config.data_dir=DIR --config.data.name=cc12m. img2dataset's documentation says 5 hours at 630
pairs/s, and 331 GB. URLs die: the copy pixparse/cc12m-wds (December 2023) has about 11 million of 12,423,374 pairs.
`:beam`, and more of this: cc3m.py.
"""

from ml_collections import ConfigDict

from configs.convert import pairs


def get_config(arg: str | None = None) -> ConfigDict:
    """The config; `arg` as in pairs.py."""
    return pairs.webdataset("cc12m", ("cc12m",), arg)
