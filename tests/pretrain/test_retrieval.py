"""Recall of image-text retrieval against sorting in NumPy."""

import numpy as np
import pytest

from nml_jax.core.errors import UserError
from nml_jax.pretrain import retrieval


def embeddings(count: int, noise: float = 1.0):
    rng = np.random.default_rng(0)
    text = rng.standard_normal((count, 8))
    return text + noise * rng.standard_normal((count, 8)), text


def sorted_recall(queries, items, captions, k: int) -> float:
    """Whether an item with the query's caption is among the first k of all, in order of falling cosine."""
    cosines = (queries / np.linalg.norm(queries, axis=1, keepdims=True)) @ (
        items / np.linalg.norm(items, axis=1, keepdims=True)
    ).T
    hits = [captions[i] in [captions[j] for j in np.argsort(-row)[:k]] for i, row in enumerate(cosines)]
    return float(np.mean(hits))


@pytest.mark.parametrize("rows", [7, 512])
def test_against_sorting(rows):
    image, text = embeddings(100)
    found = retrieval.evaluate(image, text, rows=rows)
    own = np.arange(100)
    expected = {f"image_to_text_r{k}": sorted_recall(image, text, own, k) for k in (1, 5, 10)}
    expected |= {f"text_to_image_r{k}": sorted_recall(text, image, own, k) for k in (1, 5, 10)}
    assert found == pytest.approx(expected)
    assert found["image_to_text_r1"] < found["image_to_text_r5"] < found["image_to_text_r10"] < 1


def test_equal_captions_are_hits_in_both_directions():
    image, text = embeddings(60)
    captions = np.array([f"caption {i % 40}" for i in range(60)])
    text[40:] = text[:20]  # equal captions have equal embeddings
    found = retrieval.evaluate(image, text, captions)
    for k in (1, 5, 10):
        assert found[f"image_to_text_r{k}"] == pytest.approx(sorted_recall(image, text, captions, k))
        assert found[f"text_to_image_r{k}"] == pytest.approx(sorted_recall(text, image, captions, k))
    apart = retrieval.evaluate(image, text)
    assert apart["image_to_text_r1"] < found["image_to_text_r1"]


def test_worked_by_hand():
    """Image 0 is nearest to text 1, then to its own; image 1 to its own. Text 0 is nearest to image 0; text 1 too."""
    image, text = np.array([[3.0, 4.0], [0.0, 2.0]]), np.array([[1.0, 0.0], [0.7, 0.7]])
    found = retrieval.evaluate(image, text)
    assert (found["image_to_text_r1"], found["image_to_text_r5"]) == (0.5, 1.0)
    assert (found["text_to_image_r1"], found["text_to_image_r5"]) == (0.5, 1.0)


@pytest.mark.parametrize("value", [0.0, 1.0, np.nan])
def test_embeddings_that_are_all_the_same_find_nothing(value):
    same = np.full((20, 4), value)
    assert set(retrieval.evaluate(same, same).values()) == {0.0}


def test_rows_must_match():
    with pytest.raises(UserError, match="3, 2 and 3"):
        retrieval.evaluate(np.ones((3, 2)), np.ones((2, 2)))
