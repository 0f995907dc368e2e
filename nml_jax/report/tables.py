"""From records (lines of `results.jsonl`) to groups, tables of means, and CSV.

The unit of replication is the pre-trained encoder. Within one pre-training seed, accuracies are averaged over
tuning seeds, then over tasks; the standard error is over the seeds' means. A mean covers only the tasks that
all cells of its table have, so a curve never compares different sets of tasks.
"""

import csv
import io
import json
import math
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping
from statistics import fmean, stdev
from typing import Any, NamedTuple

from nml_jax.core import artifacts
from nml_jax.core.errors import UserError

Record = Mapping[str, Any]
Key = tuple
Cells = dict[Key, dict[int, float]]
"""key -> pre-training seed -> mean."""

TASK = ("task", "test_split")
METRICS = ("accuracy", "mean_per_class", "macro_f1")
REQUIRED = {
    "tune": ("method", "task", "suite", "test_split", "fraction", "accuracy"),
    "spectrum": ("task", "suite", "split", "preprocess", "sve", "lsvr"),
    "pretrain": ("objective", "metrics"),
}
METHODS = {
    "linear_probe": "LP",
    "mlp": "MLP",
    "nmtune": "NMTune",
    "nmtune_paper": "NMTune (paper)",
    "lora": "LoRA",
    "full": "full fine-tuning",
}
SUITES = {"id": "ID", "ood": "OOD", "source": "source"}
# fmt: off
RESULT_COLUMNS = [
    "objective", "model", "noise", "noise_ratio", "pretrain_seed", "method", "task", "suite", "label",
    "train_split", "test_split", "fraction", "seed", "num_classes", "train_size", "test_size", "accuracy",
    "mean_per_class", "macro_f1",
]
SUMMARY_COLUMNS = [
    "objective", "model", "noise", "suite", "method", "fraction", "noise_ratio", "seeds", "tasks", "accuracy",
    "accuracy_se", "mean_per_class", "mean_per_class_se", "macro_f1", "macro_f1_se",
]
# fmt: on


class Group(NamedTuple):
    """Encoders that differ in noise ratio and seed only."""

    objective: str
    model: str
    noise: str

    def __str__(self) -> str:
        return " · ".join(part for part in self if part)


class Mean(NamedTuple):
    """Mean over seeds; its standard error sd/√n (ddof = 1), None with one seed; n."""

    mean: float
    se: float | None
    n: int


def check(records: list[Record]) -> None:
    """Raises a UserError at the first record that lacks what its kind needs, or has a number out of range."""
    for number, record in enumerate(records, start=1):
        kind = record.get("kind")
        missing = [name for name in REQUIRED.get(kind, ()) if record.get(name) is None]
        if missing:
            raise UserError(
                f"Record {number} (kind {kind!r}) has no {', '.join(missing)}; a {kind} record needs "
                f"{', '.join(REQUIRED[kind])}. Run the job that wrote it again, or take the line out."
            )
        for name in (*METRICS, "fraction", "noise_ratio", "sve", "lsvr") if kind in REQUIRED else ():
            value = 0.0 if record.get(name) is None else record[name]
            largest = math.inf if name in ("sve", "lsvr") else 1.0
            if not isinstance(value, int | float) or not 0 <= value <= largest or math.isinf(value):
                valid = (
                    "a number that is not negative" if name in ("sve", "lsvr") else "from 0 to 1, not percent"
                )
                raise UserError(
                    f"Record {number} (kind {kind!r}) has {name} {value!r}; valid is {valid}. Run the job that "
                    "wrote it again, or take the line out."
                )


def of_kind(records: Iterable[Record], kind: str) -> list[Record]:
    """The records of one kind that tell their encoder: objective, noise ratio and pre-training seed."""
    return [r for r in records if r.get("kind") == kind and not is_external(r)]


def is_external(record: Record) -> bool:
    """Whether the record is of an embedding whose pre-training is not known: no γ, so in no curve."""
    return any(record.get(name) is None for name in ("objective", "noise_ratio", "pretrain_seed"))


def select(records: Iterable[Record], **values: Any) -> list[Record]:
    """The records that have all these values."""
    return [r for r in records if all(r.get(name) == value for name, value in values.items())]


def noise_ratios(records: Iterable[Record]) -> list[float]:
    """All γ, ascending."""
    return sorted({r["noise_ratio"] for r in records if r.get("kind") in REQUIRED and not is_external(r)})


def methods(records: Iterable[Record]) -> list[str]:
    """All tuning methods, in the order in which to show them."""
    return sorted({r["method"] for r in records if r.get("kind") == "tune"}, key=method_rank)


def groups(records: Iterable[Record]) -> list[Group]:
    """The groups of all records that tell their encoder, sorted."""
    noises = defaultdict(set)
    for record in records:
        if record.get("kind") in REQUIRED and not is_external(record):
            noises[record["objective"], record.get("model") or ""].add(
                (record.get("noise") or "", record["noise_ratio"] > 0)
            )
    found = []
    for (objective, model), kinds in noises.items():
        # At γ = 0 the kind of noise means nothing: such encoders belong to every kind there is.
        named = {noise for noise, noisy in kinds if noisy} or {noise for noise, _ in kinds}
        found += [Group(objective, model, noise) for noise in named]
    return sorted(found)


def of_group(records: Iterable[Record], group: Group) -> list[Record]:
    """The group's records. Those at γ = 0 are its own noise kind's, or any kind's if it has none."""
    ours = [r for r in records if (r["objective"], r.get("model") or "") == group[:2]]
    noisy = [r for r in ours if r["noise_ratio"] > 0 and (r.get("noise") or "") == group.noise]
    clean = [r for r in ours if r["noise_ratio"] == 0]
    own = [r for r in clean if (r.get("noise") or "") == group.noise]
    return (own or clean) + noisy


def table(records: Iterable[Record], value: str, by: tuple[str, ...], over: tuple[str, ...] = TASK) -> Cells:
    """Means of `value` for each key `by` and pre-training seed.

    A cell is first averaged over what repeats (tuning seeds), then over the units named by `over`; only units
    that every cell has are counted, so all cells average the same ones. Records without the value are skipped.
    """
    cells = defaultdict(lambda: defaultdict(list))
    for record in records:
        if record.get(value) is not None:
            cell = tuple(record[name] for name in by), record["pretrain_seed"]
            cells[cell][tuple(record[name] for name in over)].append(record[value])
    shared = sorted(set.intersection(*(set(units) for units in cells.values()))) if cells else []
    means: Cells = {}
    for key, seed in sorted(cells) if shared else []:
        mean = fmean(fmean(cells[key, seed][unit]) for unit in shared)
        means.setdefault(key, {})[seed] = mean
    return means


def mean_se(values: Iterable[float]) -> Mean:
    """Mean and standard error of the seeds' values."""
    values = list(values)
    return Mean(
        fmean(values), stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None, len(values)
    )


def means(cells: Cells) -> dict[Key, Mean]:
    """Mean and standard error over seeds, for each key."""
    return {key: mean_se(seeds.values()) for key, seeds in cells.items()}


def summary(records: list[Record]) -> list[dict]:
    """One row for each group, suite, method, fraction and γ: means over the tasks all γ and seeds share."""
    rows = []
    for group, suite, method, fraction, chosen in curves(records):
        columns = {metric: means(table(chosen, metric, ("noise_ratio",))) for metric in METRICS}
        for (ratio,), accuracy in columns["accuracy"].items():
            row = {
                **group._asdict(),
                "suite": suite,
                "method": method,
                "fraction": fraction,
                "noise_ratio": ratio,
            }
            row |= {"seeds": accuracy.n, "tasks": len(shared_tasks(chosen))}
            for metric in METRICS:
                cell = columns[metric].get((ratio,))
                row |= {metric: cell and cell.mean, f"{metric}_se": cell and cell.se}
            rows.append(row)
    return rows


def curves(records: list[Record]) -> list[tuple[Group, str, str, float, list[Record]]]:
    """The tune records by group, suite, method and fraction, in the order in which to show them."""
    found = []
    tuned = of_kind(records, "tune")
    for group in groups(records):
        keyed = defaultdict(list)
        for record in of_group(tuned, group):
            keyed[record["suite"], record["method"], record["fraction"]].append(record)
        order = sorted(keyed, key=lambda k: (suite_rank(k[0]), method_rank(k[1]), -k[2]))
        found += [(group, *key, keyed[key]) for key in order]
    return found


def shared_tasks(records: Iterable[Record]) -> set[tuple]:
    """The (task, test split) pairs that every γ and seed among the records has."""
    cells = defaultdict(set)
    for r in records:
        cells[r["noise_ratio"], r["pretrain_seed"]].add((r["task"], r["test_split"]))
    return set.intersection(*cells.values()) if cells else set()


def gaps(records: list[Record]) -> list[str]:
    """Sentences on what is missing where γ and seeds do not have the same tasks, or γ not the same seeds."""
    said = []
    for group, suite, method, fraction, chosen in curves(records):
        where = f"{group}, {SUITES.get(suite, suite)}, {method_name(method)}, {fraction:.0%} of the data"
        tasks = {(r["task"], r["test_split"]) for r in chosen}
        shared = len(shared_tasks(chosen))
        if shared < len(tasks):
            said.append(
                f"{where}: results are missing, so the means cover the {shared} of {len(tasks)} tasks that every "
                "γ and seed has."
            )
        seeds = defaultdict(set)
        for r in chosen:
            seeds[r["noise_ratio"]].add(r["pretrain_seed"])
        if len({frozenset(s) for s in seeds.values()}) > 1:
            counts = ", ".join(f"{len(s)} at γ = {percent(ratio)}" for ratio, s in sorted(seeds.items()))
            said.append(f"{where}: the noise ratios do not have the same pre-training seeds ({counts}).")
    return said


def pretraining(records: list[Record], group: Group) -> tuple[str, Cells]:
    """The accuracy that the group's pre-training reports, on held-out data if any: its name, (γ,) -> seed -> it."""
    chosen = of_group(of_kind(records, "pretrain"), group)
    found = sorted({name for r in chosen for name in r["metrics"] if name.endswith("accuracy")})
    held_out = [name for name in found if not name.startswith("train")]
    preferred = [name for name in ("test_accuracy", "zero_shot_accuracy") if name in found]
    metric = (preferred + held_out + found + ["accuracy"])[0]
    flat = [
        {**r, "value": r["metrics"][metric]}
        for r in chosen
        if math.isfinite(r["metrics"].get(metric, math.nan))
    ]
    return metric, table(flat, "value", ("noise_ratio",), over=())


def suite_rank(suite: str) -> tuple:
    """Sorts suites: ID, OOD, source, then others by name."""
    return _rank(suite, SUITES)


def method_rank(method: str) -> tuple:
    """Sorts methods: LP, MLP, NMTune, ..., then others by name."""
    return _rank(method, METHODS)


def _rank(name: str, known: Mapping) -> tuple:
    order = list(known)
    return (order.index(name) if name in known else len(order), name)


def method_name(method: str) -> str:
    """How a method is called where people read it."""
    return METHODS.get(method, method)


def percent(ratio: float) -> str:
    """0.05 as "5 %", 0.025 as "2.5 %"."""
    return f"{100 * ratio:.4g} %"


def write_results_csv(path: str | os.PathLike, records: Iterable[Record]) -> None:
    """One row a tune record: the known columns first, then whatever else the records hold; nested values as JSON."""
    tuned = [r for r in records if r.get("kind") == "tune"]
    more = sorted({name for r in tuned for name in r} - {"kind", *RESULT_COLUMNS})
    rows = [
        {k: json.dumps(v, sort_keys=True) if isinstance(v, dict | list) else v for k, v in r.items()}
        for r in tuned
    ]
    write_csv(path, rows, [*RESULT_COLUMNS, *more])


def write_csv(path: str | os.PathLike, rows: Iterable[Mapping], columns: list[str]) -> None:
    """Writes `columns` of `rows`; what a row lacks stays empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, extrasaction="ignore", restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    with artifacts.replacing(path, "wb") as file:
        file.write(text.getvalue().encode())
