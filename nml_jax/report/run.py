"""The stage "report": a study's `results.jsonl` in, a directory with the page, figures and tables out."""

import json
import os
from pathlib import Path

from ml_collections import ConfigDict

from nml_jax.core import artifacts, writer
from nml_jax.core.errors import UserError
from nml_jax.report import figures, findings, page, style, tables
from nml_jax.report.tables import Record

EVERY_PROCESS, REPEATS = False, True


def check(config: ConfigDict) -> None:
    """Raises a UserError unless `config.inputs.results` is a JSON Lines file."""
    read(config.inputs.results)


def run(config: ConfigDict, workdir: str | os.PathLike) -> None:
    """Renders the report of `config.inputs.results`, a `results.jsonl` file, into `workdir`, whole, every time.

    Raises:
      UserError: the file cannot be read or holds no results.
    """
    path = Path(config.inputs.results)
    records = read(path)
    write(records, workdir, title=config.title, base_dir=path.parent)
    if config.progress:
        print(f"report: {len(records)} records -> {os.path.join(workdir, 'index.html')}", flush=True)


def read(path: str | os.PathLike) -> list[Record]:
    """The records of a `results.jsonl` file.

    Raises:
      UserError: it is not there, or not JSON Lines.
    """
    try:
        return writer.read_lines(path)
    except OSError as error:
        raise UserError(
            f"No results at {os.fspath(path)!r} ({error.strerror}). Set --config.inputs.results to the results.jsonl "
            "file of a study."
        ) from None
    except json.JSONDecodeError as error:
        raise UserError(
            f"The results in {os.fspath(path)!r} are not JSON Lines ({error}). Give the results.jsonl of a study, or "
            "take the broken line out."
        ) from None


def write(
    records: list[Record],
    outdir: str | os.PathLike,
    *,
    title: str,
    base_dir: str | os.PathLike,
    machine: str = "",
    command: str = "",
) -> None:
    """Writes index.html, figures/*.png, results.csv, summary.csv and findings.json into `outdir`.

    Only files of these names are replaced; a figure that is no longer drawn is removed.

    Args:
      records: lines of kinds "pretrain", "tune" and "spectrum"; others are passed over.
      base_dir: what the spectrum records' "path" is relative to.
      machine: what the study ran on, in words, for the page.
      command: the command that runs the study again, for the page.

    Raises:
      UserError: no record of a known kind, or one that lacks what its kind needs.
    """
    records = [r for r in records if r.get("kind") in tables.REQUIRED]
    if not records:
        raise UserError(
            f"There is nothing to report: no record of kind {', '.join(tables.REQUIRED)}. Run a study first, and give "
            "its results.jsonl."
        )
    tables.check(records)
    outdir = Path(outdir)
    found = findings.findings(records)
    pictures = []
    for drawing in figures.draw(records, base_dir):
        file = outdir / "figures" / drawing.name
        if isinstance(drawing.figure, str):
            file.unlink(missing_ok=True)
            pictures.append(page.Picture(drawing, None))
            continue
        png = style.png(drawing.figure)
        with artifacts.replacing(file, "wb") as out:
            out.write(png)
        pictures.append(page.Picture(drawing, png))
    tables.write_results_csv(outdir / "results.csv", records)
    tables.write_csv(outdir / "summary.csv", tables.summary(records), tables.SUMMARY_COLUMNS)
    artifacts.write_json(outdir / "findings.json", findings.as_json(found))
    text = page.render(records, found, pictures, title=title, machine=machine, command=command)
    with artifacts.replacing(outdir / "index.html", "wb") as out:
        out.write(text.encode())
