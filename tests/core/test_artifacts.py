import json

import pytest
from ml_collections import ConfigDict

from nml_jax.core import artifacts, writer
from nml_jax.core.errors import UserError


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.json"
    artifacts.write_json(path, {"old": 1})
    with pytest.raises(RuntimeError), artifacts.replacing(path) as file:
        file.write("half of a new fi")
        raise RuntimeError("power cut")
    assert json.loads(path.read_text()) == {"old": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_fingerprint_follows_values_and_inputs_but_not_places(tmp_path):
    upstream = {"stage": "pretrain", "seed": 1}
    for name, config in (("a", upstream), ("b", upstream), ("c", upstream | {"seed": 2})):
        artifacts.claim(tmp_path / name, config)
        artifacts.finish(tmp_path / name, config)

    def downstream(**changes):
        inputs = {"pretrain": str(tmp_path / changes.pop("at", "a"))}
        return artifacts.fingerprint(ConfigDict({"views": 2, "data_dir": "", "inputs": inputs} | changes))

    assert downstream() == downstream(at="b") == downstream(data_dir="/elsewhere")
    assert downstream() != downstream(at="c")
    assert downstream() != downstream(views=3)


def test_unfinished_input_is_refused(tmp_path):
    with pytest.raises(UserError, match="no finished artefact"):
        artifacts.fingerprint({"inputs": {"pretrain": str(tmp_path)}})


def test_claim_refuses_another_config_and_names_what_differs(tmp_path):
    config = {"stage": "tune", "optim": {"learning_rate": 0.1}, "progress": True}
    artifacts.claim(tmp_path / "w", config)
    artifacts.claim(tmp_path / "w", config | {"progress": False})
    before = (tmp_path / "w" / "config.json").read_text()
    with pytest.raises(UserError, match=r"optim.learning_rate \(0.1 there, 0.2 here\)"):
        artifacts.claim(tmp_path / "w", {"stage": "tune", "optim": {"learning_rate": 0.2}})
    assert (tmp_path / "w" / "config.json").read_text() == before


def test_claim_refuses_a_directory_that_holds_something_else(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="not empty"):
        artifacts.claim(tmp_path, {"stage": "tune"})
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_study_may_change_but_not_become_another_stage(tmp_path):
    artifacts.claim(tmp_path, {"stage": "study", "seeds": [0]}, may_change=True)
    artifacts.claim(tmp_path, {"stage": "study", "seeds": [0, 1]}, may_change=True)
    with pytest.raises(UserError, match="stage"):
        artifacts.claim(tmp_path, {"stage": "report"}, may_change=True)


def test_a_line_cut_short_is_left_out_and_a_broken_one_is_not(tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_text('{"a": 1}\n{"a": 2}\n{"a"')
    assert writer.read_lines(path) == [{"a": 1}, {"a": 2}]
    path.write_text('{"a"\n{"a": 2}\n')
    with pytest.raises(json.JSONDecodeError):
        writer.read_lines(path)


def test_metrics_after_the_resumed_step_are_dropped(tmp_path):
    for start in (0, 4):
        with writer.MetricWriter(tmp_path, start_step=start) as metrics:
            for step in range(start + 2, 9, 2):
                metrics.write(step, {"loss": 10.0 * start + step})
    lines = writer.read_lines(tmp_path / "metrics.jsonl")
    assert [(r["step"], r["loss"]) for r in lines] == [(2, 2.0), (4, 4.0), (6, 46.0), (8, 48.0)]
