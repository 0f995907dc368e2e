"""The papers' claims, tested on the records at hand.

Every claim is a linear contrast of the table of means: a weight for each (method, γ), summed to one number a
pre-training seed. Its mean over seeds with the t-interval at 95 % decides. Seeds are paired: the same seed at
every γ and method, so what a seed adds to all of them cancels. The interval covers the spread between
pre-training seeds; the tasks and their test images are taken as given. Intervals are not adjusted for their number.
"""

import math
from dataclasses import asdict, dataclass

from scipy.special import stdtrit

from nml_jax.report import tables
from nml_jax.report.tables import Cells, Group, Key, Record, percent

LEVEL = 0.95
SLIGHT = 0.10  # "slight" noise in the papers: γ up to 5 or 10 %
SHOWN, NOT_SHOWN, CONTRADICTED = "shown", "not shown", "contradicted"
ONE_SEED, NO_DATA = "one seed", "no data"
POINTS = "percentage points"
PER_TEN = "nats per ten points of γ"


@dataclass(frozen=True)
class Finding:
    """One claim in one group. `difference` is positive in the claim's direction or not, as the claim says."""

    group: str
    claim: str
    verdict: str
    words: str
    difference: float | None = None
    standard_error: float | None = None
    low: float | None = None
    high: float | None = None
    seeds: int = 0
    unit: str = ""


def findings(records: list[Record]) -> list[Finding]:
    """All claims, for each group of encoders in the records."""
    found = []
    for group in tables.groups(records):
        tuned = tables.of_group(tables.of_kind(records, "tune"), group)
        spectra = tables.of_group(tables.of_kind(records, "spectrum"), group)
        found += _noise_effect(group, tuned) + _trends(group, spectra) + _methods(group, tuned)
    return found


def as_json(found: list[Finding]) -> dict:
    """The findings with what is needed to read them."""
    return {
        "level": LEVEL,
        "interval": "paired t-interval over pre-training seeds, not adjusted for the number of intervals",
        "findings": [asdict(finding) for finding in found],
    }


def contrast(cells: Cells, weights: dict[Key, float]) -> list[float]:
    """Σ weight · mean, for each seed that all weighted cells have; empty if a cell is missing."""
    if not weights or any(key not in cells for key in weights):
        return []
    seeds = sorted(set.intersection(*(set(cells[key]) for key in weights)))
    return [math.fsum(weight * cells[key][seed] for key, weight in weights.items()) for seed in seeds]


def judge(group: Group, claim: str, values: list[float], *, sign: int, unit: str, absent: str) -> Finding:
    """The verdict on a claim, from one difference a seed.

    Args:
      values: the differences, in `unit`.
      sign: +1 if the claim is that the difference is positive, −1 if negative.
      absent: what to say is missing if there are no values.
    """
    if not values:
        return Finding(str(group), claim, NO_DATA, f"No data: {absent}.")
    mean, se, n = tables.mean_se(values)
    if se is None:
        return Finding(str(group), claim, ONE_SEED, "One seed: no statement.", mean, seeds=1, unit=unit)
    if se <= 1e-9 * max(1.0, abs(mean)):
        words = f"The difference is {signed(mean, 4)} {unit} in each of {n} seeds, so its error cannot be estimated."
        return Finding(str(group), claim, NOT_SHOWN, words, mean, se, seeds=n, unit=unit)
    half = float(stdtrit(n - 1, (1 + LEVEL) / 2)) * se
    low, high = mean - half, mean + half
    if sign * mean > half:
        verdict = SHOWN
    elif -sign * mean > half:
        verdict = CONTRADICTED
    else:
        verdict = NOT_SHOWN
    digits = 2 if unit == POINTS else 4
    words = (
        f"{signed(mean, digits)} {unit}, {percent(LEVEL)} interval {signed(low, digits)} to {signed(high, digits)} "
        f"(s.e. {se:.{digits}f}, {n} paired seeds)."
    )
    return Finding(str(group), claim, verdict, words, mean, se, low, high, n, unit)


def signed(value: float, digits: int) -> str:
    """A number with its sign, the minus as printers set it."""
    return f"{value:+.{digits}f}".replace("-", "−")


def _noise_effect(group: Group, tuned: list[Record]) -> list[Finding]:
    """LP accuracy at γ against γ = 0: slight noise helps ID, any noise hurts OOD."""
    found = []
    for suite, sign, limit in (("id", 1, SLIGHT), ("ood", -1, 1.0)):
        chosen = tables.select(tuned, suite=suite, method="linear_probe", fraction=1.0)
        cells = tables.table(chosen, "accuracy", ("noise_ratio",))
        name, claimed = ("ID", "raises") if suite == "id" else ("OOD", "lowers")
        ratios = [ratio for (ratio,) in cells if 0 < ratio <= limit]
        for ratio in ratios:
            values = [100 * v for v in contrast(cells, {(ratio,): 1.0, (0.0,): -1.0})]
            claim = f"Noise of {percent(ratio)} in pre-training {claimed} {name} accuracy (LP)."
            absent = "no linear probe at γ = 0"
            found.append(judge(group, claim, values, sign=sign, unit=POINTS, absent=absent))
        if not ratios:
            kind = f"Slight noise (up to {percent(SLIGHT)})" if suite == "id" else "Noise"
            claim = f"{kind} in pre-training {claimed} {name} accuracy (LP)."
            within = f" up to {percent(limit)}" if suite == "id" else ""
            absent = f"no {name} linear probe on all the data at γ above zero{within}"
            found.append(judge(group, claim, [], sign=sign, unit=POINTS, absent=absent))
    return found


def _trends(group: Group, spectra: list[Record]) -> list[Finding]:
    """SVE on ID and LSVR on the source domains rise with γ: the least-squares slope within each seed."""
    found = []
    for value, suite, name in (
        ("sve", "id", "SVE on ID tasks"),
        ("lsvr", "source", "LSVR on source domains"),
    ):
        chosen = tables.select(spectra, suite=suite, preprocess="official")
        cells = tables.table(chosen, value, ("noise_ratio",), over=("task", "split"))
        ratios = [ratio for (ratio,) in cells]
        centre = sum(ratios) / max(1, len(ratios))
        spread = sum((ratio - centre) ** 2 for ratio in ratios)
        weights = {(ratio,): 0.1 * (ratio - centre) / spread for ratio in ratios} if spread else {}
        claim = f"{name} rises with the noise ratio (linear trend)."
        absent = f"no spectra of {tables.SUITES[suite]} test splits at two noise ratios"
        found.append(judge(group, claim, contrast(cells, weights), sign=1, unit=PER_TEN, absent=absent))
    return found


def _methods(group: Group, tuned: list[Record]) -> list[Finding]:
    """MLP above LP, NMTune above MLP (averaged over γ); NMTune loses less to noise than LP."""
    found = []
    nmtunes = sorted({r["method"] for r in tuned if r["method"].startswith("nmtune")}, key=tables.method_rank)
    nmtunes = nmtunes or ["nmtune"]
    for suite in ("id", "ood"):
        chosen = tables.select(tuned, suite=suite, fraction=1.0)
        for upper, lower in [("mlp", "linear_probe"), *((m, "mlp") for m in nmtunes)]:
            cells = _pair(chosen, upper, lower)
            ratios = _ratios(cells, upper, lower)
            weights = {(m, r): w / len(ratios) for m, w in ((upper, 1.0), (lower, -1.0)) for r in ratios}
            pair = tables.method_name(upper), tables.method_name(lower)
            claim = (
                f"{pair[0]} gives higher {tables.SUITES[suite]} accuracy than {pair[1]} (mean over the γ)."
            )
            found.append(_judge_pair(group, claim, cells, weights, upper, lower))
        for method in nmtunes:
            cells = _pair(chosen, method, "linear_probe")
            ratios = _ratios(cells, method, "linear_probe")
            noisy = [r for r in ratios if r > 0]
            weights = {}
            if noisy and 0.0 in ratios:  # (LP at 0 − LP at γ) − (NMTune at 0 − NMTune at γ), mean over γ > 0
                weights = {("linear_probe", 0.0): 1.0, (method, 0.0): -1.0}
                weights |= {("linear_probe", r): -1 / len(noisy) for r in noisy}
                weights |= {(method, r): 1 / len(noisy) for r in noisy}
            claim = (
                f"{tables.method_name(method)} loses less {tables.SUITES[suite]} accuracy to noise than LP "
                "(drop from γ = 0, mean over the γ above it)."
            )
            found.append(_judge_pair(group, claim, cells, weights, method, "linear_probe"))
    return found


def _pair(records: list[Record], upper: str, lower: str) -> Cells:
    """Accuracies of two methods by (method, γ), over the tasks that both have."""
    chosen = [r for r in records if r["method"] in (upper, lower)]
    return tables.table(chosen, "accuracy", ("method", "noise_ratio"))


def _ratios(cells: Cells, upper: str, lower: str) -> list[float]:
    """The noise ratios at which both methods were run."""
    return [ratio for method, ratio in cells if method == upper and (lower, ratio) in cells]


def _judge_pair(
    group: Group, claim: str, cells: Cells, weights: dict[Key, float], upper: str, lower: str
) -> Finding:
    values = [100 * v for v in contrast(cells, weights)]
    pair = f"{tables.method_name(upper)} and {tables.method_name(lower)}"
    absent = f"no runs of {pair} on all the data that share tasks, noise ratios and seeds"
    return judge(group, claim, values, sign=1, unit=POINTS, absent=absent)
