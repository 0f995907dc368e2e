"""The study stage: runs a plan's jobs here, in order, and renders the report; interrupted, it goes on."""

import os
from pathlib import Path

from ml_collections import ConfigDict

from nml_jax.core import artifacts, runtime, stage, writer
from nml_jax.report import run as report
from nml_jax.study import plan

EVERY_PROCESS, REPEATS = True, True


def check(config: ConfigDict) -> None:
    """Raises a UserError for what is wrong in any job, before the first one starts."""
    seen = set()
    for job in plan.jobs(config, Path()):
        distinct = artifacts.digest(
            {k: v for k, v in artifacts.plain(job.config).items() if k not in ("inputs", "seed")}
        )
        if distinct not in seen:
            seen.add(distinct)
            stage.find(job.config.stage).check(job.config)


def run(config: ConfigDict, workdir: str) -> None:
    """Writes `<workdir>/<stage>/<job>/`, `results.jsonl` in the order of the plan, and `report/`."""
    jobs = plan.jobs(config, Path(workdir))
    done = sum(artifacts.is_finished(job.directory) for job in jobs)
    show = config.progress and runtime.is_lead()
    with writer.progress_bar(len(jobs), f"study {config.name}", unit="job", initial=done, show=show) as bar:
        for job in jobs:
            if artifacts.is_finished(job.directory):
                continue
            bar.set_postfix_str(job.title)
            stage.execute(job.config, job.directory)
            bar.update()
    if runtime.is_lead():
        _report(config, Path(workdir), jobs)


def _report(config: ConfigDict, workdir: Path, jobs: list[plan.Job]) -> None:
    """Collects the jobs' results and renders them, unless the report of the same results is there."""
    records = []
    for job in jobs:
        if not (job.directory / "results.jsonl").exists():
            continue
        for record in writer.read_lines(job.directory / "results.jsonl"):
            if "file" in record:
                record["path"] = os.path.relpath(job.directory / record["file"], workdir)
            records.append(record)
    rendered = artifacts.digest([records, config.title])
    stamp = workdir / "report" / "rendered.json"
    if stamp.exists() and stamp.read_text() == rendered:
        return
    writer.write_lines(workdir / "results.jsonl", records)
    report.write(
        records,
        workdir / "report",
        title=config.title,
        base_dir=workdir,
        machine=runtime.machine(),
        command=config.command,
    )
    with artifacts.replacing(stamp) as file:
        file.write(rendered)
    if config.progress:
        print(f"{len(jobs)} jobs, {len(records)} results: {workdir / 'report' / 'index.html'}", flush=True)
