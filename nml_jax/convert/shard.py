"""A unit of conversion, and what readers find in it: the pieces of image-text pairs."""

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

IMAGES = ("jpg", "jpeg", "png", "webp", "gif", "bmp")
TEXT, ABOUT = "txt", "json"
# Bytes. What is larger is no photograph and no caption, and is not read at all.
LARGEST_IMAGE, LARGEST_TEXT = 256 << 20, 1 << 20


@dataclass(frozen=True)
class Shard:
    """What one worker converts at a time, into one file."""

    source: str  # its name under config.sources
    name: str  # unique within the source, whatever the place
    path: str
    start: int = 0  # rows of a table
    stop: int = 0

    def stamp(self) -> list[int]:
        """Size and time of its file: another stamp means that it must be converted again."""
        status = os.stat(self.path)
        return [status.st_size, status.st_mtime_ns]


class Sample(NamedTuple):
    """A pair as it was found, complete or not."""

    key: str  # names it within its source
    image: bytes | None = None
    caption: Any = (
        None  # bytes of a text file, or whatever JSON or a table holds there; None if there is none
    )
    about: Mapping[str, Any] = {}  # what else is known: url, sha256, ...
    fault: str = ""  # why it cannot be used, if the reader knows


def assemble(key: str, sizes: Mapping[str, int], read: Callable[[str], bytes]) -> Sample:
    """A sample from its files.

    Args:
      sizes: bytes by extension: `jpg`, `txt`, `json` and the like.
      read: extension -> content.
    """
    image = next((kind for kind in IMAGES if kind in sizes), None)
    if sizes.get(image, 0) > LARGEST_IMAGE or max(sizes.get(TEXT, 0), sizes.get(ABOUT, 0)) > LARGEST_TEXT:
        return Sample(key, fault="oversized_file")
    about = {}
    if ABOUT in sizes:
        try:
            about = json.loads(read(ABOUT))
        except (ValueError, RecursionError):
            about = None
        if not isinstance(about, dict):
            return Sample(key, fault="bad_json")
    if image is None:
        return Sample(key, about=about, fault="no_image")
    caption = read(TEXT) if TEXT in sizes else about.get("caption")
    return Sample(key, read(image), caption, about)


def split_name(path: str) -> tuple[str, str]:
    """(key, extension) of a file, split at the first dot of its last part, as WebDataset does; "" for hidden ones."""
    folder, slash, last = path.rpartition("/")
    stem, dot, extension = last.partition(".")
    return (f"{folder}{slash}{stem}", extension.lower()) if stem and dot else ("", "")
