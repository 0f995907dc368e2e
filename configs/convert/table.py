"""A folder of images with a table of their captions (Parquet, CSV, TSV), to ArrayRecord.

    python -m nml_jax.main --config=configs/convert/table.py --workdir=DIR --config.sources.table=TABLE.csv \
        --config.name=mine --config.read.options.file=filepath --config.read.options.caption=title

and then train with --config.data_dir=DIR --config.data.name=mine. File names are relative to the table's folder, and
are the ids: "table/<file>". Other columns are kept as text if they are named twice:
--config.read.options.also="('tags',)" --config.keep.fields="('tags',)".
"""

from ml_collections import ConfigDict

from configs.convert import pairs


def get_config(arg: str | None = None) -> ConfigDict:
    """The config; `arg` as in pairs.py."""
    config = pairs.webdataset("table", ("table",), arg)
    config.read = ConfigDict(
        {"name": "tables", "options": {"file": "file", "caption": "caption", "also": ()}}
    )
    return config
