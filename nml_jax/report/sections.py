"""What the page says and tabulates, as plain text and cells; `page` turns it into HTML."""

from collections import Counter, defaultdict
from typing import Any, NamedTuple

from nml_jax.report import findings, papers, tables
from nml_jax.report.findings import Finding
from nml_jax.report.tables import Cells, Mean, Record, percent

DASH = "–"


class Table(NamedTuple):
    """A caption, a header, rows of cells, and the first column that holds numbers."""

    caption: str
    header: list[str]
    rows: list[list[str]]
    numbers: int


def summary(records: list[Record], found: list[Finding]) -> str:
    """The study in a paragraph."""
    tuned = [r for r in records if r.get("kind") == "tune"]
    ratios = tables.noise_ratios(records)
    seeds = {
        r["pretrain_seed"] for r in records if r.get("kind") in tables.REQUIRED and not tables.is_external(r)
    }
    verdicts = Counter(finding.verdict for finding in found)
    tested = sum(verdicts[v] for v in (findings.SHOWN, findings.NOT_SHOWN, findings.CONTRADICTED))
    text = (
        f"{len(tuned)} tuning runs with {_names(map(tables.method_name, tables.methods(records)))} on "
        f"{_count(len({r['task'] for r in tuned}), 'task')}"
    )
    if ratios:
        objectives = sorted({group.objective for group in tables.groups(records)})
        text += (
            f", on features of encoders pre-trained with {_names(objectives)} objectives at γ = "
            f"{_names(map(percent, ratios))} label noise and {_count(len(seeds), 'pre-training seed')}"
        )
    text += ". "
    if tested:
        text += (
            f"Of {_count(tested, 'claim')} of the papers put to the test, counted for each group of encoders, "
            f"{verdicts[findings.SHOWN]} are shown, {verdicts[findings.NOT_SHOWN]} not shown and "
            f"{verdicts[findings.CONTRADICTED]} contradicted."
        )
    elif verdicts[findings.ONE_SEED]:
        text += "With one pre-training seed there is no error over pre-training, so no claim is judged."
    else:
        text += "No claim of the papers can be judged from these results."
    return text


def facts(records: list[Record]) -> list[tuple[str, str]]:
    """Name and value of what was run."""
    tuned = [r for r in records if r.get("kind") == "tune"]
    studied = [r for r in records if r.get("kind") in tables.REQUIRED and not tables.is_external(r)]
    kinds = Counter(r.get("kind") for r in records)
    tasks = defaultdict(set)
    for r in tuned:
        tasks[r["suite"]].add(r["task"] if r["suite"] == "id" else f"{r['task']} → {r['test_split']}")
    versions = defaultdict(set)
    for r in records:
        for name, version in (r.get("versions") or {}).items():
            versions[name].add(str(version))
    realised = [
        r["realised_ratio"]
        for r in tables.of_kind(records, "pretrain")
        if r.get("realised_ratio") is not None
    ]
    values = {
        "Encoders": "; ".join(map(str, tables.groups(records))),
        "Noise ratios γ": ", ".join(map(percent, tables.noise_ratios(records))),
        "Realised noise": f"{percent(min(realised))} to {percent(max(realised))}" if realised else "",
        "Pre-training seeds": _sorted({r["pretrain_seed"] for r in studied}),
        **{
            f"{tables.SUITES.get(s, s)} tasks": ", ".join(sorted(tasks[s]))
            for s in sorted(tasks, key=tables.suite_rank)
        },
        "Methods": ", ".join(map(tables.method_name, tables.methods(records))),
        "Training data used": ", ".join(percent(f) for f in sorted({r["fraction"] for r in tuned})),
        "Tuning seeds": _sorted({r["seed"] for r in tuned if r.get("seed") is not None}),
        "Records": f"{kinds['pretrain']} pre-training, {kinds['tune']} tuning, {kinds['spectrum']} spectra",
        "Versions": ", ".join(
            f"{name} {' / '.join(sorted(found))}" for name, found in sorted(versions.items())
        ),
    }
    return [(name, value) for name, value in values.items() if value]


def results(records: list[Record]) -> Table:
    """Method × γ × suite: accuracy in percent, mean ± standard error over seeds, on the most data a method used."""
    ratios = tables.noise_ratios(records)
    rows = []
    for group, suite, method, fraction, chosen in _most_data(records):
        means = tables.means(tables.table(chosen, "accuracy", ("noise_ratio",)))
        if means:
            counts = sorted({m.n for m in means.values()})
            row = [str(group), tables.SUITES.get(suite, suite), tables.method_name(method), percent(fraction)]
            row += [
                str(len(tables.shared_tasks(chosen))),
                "–".join(map(str, dict.fromkeys((counts[0], counts[-1])))),
            ]
            rows.append(row + [points(means.get((ratio,))) for ratio in ratios])
    header = ["encoders", "suite", "method", "data", "tasks", "seeds", *(f"γ = {percent(r)}" for r in ratios)]
    caption = "Accuracy in percent: mean over tasks, then mean ± standard error over pre-training seeds."
    return Table(caption, header, rows, 4)


def per_task(records: list[Record]) -> Table:
    """As `results`, a row a task and test split."""
    ratios = tables.noise_ratios(records)
    rows = []
    for group, suite, method, _, chosen in _most_data(records):
        cells = _apart(chosen, "accuracy", tables.TASK)
        for task, split in sorted({key[:2] for key in cells}):
            row = [str(group), tables.SUITES.get(suite, suite), task, split, tables.method_name(method)]
            row += [points(cells.get((task, split, ratio))) for ratio in ratios]
            rows.append(((group, tables.suite_rank(suite), task, split), row))
    rows = [row for _, row in sorted(rows, key=lambda pair: pair[0])]
    header = ["encoders", "suite", "task", "test split", "method", *(f"γ = {percent(r)}" for r in ratios)]
    caption = "Accuracy in percent, mean ± standard error over pre-training seeds, with the most data each method used."
    return Table(caption, header, rows, 5)


def spectra(records: list[Record]) -> Table:
    """SVE and LSVR of each task and test split against γ."""
    ratios = tables.noise_ratios(records)
    rows = []
    for group in tables.groups(records):
        chosen = tables.of_group(tables.of_kind(records, "spectrum"), group)
        by = ("suite", "task", "split", "preprocess")
        cells = {value: _apart(chosen, value, by) for value in ("sve", "lsvr")}
        for key in sorted({key[:4] for key in cells["sve"]}, key=lambda k: (tables.suite_rank(k[0]), k)):
            for value in ("sve", "lsvr"):
                numbers = [measure(cells[value].get((*key, ratio)), 3) for ratio in ratios]
                rows.append(
                    [str(group), tables.SUITES.get(key[0], key[0]), *key[1:], value.upper(), *numbers]
                )
    header = [
        "encoders",
        "suite",
        "task",
        "split",
        "preprocess",
        "value",
        *(f"γ = {percent(r)}" for r in ratios),
    ]
    return Table("Natural logarithm; mean ± standard error over pre-training seeds.", header, rows, 6)


def external(records: list[Record]) -> Table:
    """The tuning runs on embeddings without a known noise ratio, one row each."""
    rows = []
    for r in records:
        if r.get("kind") == "tune" and tables.is_external(r):
            row = [
                r.get("model") or DASH,
                r["task"],
                tables.SUITES.get(r["suite"], r["suite"]),
                r["test_split"],
            ]
            numbers = [
                DASH if r.get(metric) is None else f"{100 * r[metric]:.2f}" for metric in tables.METRICS
            ]
            rows.append(
                [
                    *row,
                    tables.method_name(r["method"]),
                    percent(r["fraction"]),
                    str(r.get("seed", DASH)),
                    *numbers,
                ]
            )
    header = [
        "encoder",
        "task",
        "suite",
        "test split",
        "method",
        "data",
        "seed",
        "accuracy",
        "per class",
        "macro F1",
    ]
    return Table("In percent; these are in no figure and no finding.", header, rows, 5)


def comparison(records: list[Record]) -> Table:
    """The papers' curves and this study's: accuracy at γ = 0 and the change from there, in percentage points."""
    ratios = sorted({*papers.NOISE_RATIOS, *tables.noise_ratios(records)} - {0.0})
    rows = []
    for curve in papers.ACCURACY + papers.PRETRAINING:
        suite = tables.SUITES.get(curve.suite, "pre-training")
        head = [suite, tables.method_name(curve.method) or DASH]
        changes = dict(zip(papers.NOISE_RATIOS[1:], curve.changes, strict=True))
        numbers = [findings.signed(changes[r], 2) if r in changes else DASH for r in ratios]
        rows.append([*head, f"papers: {curve.encoder}", f"{curve.values[0]:.2f}", *numbers])
    for group in tables.groups(records):
        tuned = tables.select(tables.of_group(tables.of_kind(records, "tune"), group), fraction=1.0)
        for suite, method in dict.fromkeys((c.suite, c.method) for c in papers.ACCURACY):
            cells = tables.table(
                tables.select(tuned, suite=suite, method=method), "accuracy", ("noise_ratio",)
            )
            rows += _changes(
                cells, [tables.SUITES[suite], tables.method_name(method), f"here: {group}"], ratios
            )
        rows += _changes(
            tables.pretraining(records, group)[1], ["pre-training", DASH, f"here: {group}"], ratios
        )
    order = [*tables.SUITES.values(), "pre-training"]
    rows.sort(key=lambda row: (order.index(row[0]), row[1]))
    header = ["suite", "method", "encoders", "γ = 0 (%)", *(f"γ = {percent(r)}" for r in ratios)]
    caption = "Accuracy without added noise, and the change from there in percentage points (here: ± standard error)."
    return Table(caption, header, rows, 3)


def drops() -> str:
    """On the claim that NMTune lowers the damage of noise, from the papers' own numbers at the largest γ."""
    lines = {(c.objective, c.suite, c.method): c.changes[-1] for c in papers.ACCURACY}
    pairs = [(change, lines[o, s, "linear_probe"]) for (o, s, m), change in lines.items() if m == "nmtune"]
    smaller = sum(nmtune > probe for nmtune, probe in pairs)
    return (
        "In the papers' own Fig. 1 NMTune is above LP at every γ, but its drop from γ = 0 to "
        f"{percent(papers.NOISE_RATIOS[-1])} is smaller than LP's in {smaller} of {len(pairs)} panels."
    )


def points(mean: Mean | None) -> str:
    """A fraction in percent with its standard error."""
    return DASH if mean is None else measure(Mean(100 * mean.mean, mean.se and 100 * mean.se, mean.n), 2)


def measure(mean: Mean | None, digits: int) -> str:
    """Mean ± standard error; the mean alone with one seed."""
    if mean is None:
        return DASH
    return f"{mean.mean:.{digits}f}" + ("" if mean.se is None else f" ± {mean.se:.{digits}f}")


def _changes(cells: Cells, head: list[str], ratios: list[float]) -> list[list[str]]:
    """A row of changes from γ = 0, paired by seed; none if there is no γ = 0 or nothing else."""
    if (0.0,) not in cells or len(cells) < 2:
        return []
    numbers = []
    for ratio in ratios:
        values = [100 * v for v in findings.contrast(cells, {(ratio,): 1.0, (0.0,): -1.0})]
        mean = tables.mean_se(values) if values else None
        error = "" if mean is None or mean.se is None else f" ± {mean.se:.2f}"
        numbers.append(DASH if mean is None else findings.signed(mean.mean, 2) + error)
    return [[*head, f"{100 * tables.mean_se(cells[0.0,].values()).mean:.2f}", *numbers]]


def _most_data(records: list[Record]) -> list[tuple]:
    """The curves with the largest fraction of the training data that the method was given."""
    curves = tables.curves(records)
    largest = defaultdict(float)
    for group, suite, method, fraction, _ in curves:
        largest[group, suite, method] = max(fraction, largest[group, suite, method])
    return [c for c in curves if c[3] == largest[c[:3]]]


def _apart(records: list[Record], value: str, by: tuple[str, ...]) -> dict[tuple, Mean]:
    """(by..., γ) -> mean over seeds."""
    return tables.means(tables.table(records, value, (*by, "noise_ratio"), over=()))


def _sorted(values: set[Any]) -> str:
    return ", ".join(map(str, sorted(values)))


def _names(values: Any) -> str:
    values = list(values)
    return (
        values[0]
        if len(values) == 1
        else ", ".join(values[:-1]) + " and " + values[-1]
        if values
        else "no method"
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")
