"""How a scene is drawn: fonts, grounds, and the four domains.

Everything here is a pure function of its arguments: the random choices come from the generator that is
passed in, and the font files are those that matplotlib ships.
"""

import functools
import os
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.ft2font import FT2Font
from PIL import Image, ImageFont

SIZE = 32  # pixels a side of the finished image
FINE = 2 * SIZE  # glyphs are placed on a grid twice as fine, then averaged down
EM = 64  # pixels an em of the cached glyph masks


class Face(NamedTuple):
    """One font file."""

    file: str
    family: str
    weight: str
    slant: str


FACES = tuple(
    Face(*row.split())
    for row in """\
DejaVuSans sans regular upright
DejaVuSans-Bold sans bold upright
DejaVuSans-Oblique sans regular oblique
DejaVuSans-BoldOblique sans bold oblique
cmss10 sans regular upright
DejaVuSerif serif regular upright
DejaVuSerif-Bold serif bold upright
DejaVuSerif-Italic serif regular italic
DejaVuSerif-BoldItalic serif bold italic
DejaVuSansMono mono regular upright
DejaVuSansMono-Bold mono bold upright
DejaVuSansMono-Oblique mono regular oblique
DejaVuSansMono-BoldOblique mono bold oblique
cmtt10 mono regular upright
STIXGeneral roman regular upright
STIXGeneralBol roman bold upright
STIXGeneralItalic roman regular italic
STIXGeneralBolIta roman bold italic
cmr10 roman regular upright
cmb10 roman bold upright
cmti10 roman regular italic""".splitlines()
)
FAMILIES = tuple(dict.fromkeys(face.family for face in FACES))


class Scene(NamedTuple):
    """All that a picture shows, and all that its caption may say. Colours are RGB in [0, 1]."""

    domain: str  # real, sketch, painting or clipart
    character: str
    face: Face
    colour: str
    tone: str
    rgb: np.ndarray
    ground: str
    ground_colours: tuple[str, str]
    ground_rgb: tuple[np.ndarray, np.ndarray]
    extent: float  # pixels of the longer side of the glyph's box, before rotation
    angle: float  # degrees, counter-clockwise
    shift: tuple[float, float]  # of the centre, right and down, as a fraction of the free room in [-1, 1]
    blur: float  # standard deviation in pixels
    noise: float  # standard deviation of the sensor noise


# ---------------------------------------------------------------------------------------------- glyphs


@functools.cache
def _charmap(file: str) -> dict[int, int]:
    return FT2Font(_path(file)).get_charmap()


@functools.cache
def _font(file: str) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(_path(file), EM, layout_engine=ImageFont.Layout.BASIC)


def _path(file: str) -> str:
    return os.path.join(matplotlib.get_data_path(), "fonts", "ttf", f"{file}.ttf")


@functools.cache
def glyph(file: str, character: str) -> Image.Image:
    """The glyph of one face at EM pixels, cut to its box: a grey image, 255 inside the outline."""
    pixels = _font(file).getmask(character, mode="L")
    image = Image.frombytes("L", pixels.size, bytes(pixels))
    return image.crop(image.getbbox())


@functools.cache
def faces(character: str, family: str) -> tuple[Face, ...]:
    """The faces of a family that draw the character, each with an outline of its own.

    A bold or slanted face that repeats the regular outline (common for symbols) is left out, so that what a
    caption says of weight and slant can be seen.
    """
    found: dict[bytes, Face] = {}
    for face in FACES:
        # The cm fonts keep TeX's own encoding behind a Unicode charmap: only their letters are what they say.
        real = not face.file.startswith("cm") or (character.isascii() and character.isalpha())
        if face.family == family and real and _charmap(face.file).get(ord(character), 0):
            image = glyph(face.file, character)
            found.setdefault(bytes(f"{image.size}", "ascii") + image.tobytes(), face)
    return tuple(found.values())


def _place(scene: Scene) -> np.ndarray:
    """Coverage of the glyph on the fine grid, (FINE, FINE) uint8: scaled, turned, and never cut off."""
    image = glyph(scene.face.file, scene.character)
    width, height = image.size
    c, s = np.cos(np.deg2rad(scene.angle)), np.sin(np.deg2rad(scene.angle))
    turned = abs(width * c) + abs(height * s), abs(width * s) + abs(height * c)
    scale = min(2 * scene.extent / max(width, height), (FINE - 6) / max(turned))
    x, y = (
        FINE / 2 + shift * (FINE - 4 - scale * t) / 2 for shift, t in zip(scene.shift, turned, strict=True)
    )
    c, s = c / scale, s / scale
    inverse = (c, -s, width / 2 - c * x + s * y, s, c, height / 2 - s * x - c * y)
    placed = image.transform((FINE, FINE), Image.Transform.AFFINE, inverse, Image.Resampling.BILINEAR)
    return np.asarray(placed)


def _down(fine: np.ndarray) -> np.ndarray:
    """(FINE, FINE) uint8 -> (SIZE, SIZE, 1) in [0, 1]."""
    return np.asarray(Image.fromarray(fine).reduce(2), np.float32)[..., None] / 255


def _grow(mask: np.ndarray) -> np.ndarray:
    """Dilation by one pixel in the four directions."""
    out = mask.copy()
    np.maximum(out[1:], mask[:-1], out=out[1:])
    np.maximum(out[:-1], mask[1:], out=out[:-1])
    np.maximum(out[:, 1:], mask[:, :-1], out=out[:, 1:])
    np.maximum(out[:, :-1], mask[:, 1:], out=out[:, :-1])
    return out


# --------------------------------------------------------------------------------- fields and grounds

Y, X = np.meshgrid(*[np.linspace(-1, 1, SIZE, dtype=np.float32)] * 2, indexing="ij")


@functools.cache
def _gaussian(outputs: int, inputs: int, sigma: float) -> np.ndarray:
    """(outputs, inputs): row i averages the inputs around position i, weights Gaussian, sigma in outputs."""
    at, of = np.arange(outputs) + 0.5, (np.arange(inputs) + 0.5) * outputs / inputs
    weights = np.exp(-((at[:, None] - of[None, :]) ** 2) / (2 * sigma**2))
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32)


def _clouds(cells: int, rng: np.random.Generator) -> np.ndarray:
    """(SIZE, SIZE) smooth noise in [0, 1] with that many cells a side."""
    spread = _gaussian(SIZE, cells, 0.6 * SIZE / cells)
    field = spread @ rng.random((cells, cells), dtype=np.float32) @ spread.T
    return np.clip(2 * field - 0.5, 0, 1)


def _blur(image: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian blur of (SIZE, SIZE, C), sigma in pixels, to the nearest tenth."""
    if sigma < 0.25:
        return image
    kernel = _gaussian(SIZE, SIZE, round(float(sigma), 1))
    turned = (kernel @ image.reshape(SIZE, -1)).reshape(image.shape).swapaxes(0, 1)
    return (kernel @ turned.reshape(SIZE, -1)).reshape(image.shape).swapaxes(0, 1)


def _slope(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Two perpendicular coordinates, in [-1.4, 1.4], turned by a random angle."""
    turn = rng.uniform(0, 2 * np.pi)
    c, s = np.float32(np.cos(turn)), np.float32(np.sin(turn))
    return c * X + s * Y, c * Y - s * X


def _ground(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """The background, (SIZE, SIZE, 3): a mixture of the scene's two ground colours."""
    first, second = scene.ground_rgb
    u, v = _slope(rng)
    wave, phase = np.float32(rng.uniform(5, 13)), np.float32(rng.uniform(0, 6.28))
    match scene.ground:
        case "plain":
            mix = np.zeros_like(u)
        case "graded":
            mix = np.clip(0.5 + 0.5 * u, 0, 1)
        case "striped":
            mix = np.sin(wave * u + phase) > 0
        case "checked":
            mix = np.sin(wave * u + phase) * np.sin(wave * v) > 0
        case "dotted":
            mix = np.sin(wave * u + phase) * np.sin(wave * v) > 0.35
        case "cloudy":
            mix = 0.6 * _clouds(4, rng) + 0.4 * _clouds(9, rng)
        case "grainy":
            mix = rng.random((SIZE, SIZE), dtype=np.float32)
        case "landscape":
            horizon = Y + np.float32(0.15) * X + np.float32(rng.uniform(-0.4, 0.4)) + 0.2 * _clouds(7, rng)
            mix = np.where(horizon > 0, 0.65 + 0.35 * _clouds(12, rng), 0.2 * (Y + 1))
    mix = np.float32(rng.uniform(0.3, 0.9)) * mix[..., None].astype(np.float32)
    return first * (1 - mix) + second * mix


# -------------------------------------------------------------------------------------------- domains


def _real(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """A photograph: shaded print on the ground, shadow, uneven light, blur, sensor noise."""
    ink = _down(_place(scene))
    image = _ground(scene, rng)
    depth = rng.uniform(-0.4, 0.6)
    if depth > 0:
        dx, dy = rng.integers(-2, 3, 2)
        image = image * (1 - np.float32(depth) * _blur(np.roll(ink, (dy, dx), (0, 1)), 1.0))
    u, v = _slope(rng)
    fill = scene.rgb * (1 + np.float32(rng.uniform(0, 0.3)) * v[..., None])
    image = image + ink * (fill - image)
    image = image * (1 + np.float32(rng.uniform(0, 0.2)) * u[..., None])
    image = _blur(image, scene.blur)
    return image + np.float32(scene.noise) * rng.standard_normal((SIZE, SIZE, 3), dtype=np.float32)


def _sketch(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """Thin strokes along the outline, drawn twice and not quite alike, on light paper."""
    paper = scene.ground_rgb[0] * (0.96 + 0.04 * rng.random((SIZE, SIZE, 1), dtype=np.float32))
    offset = rng.integers(4)
    if scene.ground != "plain":
        paper[offset::5] *= np.float32(0.9)
    if scene.ground == "checked":
        paper[:, offset::5] *= np.float32(0.9)
    dx, dy = rng.uniform(-0.08, 0.08, 2)
    again = scene._replace(
        angle=scene.angle + rng.uniform(-4, 4),
        extent=scene.extent * rng.uniform(0.94, 1.04),
        shift=(scene.shift[0] + dx, scene.shift[1] + dy),
    )
    line = np.zeros((SIZE, SIZE, 1), np.float32)
    for strength, drawn in ((1.9, scene), (0.9, again)):
        mask = _place(drawn)
        line = np.maximum(line, np.float32(strength) * _down(_grow(mask) - mask))
    pressure = 0.7 + 0.3 * _clouds(6, rng) - 0.25 * rng.random((SIZE, SIZE), dtype=np.float32)
    line = np.clip(line, 0, 1) * pressure[..., None]
    return paper + line * (0.6 * scene.rgb - paper)


def _painting(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """Coarse strokes: colours taken from blocks nearby, smeared one way, in few levels, on canvas."""
    ink = _down(_place(scene))
    image = _ground(scene, rng)
    image = image + ink * (scene.rgb * (0.85 + 0.3 * _clouds(5, rng)[..., None]) - image)
    cells = rng.integers(-1, 2, (2, 11, 11))
    dy, dx = cells.repeat(3, 1).repeat(3, 2)[:, :SIZE, :SIZE]
    rows, columns = np.mgrid[:SIZE, :SIZE]
    image = image[np.clip(rows + dy, 0, SIZE - 1), np.clip(columns + dx, 0, SIZE - 1)]
    step = ((0, 1), (1, 0), (1, 1), (1, -1))[rng.integers(4)]
    image = (image + np.roll(image, step, (0, 1)) + np.roll(image, (-step[0], -step[1]), (0, 1))) / 3
    dabs = rng.uniform(-0.04, 0.04, (11, 11, 3)).repeat(3, 0).repeat(3, 1)[:SIZE, :SIZE]
    image = np.round((image + dabs) * 6) / 6
    canvas = 1 + 0.07 * np.where((rows + columns) % 2, 1, -1) * np.where(rows % 4 < 2, 1, 0.4)
    return image * canvas[..., None]


def _clipart(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """Flat colours with hard edges and a thick contour, the second ground colour, on a plain ground."""
    inside = np.where(_place(scene) > 110, np.uint8(255), np.uint8(0))
    contour = inside
    for _ in range(3):
        contour = _grow(contour)
    image = scene.ground_rgb[0] + (_down(contour) > 0.5) * (scene.ground_rgb[1] - scene.ground_rgb[0])
    return image + (_down(inside) > 0.5) * (scene.rgb - image)


_DOMAINS = {"real": _real, "sketch": _sketch, "painting": _painting, "clipart": _clipart}


def draw(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """The picture, (SIZE, SIZE, 3) uint8."""
    return (np.clip(_DOMAINS[scene.domain](scene, rng), 0, 1) * 255 + 0.5).astype(np.uint8)
