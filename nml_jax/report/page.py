"""The page: one HTML file with its style and figures inside, no scripts, nothing loaded from anywhere."""

import base64
import html
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from nml_jax.report import findings, papers, sections, tables
from nml_jax.report.figures import Drawing
from nml_jax.report.findings import Finding
from nml_jax.report.sections import Table
from nml_jax.report.tables import Record

CSS = """
:root { color-scheme: light dark; --ink: #1d2126; --paper: #fff; --soft: #5b6470; --line: #d9dde2; --card: #f5f6f8;
  --yes: #00684a; --no: #a33c00; --link: #005a9c; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e7eb; --paper: #15181c; --soft: #a2abb6; --line: #363c44;
  --card: #1f242a; --yes: #4fd1a1; --no: #ff9e66; --link: #7dbdf5; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif; }
main { max-width: 70rem; margin: 0 auto; padding: 1.5rem 1rem 4rem; }
h1 { font-size: 1.8rem; line-height: 1.2; margin: 0 0 .8rem; }
h2 { font-size: 1.3rem; margin: 2.6rem 0 .6rem; border-bottom: 1px solid var(--line); padding-bottom: .25rem; }
h3 { font-size: 1.05rem; margin: 1.6rem 0 .5rem; }
p, li, dd { max-width: 48rem; overflow-wrap: anywhere; }
a { color: var(--link); }
.lead { font-size: 1.1rem; }
.soft, caption { color: var(--soft); font-size: .9rem; }
dl { display: grid; grid-template-columns: minmax(7rem, max-content) 1fr; gap: .3rem 1.2rem; }
dt { color: var(--soft); } dd { margin: 0; }
.scroll { overflow-x: auto; margin: .8rem 0; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; padding-bottom: .4rem; white-space: normal; }
th, td { padding: .28rem .55rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top;
  white-space: nowrap; }
thead th { border-bottom: 2px solid var(--line); }
td.number, th.number { text-align: right; }
td.verdict { font-weight: 600; color: var(--soft); }
td.shown { color: var(--yes); } td.contradicted { color: var(--no); }
table.findings td:not(.verdict) { white-space: normal; }
@media (max-width: 44rem) { table.findings thead { display: none; }
  table.findings tr { display: block; border-bottom: 1px solid var(--line); padding: .4rem 0; }
  table.findings td { display: block; border: 0; padding: .05rem 0; } }
figure { margin: 1.4rem 0 2rem; background: #fff; color: #1d2126; border: 1px solid var(--line); border-radius: 6px;
  padding: .9rem; }
figure img { display: block; max-width: 100%; height: auto; margin: 0 auto; }
figcaption { font-size: .9rem; margin-top: .6rem; } figcaption strong { display: block; }
figcaption .soft { color: #5b6470; }
details { border: 1px solid var(--line); border-radius: 6px; padding: .5rem .9rem; margin: .8rem 0; }
summary { cursor: pointer; font-weight: 600; }
pre { background: var(--card); padding: .8rem 1rem; overflow-x: auto; border-radius: 6px; font-size: .85rem; }
"""


class Picture(NamedTuple):
    """A drawing and its PNG file; None if the records did not suffice for it."""

    drawing: Drawing
    png: bytes | None


def render(
    records: list[Record],
    found: list[Finding],
    pictures: Iterable[Picture],
    *,
    title: str,
    machine: str = "",
    command: str = "",
) -> str:
    """The page as HTML.

    Args:
      machine: what the study ran on, in words; empty leaves the line out.
      command: the command that runs the study again; empty leaves it out.
    """
    body = "\n".join(
        [
            f"<header><h1>{_text(title)}</h1>\n<p class='lead'>{_text(sections.summary(records, found))}</p></header>",
            _section("What was run", _what_was_run(records, machine)),
            _section("Findings", _findings(found)),
            _section("Figures", _pictures(pictures)),
            _section("Results", _results(records)),
            _section("What the papers report", _papers(records)),
            _section("Files", _files()),
            _section("How to reproduce", _reproduce(command)),
        ]
    )
    return (
        "<!DOCTYPE html>\n<html lang='en'>\n<head>\n<meta charset='utf-8'>\n"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>\n"
        f"<title>{_text(title)}</title>\n<style>{CSS}</style>\n</head>\n<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def _text(value: object) -> str:
    """Escaped, and with no line break inside "5 %" and "γ = 0"."""
    return html.escape(str(value), quote=True).replace(" %", "&nbsp;%").replace("γ = ", "γ&nbsp;=&nbsp;")


def _section(title: str, content: str) -> str:
    return f"<section>\n<h2>{_text(title)}</h2>\n{content}\n</section>"


def _paragraph(text: str, kind: str = "") -> str:
    return f"<p class='{kind}'>{_text(text)}</p>" if kind else f"<p>{_text(text)}</p>"


def _items(lines: Iterable[str]) -> str:
    return "<ul>\n" + "\n".join(f"<li>{_text(line)}</li>" for line in lines) + "\n</ul>"


def _table(table: Table) -> str:
    """Columns from `table.numbers` on hold numbers and stand to the right."""

    def cells(row: Iterable[object], tag: str) -> str:
        kinds = (" class='number'" if i >= table.numbers else "" for i in range(len(table.header)))
        return "".join(
            f"<{tag}{kind}>{_text(c)}</{tag.split()[0]}>" for kind, c in zip(kinds, row, strict=True)
        )

    rows = "\n".join(f"<tr>{cells(row, 'td')}</tr>" for row in table.rows)
    return (
        f"<div class='scroll'><table>\n<caption>{_text(table.caption)}</caption>\n"
        f"<thead><tr>{cells(table.header, 'th')}</tr></thead>\n<tbody>\n{rows}\n</tbody>\n</table></div>"
    )


def _details(table: Table, title: str) -> str:
    return f"<details><summary>{_text(title)}</summary>\n{_table(table)}\n</details>"


def _what_was_run(records: list[Record], machine: str) -> str:
    facts = sections.facts(records) + ([("Machine", machine)] if machine else [])
    listed = "\n".join(f"<dt>{_text(name)}</dt><dd>{_text(value)}</dd>" for name, value in facts)
    gaps = tables.gaps(records)
    return f"<dl>\n{listed}\n</dl>" + (f"\n<h3>Incomplete</h3>\n{_items(gaps)}" if gaps else "")


def _findings(found: list[Finding]) -> str:
    tested = sum(finding.low is not None for finding in found)
    content = [
        _paragraph(
            "The papers' claims, tested on this study's own numbers. Differences are taken within each pre-training "
            "seed and averaged over seeds. A claim is “shown” if the 95 % t-interval over seeds lies on its side of "
            "zero, “contradicted” if it lies on the other side, “not shown” otherwise, which does not mean that "
            "there is no effect. Tasks and their test images are taken as given."
        ),
        _paragraph(
            f"The {tested} intervals are not adjusted for their number: if there were no effect anywhere, about "
            f"{tested * (1 - findings.LEVEL):.1f} of them would still be expected to miss zero. Read single verdicts "
            "accordingly."
        ),
    ]
    for group in dict.fromkeys(finding.group for finding in found):
        rows = "\n".join(
            f"<tr><td>{_text(f.claim)}</td><td class='verdict {_text(f.verdict.replace(' ', '-'))}'>{_text(f.verdict)}"
            f"</td><td>{_text(f.words)}</td></tr>"
            for f in found
            if f.group == group
        )
        header = "".join(f"<th scope='col'>{name}</th>" for name in ("Claim", "Verdict", "Numbers"))
        content.append(
            f"<h3>{_text(group)}</h3>\n<div class='scroll'><table class='findings'>\n<thead><tr>{header}</tr></thead>\n"
            f"<tbody>\n{rows}\n</tbody>\n</table></div>"
        )
    if not found:
        content = [
            _paragraph("No record tells its noise ratio and pre-training seed, so there is nothing to test.")
        ]
    return "\n".join(content)


def _pictures(pictures: Iterable[Picture]) -> str:
    content, missing = [], []
    for (name, title, caption, needs), png in pictures:
        if png is None:
            missing.append(f"{title}: this needs {needs}.")
            continue
        data = base64.b64encode(png).decode()
        content.append(
            f"<figure>\n<img alt='{_text(f'{title}. {caption}')}' src='data:image/png;base64,{data}'>\n"
            f"<figcaption><strong>{_text(title)}</strong> {_text(caption)} "
            f"<span class='soft'>figures/{_text(name)}</span></figcaption>\n</figure>"
        )
    if missing:
        content.append(
            _paragraph("Left out, because the results do not hold what they need:") + _items(missing)
        )
    return "\n".join(content)


def _results(records: list[Record]) -> str:
    content = []
    seeds = Counter(row["seeds"] for row in tables.summary(records))
    if seeds[1]:
        content.append(
            _paragraph("Where there is one seed, no error bar: a single seed says nothing of its spread.")
        )
    content.append(_table(sections.results(records)))
    content.append(_details(sections.per_task(records), "Each task"))
    for table, title in (
        (sections.spectra(records), "SVE and LSVR of each task"),
        (sections.external(records), "Embeddings whose pre-training is not known"),
    ):
        if table.rows:
            content.append(_details(table, title))
    return "\n".join(content)


def _papers(records: list[Record]) -> str:
    links = "; ".join(f"<a href='{_text(url)}'>{_text(name)}</a>" for name, url in papers.LINKS)
    return "\n".join(
        [
            _paragraph(
                "Other data at another scale, one encoder for each γ: compare directions, not sizes. "
                + sections.drops()
            ),
            _table(sections.comparison(records)),
            f"<p class='soft'>Sources: {links}. Accuracies: {_text(papers.FIGURE_1)}; pre-training: "
            f"{_text(papers.PRETRAINED)}.</p>",
        ]
    )


def _files() -> str:
    return _items(
        [
            "results.jsonl (the study's): one line a run, the record everything here is made from",
            "results.csv: one row a tuning run",
            "summary.csv: means and standard errors for each group, suite, method, fraction and γ",
            "findings.json: the findings with their differences, standard errors and intervals",
            "figures/: the figures as PNG",
        ]
    )


def _reproduce(command: str) -> str:
    report = (
        "python -m nml_jax.main --config=configs/report/default.py --workdir=report \\\n"
        "    --config.inputs.results=results.jsonl"
    )
    study = f"<p>The study:</p>\n<pre><code>{_text(command)}</code></pre>\n" if command else ""
    return (
        f"{study}<p>This page, from the results alone:</p>\n<pre><code>{_text(report)}</code></pre>\n"
        + _paragraph(
            "Each line of results.jsonl holds the hash of its config; config.json beside each result has its values."
        )
    )
