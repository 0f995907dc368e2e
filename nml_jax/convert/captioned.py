"""A pair as it was found -> a record, or the reason why it is dropped."""

import hashlib
import io
import warnings
from collections.abc import Sequence
from typing import NamedTuple

import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.proto import tf_example_pb2, tf_feature_pb2

from nml_jax.convert.shard import Sample
from nml_jax.core.errors import UserError
from nml_jax.data import decode

# Why a pair may be missing from what comes out.
REASONS = {
    "no_image": "a caption without an image",
    "no_caption": "an image without a caption",
    "empty_caption": "a caption of white space",
    "caption_not_text": "a caption that is a number, a list, or not UTF-8",
    "bad_json": "a .json file that is none, or no object",
    "no_id": "the field that names records is missing",
    "duplicate_id": "another pair has the same id; the first one stays",
    "oversized_file": "an image of more than 256 MiB, or a text of more than 1 MiB",
    "outside_folder": "a file name that leads out of the table's folder",
    "undecodable": "bytes that are no image, or a part of one",
    "too_small": "a side shorter than keep.min_side",
    "too_long": "one side more than keep.max_aspect times the other",
    "too_large": "more pixels than keep.max_pixels",
}
IDS = ("key", "uid", "url", "sha256")
_LONGEST_ID = 100


class Rules(NamedTuple):
    """What is kept, and how it is named."""

    id: str  # one of IDS
    fields: tuple[str, ...]  # of the JSON: kept as text
    verify: bool  # decode every image as a whole, not its header only
    min_side: int  # pixels
    max_aspect: float
    max_pixels: int


class Record(NamedTuple):
    """What goes into the data set."""

    id: str
    caption: str
    coded: bytes  # a tf.train.Example


def check(rules: Rules) -> None:
    """Raises a UserError for a rule that nothing could pass, or an unknown kind of id."""
    if rules.id not in IDS:
        raise UserError(f"keep.id={rules.id!r} is unknown; valid: {', '.join(IDS)}.")
    if rules.min_side < 1 or rules.max_aspect < 1 or rules.max_pixels < rules.min_side**2:
        raise UserError(
            f"keep.min_side={rules.min_side}, max_aspect={rules.max_aspect}, max_pixels={rules.max_pixels} leave no "
            "image; valid are a side and an aspect of at least 1, and at least min_side² pixels."
        )
    reserved = {"id", "image", "caption"} & set(rules.fields)
    if reserved:
        raise UserError(f"keep.fields has {', '.join(sorted(reserved))}, which every record has by itself.")


def features(fields: Sequence[str]) -> tfds.features.FeaturesDict:
    """id, image, caption, and the text `fields`."""
    texts = {name: tfds.features.Text() for name in ("id", "caption", *fields)}
    return tfds.features.FeaturesDict({"image": tfds.features.Image(), **texts})


def identity(source: str, sample: Sample, rules: Rules) -> str:
    """The record's id, "" if it has none: "<source>/<key>", or "<source>/<uid, url or sha256>".

    A key of img2dataset is the row in the list of URLs, whatever could be downloaded; so it is the same in every copy.
    What is long or has signs that do not show is named by its hash.
    """
    name = sample.key if rules.id == "key" else sample.about.get(rules.id)
    name = name.decode(errors="surrogateescape") if isinstance(name, bytes) else name
    if name is None or name == "" or not isinstance(name, str | int):
        return ""
    name = str(name)
    if len(name) > _LONGEST_ID or not name.isprintable():
        name = hashlib.blake2b(name.encode(errors="surrogatepass"), digest_size=16).hexdigest()
    return f"{source}/{name}"


def record(source: str, sample: Sample, rules: Rules) -> Record | str:
    """The record, or one of `REASONS`."""
    name = identity(source, sample, rules)
    reason = sample.fault or ("no_id" if not name else "")
    if reason:
        return reason
    caption, reason = _caption(sample.caption)
    if reason:
        return reason
    reason = _unfit(sample.image, rules)
    if reason:
        return reason
    values = {"id": name, "caption": caption, **{f: _as_text(sample.about.get(f)) for f in rules.fields}}
    coded = {"image": sample.image, **{field: value.encode() for field, value in values.items()}}
    lists = {
        f: tf_feature_pb2.Feature(bytes_list=tf_feature_pb2.BytesList(value=[v])) for f, v in coded.items()
    }
    example = tf_example_pb2.Example(features=tf_feature_pb2.Features(feature=lists))
    return Record(name, caption, example.SerializeToString(deterministic=True))


def _caption(value: object) -> tuple[str, str]:
    """(the text, "") or ("", the reason why there is none)."""
    if value is None:
        return "", "no_caption"
    if isinstance(value, bytes):
        value = value.decode(errors="surrogateescape")
    # Half of a surrogate pair is what bytes that are not UTF-8 became, or what JSON may hold.
    if not isinstance(value, str) or any("\ud800" <= c <= "\udfff" for c in value):
        return "", "caption_not_text"
    return (value, "") if value.strip() else ("", "empty_caption")


def _as_text(value: object) -> str:
    value = value.decode(errors="replace") if isinstance(value, bytes) else value
    text = "" if value is None else str(value)
    return text.encode(errors="replace").decode()


def _unfit(encoded: bytes, rules: Rules) -> str:
    """Why the image is not kept, or ""; its size is looked at before anything is decoded."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            width, height = Image.open(io.BytesIO(encoded), formats=decode.FORMATS).size
    except MemoryError:
        raise
    except Image.DecompressionBombError:
        return "too_large"
    except Exception:  # Pillow's readers raise all kinds on what is broken
        return "undecodable"
    if width * height > rules.max_pixels:
        return "too_large"
    if min(width, height) < rules.min_side:
        return "too_small"
    if max(width, height) > rules.max_aspect * min(width, height):
        return "too_long"
    if rules.verify:
        try:
            decode.rgb(encoded, name="")
        except decode.Undecodable:
            return "undecodable"
    return ""
