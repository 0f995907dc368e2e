"""Zero-shot classification against loops in NumPy, its prompts, and what a run reports."""

import numpy as np
import pytest

from configs.pretrain import glyphs_contrastive
from nml_jax.core import stage, writer
from nml_jax.core.errors import UserError
from nml_jax.data import source
from nml_jax.pretrain import templates, zero_shot
from tests import torch_peers


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def test_class_embeddings_are_means_of_unit_vectors_made_unit_again():
    rng = np.random.default_rng(0)
    texts, about = unit(rng.standard_normal((9, 4))), np.array([2, 0, 1, 1, 0, 2, 2, 1, 1])
    found = zero_shot.prototypes(texts, about, 3)
    for c in range(3):
        np.testing.assert_allclose(found[c], unit(texts[about == c].mean(0)), rtol=1e-6)


def test_accuracy_against_loops():
    rng = np.random.default_rng(1)
    embedded = dict(zip("abcdefgh", unit(rng.standard_normal((8, 4))), strict=True))
    prompts, about = (
        np.array(list("abcdefgh")),
        np.array([0, 0, 1, 1, 3, 3, 4, 4]),
    )  # nothing is said of class 2
    images, labels = 5 * rng.standard_normal((50, 4)), rng.integers(0, 5, 50)
    found = zero_shot.evaluate(images, labels, prompts, about, lambda t: np.stack([embedded[x] for x in t]))
    right = 0
    for image, label in zip(images, labels, strict=True):
        scores = {}
        for c in (0, 1, 3, 4):
            mean = sum(embedded[p] for p, a in zip(prompts, about, strict=True) if a == c) / 2
            scores[c] = image @ mean / np.linalg.norm(mean)
        right += max(scores, key=scores.get) == label
    assert found["accuracy"] == pytest.approx(right / 50)


@pytest.fixture
def config(data_dir):
    config = glyphs_contrastive.get_config("smoke")
    config.data_dir, config.progress = data_dir, False
    return config


def test_templates_are_filled_with_the_names_of_the_classes(config, data_dir):
    data = source.open("glyphs/pretrain", "test[:256]", data_dir=data_dir)
    config.eval.templates = ("a drawing of {}.", "clip7")
    texts, about = zero_shot.prompts(config, data, "label")
    assert len(texts) == 8 * 120
    assert list(about[:8]) == [0] * 8
    name = data.class_names("label")[1].replace("_", " ")
    assert list(texts[8:10]) == [f"a drawing of {name}.", f"itap of a {name}."]


def test_captions_of_training_images_where_there_are_no_templates(config, data_dir):
    data = source.open("glyphs/pretrain", "train[:512]", data_dir=data_dir)
    config.eval.prompts_per_class = 3
    texts, about = zero_shot.prompts(config, data, "label")
    captions, labels = data.column("caption"), data.column("label")
    for c in np.unique(labels):
        assert list(texts[about == c]) == list(captions[labels == c][:3])


def test_class_names_of_a_file(config, data_dir, tmp_path):
    data = source.open("glyphs/pretrain", "test[:256]", data_dir=data_dir)
    config.eval.templates, config.eval.class_names = ("a {}.",), str(tmp_path / "names.txt")
    (tmp_path / "names.txt").write_text("\n".join(f"name {i}" for i in range(120)) + "\n")
    assert zero_shot.prompts(config, data, "label")[0][119] == "a name 119."
    (tmp_path / "names.txt").write_text("one\ntwo\n")
    with pytest.raises(UserError, match="has 2 lines, but .* has 120 classes"):
        zero_shot.prompts(config, data, "label")
    config.eval.class_names = str(tmp_path / "none.txt")
    with pytest.raises(UserError, match="cannot be read"):
        zero_shot.prompts(config, data, "label")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"templates": ("a photo.",)}, "has no {} for the class's name .* sets are clip7, clip80"),
        ({"prompts_per_class": 0}, "prompts_per_class=0"),
        ({"data": "cifar10"}, "needs eval.templates, eval.split and eval.label"),
    ],
)
def test_what_cannot_be_evaluated_is_refused_before_training(changes, message, config, tmp_path):
    config.eval.update(changes)
    with pytest.raises(UserError, match=message):
        stage.execute(config, tmp_path / "w")


def test_a_run_reports_zero_shot_and_retrieval_while_it_trains(config, tmp_path):
    """With the sigmoid loss in tiles, microbatches, and the labels of another data set."""
    config.loss.update(name="sigmoid", method="chunked", tile=48)
    config.accumulate, config.eval_every = 2, 4
    config.eval.update(templates=("a drawing of {}.",), data="glyphs/letters", split="test", label="label")
    stage.execute(config, tmp_path / "w")
    lines = [r for r in writer.read_lines(tmp_path / "w" / "metrics.jsonl") if "test_accuracy" in r]
    names = {f"test_{a}_r{k}" for a in ("image_to_text", "text_to_image") for k in (1, 5, 10)}
    assert [r["step"] for r in lines] == [4, 8]
    assert names <= lines[0].keys()
    (result,) = writer.read_lines(tmp_path / "w" / "results.jsonl")
    assert names | {"test_accuracy"} <= result["metrics"].keys()
    assert all(0 <= value <= 1 for value in result["metrics"].values())
    training = [r for r in writer.read_lines(tmp_path / "w" / "metrics.jsonl") if "loss" in r]
    assert training[0]["logit_scale"] == pytest.approx(10, rel=0.1)
    assert training[0]["logit_bias"] == pytest.approx(-10, rel=0.1)


@pytest.mark.peers
def test_templates_are_those_of_open_clip():
    torch_peers.open_clip()
    from open_clip import zero_shot_metadata as peer

    assert {t("{}") for t in peer.OPENAI_IMAGENET_TEMPLATES} == set(templates.CLIP_80)
    assert {t("{}") for t in peer.SIMPLE_IMAGENET_TEMPLATES} == set(templates.CLIP_7)
