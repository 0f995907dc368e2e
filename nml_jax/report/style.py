"""How the figures look: colours, markers, panels, legends.

Colours are Okabe and Ito's, which stay apart for colour-blind readers; a method has the same colour and marker in
every figure, and so has a noise ratio.
"""

import io
from collections.abc import Iterable

import matplotlib
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from nml_jax.report.tables import Mean

DPI = 110
WIDTH, HEIGHT = 9.2, 3.3  # inches: of a figure, of a row of panels
RC = {
    "font.size": 9.5,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.7,
    "axes.axisbelow": True,
    "lines.linewidth": 1.7,
    "lines.markersize": 5.5,
    "legend.frameon": False,
}
METHOD_STYLES = {
    "linear_probe": ("#0072B2", "o"),
    "mlp": ("#E69F00", "s"),
    "nmtune": ("#009E73", "^"),
    "nmtune_paper": ("#D55E00", "D"),
    "lora": ("#CC79A7", "v"),
    "full": ("#56B4E9", "P"),
}
OTHER_STYLES = (("#000000", "X"), ("#7F7F7F", "<"), ("#8C564B", ">"), ("#5D3A9B", "h"))
MARKERS = "os^vDPX<>ph8*dH"


def png(figure: Figure) -> bytes:
    """The figure as a PNG file; the same figure gives the same bytes."""
    file = io.BytesIO()
    with matplotlib.rc_context(RC):
        figure.savefig(file, format="png", dpi=DPI, metadata={"Software": None})
    return file.getvalue()


def blank(width: float, height: float) -> Figure:
    """An empty figure, in inches, that keeps its panels and legends from touching."""
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.09, h_pad=0.07)
    return figure


def grid(panels: dict) -> tuple[Figure, dict[tuple, Axes]]:
    """A figure with a row a group and a column a suite (or number); places without a panel stay blank."""
    rows = list(dict.fromkeys(group for group, _ in panels))
    columns = sorted({column for _, column in panels})
    width = WIDTH if len(columns) > 1 else 0.6 * WIDTH
    figure = blank(width, HEIGHT * len(rows) + 0.4)
    grid = figure.subplots(len(rows), len(columns), squeeze=False)
    axes = {(g, c): grid[i, j] for i, g in enumerate(rows) for j, c in enumerate(columns)}
    for place, ax in axes.items():
        if place not in panels:
            ax.set_axis_off()
    return figure, axes


def errorbar(ax: Axes, xs: list[float], ys: Iterable[Mean], color: str, marker: str) -> None:
    """Means in percent with a bar of one standard error each way; no bar where there is one seed."""
    ys = list(ys)
    errors = [100 * (y.se or 0.0) for y in ys]
    bars = {"yerr": errors, "capsize": 2.5, "elinewidth": 1} if any(errors) else {}
    ax.errorbar(xs, [100 * y.mean for y in ys], color=color, marker=marker, **bars)


def legend(figure: Figure, handles: list[Line2D], place: str = "lower") -> None:
    """One legend for all panels, below ("lower") or above them ("upper")."""
    longest = max(len(handle.get_label()) for handle in handles)
    fitting = int(figure.get_figwidth() / (0.45 + 0.085 * longest))  # inches of a marker and of a letter
    figure.legend(handles=handles, loc=f"outside {place} center", ncols=max(1, min(5, len(handles), fitting)))


def handle(label: str, color: str, marker: str, linestyle: str = "-") -> Line2D:
    """An entry of a legend."""
    return Line2D([], [], color=color, marker=marker, linestyle=linestyle, label=text(label))


def text(name: object) -> str:
    """A name as it is: no mathematics between dollars, and shown by a legend even with a leading underscore."""
    name = str(name).replace("$", r"\$")
    return f" {name}" if name.startswith("_") else name


def method_style(method: str, methods: list[str]) -> tuple[str, str]:
    """Colour and marker of a method; those without their own take the spare ones in the order of `methods`."""
    if method in METHOD_STYLES:
        return METHOD_STYLES[method]
    others = [m for m in methods if m not in METHOD_STYLES]
    return OTHER_STYLES[others.index(method) % len(OTHER_STYLES)]


def ratio_style(ratio: float, ratios: list[float]) -> tuple[str, str]:
    """Colour and marker of a noise ratio, from dark to light; the palest part of the map is left out."""
    place = ratios.index(ratio)
    color = matplotlib.colormaps["viridis"](0.82 * place / max(1, len(ratios) - 1))
    return to_hex(color), MARKERS[place % len(MARKERS)]
