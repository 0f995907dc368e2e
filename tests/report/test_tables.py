"""Tables against hand computation."""

import csv
import json
import math

import pytest
from synthetic_study import make_study

from nml_jax.core.errors import UserError
from nml_jax.report import tables
from nml_jax.report.tables import Group


def record(accuracy, *, ratio=0.0, seed=0, task="a", split="test", tuning_seed=0, **more):
    return {
        "kind": "tune",
        "objective": "supervised",
        "model": "m",
        "noise": "symmetric",
        "noise_ratio": ratio,
        "pretrain_seed": seed,
        "method": "linear_probe",
        "task": task,
        "suite": "id",
        "test_split": split,
        "fraction": 1.0,
        "seed": tuning_seed,
        "accuracy": accuracy,
    } | more


def test_mean_over_tuning_seeds_then_tasks_then_pretraining_seeds():
    records = [
        record(0.2, seed=0, task="a", tuning_seed=0),
        record(0.4, seed=0, task="a", tuning_seed=1),  # task a in seed 0: 0.3
        record(0.5, seed=0, task="b"),  # seed 0: 0.4, whereas the mean of the three runs is 0.3667
        record(0.4, seed=1, task="a"),
        record(0.6, seed=1, task="b"),  # seed 1: 0.5
        record(0.6, seed=2, task="a"),
        record(0.8, seed=2, task="b"),  # seed 2: 0.7
    ]
    cells = tables.table(records, "accuracy", ("noise_ratio",))
    assert cells[0.0,] == pytest.approx({0: 0.4, 1: 0.5, 2: 0.7})
    mean = tables.means(cells)[0.0,]
    assert mean.mean == pytest.approx(1.6 / 3)
    # Deviations −4/30, −1/30, 5/30: variance (16 + 1 + 25)/900/2 = 21/900, error sqrt(21/900/3).
    assert mean.se == pytest.approx(math.sqrt(21 / 2700))
    assert mean.n == 3


def test_one_seed_has_no_standard_error():
    mean = tables.means(tables.table([record(0.5)], "accuracy", ("noise_ratio",)))[0.0,]
    assert mean == (0.5, None, 1)


def test_means_cover_only_the_tasks_that_all_cells_have():
    records = [record(0.2), record(0.9, task="b"), record(0.4, ratio=0.1)]
    cells = tables.table(records, "accuracy", ("noise_ratio",))
    assert cells == {(0.0,): {0: 0.2}, (0.1,): {0: 0.4}}
    (said,) = tables.gaps(records)
    assert "1 of 2 tasks" in said
    disjoint = tables.table([record(0.2), record(0.4, ratio=0.1, task="b")], "accuracy", ("noise_ratio",))
    assert disjoint == {}


def test_unequal_seeds_are_said():
    (said,) = tables.gaps([record(0.2), record(0.3, seed=1), record(0.4, ratio=0.1)])
    assert "2 at γ = 0 %, 1 at γ = 10 %" in said
    assert tables.gaps(make_study()) == []


def test_clean_encoders_belong_to_every_kind_of_noise():
    records = [
        record(0.5, noise="none"),
        record(0.4, ratio=0.1),
        record(0.3, ratio=0.1, noise="asymmetric"),
    ]
    assert tables.groups(records) == [
        Group("supervised", "m", "asymmetric"),
        Group("supervised", "m", "symmetric"),
    ]
    chosen = tables.of_group(records, Group("supervised", "m", "asymmetric"))
    assert [r["accuracy"] for r in chosen] == [0.5, 0.3]
    assert tables.groups(records[:1]) == [Group("supervised", "m", "none")]


def test_external_embeddings_are_in_no_group():
    outside = {k: v for k, v in record(0.5).items() if k not in ("objective", "noise_ratio")}
    assert tables.groups([outside]) == []
    assert tables.of_kind([outside], "tune") == []
    assert tables.summary([outside]) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"accuracy": 71.3}, "from 0 to 1, not percent"),
        ({"accuracy": math.nan}, "accuracy nan"),
        ({"accuracy": None}, "no accuracy"),
        ({"method": None}, "no method"),
        ({"fraction": "all"}, "fraction 'all'"),
        ({"noise_ratio": 10}, "noise_ratio 10"),
    ],
)
def test_bad_records_are_named_by_number(change, said):
    with pytest.raises(UserError, match=said) as error:
        tables.check([record(0.5), record(0.5) | change])
    assert "Record 2" in str(error.value)


def test_pretraining_takes_held_out_accuracy_and_passes_over_nan():
    group = Group("supervised", "m", "symmetric")
    base = {k: record(0)[k] for k in ("objective", "model", "noise", "pretrain_seed")} | {"kind": "pretrain"}
    records = [
        base | {"noise_ratio": 0.0, "metrics": {"train_accuracy": 0.9, "test_accuracy": 0.7}},
        base | {"noise_ratio": 0.1, "metrics": {"train_accuracy": 0.9, "test_accuracy": math.nan}},
    ]
    assert tables.pretraining(records, group) == ("test_accuracy", {(0.0,): {0: 0.7}})


def test_csv_files_hold_every_run_and_every_mean(tmp_path):
    records = make_study(seeds=(0, 1), objectives=("supervised",), methods=("linear_probe", "mlp"))
    records[-1]["note"] = "spectrum lines do not add columns"
    records[1]["task"] = 'odd, "name"'
    tables.write_results_csv(tmp_path / "results.csv", records)
    with open(tmp_path / "results.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    tuned = [r for r in records if r["kind"] == "tune"]
    assert len(rows) == len(tuned)
    assert "note" not in rows[0]
    assert rows[0]["task"] == 'odd, "name"'
    assert [float(r["accuracy"]) for r in rows] == [r["accuracy"] for r in tuned]
    assert json.loads(rows[0]["versions"]) == tuned[0]["versions"]


def test_summary_equals_a_plain_recomputation():
    records = make_study()
    (row,) = [
        r
        for r in tables.summary(records)
        if (r["objective"], r["suite"], r["method"], r["noise_ratio"]) == ("contrastive", "ood", "mlp", 0.2)
    ]
    seeds = []
    for seed in (0, 1, 2):
        values = [
            r["accuracy"]
            for r in records
            if r["kind"] == "tune"
            and (r["objective"], r["suite"], r["method"], r["noise_ratio"], r["pretrain_seed"])
            == ("contrastive", "ood", "mlp", 0.2, seed)
        ]
        assert len(values) == 5
        seeds.append(sum(values) / 5)
    mean = sum(seeds) / 3
    assert row["accuracy"] == pytest.approx(mean)
    assert row["accuracy_se"] == pytest.approx(math.sqrt(sum((s - mean) ** 2 for s in seeds) / 2 / 3))
    assert (row["seeds"], row["tasks"]) == (3, 5)
    assert row["macro_f1"] == pytest.approx(mean - 0.02)
