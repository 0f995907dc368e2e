"""What img2dataset leaves behind, whole and broken, made in a moment."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image


def image(seed: int = 0, height: int = 32, width: int = 40, kind: str = "JPEG") -> bytes:
    """A file with an image of its own for each seed."""
    corners = np.random.default_rng(seed).integers(0, 255, (2, 2, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(corners).resize((width, height)).save(buffer, kind)
    return buffer.getvalue()


def pair(key: str, seed: int, caption: str | None = "", **about) -> list[tuple[str, bytes]]:
    """The three files of a pair; `caption` "" is one of its own for each seed."""
    caption = f"caption {seed}" if caption == "" else caption
    facts = {"url": f"http://x.org/{seed}", "key": key, "caption": caption, **about}
    return [
        (f"{key}.jpg", image(seed)),
        (f"{key}.json", json.dumps(facts).encode()),
        (f"{key}.txt", (caption or "").encode()),
    ]


def tar(path: Path, files: list[tuple[str, bytes]]) -> bytes:
    """Writes a tar with these members, and returns its bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in files:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path.read_bytes()


def pairs(first: int, count: int) -> list[tuple[str, bytes]]:
    """Files of `count` good pairs, keys as img2dataset numbers them."""
    return [file for i in range(first, first + count) for file in pair(f"{i:09d}", i)]
