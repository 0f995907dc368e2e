"""Class relations from a config or a file, by index and by name."""

import json

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix

from nml_jax.core.errors import UserError
from nml_jax.noise import asymmetric, relations

NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
# The usual asymmetric noise of CIFAR-10 (Patrini et al. 2017).
CIFAR10 = (
    ("truck", "automobile"),
    ("bird", "airplane"),
    ("deer", "horse"),
    ("cat", "dog"),
    ("dog", "cat"),
)
CLEAN = np.random.default_rng(0).permutation(np.repeat(np.arange(10), 100))


def flip(ratio=0.4, **how):
    return asymmetric.corrupt(CLEAN, num_classes=10, ratio=ratio, seed=0, **how)


def test_the_usual_map_of_cifar10():
    matrix = confusion_matrix(CLEAN, flip(pairs=CIFAR10, class_names=NAMES))
    expected = 100 * np.eye(10, dtype=int)
    for source, target in ((9, 1), (2, 0), (4, 7), (3, 5), (5, 3)):
        expected[source, [source, target]] = 60, 40
    np.testing.assert_array_equal(matrix, expected)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("names.json", json.dumps({"pairs": CIFAR10})),
        ("indices.json", json.dumps({"pairs": [[9, 1], [2, 0], [4, 7], [3, 5, 2.5], ["dog", 3]]})),
        (
            "pairs.csv",
            "source,target\ntruck,automobile\nbird, airplane\ndeer,horse\ncat,dog\ndog,cat\n",
        ),
        ("weights.csv", "source,target,weight\r\n9,1,1\r\n2,0,1\r\n4,7,1\r\n3,5,1\r\n5,3,0.1\r\n"),
    ],
)
def test_pairs_in_a_file_are_the_pairs_in_the_config(tmp_path, name, text):
    path = tmp_path / name
    path.write_text(text)
    np.testing.assert_array_equal(flip(file=path, class_names=NAMES), flip(pairs=CIFAR10, class_names=NAMES))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("g.json", json.dumps({"groups": [["cat", "dog", "deer"], [9, "automobile"]]})),
        ("g.csv", "group,class\npets,cat\nroad,9\npets,dog\nroad,1\npets,deer\n"),
    ],
)
def test_groups_in_a_file(tmp_path, name, text):
    path = tmp_path / name
    path.write_text(text)
    np.testing.assert_array_equal(flip(file=path, class_names=NAMES), flip(related=[(3, 5, 4), (9, 1)]))


def test_weights_decide_between_targets():
    clean = np.zeros(40_000, int)
    noisy = asymmetric.corrupt(
        clean, num_classes=4, ratio=0.5, seed=1, pairs=[(0, 1), (0, 2, 2.0), (0, 3, 5)]
    )
    np.testing.assert_allclose(np.bincount(noisy) / 40_000, [0.5, 1 / 16, 2 / 16, 5 / 16], atol=0.01)


def test_a_name_that_is_a_number_is_the_name():
    matrix = relations.from_pairs([("2", "0")], 3, ("0", "2", "1"))
    assert matrix[1, 0] == 1
    assert matrix.sum() == 1


@pytest.mark.parametrize(
    ("pairs", "word"),
    [
        ([("cat", "dgo")], "no class is named 'dgo'; near are dog"),
        ([("cat", 10)], r"outside \[0, 10\)"),
        ([("cat", "cat")], "to itself"),
        ([(3, 5), ("cat", "dog")], "stands twice"),
        ([(3, 5, 0)], "positive"),
        ([(3, 5, "much")], "positive"),
        ([(3,)], "a pair is"),
        (["cat"], "a pair is"),
        ([(3, 1.5)], "is no class"),
        ([(3, True)], "is no class"),
    ],
)
def test_bad_pairs(pairs, word):
    with pytest.raises(UserError, match=word):
        flip(pairs=pairs, class_names=NAMES)


def test_names_need_names():
    with pytest.raises(UserError, match="where the data set has class names"):
        flip(pairs=CIFAR10)
    with pytest.raises(UserError, match="2 classes are named 'crane'"):
        relations.from_groups([("crane", "bird")], 3, ("crane", "bird", "crane"))


@pytest.mark.parametrize(
    ("name", "text", "word"),
    [
        ("x.json", "{", "no file of class relations"),
        ("x.json", "[[1, 2]]", "groups or pairs"),
        ("x.json", '{"groups": [[1, 2]], "pairs": []}', "groups or pairs"),
        ("x.json", '{"pairs": {"1": 2}}', "not a list"),
        ("x.json", '{"groups": [[1, 2], [2, 3]]}', "x.json.*another group"),
        ("x.csv", "from,to\n1,2\n", "columns are from, to"),
        ("x.csv", "source,target\n1\n", "fewer cells"),
        ("x.csv", "group,class\na,1\n", "two or more"),
        ("x.csv", "", "columns are none"),
    ],
)
def test_bad_files(tmp_path, name, text, word):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=word):
        flip(file=tmp_path / name, class_names=NAMES)


def test_no_file(tmp_path):
    with pytest.raises(UserError, match="No such file"):
        flip(file=tmp_path / "x.json")
