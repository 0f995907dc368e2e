"""JPEG files: their size without decoding, and files cut down to the rows that a crop needs.

ITU-T T.81, annex B: a file is a row of segments, each a marker (0xFF and a code) and, mostly, its length. The frame
header (SOF) says the size; the entropy-coded data follow the scan header (SOS) and run to the end marker (EOI).
"""

from typing import NamedTuple

START, END_OF_IMAGE, FILL = b"\xff\xd8\xff", b"\xff\xd9", 0xFF
# Huffman-coded frames with 8 bits: baseline, extended and progressive. Others are left to the general decoder.
SEQUENTIAL, PROGRESSIVE = (0xC0, 0xC1), 0xC2
SCAN = 0xDA
# A row of blocks beyond the last row that is wanted: upsampled chroma is interpolated from the rows beside it.
MARGIN = 16


class Frame(NamedTuple):
    """What the frame header says."""

    height: int
    width: int
    components: int  # 1 grey, 3 colour, 4 CMYK
    sequential: bool  # its rows can be decoded one after the other
    offset: int  # of the two bytes with the height


def frame(encoded: bytes) -> Frame | None:
    """The frame header of a whole JPEG file, or None: no such file, an unusual kind, or one that lacks its end."""
    if encoded[:3] != START:
        return None
    at = 2
    while at + 10 <= len(encoded) and encoded[at] == FILL:
        code = encoded[at + 1]
        if code == FILL:  # any number of them may stand before a marker
            at += 1
        elif code in SEQUENTIAL or code == PROGRESSIVE:
            precision, height, width = encoded[at + 4], encoded[at + 5 : at + 7], encoded[at + 7 : at + 9]
            found = Frame(
                height=int.from_bytes(height, "big"),
                width=int.from_bytes(width, "big"),
                components=encoded[at + 9],
                sequential=code in SEQUENTIAL,
                offset=at + 5,
            )
            whole = encoded.rfind(END_OF_IMAGE, at) > 0
            return found if precision == 8 and whole and found.height and found.width else None
        elif code == SCAN:
            return None
        else:
            at += 2 + int.from_bytes(encoded[at + 2 : at + 4], "big")
    return None


def cut(encoded: bytes, frame: Frame, rows: int) -> bytes:
    """A file of which a decoder decodes the first `rows` rows, exactly, and little more.

    Its header claims a lower image: the decoder is done after those rows, and skips the rest of the data.
    """
    kept = rows + MARGIN
    if not frame.sequential or kept >= frame.height:
        return encoded
    return encoded[: frame.offset] + kept.to_bytes(2, "big") + encoded[frame.offset + 2 :]
