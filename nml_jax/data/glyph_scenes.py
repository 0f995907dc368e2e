"""What a glyph's picture shows, and how its caption says so: colours, grounds, wording.

A `Scene` is drawn from a generator by `sample`, put into words by `caption` and drawn by `glyph_drawing.draw`.
"""

import colorsys
import unicodedata
from typing import NamedTuple

import numpy as np

from nml_jax.data.glyph_drawing import Scene, faces


class Colour(NamedTuple):
    """A colour name: ranges of hue, saturation and value in [0, 1], and words for low and high value."""

    hue: tuple[float, float]
    saturation: tuple[float, float]
    value: tuple[float, float]
    tones: tuple[str, str]


PALETTE = {
    "red": Colour((-0.03, 0.02), (0.70, 1.00), (0.45, 0.95), ("dark", "bright")),
    "orange": Colour((0.055, 0.10), (0.75, 1.00), (0.72, 1.00), ("deep", "bright")),
    "yellow": Colour((0.13, 0.17), (0.60, 1.00), (0.75, 1.00), ("deep", "bright")),
    "green": Colour((0.26, 0.40), (0.45, 1.00), (0.30, 0.85), ("dark", "bright")),
    "teal": Colour((0.46, 0.53), (0.50, 1.00), (0.38, 0.85), ("dark", "bright")),
    "blue": Colour((0.58, 0.67), (0.55, 1.00), (0.38, 0.95), ("dark", "bright")),
    "purple": Colour((0.73, 0.81), (0.45, 0.95), (0.32, 0.85), ("dark", "bright")),
    "pink": Colour((0.88, 0.95), (0.28, 0.65), (0.85, 1.00), ("dusty", "light")),
    "brown": Colour((0.04, 0.09), (0.50, 0.85), (0.24, 0.50), ("dark", "light")),
    "grey": Colour((0.00, 1.00), (0.00, 0.08), (0.35, 0.65), ("dark", "light")),
    "black": Colour((0.00, 1.00), (0.00, 0.20), (0.00, 0.14), ("", "")),
    "white": Colour((0.00, 1.00), (0.00, 0.05), (0.88, 1.00), ("", "")),
}
COLOURS = tuple(PALETTE)
LUMA = np.array([0.3, 0.5, 0.2], np.float32)  # how much red, green and blue weigh in a difference of colours

# Characters that some families draw alike: the caption is silent about their typeface.
SHAPES = frozenset("●◎■▲▼◀▶♠♥♡◐▤⌘√≠◊☼♃♄♆♮#?")
# Symbols whose Unicode name wants a noun: "element of" sign.
SIGNS = frozenset("@∃∈∝∠∫≈≤⊏⊆≠∞∇♁♃♄♆√")

GROUNDS = {
    "real": ("plain", "graded", "striped", "checked", "dotted", "cloudy", "grainy", "landscape"),
    "painting": ("plain", "graded", "cloudy", "landscape"),
    "sketch": ("plain", "striped", "checked"),
    "clipart": ("plain",),
}
# Most captions leave the ground's colours out, as people do; with them a caption could be told from others without
# its glyph being read.
GROUND_PHRASES = {
    "plain": ("a plain background", "a plain surface", "{0}"),
    "graded": ("a graded background", "a smooth gradient", "a background fading from {0} to {1}"),
    "striped": ("a striped background", "stripes", "{0} and {1} stripes"),
    "checked": ("a checked background", "a checkerboard", "{a0} and {1} checkerboard"),
    "dotted": ("a dotted background", "dots", "{0} dotted with {1}"),
    "cloudy": ("a cloudy background", "blurred patches", "blurred patches of {0} and {1}"),
    "grainy": ("a grainy background", "a speckled surface", "speckled {0} and {1}"),
    "landscape": ("a landscape", "land below the sky", "{1} land below {a0} sky"),
}
PAPER_PHRASES = {
    "plain": ("{0} paper", "a sheet of {0} paper"),
    "striped": ("ruled {0} paper", "lined {0} paper"),
    "checked": ("squared {0} paper", "{0} graph paper"),
}
PAPERS = {
    name: np.array(rgb, np.float32)
    for name, rgb in {
        "white": (0.98, 0.98, 0.98),
        "cream": (0.97, 0.93, 0.80),
        "grey": (0.84, 0.84, 0.85),
    }.items()
}
CONTRAST = {"real": 0.3, "painting": 0.3, "clipart": 0.3}  # least distance between two colours; the most is 1
TEMPLATES = {
    "real": (
        "{a_glyph} in {colour} on {ground}",
        "{a_coloured} on {ground}",
        "a photo of {a_coloured} on {ground}",
        "a close-up of {a_glyph} in {colour}, set on {ground}",
        "{a_coloured} printed on {ground}",
        "on {ground}, {a_coloured}",
        "this picture shows {a_glyph} coloured {colour} on {ground}",
        "{a_glyph}, {colour}, against {ground}",
        "a photo of {a_glyph} on {ground}",
        "{a_coloured}",
        "a picture of {a_glyph}",
    ),
    "sketch": (
        "a pencil sketch of {a_coloured} on {ground}",
        "{a_glyph} drawn in thin {colour} lines on {ground}",
        "the outline of {a_glyph} in {colour} ink on {ground}",
        "a {colour} line drawing of {a_glyph} on {ground}",
    ),
    "painting": (
        "a painting of {a_coloured} on {ground}",
        "{a_coloured} painted with coarse strokes on {ground}",
        "{a_glyph} in {colour} oil paint on {ground}",
        "brush strokes forming {a_coloured} on {ground}",
    ),
    "clipart": (
        "clip art of {a_coloured} with {a_contour} contour on {ground}",
        "{a_glyph} in flat {colour}, outlined in {contour}, on {ground}",
        "a cartoon of {a_coloured} with a thick {contour} edge on {ground}",
        "a sticker of {a_glyph}, {colour} with {a_contour} border, on {ground}",
    ),
}
WORDS = {
    "sans": ("sans-serif", "sans"),
    "serif": ("serif",),
    "mono": ("monospaced", "mono"),
    "roman": ("roman",),
    "regular": ("", "regular"),
    "bold": ("bold", "heavy"),
    "upright": ("", "upright"),
    "italic": ("italic", "slanted"),
    "oblique": ("oblique", "slanted"),
}


def shade(name: str, rng: np.random.Generator, vivid: bool = False) -> tuple[np.ndarray, str]:
    """One colour of that name, RGB in [0, 1], and the word for its tone ("" where none fits)."""
    colour = PALETTE[name]
    low = 0.85 if vivid else 0.0
    v = rng.uniform(low, 1)
    ranges = zip((rng.random(), rng.uniform(low, 1), v), colour[:3], strict=True)
    hue, saturation, value = (start + u * (stop - start) for u, (start, stop) in ranges)
    tone = colour.tones[0] if v < 0.3 else colour.tones[1] if v > 0.75 else ""
    return np.array(colorsys.hsv_to_rgb(hue % 1, saturation, value), np.float32), tone


def _grounds(domain: str, colour: str, rgb: np.ndarray, rng: np.random.Generator) -> tuple:
    """Two ground colours, names and RGB, that stand out from the glyph's `rgb` and from each other."""
    if domain == "sketch":
        paper = ("white", "cream", "grey")[int(rng.random() * 3)]
        return (paper, paper), (PAPERS[paper], PAPERS[paper])
    names, shades = [colour], [rgb]
    while len(names) < 3:
        name = COLOURS[int(rng.random() * len(COLOURS))]
        tint, _ = shade(name, rng, vivid=domain == "clipart")
        # Print is mostly dark on light; the other way round is let through now and then.
        usual = (tint - rgb) @ LUMA > 0.1 or rng.random() < 0.1
        if name in names or not usual:
            continue
        if min(np.abs(tint - other) @ LUMA for other in shades) > CONTRAST[domain]:
            names.append(name)
            shades.append(tint)
    return tuple(names[1:]), tuple(shades[1:])


def sample(domain: str, character: str, family: str, rng: np.random.Generator) -> Scene:
    """Draws all that is left open: face, colours, ground, size, place, blur, noise."""
    choices = faces(character, family)
    colours = ("black", "grey", "brown", "blue") if domain == "sketch" else COLOURS
    colour = colours[int(rng.random() * len(colours))]
    rgb, tone = shade(colour, rng, vivid=domain == "clipart")
    ground_colours, ground_rgb = _grounds(domain, colour, rgb, rng)
    return Scene(
        domain=domain,
        character=character,
        face=choices[int(rng.random() * len(choices))],
        colour=colour,
        tone=tone if domain in ("real", "painting") else "",
        rgb=rgb,
        ground=GROUNDS[domain][int(rng.random() * len(GROUNDS[domain]))],
        ground_colours=ground_colours,
        ground_rgb=ground_rgb,
        extent=rng.uniform(21, 29),
        angle=rng.uniform(-14, 14),
        shift=(rng.uniform(-0.5, 0.5), rng.uniform(-0.5, 0.5)),
        blur=rng.uniform(0, 0.7) if domain == "real" else 0.0,
        noise=rng.uniform(0.01, 0.03),
    )


def spoken(character: str) -> str:
    """The character's Unicode name as one would say it: "Greek small letter omega", "filled heart suit"."""
    name = unicodedata.name(character).lower().replace("black", "filled").replace("white", "hollow")
    words = [*name.split(), "sign"] if character in SIGNS else name.split()
    if words[0] in ("latin", "greek", "cyrillic"):
        words[0] = words[0].capitalize()
    if words[:2] == ["Latin", "capital"]:
        words[-1] = words[-1].upper()
    return " ".join(words)


def _article(phrase: str) -> str:
    vowel = (phrase[0] in "aeio" and not phrase.startswith("euro")) or phrase.startswith("up")
    return f"{'an' if vowel else 'a'} {phrase}"


def caption(scene: Scene, rng: np.random.Generator) -> str:
    """One sentence about the picture; the generator chooses the wording, the scene what is said."""

    def pick(choices: tuple[str, ...]) -> str:
        return choices[int(rng.random() * len(choices))]

    facts = () if scene.character in SHAPES else (scene.face.weight, scene.face.slant, scene.face.family)
    glyph = " ".join([*filter(None, [pick(WORDS[fact]) for fact in facts]), spoken(scene.character)])
    colour = f"{scene.tone} {scene.colour}".strip()
    grounds = PAPER_PHRASES if scene.domain == "sketch" else GROUND_PHRASES
    sentence = pick(TEMPLATES[scene.domain]).format(
        a_glyph=_article(glyph),
        a_coloured=_article(f"{colour} {glyph}"),
        colour=colour,
        contour=scene.ground_colours[1],
        a_contour=_article(scene.ground_colours[1]),
        ground=pick(grounds[scene.ground]).format(
            *scene.ground_colours, a0=_article(scene.ground_colours[0])
        ),
    )
    right, down = scene.shift if scene.extent < 25 else (0, 0)  # a large glyph has no room to move
    remarks = [
        (abs(scene.angle) > 8, f"tilted to the {'left' if scene.angle > 0 else 'right'}"),
        (scene.extent > 27, "large"),
        (scene.extent < 23, "small"),
        (scene.blur > 0.5, "out of focus"),
        (abs(right) > 0.4, f"towards the {'right' if right > 0 else 'left'}"),
        (abs(down) > 0.4, f"near the {'bottom' if down > 0 else 'top'}"),
    ]
    said = [remark for true, remark in remarks if true and rng.random() < 0.5]
    return ", ".join([sentence, *said])
