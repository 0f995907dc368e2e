"""YFCC15M, the part of YFCC100M with English texts that CLIP's authors chose: 14.8 million pairs, to ArrayRecord.

    img2dataset --url_list=yfcc15m.csv --input_format=csv --url_col=URL --caption_col=CAPTION \
        --output_format=webdataset --output_folder=SHARDS --image_size=256 --processes_count=16 --thread_count=64
    python -m nml_jax.main --config=configs/convert/yfcc15m.py --workdir=DIR --config.sources.yfcc15m=SHARDS

and then train with --config.data_dir=DIR --config.data.name=yfcc15m. Which photographs they are (14,829,396) says
https://openaipublic.azureedge.net/clip/data/yfcc100m_subset_data.tsv.bz2, by line, photo id and hash of YFCC100M's
metadata, which come from https://multimediacommons.wordpress.com/yfcc100m-core-dataset/; join both to a table with a
column for the URL and one for the caption, for which title and description are usual. The data set mehdidc/yfcc15m
of the Hugging Face hub is such a table (10 GB) with the script that made it. Flickr keeps most of its photographs:
dalle-mini/YFCC100M_OpenAI_subset got 14,825,233, all but 0.03 %, which are 1.9 TB at their full size. Hours: not
published; CC12M's rate of 630 pairs/s is 6.5 hours. `:beam`, and more of this: cc3m.py.
"""

from ml_collections import ConfigDict

from configs.convert import pairs


def get_config(arg: str | None = None) -> ConfigDict:
    """The config; `arg` as in pairs.py."""
    return pairs.webdataset("yfcc15m", ("yfcc15m",), arg)
