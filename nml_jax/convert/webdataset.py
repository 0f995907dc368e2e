"""Reads tar shards: KEY.jpg (png, webp, ...) with KEY.txt, KEY.json or both, in any order.

A member's name is a key and nothing else: no file is ever made from it. The headers are read first, so a pair is found
wherever its pieces lie; then one pair at a time is in memory.
"""

import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

from nml_jax.convert.shard import ABOUT, IMAGES, TEXT, Sample, Shard, assemble, split_name
from nml_jax.core.errors import UserError


class Piece(NamedTuple):
    """Where the content of a member lies in the tar, in bytes."""

    offset: int
    size: int


def shards(source: str, place: str, *, scratch: str) -> list[Shard]:
    """Every .tar file in the folder `place`, or `place` itself.

    Raises:
      UserError: there is none.
    """
    del scratch
    root = Path(place)
    files = [root] if root.is_file() else sorted(root.rglob("*.tar"), key=lambda p: p.as_posix())
    if not files:
        raise UserError(
            f"sources.{source}={place!r} has no .tar files. Give the folder that img2dataset wrote with "
            "--output_format=webdataset; for its image folders say --config.read.name=folders, for a table of file "
            "names and captions use configs/convert/table.py."
        )
    base = root.parent if root.is_file() else root
    return [Shard(source, p.relative_to(base).with_suffix("").as_posix(), str(p)) for p in files]


def samples(shard: Shard, faults: list[str]) -> Iterator[Sample]:
    """The pairs of a tar in the order in which they begin; a damaged tar ends where the damage is."""
    with open(shard.path, "rb") as file:
        found = _index(file, faults)
        for key, pieces in found.items():
            yield assemble(
                f"{shard.name}/{key}",
                {extension: several[0].size for extension, several in pieces.items()},
                lambda extension, pieces=pieces: _read(file, pieces[extension][0]),
            )
            images = sum(len(several) for extension, several in pieces.items() if extension in IMAGES)
            for _ in range(images - 1):
                yield Sample(f"{shard.name}/{key}", fault="duplicate_id")


def _read(file: IO[bytes], piece: Piece) -> bytes:
    file.seek(piece.offset)
    return file.read(piece.size)


def _index(file: IO[bytes], faults: list[str]) -> dict[str, dict[str, list[Piece]]]:
    """key -> extension -> pieces, those of the first pair of that key first."""
    found: dict[str, dict[str, list[Piece]]] = {}
    size = os.fstat(file.fileno()).st_size
    at = 0
    try:
        # Uncompressed only: the others cannot be read at random.
        archive = tarfile.TarFile(fileobj=file, mode="r")
        while (member := archive.next()) is not None:
            archive.members.clear()  # it keeps them all
            if member.size < 0 or archive.offset <= at:  # a damaged header must not lead backwards
                faults.append("damaged_tar")
                return found
            at = archive.offset
            if not member.isreg() or member.issparse():
                continue
            if member.offset_data + member.size > size:
                faults.append("truncated_tar")
                return found
            key, extension = split_name(member.name)
            if extension in (*IMAGES, TEXT, ABOUT):
                pieces = found.setdefault(key, {}).setdefault(extension, [])
                pieces.append(Piece(member.offset_data, member.size))
    except (tarfile.TarError, ValueError, OverflowError, EOFError, RecursionError):
        faults.append("truncated_tar" if found or size == 0 else "not_a_tar")
        return found
    # A whole archive ends with blocks of zeros.
    file.seek(archive.offset)
    rest = file.read(tarfile.BLOCKSIZE)
    if rest != bytes(tarfile.BLOCKSIZE):
        faults.append("damaged_tar" if len(rest) == tarfile.BLOCKSIZE else "truncated_tar")
    return found
