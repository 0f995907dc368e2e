"""The report as a whole: files, page, what is said when things are missing."""

import base64
import io
import json
import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest
from PIL import Image
from synthetic_study import make_study

from configs.report import default
from nml_jax.core import artifacts, stage, writer
from nml_jax.core.errors import UserError
from nml_jax.report import papers, run, sections, tables

VOID = {"meta", "img", "br", "hr", "link", "input"}
ALL = {
    "accuracy_noise.png",
    "accuracy_fraction.png",
    "spectrum_accuracy.png",
    "spectra.png",
    "pretraining.png",
}


class Page(HTMLParser):
    """Tags, attributes and text; every tag that opens must close."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.parts = [], [], []
        self.feed(text)
        self.close()
        assert self.open == []
        self.text = re.sub(r"\s+", " ", "".join(self.parts))

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.parts.append(data)

    def all(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


def render(records, outdir, base_dir=".", title="A study", **more):
    run.write(records, outdir, title=title, base_dir=base_dir, **more)
    return Page((outdir / "index.html").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def report(study, study_dir, tmp_path_factory):
    outdir = tmp_path_factory.mktemp("report")
    return outdir, render(study, outdir, study_dir, machine="a machine", command="run <this>")


def test_all_files_are_written(report):
    outdir, _ = report
    assert {p.name for p in outdir.iterdir()} == {
        "index.html",
        "figures",
        "results.csv",
        "summary.csv",
        "findings.json",
    }
    assert {p.name for p in (outdir / "figures").iterdir()} == ALL
    found = json.loads((outdir / "findings.json").read_text())
    assert found["level"] == 0.95
    assert {f["verdict"] for f in found["findings"]} <= {"shown", "not shown", "contradicted"}


def test_figures_are_legible_and_in_the_page(report):
    outdir, page = report
    images = page.all("img")
    assert len(images) == len(ALL)
    for image in images:
        assert len(image["alt"]) > 20
        data = base64.b64decode(image["src"].removeprefix("data:image/png;base64,"), validate=True)
        assert data in [(outdir / "figures" / name).read_bytes() for name in ALL]
        assert Image.open(io.BytesIO(data)).width >= 500


def test_the_page_loads_nothing(report):
    outdir, page = report
    text = (outdir / "index.html").read_text(encoding="utf-8")
    assert not {"script", "link", "iframe"} & {tag for tag, _ in page.tags}
    urls = set(re.findall(r"https?://[^'\"<\s]+", text))
    assert urls == {url for _, url in papers.LINKS}
    assert {a["href"] for a in page.all("a")} == urls
    assert "url(" not in text
    assert "@import" not in text
    assert all(not value.startswith("on") for _, attrs in page.tags for value in attrs)


def test_the_page_says_what_was_run_and_found(report):
    _, page = report
    assert "1584 tuning runs" in page.text
    assert "γ = 0 %, 5 % and 20 %" in page.text.replace("\xa0", " ")
    assert "not adjusted" in page.text
    assert "a machine" in page.text
    assert "run <this>" in page.text
    assert "no error bar" not in page.text
    titles = [tag for tag, _ in page.tags if tag in ("h1", "h2", "title", "caption", "figcaption", "details")]
    assert titles.count("h1") == 1
    assert titles.count("h2") == 7


def test_the_same_records_give_the_same_bytes(study, study_dir, report, tmp_path):
    outdir, _ = report
    render(study, tmp_path, study_dir, machine="a machine", command="run <this>")
    for path in [p for p in outdir.rglob("*") if p.is_file()]:
        assert (tmp_path / path.relative_to(outdir)).read_bytes() == path.read_bytes()


def test_names_are_escaped(tmp_path):
    odd = "<script>alert('x')</script> & $x_y$ _\""
    records = make_study(seeds=(0,), objectives=("supervised",), methods=("linear_probe",))
    for r in records:
        r["model"] = odd
        r["versions"] = {odd: odd}
        if r["kind"] != "pretrain":
            r["task"] = "_" + odd + r["task"]
        if r["kind"] == "tune":
            r["method"] = "linear_probe" if r["fraction"] < 1 else "_" + odd
    page = render(records, tmp_path, title=odd)
    assert not page.all("script")
    assert odd in page.text.replace("\xa0", " ")
    assert "alert" not in " ".join(v or "" for _, attrs in page.tags for k, v in attrs.items() if k != "alt")


def test_one_seed_has_no_error_bar(tmp_path):
    page = render(make_study(seeds=(7,), objectives=("supervised",)), tmp_path)
    assert "one seed, no error bar" in page.text
    assert "no claim is judged" in page.text
    summary = (tmp_path / "summary.csv").read_text().splitlines()
    column = summary[0].split(",").index("accuracy_se")
    assert {line.split(",")[column] for line in summary[1:]} == {""}
    assert "±" not in page.text.split("Results", 1)[1].split("What the papers report")[0].replace(
        "mean ±", ""
    )


def test_one_noise_ratio_without_spectra_leaves_figures_out_and_says_why(tmp_path):
    records = [r for r in make_study(ratios=(0.0,), objectives=("supervised",)) if r["kind"] == "tune"]
    page = render(records, tmp_path)
    assert {p.name for p in (tmp_path / "figures").iterdir()} == {"accuracy_fraction.png"}
    assert "Left out" in page.text
    for said in ("two noise ratios", "spectrum records", "pre-training records"):
        assert said in page.text


def test_spectrum_files_that_are_gone_leave_the_rest(tmp_path):
    records = make_study(objectives=("supervised",), seeds=(0, 1))
    page = render(records, tmp_path, base_dir=tmp_path / "nowhere")
    assert "spectrum.npz files that they name" in page.text
    assert len(page.all("img")) == len(ALL) - 1


def test_external_embeddings_are_tabulated_and_nothing_else(tmp_path):
    tuned = [
        r for r in make_study(seeds=(0,), ratios=(0.0,), objectives=("supervised",)) if r["kind"] == "tune"
    ]
    gone = ("objective", "noise", "noise_ratio", "pretrain_seed", "model", "macro_f1")
    outside = [{k: v for k, v in r.items() if k not in gone} for r in tuned[:3]]
    page = render(outside, tmp_path)
    assert not page.all("img")
    assert "Embeddings whose pre-training is not known" in page.text
    assert f"{100 * outside[1]['accuracy']:.2f}" in page.text
    assert len((tmp_path / "results.csv").read_text().splitlines()) == 4


def test_only_its_own_files_are_replaced(tmp_path):
    records = make_study(seeds=(0,), objectives=("supervised",), methods=("linear_probe",))
    render(records, tmp_path)
    (tmp_path / "figures" / "mine.png").write_bytes(b"mine")
    (tmp_path / "notes.txt").write_text("mine")
    render([r for r in records if r["kind"] == "pretrain"], tmp_path)
    left = {p.name for p in (tmp_path / "figures").iterdir()}
    assert left == {"mine.png", "pretraining.png"}
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_stage_reads_a_results_file_and_renders_again(tmp_path):
    records = make_study(seeds=(0,), objectives=("supervised",), methods=("linear_probe",))
    writer.write_lines(tmp_path / "results.jsonl", [*records, {"kind": "something else"}])
    config = default.get_config("smoke")
    config.inputs.results = str(tmp_path / "results.jsonl")
    config.progress = False
    for title in ("One", "Two"):
        config.title = title
        stage.execute(config, tmp_path / "out")
        assert f"<h1>{title}</h1>" in (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    assert artifacts.read_config(tmp_path / "out")["title"] == "Two"


def test_wrong_input_is_said(tmp_path):
    config = default.get_config()
    config.inputs.results = str(tmp_path / "results.jsonl")
    with pytest.raises(UserError, match="No results at"):
        stage.execute(config, tmp_path / "out")
    (tmp_path / "results.jsonl").write_text("not json\n{}\n")
    with pytest.raises(UserError, match="not JSON Lines"):
        stage.execute(config, tmp_path / "out")
    (tmp_path / "results.jsonl").write_text('{"kind": "other"}\n')
    with pytest.raises(UserError, match="nothing to report"):
        stage.execute(config, tmp_path / "out")
    artifacts.write_json(tmp_path / "study" / artifacts.CONFIG, {"stage": "study"})
    with pytest.raises(UserError, match="made by another config"):
        stage.execute(config, tmp_path / "study")
    with pytest.raises(UserError, match="smoke"):
        default.get_config("full")


def test_neither_jax_nor_a_model_is_imported():
    unwanted = {"jax", "flax", "matplotlib.pyplot"}
    code = f"import sys; from nml_jax.report import run; assert not {unwanted} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_papers_table_has_both_and_the_changes_are_right():
    table = sections.comparison(make_study())
    rows = {tuple(row[:3]): row[3:] for row in table.rows}
    assert table.header[3:] == ["γ = 0 (%)", "γ = 5 %", "γ = 10 %", "γ = 20 %", "γ = 30 %"]
    # Fig. 1 of the paper: LP on ID goes 73.54, 74.12, 73.23, 72.61, 71.43.
    expected = ["73.54", "+0.58", "−0.31", "−0.93", "−2.11"]
    assert rows["ID", "LP", "papers: ResNet-50, IN-1K"] == expected
    here = rows["ID", "LP", "here: supervised · resnet18 · symmetric"]
    assert here[2] == here[4] == "–"
    assert float(here[1].split(" ± ")[0]) == pytest.approx(1.2, abs=0.3)
    assert ("pre-training", "–", "here: contrastive · clip_small · caption_swap") in rows
    assert "in 1 of 4 panels" in sections.drops()


def test_published_means_match_the_per_dataset_numbers():
    # Means over the rows of the papers' per-dataset figures (six DomainNet pairs at γ = 0, supervised; contrastive).
    supervised = (30.12 + 26.48 + 38.71 + 21.76 + 32.15 + 38.68) / 6
    contrastive = (21.03 + 19.23 + 24.59 + 16.51 + 22.07 + 29.32) / 6
    curves = {(c.objective, c.suite, c.method): c.values for c in papers.ACCURACY}
    assert curves["supervised", "ood", "linear_probe"][0] == pytest.approx(supervised, abs=0.011)
    assert curves["contrastive", "ood", "linear_probe"][0] == pytest.approx(contrastive, abs=0.011)
    assert all(len(c.values) == len(papers.NOISE_RATIOS) for c in papers.ACCURACY + papers.PRETRAINING)


def test_results_table_says_seeds_and_tasks(study):
    table = sections.results(study)
    row = next(r for r in table.rows if r[:3] == ["supervised · resnet18 · symmetric", "OOD", "LP"])
    assert row[3:6] == ["100 %", "5", "3"]
    summary = {
        (r["objective"], r["suite"], r["method"], r["fraction"], r["noise_ratio"]): r
        for r in tables.summary(study)
    }
    truth = summary["supervised", "ood", "linear_probe", 1.0, 0.2]
    assert row[-1] == f"{100 * truth['accuracy']:.2f} ± {100 * truth['accuracy_se']:.2f}"
