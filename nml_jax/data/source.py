"""Opens a data set by name: a plug-in of this folder, TFDS's catalogue, or a TFDS folder in `data_dir`.

Records are read at random from ArrayRecord files, without TensorFlow.
"""

import builtins
import difflib
import fcntl
import functools
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from nml_jax.core import plugin
from nml_jax.core.errors import UserError
from nml_jax.data import columns, decode, texts

# Fields that name a record for good, best first; a data set without one is keyed by the index in its split.
ID_FIELDS = ("id", "file_name", "image/filename", "tfds_id")

# Records; they hold their encoded images.
_READ_AT_ONCE = 256


class Source:
    """One split of a data set: images by index, labels and captions as columns."""

    def __init__(
        self,
        name: str,
        split: str,
        records: Sequence[dict],
        features: Any,
        *,
        in_memory: bool,
        folder: str | os.PathLike = "",
        rows: Sequence[columns.Rows] = (),
    ):
        """Args:
        folder: where the data set is; its columns are kept there, in `.columns`. "" keeps none.
        rows: what the split is, in terms of whole splits.
        """
        self.name, self.split = name, split
        self._folder = None if in_memory or not folder else Path(folder) / columns.FOLDER
        self._rows = tuple(rows)
        self.in_memory = in_memory
        self._features = features
        self._columns: dict[str, np.ndarray] = {}
        # A list of all records at once where they are kept: each is then parsed once, not once for each column.
        self._records = list(records) if in_memory else records
        self._images = [self._decoded(i) for i in range(len(records))] if in_memory else None

    def __len__(self) -> int:
        return len(self._records)

    def __getstate__(self) -> dict:
        """What a worker process gets: it needs images, and the names of a million records are large."""
        return self.__dict__ | {"_columns": {}}

    def image(self, index: int) -> np.ndarray:
        """(H, W, 3) uint8.

        Raises:
          Undecodable: a UserError that names the record.
        """
        return self.picture(index).rgb()

    def picture(self, index: int, decoder: str = "pillow") -> decode.Pixels | decode.Encoded:
        """The image before it is decoded, so that a transform decodes what it needs.

        Args:
          decoder: one of `decode.DECODERS`; without effect on what is in memory.

        Raises:
          Undecodable: a UserError that names the record; from here or from the picture.
        """
        if self._images is None:
            record = self._records[index]
            return decode.picture(record["image"], name=self._name_of(index, record), decoder=decoder)
        if isinstance(self._images[index], decode.Undecodable):
            raise self._images[index]
        return decode.Pixels(self._images[index])

    def column(self, field: str) -> np.ndarray:
        """The field of every record: (N,) int64 for labels, (N,) strings for text.

        Text is of variable width (`texts`), but ids are (N,) str of one width, as files of other frameworks have them.

        Raises:
          UserError: the records have no such field, or text that is not UTF-8.
        """
        if field not in self._features:
            raise UserError(f"{self.name!r} has no field {field!r}; it has {', '.join(self._features)}.")
        if field not in self._columns and not self._load(field):
            self._read(field)
        return self._columns[field]

    def captions(self, field: str) -> np.ndarray:
        """The text of every record, (N,) strings of variable width: there is one for each image.

        Raises:
          UserError: there is no such field, it is no text, or some records have none.
        """
        column = self.column(field)
        if column.dtype.kind not in "TU":
            raise UserError(
                f"The field {field!r} of {self.name!r} is {column.dtype}, not text; it has no captions."
            )
        missing = np.flatnonzero(texts.is_blank(column))
        if missing.size:
            some = ", ".join(str(self.ids()[row]) for row in missing[:3])
            raise UserError(
                f"{missing.size} of {len(self)} records of {self.name!r} {self.split!r} have no caption in {field!r} "
                f"(ids {some}{', ...' if missing.size > 3 else ''}). An image without a text teaches nothing and "
                "shifts the noise: prepare the data set without them; `configs/convert/` drops and counts them."
            )
        return column

    def _read(self, field: str) -> None:
        """Reads the column, and the labels and ids with it: a large data set must be read as a whole, but once."""
        labels = [f for f in self._features if hasattr(self._features[f], "num_classes")]
        values: dict[str, list | np.ndarray] = {
            f: np.empty(len(self), texts.STRINGS) if self._is_text(f) else []
            for f in {field, self._id_field() or field, *labels}
        }
        for start in range(0, len(self), _READ_AT_ONCE):
            rows = range(start, min(start + _READ_AT_ONCE, len(self)))
            several = getattr(self._records, "__getitems__", lambda rows: [self._records[i] for i in rows])
            records = several(rows)
            for name, column in values.items():
                if isinstance(column, list):
                    column.extend(record[name] for record in records)
                else:
                    column[start : rows.stop] = self._text(name, rows, records)
        for name, column in values.items():
            if isinstance(column, list):
                texty = bool(column) and isinstance(column[0], bytes)
                column = texts.column(column) if texty else np.asarray(column)
            if self._folder is not None:
                columns.keep(self._folder, self.split, name, column)
            self._remember(name, column)

    def _text(self, field: str, rows: range, records: Sequence[dict]) -> np.ndarray:
        for row, record in zip(rows, records, strict=True):
            try:
                record[field].decode()
            except UnicodeDecodeError as error:
                raise UserError(
                    f"The {field} of record {row} of {self.name} {self.split} is not UTF-8 text ({error}). Prepare the "
                    "data set again, or remove the record."
                ) from None
        return texts.column([record[field] for record in records])

    def _load(self, field: str) -> bool:
        if self._folder is None:
            return False
        own = (columns.Rows(self.split, 0, len(self), len(self)),)
        for rows in (own, self._rows):
            column = columns.load(self._folder, rows, field, text=self._is_text(field)) if rows else None
            if column is not None and len(column) == len(self):
                self._remember(field, column)
                return True
        return False

    def _remember(self, field: str, column: np.ndarray) -> None:
        named = field == self._id_field() and column.dtype == texts.STRINGS
        self._columns[field] = texts.fixed_width(column) if named else column

    def _is_text(self, field: str) -> bool:
        return isinstance(self._features[field], tfds.features.Text)

    def ids(self) -> np.ndarray:
        """(N,) stable names of the records, or their indices where the data set has none."""
        field = self._id_field()
        return np.arange(len(self)) if field is None else self.column(field)

    def num_classes(self, label: str) -> int:
        """Number of classes of the label field `label`.

        Raises:
          UserError: there is no such label.
        """
        labels = [f for f in self._features if hasattr(self._features[f], "num_classes")]
        if label not in labels:
            raise UserError(f"{self.name!r} has no label {label!r}; it has {', '.join(labels) or 'none'}.")
        return self._features[label].num_classes

    def class_names(self, label: str) -> list[str]:
        """Names of the classes of the label field `label`, in order; their numbers where they have none.

        Raises:
          UserError: there is no such label.
        """
        self.num_classes(label)
        return list(self._features[label].names)

    def _id_field(self) -> str | None:
        return next((f for f in ID_FIELDS if f in self._features), None)

    def _name_of(self, index: int, record: dict) -> str:
        """What messages call a record."""
        row = f"{index} of {self.name} {self.split}"
        field = self._id_field()
        if field is None:
            return row
        name = record[field].decode() if isinstance(record[field], bytes) else record[field]
        return f"{name} ({row})"

    def _decoded(self, index: int) -> np.ndarray | decode.Undecodable:
        """The image, or why there is none: who asks for it is told."""
        record = self._records[index]
        try:
            return decode.rgb(record["image"], name=self._name_of(index, record))
        except decode.Undecodable as error:
            return error


@functools.lru_cache(maxsize=32)
def open(name: str, split: str, *, data_dir: str = "", in_memory: bool = False) -> Source:
    """The split `split` (TFDS slices such as "train[:10%]" too) of the data set `name`.

    Args:
      name: a plug-in of `nml_jax.data` ("glyphs/pretrain"), a TFDS name ("cifar10", "imagenet2012:5.1.0"), or a
        TFDS folder in `data_dir`. Plug-ins are built when they are not there yet.
      data_dir: where TFDS data sets are; "" is $TFDS_DATA_DIR or ~/tensorflow_datasets.
      in_memory: decode every image once and keep it: for small data sets that are read many times.

    Raises:
      UserError: the data set is unknown, not prepared, in TFRecord files, or has no such split.
    """
    data_dir = os.path.expanduser(data_dir or os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets"))
    base = name.split("/")[0].split(":")[0]
    if base in plugin.names("data", "builder"):
        builder = _embedded_builder(name, base, data_dir)
    else:
        builder = _tfds_builder(name, base, data_dir)
    return Source(
        name,
        split,
        _records(builder, name, split, data_dir),
        builder.info.features,
        in_memory=in_memory,
        folder=builder.data_path,
        rows=_rows(builder, split),
    )


def _embedded_builder(name: str, base: str, data_dir: str) -> tfds.core.DatasetBuilder:
    """The plug-in's builder, prepared; of several processes one prepares it and the others wait."""
    make = plugin.find("data", base, "builder").builder
    builder = make(name, data_dir)
    if builder.is_prepared():
        return builder
    os.makedirs(data_dir, exist_ok=True)
    with builtins.open(os.path.join(data_dir, f".{base}.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        builder = make(name, data_dir)
        if not builder.is_prepared():
            print(f"Building {name} in {data_dir} (once) ...", file=sys.stderr, flush=True)
            tfds.disable_progress_bar()
            builder.download_and_prepare(file_format="array_record")
    return builder


def _tfds_builder(name: str, base: str, data_dir: str) -> tfds.core.DatasetBuilder:
    try:
        return tfds.builder(name, data_dir=data_dir)
    except (tfds.core.DatasetNotFoundError, ModuleNotFoundError, ValueError) as error:
        local = sorted(p.name for p in Path(data_dir).glob("*") if any(p.glob("**/dataset_info.json")))
        known = {*plugin.names("data", "builder"), *local, *tfds.list_builders(with_community_datasets=False)}
        near = difflib.get_close_matches(base, sorted(known), n=3)
        hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
        reason = "" if isinstance(error, tfds.core.DatasetNotFoundError) else f" ({error})"
        embedded = ", ".join(plugin.names("data", "builder"))
        raise UserError(
            f"There is no data set {name!r}{reason}: it is not embedded ({embedded}), "
            f"not in TFDS's catalogue, and not a TFDS folder in {data_dir!r}, which has {', '.join(local) or 'none'}."
            f"{hint} Correct the name, or give the right folder with --config.data_dir."
        ) from None


def _records(builder: tfds.core.DatasetBuilder, name: str, split: str, data_dir: str) -> Sequence[dict]:
    try:
        return builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
    except (NotImplementedError, ValueError, AssertionError, FileNotFoundError, KeyError) as error:
        if not builder.is_prepared():
            raise UserError(
                f"The data set {name!r} is not in {data_dir!r}. Prepare it with `tfds build {name} "
                f"--file_format=array_record --data_dir={data_dir}` (this needs `pip install tensorflow` once), or "
                "give the folder where it is with --config.data_dir."
            ) from None
        if isinstance(error, NotImplementedError):
            raise UserError(
                f"The data set {name!r} in {data_dir!r} is stored as TFRecord files, which cannot be read at random. "
                f"Convert it with `tfds convert_format --dataset_dir={data_dir}/{builder.name} "
                f"--out_file_format=array_record --out_dir=NEW/{builder.name}` (this needs `pip install tensorflow` "
                "once), and give NEW as --config.data_dir."
            ) from None
        splits = ", ".join(builder.info.splits)
        raise UserError(
            f"{name!r} has no split {split!r} ({error}); it has {splits}, and slices of them such as 'train[:10%]'."
        ) from None


def _rows(builder: tfds.core.DatasetBuilder, split: str) -> list[columns.Rows]:
    """What the split, a slice or a sum of slices, is in terms of whole splits; nothing where those are not known."""
    splits = builder.info.splits
    if not splits:
        return []
    return [
        columns.Rows(part.splitname, part.from_, part.to, splits[part.splitname].num_examples)
        for part in tfds.core.ReadInstruction.from_spec(split).to_absolute(splits)
    ]
