"""Findings on studies with planted effects, and against SciPy's paired t-test."""

import numpy as np
import pytest
from scipy import stats
from synthetic_study import make_study

from nml_jax.report import findings
from nml_jax.report.tables import Group

GROUP = Group("supervised", "resnet18", "symmetric")


def of(records, start, group=GROUP):
    (found,) = [f for f in findings.findings(records) if f.claim.startswith(start) and f.group == str(group)]
    return found


def shift(records, amount, **where):
    """The records with `amount` (a number, or a function of the record) added to the accuracies that match."""
    moved = []
    for r in records:
        if r["kind"] == "tune" and all(r[k] == v for k, v in where.items()):
            r = r | {"accuracy": r["accuracy"] + (amount(r) if callable(amount) else amount)}
        moved.append(r)
    return moved


@pytest.fixture(scope="module")
def records():
    return make_study()


def test_planted_effects_are_shown(records):
    helps = of(records, "Noise of 5 % in pre-training raises ID")
    assert helps.verdict == "shown"
    assert helps.difference == pytest.approx(1.2, abs=0.4)
    assert of(records, "Noise of 5 % in pre-training lowers OOD").verdict == "shown"
    assert of(records, "Noise of 20 % in pre-training lowers OOD").difference == pytest.approx(-6, abs=0.4)
    assert of(records, "SVE on ID tasks rises").verdict == "shown"
    assert of(records, "LSVR on source domains rises").verdict == "shown"
    assert of(records, "MLP gives higher OOD accuracy than LP").difference == pytest.approx(1, abs=0.3)
    assert of(records, "NMTune gives higher ID accuracy than MLP").verdict == "shown"
    assert of(records, "NMTune loses less OOD accuracy").difference == pytest.approx(2, abs=0.4)


def test_heavy_noise_is_not_called_slight(records):
    assert not [
        f for f in findings.findings(records) if f.claim.startswith("Noise of 20 % in pre-training raises")
    ]


def test_the_opposite_effect_contradicts(records):
    turned = shift(records, -0.03, suite="id", method="linear_probe", noise_ratio=0.05)
    assert of(turned, "Noise of 5 % in pre-training raises ID").verdict == "contradicted"
    assert (
        of(shift(records, 0.05, method="mlp"), "NMTune gives higher ID accuracy than MLP").verdict
        == "contradicted"
    )
    better = shift(records, 0.1, suite="ood", method="linear_probe", noise_ratio=0.2)
    assert of(better, "Noise of 20 % in pre-training lowers OOD").verdict == "contradicted"


def test_an_effect_lost_in_the_spread_is_not_shown(records):
    by_seed = {0: 0.0, 1: 0.08, 2: -0.09}
    loose = shift(records, lambda r: by_seed[r["pretrain_seed"]], suite="id", noise_ratio=0.05)
    found = of(loose, "Noise of 5 % in pre-training raises ID")
    assert found.verdict == "not shown"
    assert found.low < 0 < found.high


def test_what_a_seed_adds_to_every_noise_ratio_cancels(records):
    by_seed = {0: 0.0, 1: 0.08, 2: -0.09}
    paired = shift(records, lambda r: by_seed[r["pretrain_seed"]])
    before, after = (of(r, "Noise of 5 % in pre-training raises ID") for r in (records, paired))
    assert after.difference == pytest.approx(before.difference)
    assert after.standard_error == pytest.approx(before.standard_error)


def test_interval_is_scipys_paired_t_interval(records):
    def by_seed(ratio):
        return [
            100
            * np.mean(
                [
                    r["accuracy"]
                    for r in records
                    if r["kind"] == "tune"
                    and (r["objective"], r["suite"], r["method"], r["fraction"])
                    == ("supervised", "ood", "linear_probe", 1.0)
                    and (r["noise_ratio"], r["pretrain_seed"]) == (ratio, seed)
                ]
            )
            for seed in (0, 1, 2)
        ]

    test = stats.ttest_rel(by_seed(0.2), by_seed(0.0))
    low, high = test.confidence_interval(0.95)
    found = of(records, "Noise of 20 % in pre-training lowers OOD")
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))
    assert found.difference / found.standard_error == pytest.approx(test.statistic)
    assert found.seeds == 3


def test_trend_is_the_mean_least_squares_slope(records):
    slopes = []
    for seed in (0, 1, 2):
        points = {}
        for r in records:
            chosen = r["kind"] == "spectrum" and r["objective"] == "supervised" and r["suite"] == "source"
            if chosen and r["pretrain_seed"] == seed:
                points.setdefault(r["noise_ratio"], []).append(r["lsvr"])
        slopes.append(np.polyfit(list(points), [np.mean(v) for v in points.values()], 1)[0])
    found = of(records, "LSVR on source domains rises")
    assert found.difference == pytest.approx(0.1 * np.mean(slopes))
    assert found.standard_error == pytest.approx(0.1 * stats.sem(slopes))


def test_no_effect_is_shown_as_often_as_the_level_says():
    rng = np.random.default_rng(0)
    verdicts = [
        findings.judge(GROUP, "", list(rng.standard_normal(3)), sign=1, unit="", absent="").verdict
        for _ in range(4000)
    ]
    # One side of a 95 % interval: 2.5 %, with a standard deviation of 0.25 % over 4000 draws.
    assert verdicts.count("shown") / 4000 == pytest.approx(0.025, abs=0.008)
    assert verdicts.count("contradicted") / 4000 == pytest.approx(0.025, abs=0.008)


def test_one_seed_makes_no_statement():
    found = findings.findings(make_study(seeds=(0,)))
    assert {f.verdict for f in found} == {"one seed"}
    assert {f.words for f in found} == {"One seed: no statement."}
    assert all(f.low is None and f.standard_error is None for f in found)


def test_equal_differences_in_all_seeds_are_no_proof():
    found = findings.judge(GROUP, "", [1.0, 1.0], sign=1, unit="points", absent="")
    assert found.verdict == "not shown"
    assert "cannot be estimated" in found.words


def test_missing_methods_noise_ratios_and_spectra_are_said():
    found = findings.findings(make_study(methods=("linear_probe",), ratios=(0.0,)))
    assert {f.verdict for f in found} == {"no data"}
    said = " ".join(f.words for f in found)
    assert "γ above zero" in said
    assert "MLP and LP" in said
    assert "two noise ratios" in said
    no_clean = findings.findings(make_study(ratios=(0.05, 0.2)))
    assert "no linear probe at γ = 0" in " ".join(f.words for f in no_clean)


def test_seeds_that_do_not_pair_are_left_out(records):
    chosen = [
        r
        for r in records
        if not (
            r["kind"] == "tune"
            and r["noise_ratio"] == 0.05
            and r["pretrain_seed"] == 2
            and r["suite"] == "id"
        )
    ]
    assert of(chosen, "Noise of 5 % in pre-training raises ID").seeds == 2
