"""A study's jobs: what there is, and what a change touches."""

from pathlib import Path

import pytest

from configs.study import demo, real
from nml_jax.core.errors import UserError
from nml_jax.study import plan


def directories(config) -> set[str]:
    return {str(job.directory) for job in plan.jobs(config, Path("w"))}


def stages(paths: set[str]) -> set[str]:
    return {p.split("/")[1] for p in paths}


def test_the_plan_is_the_product_of_the_study():
    config = demo.get_config()
    jobs = plan.jobs(config, Path("w"))
    encoders = 3 * 3 + 3 * 1
    spectra = 4 * 1 + 2 * 4
    assert len(jobs) == encoders * (1 + 3 + 6 * 3 + spectra)
    assert len({j.directory for j in jobs}) == len(jobs)
    seen = set()
    for job in jobs:
        assert {str(p) for p in job.config.inputs.values() if p} <= seen
        seen.add(str(job.directory))


def test_jobs_do_not_share_values():
    jobs = plan.jobs(demo.get_config(), Path("w"))
    pretrain = [j.config for j in jobs if j.config.stage == "pretrain"]
    assert [(c.objective, c.noise.ratio, c.seed, c.noise.seed) for c in pretrain] == [
        (objective, ratio, seed, seed)
        for objective, seeds in (("contrastive", (0,)), ("supervised", (0, 1, 2)))
        for ratio in (0.0, 0.1, 0.3)
        for seed in seeds
    ]
    tasks = {(j.config.task.name, j.config.task.train) for j in jobs if j.config.stage == "tune"}
    assert ("domains_real", "real_train") in tasks
    assert ("domains_sketch", "sketch_train") in tasks
    assert ("font", "train") in tasks


def test_a_change_touches_what_follows_from_it_and_nothing_else():
    before = directories(demo.get_config())

    def changed(edit) -> set[str]:
        config = demo.get_config()
        edit(config)
        return directories(config) - before

    assert stages(changed(lambda c: c.methods.nmtune.head.update(covariance_weight=0.1))) == {"tune"}
    assert all("nmtune" in p for p in changed(lambda c: c.methods.nmtune.head.update(covariance_weight=0.1)))
    assert stages(changed(lambda c: c.analysis.update(preprocess="none"))) == {"analysis"}
    assert stages(changed(lambda c: c.features.digits.update(views=2))) == {"features", "tune", "analysis"}
    assert all("digits" in p for p in changed(lambda c: c.features.digits.update(views=2)))
    assert all("contrastive" in p for p in changed(lambda c: c.objectives.contrastive.update(epochs=1)))
    assert all("-20-" in p for p in changed(lambda c: c.update(noise_ratios=(0.0, 0.1, 0.2, 0.3))))
    assert not changed(lambda c: c.update(data_dir="/elsewhere", progress=False, title="Another"))


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            lambda c: c.tasks.digits.update(features="digit"),
            "has letters, digits, domains|has digits, domains, letters",
        ),
        (lambda c: c.tasks.digits.update(tests=("valid",)), "uses the splits"),
        (lambda c: c.update(noise_ratios=()), "noise_ratios are empty"),
        (lambda c: c.seeds.update(other=(0,)), "name the seeds of each objective"),
    ],
)
def test_tables_that_do_not_fit_are_refused(edit, message):
    config = demo.get_config()
    edit(config)
    with pytest.raises(UserError, match=message):
        plan.jobs(config, Path("w"))


def test_the_real_study_is_planned_without_its_data():
    jobs = plan.jobs(real.get_config(), Path("w"))
    suites = {j.config.split: j.config.task.suite for j in jobs if j.config.stage == "analysis"}
    assert suites["noto_test"] == "source"
    assert suites["twemoji_test"] == suites["openmoji_test"] == suites["openmoji_black_test"] == "ood"
