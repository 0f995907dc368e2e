"""Reads image folders: KEY.jpg (png, webp, ...) with KEY.txt, KEY.json or both; a folder is a shard.

img2dataset writes them with --output_format=files, 10,000 pairs a folder.
"""

import os
from collections.abc import Iterator
from pathlib import Path

from nml_jax.convert.shard import ABOUT, IMAGES, TEXT, Sample, Shard, assemble, split_name
from nml_jax.core.errors import UserError


def shards(source: str, place: str, *, scratch: str) -> list[Shard]:
    """Every folder in `place` that has images or captions in it, and `place` itself if it has.

    Raises:
      UserError: there is none.
    """
    del scratch
    found = []
    for folder, folders, files in os.walk(place):
        folders.sort()
        if any(split_name(name)[1] in (*IMAGES, TEXT) for name in files):
            name = Path(folder).relative_to(place).as_posix()
            found.append(Shard(source, name, folder))
    if not found:
        raise UserError(
            f"sources.{source}={place!r} has no folder with images (.{', .'.join(IMAGES)}) or captions (.{TEXT}) in "
            "it. Give the folder that img2dataset wrote with --output_format=files; for tar shards say "
            "--config.read.name=webdataset."
        )
    return sorted(found, key=lambda shard: shard.name)


def samples(shard: Shard, faults: list[str]) -> Iterator[Sample]:
    """The pairs of a folder, by key."""
    del faults
    found: dict[str, dict[str, list[str]]] = {}
    for name in sorted(os.listdir(shard.path)):
        key, extension = split_name(name)
        path = os.path.join(shard.path, name)
        if extension in (*IMAGES, TEXT, ABOUT) and os.path.isfile(path):
            found.setdefault(key, {}).setdefault(extension, []).append(path)
    for key, files in found.items():
        yield assemble(
            f"{shard.name}/{key}",
            {extension: os.path.getsize(several[0]) for extension, several in files.items()},
            lambda extension, files=files: Path(files[extension][0]).read_bytes(),
        )
        # a.jpg beside a.png: which of them the caption is for nobody knows, and one is enough.
        for _ in range(sum(len(several) for kind, several in files.items() if kind in IMAGES) - 1):
            yield Sample(f"{shard.name}/{key}", fault="duplicate_id")
