"""The figures, one function each: records in, a matplotlib `Figure` out, or a sentence on what is missing for it.

Everything goes through `Figure`, so there is no pyplot state.
"""

import os
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from nml_jax.report import style, tables
from nml_jax.report.tables import Group, Record, percent

GAMMA = "noise ratio γ in pre-training (%)"


class Drawing(NamedTuple):
    """A figure for the page: its file name, its words, and the figure or what is missing for it."""

    name: str
    title: str
    caption: str
    figure: Figure | str


def draw(records: list[Record], base_dir: str | os.PathLike) -> list[Drawing]:
    """All figures. Spectrum files are looked up relative to `base_dir`."""
    means = "Means over tasks, then over pre-training seeds; bars: one standard error over seeds (none with one seed)."
    return [
        Drawing(
            "accuracy_noise.png",
            "Accuracy against pre-training noise",
            f"All the training data. {means} Methods are drawn slightly apart so that bars do not cover each other.",
            accuracy_against_noise(records),
        ),
        Drawing(
            "accuracy_fraction.png",
            "Linear-probe accuracy against the amount of training data",
            means,
            accuracy_against_fraction(records),
        ),
        Drawing(
            "spectrum_accuracy.png",
            "Spectra against accuracy",
            "A marker is a task, a colour a noise ratio; grey lines join the noise ratios of one task. Accuracy is the "
            "linear probe's, averaged over the data fractions; OOD tasks stand at the LSVR of their source domain's "
            "test split. Means over seeds.",
            spectrum_against_accuracy(records),
        ),
        Drawing(
            "spectra.png",
            "Singular value spectra",
            "Singular values of test features over their sum, both axes logarithmic. Means over seeds.",
            singular_value_spectra(records, base_dir),
        ),
        Drawing(
            "pretraining.png",
            "Pre-training accuracy against noise",
            "The encoders on their own pre-training task. Means over seeds; bars are one standard error.",
            pretraining_accuracy(records),
        ),
    ]


def accuracy_against_noise(records: list[Record]) -> Figure | str:
    """Accuracy against γ with a line a method: a row a group, ID and OOD side by side (Fig. 1 of the papers)."""
    tuned = tables.select(tables.of_kind(records, "tune"), fraction=1.0)
    methods = tables.methods(records)
    panels = {}
    for group in tables.groups(records):
        for suite in ("id", "ood"):
            chosen = tables.select(tables.of_group(tuned, group), suite=suite)
            curves = {}
            for method in methods:
                cells = tables.table(tables.select(chosen, method=method), "accuracy", ("noise_ratio",))
                curves |= {method: tables.means(cells)} if cells else {}
            if any(len(curve) > 1 for curve in curves.values()):
                panels[group, suite] = curves
    if not panels:
        return "runs on all the training data at two noise ratios"
    with matplotlib.rc_context(style.RC):
        figure, axes = style.grid(panels)
        for (group, suite), curves in panels.items():
            ax = axes[group, suite]
            ratios = sorted({ratio for curve in curves.values() for (ratio,) in curve})
            for i, (method, curve) in enumerate(curves.items()):
                aside = (i - (len(curves) - 1) / 2) * 0.7 * max(ratios)
                xs = [100 * ratio + aside for (ratio,) in curve]
                style.errorbar(ax, xs, curve.values(), *style.method_style(method, methods))
            ax.set_xticks([100 * ratio for ratio in ratios])
            ax.xaxis.set_major_formatter("{x:.3g}")
            ax.set(xlabel=GAMMA, ylabel="accuracy (%)")
            ax.set_title(style.text(f"{group}: {tables.SUITES[suite]}"))
        drawn = [m for m in methods if any(m in curves for curves in panels.values())]
        style.legend(
            figure, [style.handle(tables.method_name(m), *style.method_style(m, methods)) for m in drawn]
        )
    return figure


def accuracy_against_fraction(records: list[Record]) -> Figure | str:
    """LP accuracy against the fraction of training data, a line a noise ratio (Fig. 2)."""
    tuned = tables.select(tables.of_kind(records, "tune"), method="linear_probe")
    ratios = tables.noise_ratios(records)
    panels = {}
    for group in tables.groups(records):
        for suite in ("id", "ood"):
            chosen = tables.select(tables.of_group(tuned, group), suite=suite)
            panel = tables.means(tables.table(chosen, "accuracy", ("noise_ratio", "fraction")))
            if len({fraction for _, fraction in panel}) > 1:
                panels[group, suite] = panel
    if not panels:
        return "linear probes on two fractions of the training data"
    with matplotlib.rc_context(style.RC):
        figure, axes = style.grid(panels)
        for (group, suite), panel in panels.items():
            ax = axes[group, suite]
            for ratio in sorted({ratio for ratio, _ in panel}):
                curve = {fraction: mean for (r, fraction), mean in panel.items() if r == ratio}
                xs = [100 * fraction for fraction in curve]
                style.errorbar(ax, xs, curve.values(), *style.ratio_style(ratio, ratios))
            ax.set_xticks(sorted({100 * fraction for _, fraction in panel}))
            ax.xaxis.set_major_formatter("{x:.3g}")
            ax.set(xlabel="training data used (%)", ylabel="LP accuracy (%)")
            ax.set_title(style.text(f"{group}: {tables.SUITES[suite]}"))
        style.legend(
            figure, [style.handle(f"γ = {percent(r)}", *style.ratio_style(r, ratios)) for r in ratios]
        )
    return figure


def spectrum_against_accuracy(records: list[Record]) -> Figure | str:
    """SVE and ID accuracy, LSVR of the source domain and OOD accuracy, a point a task and γ (Fig. 3)."""
    ratios = tables.noise_ratios(records)
    panels = {}
    for group in tables.groups(records):
        for suite in ("id", "ood"):
            points = _scatter_points(records, group, suite)
            if points:
                panels[group, suite] = points
    if not panels:
        return "spectra and linear probes of the same tasks"
    with matplotlib.rc_context(style.RC):
        figure, axes = style.grid(panels)
        names = {
            s: sorted({n for (_, suite), p in panels.items() if suite == s for n in p}) for s in ("id", "ood")
        }
        for (group, suite), points in panels.items():
            ax = axes[group, suite]
            for name, line in points.items():
                ax.plot([x for _, x, _ in line], [y for _, _, y in line], color="#bbbbbb", lw=0.8, zorder=1)
                for ratio, x, y in line:
                    color = style.ratio_style(ratio, ratios)[0]
                    marker = style.MARKERS[names[suite].index(name) % len(style.MARKERS)]
                    ax.plot(x, y, marker, color=color, mec="white", mew=0.4, ms=7)
            ax.set(xlabel="SVE of the task (nats)" if suite == "id" else "LSVR of the source domain (nats)")
            ax.set(ylabel="LP accuracy (%)", title=style.text(f"{group}: {tables.SUITES[suite]}"))
        handles = [
            style.handle(f"γ = {percent(r)}", style.ratio_style(r, ratios)[0], "o", "") for r in ratios
        ]
        style.legend(figure, handles, "upper")
        if max(map(len, names.values())) <= len(style.MARKERS):
            marked = [(m, n) for s in names for m, n in zip(style.MARKERS, names[s], strict=False)]
            style.legend(figure, [style.handle(name, "#888888", marker, "") for marker, name in marked])
    return figure


def singular_value_spectra(records: list[Record], base_dir: str | os.PathLike) -> Figure | str:
    """σ/Σσ against its rank, a line a noise ratio, mean over seeds: up to two ID tasks and a source for each group."""
    ratios = tables.noise_ratios(records)
    spectra = tables.select(tables.of_kind(records, "spectrum"), preprocess="official")
    panels = {}
    for group in tables.groups(records):
        chosen = tables.of_group(spectra, group)
        tests = [
            sorted({(r["task"], r["split"]) for r in chosen if r["suite"] == s}) for s in ("id", "source")
        ]
        for column, (task, split) in enumerate((tests[0][:2] + tests[1])[:3]):
            curves = _mean_spectra(tables.select(chosen, task=task, split=split), Path(base_dir))
            if curves:
                panels[group, column] = (task, curves)
    if not panels:
        return "spectrum records and the spectrum.npz files that they name"
    with matplotlib.rc_context(style.RC):
        figure, axes = style.grid(panels)
        for (group, column), (task, curves) in panels.items():
            ax = axes[group, column]
            for ratio, curve in curves.items():
                # Row centring leaves one exact zero, which rounding shows as 1e-17: not a value to draw.
                rank = np.flatnonzero(curve > 1e-9) + 1
                ax.plot(rank, curve[rank - 1], color=style.ratio_style(ratio, ratios)[0], lw=1.4)
            ax.set(xscale="log", yscale="log", xlabel="rank i of the singular value")
            ax.set_title(style.text(task))
            if column == 0:
                ax.set_ylabel(style.text(f"{group}\nshare σᵢ / Σσ"))
        style.legend(
            figure, [style.handle(f"γ = {percent(r)}", style.ratio_style(r, ratios)[0], "") for r in ratios]
        )
    return figure


def pretraining_accuracy(records: list[Record]) -> Figure | str:
    """Accuracy of the encoders on their own pre-training task against γ, a panel a group."""
    panels = {}
    for group in tables.groups(records):
        metric, cells = tables.pretraining(records, group)
        if len(cells) > 1:
            panels[group] = (metric, tables.means(cells))
    if not panels:
        return "pre-training records with an accuracy at two noise ratios"
    with matplotlib.rc_context(style.RC):
        columns = min(3, len(panels))
        rows = -(-len(panels) // columns)
        size = (max(0.55 * style.WIDTH, style.WIDTH / 2.2 * columns), 0.85 * style.HEIGHT * rows)
        figure = style.blank(min(style.WIDTH, size[0]), size[1])
        axes = figure.subplots(rows, columns, squeeze=False).ravel()
        for ax in axes[len(panels) :]:
            ax.set_axis_off()
        for ax, (group, (metric, curve)) in zip(axes, panels.items(), strict=False):
            xs = [100 * ratio for (ratio,) in curve]
            style.errorbar(ax, xs, curve.values(), "#333333", "o")
            ax.set_xticks(xs)
            ax.xaxis.set_major_formatter("{x:.3g}")
            ax.set(
                xlabel=GAMMA, ylabel=style.text(f"{metric.replace('_', ' ')} (%)"), title=style.text(group)
            )
    return figure


def _scatter_points(
    records: list[Record], group: Group, suite: str
) -> dict[str, list[tuple[float, float, float]]]:
    """Name of a task -> (γ, SVE or LSVR, LP accuracy in percent averaged over the data fractions), means over seeds."""
    probes = tables.select(tables.of_kind(records, "tune"), suite=suite, method="linear_probe")
    by = ("task", "test_split", "noise_ratio")
    cells = tables.table(tables.of_group(probes, group), "accuracy", by, over=("fraction",))
    value, where = ("sve", "id") if suite == "id" else ("lsvr", "source")
    spectra = tables.select(tables.of_kind(records, "spectrum"), suite=where, preprocess="official")
    values = tables.means(
        tables.table(tables.of_group(spectra, group), value, ("task", "noise_ratio"), over=())
    )
    points = defaultdict(list)
    for (task, split, ratio), accuracy in tables.means(cells).items():
        if (task, ratio) in values:
            name = task if suite == "id" else f"{task} → {split}"
            points[name].append((ratio, values[task, ratio].mean, 100 * accuracy.mean))
    return points


def _mean_spectra(records: list[Record], base_dir: Path) -> dict[float, np.ndarray]:
    """γ -> mean over seeds of σ/Σσ; files that are not there are passed over."""
    found = defaultdict(list)
    for record in records:
        path = base_dir / (record.get("path") or record.get("file") or "spectrum.npz")
        if path.is_file():
            with np.load(path, allow_pickle=False) as arrays:
                s = arrays["singular_values"]
            found[record["noise_ratio"]].append(s / s.sum())
    shortest = {ratio: min(map(len, spectra)) for ratio, spectra in found.items()}
    return {r: np.mean([s[: shortest[r]] for s in found[r]], axis=0) for r in sorted(found)}
