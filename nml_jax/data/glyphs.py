"""Glyphs: 32x32 pictures of characters, drawn from the fonts that matplotlib ships; nothing is downloaded.

Every record is a pure function of (version, config, split, index).

  glyphs/pretrain  120 classes; splits train, test
  glyphs/letters   30 classes that pretrain lacks, in the domain of pretrain (`real`); splits train, test
  glyphs/domains   30 classes that both lack, in four domains after DomainNet: real, sketch, painting, clipart;
                   splits real_train, sketch_train and a <domain>_test each

Fields: id, image (PNG), label, font (family), colour (of the glyph), caption. No two classes share or resemble a
character (Latin A stands for Greek Alpha, x for X), so a class can be told from its picture.
"""

import functools
import io
import unicodedata
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from nml_jax.core.errors import UserError
from nml_jax.data import glyph_drawing, glyph_scenes
from nml_jax.data.glyph_drawing import FAMILIES, SIZE
from nml_jax.data.glyph_scenes import COLOURS

VERSION = "1.0.0"

EXAMPLES = {
    "glyphs/pretrain": {"train": 12_000, "test": 2_400},
    "glyphs/letters": {"train": 1_500, "test": 1_500},
    "glyphs/domains": {"real_train": 1_500, "sketch_train": 1_500}
    | {f"{domain}_test": 900 for domain in ("real", "sketch", "painting", "clipart")},
}

# A line a script: Latin, Greek, Cyrillic, symbols.
CHARACTERS = {
    "glyphs/pretrain": (
        "ADEGIJLNPTUVXYdhjmqræþøʎɮɥʊɞƕ"
        "ΘΞΠβεημσςϑϱϠϘ"
        "ДЗИЦЪЫЉЊѢ"
        "#?¶¥£©¿÷*{~‼←→↑↓↔↕↰↱↶↷⇄⇐⇑⇒⇓∃∈∓∝∠∫≈≤⊏⊆⊕⊞⊠⊢⊥☻☼♀♁♃♄♆♮№™½●◎■▼◀▶♠♡◐▤⌘√≠◊§†"
    ),
    "glyphs/letters": "BHKQSWaegtðŒΓΣΨδξωЖЛЧЯЂ&%$⇔⊎♂∞",
    "glyphs/domains": "CMRZɧbfnəÆΔΦΩγζλБШЭЮ@€☺♥▲⌂♪↯∇↻",
}


def class_name(character: str) -> str:
    """The character's class: "greek_small_omega", "symbol_black_heart_suit"."""
    words = unicodedata.name(character).lower().replace("-", " ").split()
    if words[0] not in ("latin", "greek", "cyrillic"):
        words.insert(0, "symbol")
    return "_".join(word for word in words if word != "letter")


def script(name: str) -> str:
    """The script of a class: latin, greek, cyrillic or symbol."""
    return name.split("_")[0]


CLASSES = {config: tuple(map(class_name, characters)) for config, characters in CHARACTERS.items()}
SCRIPTS = ("latin", "greek", "cyrillic", "symbol")


@functools.cache
def _key(config: str, split: str) -> np.uint64:
    entropy = [zlib.crc32(word.encode()) for word in (VERSION, config, split)]
    return np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0]


def example(config: str, split: str, index: int) -> dict[str, Any]:
    """Record `index` of a split: id, image (a file object with a PNG of 32x32x3), label, font, colour, caption.

    Classes and font families take turns, so both are balanced; all else is drawn from a Philox stream keyed by
    (version, config, split) and counted by `index`.
    """
    characters = CHARACTERS[config]
    turn, label = divmod(index, len(characters))
    font = (turn + label) % len(FAMILIES)
    domain = split.split("_")[0] if config == "glyphs/domains" else "real"
    rng = np.random.Generator(np.random.Philox(key=np.array([_key(config, split), index], np.uint64)))
    scene = glyph_scenes.sample(domain, characters[label], FAMILIES[font], rng)
    text = glyph_scenes.caption(scene, rng)
    png = io.BytesIO()
    Image.fromarray(glyph_drawing.draw(scene, rng)).save(png, "PNG", compress_level=1)
    png.seek(0)
    return {
        "id": f"{config}/{split}/{index:06d}",
        "image": png,
        "label": label,
        "font": font,
        "colour": COLOURS.index(scene.colour),
        "caption": text,
    }


class Glyphs(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """The TFDS builder; preparing takes seconds and neither network nor TensorFlow."""

    VERSION = tfds.core.Version(VERSION)
    BUILDER_CONFIGS: tuple[tfds.core.BuilderConfig, ...] = tuple(
        tfds.core.BuilderConfig(name=config.split("/")[1], description=f"{len(CLASSES[config])} classes")
        for config in EXAMPLES
    )

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "id": tfds.features.Text(),
            "image": tfds.features.Image(shape=(SIZE, SIZE, 3), encoding_format="png"),
            "label": tfds.features.ClassLabel(names=CLASSES[self._config_name]),
            "font": tfds.features.ClassLabel(names=FAMILIES),
            "colour": tfds.features.ClassLabel(names=COLOURS),
            "caption": tfds.features.Text(),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description=__doc__,
            features=tfds.features.FeaturesDict(features),
            supervised_keys=("image", "label"),
        )

    @property
    def _config_name(self) -> str:
        return f"glyphs/{self.builder_config.name}"

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        return {split: self._generate_examples(split) for split in EXAMPLES[self._config_name]}

    def _generate_examples(self, split: str) -> Iterator[tuple[str, dict]]:
        for index in range(EXAMPLES[self._config_name][split]):
            record = example(self._config_name, split, index)
            yield record["id"], record


def builder(name: str, data_dir: str) -> tfds.core.DatasetBuilder:
    """The builder of "glyphs/pretrain", "glyphs/letters" or "glyphs/domains", prepared or not.

    Raises:
      UserError: there is no such config.
    """
    if name not in EXAMPLES:
        raise UserError(f"There is no data set {name!r}: give one of {', '.join(EXAMPLES)}.")
    return Glyphs(config=name.split("/")[1], data_dir=data_dir, file_format="array_record")
