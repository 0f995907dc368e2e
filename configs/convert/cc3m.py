"""CC3M, Conceptual Captions (Sharma et al. 2018): 3.3 million pairs, from img2dataset's shards to ArrayRecord.

    img2dataset --url_list=cc3m.tsv --input_format=tsv --url_col=url --caption_col=caption \
        --output_format=webdataset --output_folder=SHARDS --image_size=256 --processes_count=16 --thread_count=64
    python -m nml_jax.main --config=configs/convert/cc3m.py --workdir=DIR --config.sources.cc3m=SHARDS

and then train with --config.data_dir=DIR --config.data.name=cc3m. The list (500 MB) is `Train_GCC-training.tsv` of
https://ai.google.com/research/ConceptualCaptions/download; put a first line `caption<TAB>url` before it. Its authors do
not give out images, and sites go: of 3,318,333 URLs, 2,905,954 (88 %) were there in December 2021 (the card of the data
set pixparse/cc3m-wds); img2dataset says how many you got, and so does DIR/report.json. img2dataset's documentation says
an hour on 16 cores with 2 Gbit/s. The conversion decodes every image, so give it the cores there are:
--config.runner.options.workers=16. Interrupt it as you like; the same command goes on.

`:beam` runs the same conversion as an Apache Beam pipeline (pip install 'nml_jax[convert]', in an environment of its
own: Beam wants older pillow, protobuf and pyarrow than requirements.txt has); say where with
--config.runner.options.flags="('--runner=FlinkRunner', ...)".
"""

from ml_collections import ConfigDict

from configs.convert import pairs


def get_config(arg: str | None = None) -> ConfigDict:
    """The config; `arg` as in pairs.py."""
    return pairs.webdataset("cc3m", ("cc3m",), arg)
