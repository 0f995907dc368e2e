"""The glyphs: classes that can be told apart, records that never change, captions that tell the truth."""

import io
import itertools
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from nml_jax.core.errors import UserError
from nml_jax.data import glyph_drawing, glyph_scenes, glyphs, source
from nml_jax.data.glyph_drawing import FACES, FAMILIES, Face, Scene

REGULAR = ("DejaVuSans", "DejaVuSerif", "DejaVuSansMono", "STIXGeneral")
CONFIGS = ("glyphs/pretrain", "glyphs/letters", "glyphs/domains")


def pixels(record: dict) -> np.ndarray:
    image = record["image"]
    return np.asarray(Image.open(image if hasattr(image, "read") else io.BytesIO(image)))


def shape_of(file: str, character: str, side: int = 24) -> np.ndarray:
    """The glyph's coverage, fitted into a square and centred: what is left once size and place are gone."""
    image = glyph_drawing.glyph(file, character)
    scale = side / max(image.size)
    image = image.resize([max(1, round(length * scale)) for length in image.size], Image.Resampling.BOX)
    square = Image.new("L", (side, side))
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return np.asarray(square, np.float64) / 255


def overlap(shapes: np.ndarray, other: np.ndarray) -> np.ndarray:
    """(N,): intersection over union of each of (N, side, side) with `other`, at the best of nine one-pixel shifts."""
    best = np.zeros(len(shapes))
    for shift in itertools.product((-1, 0, 1), repeat=2):
        moved = np.roll(other, shift, (0, 1))
        ratio = np.minimum(shapes, moved).sum((1, 2)) / np.maximum(shapes, moved).sum((1, 2))
        best = np.maximum(best, ratio)
    return best


@pytest.fixture(scope="module")
def records() -> dict[tuple[str, str], list[dict]]:
    """The first 240 records of every split."""
    splits = [(config, split) for config in CONFIGS for split in glyphs.EXAMPLES[config]]
    return {key: [glyphs.example(*key, i) for i in range(240)] for key in splits}


# -------------------------------------------------------------------------------------------- classes


def test_class_tables():
    assert {config: len(names) for config, names in glyphs.CLASSES.items()} == dict(
        zip(CONFIGS, (120, 30, 30), strict=True)
    )
    names = list(itertools.chain(*glyphs.CLASSES.values()))
    characters = list(itertools.chain(*glyphs.CHARACTERS.values()))
    assert len(set(names)) == len(names) == len(set(characters)) == 180
    for config in CONFIGS:
        assert {glyphs.script(name) for name in glyphs.CLASSES[config]} == set(glyphs.SCRIPTS)


@pytest.mark.parametrize(
    ("character", "name", "words"),
    [
        ("A", "latin_capital_a", "Latin capital letter A"),
        ("ω", "greek_small_omega", "Greek small letter omega"),
        ("Ж", "cyrillic_capital_zhe", "Cyrillic capital letter zhe"),
        ("♥", "symbol_black_heart_suit", "filled heart suit"),
        ("☺", "symbol_white_smiling_face", "hollow smiling face"),
        ("∈", "symbol_element_of", "element of sign"),
        ("∓", "symbol_minus_or_plus_sign", "minus-or-plus sign"),
    ],
)
def test_names(character, name, words):
    assert glyphs.class_name(character) == name
    assert glyph_scenes.spoken(character) == words


@pytest.mark.parametrize("file", REGULAR)
def test_no_two_classes_look_alike(file):
    characters = list(itertools.chain(*glyphs.CHARACTERS.values()))
    shapes = np.stack([shape_of(file, character) for character in characters])
    for i, character in enumerate(characters[1:], 1):
        alike = np.flatnonzero(overlap(shapes[:i], shapes[i]) > 0.9)
        assert not len(alike), (character, [characters[j] for j in alike])


def test_the_measure_of_likeness_sees_look_alikes():
    latin, greek = (
        shape_of("DejaVuSans", character) for character in ("A", "\N{GREEK CAPITAL LETTER ALPHA}")
    )
    assert overlap(latin[None], greek) > 0.99


def test_every_family_draws_every_class_and_no_face_repeats_another():
    for character in itertools.chain(*glyphs.CHARACTERS.values()):
        for family in FAMILIES:
            faces = glyph_drawing.faces(character, family)
            assert faces, (character, family)
            images = [glyph_drawing.glyph(face.file, character) for face in faces]
            assert len({(image.size, image.tobytes()) for image in images}) == len(faces)
            for face, image in zip(faces, images, strict=True):
                assert face.family == family
                missing = glyph_drawing.glyph(face.file, "\U0010fffd")  # no font has it: the .notdef box
                assert (image.size, image.tobytes()) != (missing.size, missing.tobytes())


def test_families_differ_wherever_a_caption_names_them():
    for character in set(itertools.chain(*glyphs.CHARACTERS.values())):
        shapes = np.stack([shape_of(file, character, side=48) for file in REGULAR])
        closest = max(overlap(shapes[:i], shapes[i]).max() for i in range(1, len(REGULAR)))
        assert (closest > 0.97) == (character in glyph_scenes.SHAPES), (character, closest)
    assert not glyph_scenes.SHAPES & set(glyphs.CHARACTERS["glyphs/letters"])  # its font is a task


# -------------------------------------------------------------------------------------------- records


def test_balance():
    for config, splits in glyphs.EXAMPLES.items():
        for split, count in splits.items():
            assert count % len(glyphs.CLASSES[config]) == 0, split
    rows = [glyphs.example("glyphs/letters", "train", i) for i in range(1500)]
    assert set(Counter(r["label"] for r in rows).values()) == {50}
    assert max(abs(n - 375) for n in Counter(r["font"] for r in rows).values()) <= 2
    assert max(Counter((r["label"], r["font"]) for r in rows).values()) <= 13
    colours = Counter(r["colour"] for r in rows)
    assert len(colours) == len(glyphs.COLOURS) >= 8
    assert min(colours.values()) > 85  # 125 on average, standard deviation 10.7


def test_ids_are_unique_and_images_differ(records):
    ids = [r["id"] for rows in records.values() for r in rows]
    assert len(set(ids)) == len(ids)
    assert records["glyphs/pretrain", "train"][123]["id"] == "glyphs/pretrain/train/000123"
    assert len({r["image"].getvalue() for rows in records.values() for r in rows}) == len(ids)
    for rows in records.values():
        assert {(pixels(r).shape, pixels(r).dtype.name) for r in rows[:30]} == {((32, 32, 3), "uint8")}


def test_two_builds_and_example_agree(tmp_path, monkeypatch):
    monkeypatch.setitem(glyphs.EXAMPLES, "glyphs/letters", {"train": 60, "test": 30})
    builds = []
    for folder in ("first", "second"):
        builder = glyphs.builder("glyphs/letters", str(tmp_path / folder))
        builder.download_and_prepare()
        stored_records = builder.as_data_source("train", decoders={"image": tfds.decode.SkipDecoding()})
        builds.append({r["id"].decode(): r for r in stored_records})
    assert len(builds[0]) == 60
    assert builds[0] == builds[1]
    for index in range(60):
        record = glyphs.example("glyphs/letters", "train", index)
        stored = builds[0][record["id"]]
        assert stored["image"] == record["image"].getvalue()
        assert stored["caption"].decode() == record["caption"]
        assert [stored[k] for k in ("label", "font", "colour")] == [
            record[k] for k in ("label", "font", "colour")
        ]
    features = builder.info.features
    assert tuple(features["label"].names) == glyphs.CLASSES["glyphs/letters"]
    assert tuple(features["font"].names) == FAMILIES
    assert tuple(features["colour"].names) == glyphs.COLOURS


def test_preparing_needs_no_tensorflow(tmp_path):
    program = f"""
import sys
from nml_jax.data import glyphs
glyphs.EXAMPLES["glyphs/domains"] = dict.fromkeys(glyphs.EXAMPLES["glyphs/domains"], 30)
builder = glyphs.builder("glyphs/domains", {str(tmp_path)!r})
builder.download_and_prepare()
import tensorflow_datasets as tfds
for split in glyphs.EXAMPLES["glyphs/domains"]:
    assert len(builder.as_data_source(split, decoders=dict(image=tfds.decode.SkipDecoding()))) == 30
assert "tensorflow" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize("name", ["glyphs", "glyphs/foo"])
def test_unknown_config_names_the_valid_ones(name, tmp_path):
    with pytest.raises(UserError, match=r"glyphs/pretrain, glyphs/letters, glyphs/domains") as error:
        glyphs.builder(name, str(tmp_path))
    assert repr(name) in str(error.value)


# ------------------------------------------------------------------------------------------- captions


def test_captions_name_the_true_attributes(records):
    words = {
        "sans": {"sans", "sans-serif"},
        "serif": {"serif"},
        "mono": {"mono", "monospaced"},
        "roman": {"roman"},
    }
    coloured = []
    for (config, _), rows in records.items():
        for record in rows:
            character = glyphs.CHARACTERS[config][record["label"]]
            text = record["caption"]
            assert glyph_scenes.spoken(character) in text
            coloured.append(glyphs.COLOURS[record["colour"]] in text)
            said = {family for family in FAMILIES if words[family] & set(text.replace(",", "").split())}
            expected = set() if character in glyph_scenes.SHAPES else {FAMILIES[record["font"]]}
            assert said == expected, text
            assert " a orange" not in text
            assert "  " not in text
    assert 0.75 < np.mean(coloured) < 0.95  # some wordings are silent about the colour


def test_captions_name_weight_slant_and_pose():
    black, white, red = np.zeros(3), np.ones(3), np.array([1.0, 0, 0])
    scene = Scene(
        domain="real", character="ω", face=Face("DejaVuSerif-BoldItalic", "serif", "bold", "italic"), colour="red",
        tone="dark", rgb=red, ground="striped", ground_colours=("white", "black"), ground_rgb=(white, black),
        extent=24.0, angle=15.0, shift=(0.0, 0.0), blur=0.1, noise=0.01,
    )  # fmt: skip
    rng = np.random.default_rng(0)
    bold = [glyph_scenes.caption(scene, rng) for _ in range(50)]
    for text in bold:
        assert "bold" in text or "heavy" in text
        assert "italic" in text or "slanted" in text
        assert ("red" in text) == ("dark red" in text)
        assert ("white" in text) == ("black" in text)  # both ground colours are named, or neither
    assert sum("dark red" in text for text in bold) > 30
    assert sum("stripes" in text or "striped" in text for text in bold) > 25
    assert len(set(bold)) > 25
    assert any("tilted to the left" in text for text in bold)
    plain = scene._replace(face=Face("DejaVuSans", "sans", "regular", "upright"), angle=-2.0)
    for text in [glyph_scenes.caption(plain, rng) for _ in range(50)]:
        assert not any(word in text for word in ("bold", "heavy", "italic", "slanted", "oblique", "tilted"))


def test_captions_are_varied(records):
    captions = [r["caption"] for rows in records.values() for r in rows]
    assert len(set(captions)) > 0.95 * len(captions)


# ------------------------------------------------------------------------------------------- pictures


def test_colours_are_what_their_names_say():
    rng = np.random.default_rng(0)
    mean = {c: np.mean([glyph_scenes.shade(c, rng)[0] for _ in range(50)], 0) for c in glyphs.COLOURS}
    for name, strongest in (("red", 0), ("green", 1), ("blue", 2)):
        assert mean[name][strongest] > 1.5 * np.delete(mean[name], strongest).max()
    for name, weakest in (
        ("yellow", 2),
        ("orange", 2),
        ("brown", 2),
        ("teal", 0),
        ("purple", 1),
        ("pink", 1),
    ):
        assert mean[name][weakest] < 0.8 * np.delete(mean[name], weakest).min()
    assert mean["black"].max() < 0.15 < mean["grey"].min() < mean["grey"].max() < 0.7 < mean["white"].min()


def test_glyphs_are_whole_and_visible():
    """Flat colours show where the glyph is: away from the border, and not a speck."""
    for config in CONFIGS:
        for index, character in enumerate(glyphs.CHARACTERS[config]):
            rng = np.random.default_rng(index)
            scene = glyph_scenes.sample("clipart", character, FAMILIES[index % 4], rng)
            scene = scene._replace(
                rgb=np.float32([1, 0, 0]), ground_rgb=(np.zeros(3, np.float32),) * 2, shift=(1.0, -1.0)
            )
            red = glyph_drawing.draw(scene, rng)[..., 0] == 255
            assert red.sum() >= 20, character
            assert red[1:-1, 1:-1].sum() == red.sum(), character


def test_rotation_and_shift_have_the_signs_that_captions_use():
    black, red = np.zeros(3, np.float32), np.float32([1, 0, 0])
    scene = Scene(
        domain="clipart", character="↑", face=FACES[0], colour="red", tone="", rgb=red, ground="plain",
        ground_colours=("black", "black"), ground_rgb=(black, black), extent=20.0, angle=18.0, shift=(0.0, 0.0),
        blur=0.0, noise=0.0,
    )  # fmt: skip
    rng = np.random.default_rng(0)

    def centre(scene: Scene, rows: slice = slice(None)) -> tuple[float, float]:
        y, x = np.nonzero(glyph_drawing.draw(scene, rng)[rows, :, 0])
        return x.mean(), y.mean()

    assert centre(scene, slice(0, 16))[0] < 15 < 16 < centre(scene, slice(16, 32))[0]  # its tip points left
    assert centre(scene._replace(shift=(0.5, 0.0)))[0] > 17
    assert centre(scene._replace(shift=(0.0, -0.5)))[1] < 15


def test_domains_differ(records):
    images = {
        d: [pixels(r).astype(float) for r in records["glyphs/domains", f"{d}_test"]]
        for d in glyph_scenes.GROUNDS
    }
    colours = {
        d: np.median([len(np.unique(x.reshape(-1, 3), axis=0)) for x in xs]) for d, xs in images.items()
    }
    assert colours["clipart"] == 3
    assert colours["clipart"] < colours["painting"] < colours["real"]
    bright = {d: np.mean([x.mean() for x in xs]) for d, xs in images.items()}
    vivid = {d: np.mean([np.ptp(x, axis=2).mean() for x in xs]) for d, xs in images.items()}
    assert bright["sketch"] > 190 > bright["real"]
    assert vivid["sketch"] < 40 < vivid["real"] < vivid["clipart"]
    weave = np.where(np.indices((32, 32)).sum(0) % 2, 1.0, -1.0)[..., None]
    canvas = {d: np.mean([(x * weave).mean() for x in xs]) for d, xs in images.items()}
    assert canvas["painting"] > 5 * max(abs(canvas[d]) for d in ("real", "sketch", "clipart"))


def test_letters_are_neither_trivial_nor_hopeless_for_pixels():
    """Ridge regression on raw pixels: above chance (1/30 and 1/12), far from perfect."""

    def load(split: str, count: int) -> tuple[np.ndarray, list[dict]]:
        rows = [glyphs.example("glyphs/letters", split, i) for i in range(count)]
        return np.stack([pixels(r).ravel() / 255 - 0.5 for r in rows]), rows

    (x, train), (x_test, test) = load("train", 1200), load("test", 600)
    gram = x @ x.T + 300 * np.eye(len(x))
    for label, classes, low, high in (("label", 30, 0.10, 0.5), ("colour", 12, 0.35, 0.9)):
        y = np.eye(classes)[[r[label] for r in train]]
        scores = x_test @ (x.T @ np.linalg.solve(gram, y - y.mean(0)))
        accuracy = np.mean(scores.argmax(1) == [r[label] for r in test])
        assert low < accuracy < high, (label, accuracy)


@pytest.mark.slow
@pytest.mark.parametrize("config", CONFIGS)
def test_prepared_counts(config, data_dir):
    source.open(config, next(iter(glyphs.EXAMPLES[config])), data_dir=data_dir)  # one process prepares it
    builder = glyphs.builder(config, data_dir)
    assert {split: info.num_examples for split, info in builder.info.splits.items()} == {
        "glyphs/pretrain": {"train": 12_000, "test": 2_400},
        "glyphs/letters": {"train": 1_500, "test": 1_500},
        "glyphs/domains": {
            "real_train": 1_500, "sketch_train": 1_500,
            "real_test": 900, "sketch_test": 900, "painting_test": 900, "clipart_test": 900,
        },
    }[config]  # fmt: skip
