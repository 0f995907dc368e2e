"""Reads tables of file names and captions (Parquet, CSV, TSV) with the images in folders beside them.

A file's name is relative to the folder of its table, and must lie in it. Tables of text are first written as Parquet,
of which any rows can be read; 10,000 rows are a shard.
"""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from nml_jax.convert.shard import LARGEST_IMAGE, Sample, Shard
from nml_jax.core import artifacts
from nml_jax.core.errors import UserError

ROWS = 10_000
SEPARATORS = {".csv": ",", ".tsv": "\t"}
TABLES = (".parquet", *SEPARATORS)


def shards(
    source: str,
    place: str,
    *,
    scratch: str,
    file: str = "file",
    caption: str = "caption",
    also: Sequence[str] = (),
) -> list[Shard]:
    """The rows of the table `place`, or of every table in the folder `place`.

    Args:
      scratch: a folder for Parquet copies.
      file, caption: names of the columns.
      also: columns that samples know too, such as a url.

    Raises:
      UserError: there is no table, or one without these columns.
    """
    root = Path(place)
    tables = [root] if root.is_file() else sorted(p for p in root.glob("*") if p.suffix in TABLES)
    if not tables or any(p.suffix not in TABLES for p in tables):
        raise UserError(
            f"sources.{source}={place!r} is no table, and no folder with one ({', '.join(TABLES)})."
        )
    found = []
    for table in tables:
        columns = (file, caption, *also)
        path = table
        if table.suffix in SEPARATORS:
            path = _as_parquet(table, Path(scratch) / source, columns)
        rows = _checked(path, table, columns).num_rows
        for start in range(0, rows, ROWS):
            name = f"{table.name}/{start:09d}"
            found.append(Shard(source, name, str(path), start, min(start + ROWS, rows)))
    return found


def samples(
    shard: Shard,
    faults: list[str],
    *,
    file: str = "file",
    caption: str = "caption",
    also: Sequence[str] = (),
) -> Iterator[Sample]:
    """The pairs of the shard's rows; a key is a file's name."""
    del faults
    with pa.parquet.ParquetFile(shard.path) as table:
        folder = (
            (table.schema_arrow.metadata or {}).get(b"folder", os.path.dirname(shard.path).encode()).decode()
        )
        for row in _rows(table, shard.start, shard.stop, [file, caption, *also]):
            name = row[file].decode(errors="surrogateescape") if isinstance(row[file], bytes) else row[file]
            if not isinstance(name, str) or not name:
                yield Sample(f"row {shard.name}", fault="no_image")
                continue
            yield _sample(folder, name, row[caption], {column: row[column] for column in also})


def _sample(folder: str, name: str, caption: object, about: dict) -> Sample:
    root = os.path.realpath(folder)
    path = os.path.normpath(os.path.join(root, name))
    if "\0" in name or not path.startswith(os.path.join(root, "")):
        return Sample(name, fault="outside_folder")
    if not os.path.isfile(path):
        return Sample(name, fault="no_image")
    if os.path.getsize(path) > LARGEST_IMAGE:
        return Sample(name, fault="oversized_file")
    return Sample(name, Path(path).read_bytes(), caption, about)


def _rows(table: pa.parquet.ParquetFile, start: int, stop: int, columns: list[str]) -> Iterator[dict]:
    first = 0
    for group in range(table.num_row_groups):
        rows = table.metadata.row_group(group).num_rows
        begin, end = max(start - first, 0), min(stop - first, rows)
        if begin < end:
            yield from table.read_row_group(group, columns=columns).slice(begin, end - begin).to_pylist()
        first += rows


def _checked(path: Path, table: Path, columns: Sequence[str]) -> pa.parquet.FileMetaData:
    try:
        with pa.parquet.ParquetFile(path) as file:
            schema, metadata = file.schema_arrow, file.metadata
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"The table {os.fspath(table)!r} cannot be read ({error}).") from None
    _check_names(table, schema.names, columns)
    for column in columns[:2]:
        kind = schema.field(column).type
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        texts = (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary)
        if not any(is_text(kind) for is_text in (*texts, pa.types.is_string_view, pa.types.is_null)):
            raise UserError(f"The column {column!r} of {os.fspath(table)!r} is {kind}; valid is text.")
    return metadata


def _check_names(table: Path, names: Sequence[str], columns: Sequence[str]) -> None:
    missing = [column for column in columns if column not in names]
    if missing:
        raise UserError(
            f"The table {os.fspath(table)!r} has no column {', '.join(missing)}; it has {', '.join(names)}. Say which "
            "hold the file names and captions with --config.read.options.file and --config.read.options.caption."
        )


def _as_parquet(table: Path, scratch: Path, columns: Sequence[str]) -> Path:
    """A copy of the columns, made once; UTF-8 is checked later, text by text."""
    stamp = table.stat()
    path = scratch / f"{table.name}-{artifacts.digest([stamp.st_size, stamp.st_mtime_ns, *columns])}.parquet"
    if path.exists():
        return path
    schema = pa.schema({c: pa.binary() for c in columns}, {"folder": os.path.realpath(table.parent)})
    wanted = pa.csv.ConvertOptions(column_types=schema, include_columns=list(columns))
    try:
        with _csv(table) as reader:
            _check_names(table, reader.schema.names, columns)
        with (
            _csv(table, wanted) as reader,
            artifacts.replacing(path, "wb") as file,
            pa.parquet.ParquetWriter(file, schema) as writer,
        ):
            for batch in reader:
                rows = pa.Table.from_batches([batch]).replace_schema_metadata(schema.metadata)
                writer.write_table(rows, row_group_size=ROWS)
    except pa.ArrowInvalid as error:
        raise UserError(
            f"The table {os.fspath(table)!r} cannot be read ({error}). Correct it there."
        ) from None
    return path


def _csv(table: Path, convert: pa.csv.ConvertOptions | None = None) -> pa.csv.CSVStreamingReader:
    parse = pa.csv.ParseOptions(delimiter=SEPARATORS[table.suffix], newlines_in_values=True)
    return pa.csv.open_csv(table, parse_options=parse, convert_options=convert)
