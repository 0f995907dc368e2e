"""Image-text pairs of your own in tar shards or image folders, as img2dataset writes them, to ArrayRecord.

    python -m nml_jax.main --config=configs/convert/pairs.py --workdir=DIR --config.sources.pairs=SHARDS \
        --config.name=mine

and then train with --config.data_dir=DIR --config.data.name=mine. Shards have KEY.jpg (png, webp) and KEY.txt or
KEY.json ("caption"); --config.read.name=folders reads the same in folders. Images with a table of captions: table.py.

A record's id is "<source>/<shard>/<key>"; img2dataset's key is the row in the list of URLs, so noise that is keyed by
it is the same in every copy of the list. --config.keep.id=uid, url or sha256 takes these of KEY.json; of pairs with
the same id the first stays. Every image is decoded once; --config.keep.verify=False looks at headers only, and leaves
what is broken behind them to be replaced while training.
"""

from collections.abc import Sequence

from ml_collections import ConfigDict


def get_config(arg: str | None = None) -> ConfigDict:
    """The config; `arg`: "smoke" takes one process, "beam" runs an Apache Beam pipeline."""
    return webdataset("pairs", ("pairs",), arg)


def webdataset(name: str, sources: Sequence[str], arg: str | None) -> ConfigDict:
    """The conversion of tar shards from `sources` to the data set `name`."""
    if arg not in (None, "smoke", "beam"):
        raise ValueError(f"Unknown config argument {arg!r}; valid: smoke, beam, or none.")
    config = ConfigDict()
    config.stage = "convert"
    config.name, config.split = name, "train"
    config.sources = ConfigDict(dict.fromkeys(sources, ""))  # folders, by the name that ids begin with
    config.read = ConfigDict({"name": "webdataset", "options": {}})
    config.keep = ConfigDict(
        {
            "id": "key",  # or "uid", "url", "sha256"
            "fields": (),  # of KEY.json, kept as text beside id, image and caption
            "verify": True,  # decode every image, not its header only
            "min_side": 16,  # pixels
            "max_aspect": 20.0,
            "max_pixels": 89_478_485,  # above it Pillow suspects a decompression bomb
        }
    )
    config.runner = ConfigDict({"name": "local", "options": {"workers": 8}})
    if arg == "smoke":
        config.runner.options.workers = 0
    if arg == "beam":
        config.runner = ConfigDict({"name": "beam", "options": {"flags": ("--runner=DirectRunner",)}})
    config.progress = True
    return config
