import random

import numpy as np
import pytest
import torch_peers
from pictures import photo
from PIL import Image

from nml_jax.data import rand_augment
from nml_jax.data.rand_augment import MEAN_COLOUR, OPERATIONS, Look

# Our names -> timm's; those with another behaviour where levels increase are called so there.
TIMM = {
    "auto_contrast": "AutoContrast",
    "equalize": "Equalize",
    "invert": "Invert",
    "rotate": "Rotate",
    "posterize": "Posterize",
    "solarize": "Solarize",
    "solarize_add": "SolarizeAdd",
    "color": "Color",
    "contrast": "Contrast",
    "brightness": "Brightness",
    "sharpness": "Sharpness",
    "shear_x": "ShearX",
    "shear_y": "ShearY",
    "translate_x": "TranslateXRel",
    "translate_y": "TranslateYRel",
}


def timms(increasing: bool, name: str) -> str:
    grows = ("Posterize", "Solarize", "Color", "Contrast", "Brightness", "Sharpness")
    return f"{TIMM[name]}Increasing" if increasing and TIMM[name] in grows else TIMM[name]


@pytest.mark.parametrize("increasing", [True, False])
@pytest.mark.parametrize("name", TIMM)
def test_every_operation_changes_the_image_and_keeps_its_size(name, increasing):
    image = Image.fromarray(photo(40, 60) // 2)
    operation = OPERATIONS[increasing][name]
    argument = operation.argument(8.0 if increasing else 3.0, 1)
    result = operation.apply(image, argument, Look(Image.Resampling.BICUBIC, MEAN_COLOUR))
    assert result.size == image.size
    assert not np.array_equal(result, image)


def test_each_operation_is_drawn_as_often():
    """With one operation that is always done, an image tells which one it was."""
    image = photo(24, 24) // 2
    apply = rand_augment.make(ops=1, magnitude=6, std=0.0, increasing=True, probability=1.0)
    look = Look(Image.Resampling.BICUBIC, MEAN_COLOUR)
    known = {}
    for name, operation in OPERATIONS[True].items():
        for sign in (-1, 1):
            result = operation.apply(Image.fromarray(image), operation.argument(6.0, sign), look)
            known[np.asarray(result).tobytes()] = name
    rng = np.random.default_rng(0)
    seen = [known[apply(image, rng).tobytes()] for _ in range(3000)]
    counts = np.array([seen.count(name) for name in OPERATIONS[True]])
    chi2 = ((counts - 200) ** 2 / 200).sum()
    assert chi2 < 36  # 14 degrees of freedom: 0.1 %


def test_levels_are_normal_and_cut_off():
    levels = []

    def spy(level: float, sign: int) -> float:
        levels.append(level)
        return 0.0

    original = OPERATIONS[True]
    try:
        OPERATIONS[True] = {"spy": rand_augment.Operation(lambda image, argument, look: image, spy)}
        apply = rand_augment.make(ops=2, magnitude=9, std=0.5, increasing=True)
    finally:
        OPERATIONS[True] = original
    rng, image = np.random.default_rng(0), np.zeros((2, 2, 3), np.uint8)
    for _ in range(2000):
        apply(image, rng)
    levels = np.array(levels)
    assert abs(len(levels) / 4000 - 0.5) < 0.03
    assert levels.max() == 10
    assert abs(np.median(levels) - 9) < 0.05
    assert abs((levels < 8.5).mean() - 0.1587) < 0.03  # one standard deviation below


def test_the_same_generator_gives_the_same_image():
    image = photo(30, 30)
    apply = rand_augment.make(ops=3, magnitude=7, std=0.5, increasing=True, interpolation="random")
    results = [apply(image, np.random.default_rng(seed)).tobytes() for seed in (1, 1, 2, 3, 4)]
    assert results[0] == results[1]
    assert len(set(results)) >= 3


@pytest.mark.peers
def test_the_operations_are_timms():
    torch_peers.timm()
    from timm.data import auto_augment as peer

    for increasing in (True, False):
        assert {timms(increasing, name) for name in OPERATIONS[increasing]} == set(
            peer.rand_augment_choices("", increasing=increasing)
        )
    random.seed(0)
    hparams = {"img_mean": MEAN_COLOUR}
    built = peer.rand_augment_transform("rand-m7-mstd0.5-inc1", hparams)
    assert {(op.prob, op.magnitude, op.magnitude_std) for op in built.ops} == {(0.5, 7, 0.5)}
    assert built.num_layers == 2
    assert built.choice_weights is None


@pytest.mark.peers
@pytest.mark.parametrize("increasing", [True, False])
@pytest.mark.parametrize("name", TIMM)
def test_every_operation_gives_timms_pixels(name, increasing, monkeypatch):
    torch_peers.timm()
    from timm.data import auto_augment as peer

    operation, theirs = OPERATIONS[increasing][name], timms(increasing, name)
    for level in (0.0, 0.3, 2.5, 5.0, 6.9, 7.0, 9.99, 10.0):
        for sign in (-1, 1):
            # timm draws the sign itself: from above one half it is minus.
            monkeypatch.setattr(peer.random, "random", lambda sign=sign: 0.75 if sign < 0 else 0.25)
            arguments = peer.LEVEL_TO_ARG[theirs](level, {}) if peer.LEVEL_TO_ARG[theirs] else ()
            argument = operation.argument(level, sign)
            if arguments:
                assert argument == pytest.approx(arguments[0], abs=1e-12)
            for resample in (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC):
                for fill in ((128, 128, 128), MEAN_COLOUR):
                    image = Image.fromarray(photo(41, 60, seed=int(10 * level)))
                    if name == "posterize" and arguments == (0,):  # refused by newer Pillow, black in older
                        expected = Image.new("RGB", image.size)
                    else:
                        expected = peer.NAME_TO_OP[theirs](
                            image, *arguments, resample=resample, fillcolor=fill
                        )
                    seen = operation.apply(image, argument, Look(resample, fill))
                    np.testing.assert_array_equal(np.asarray(seen), np.asarray(expected))
