import random

import numpy as np
import pytest
import torch_peers
from ml_collections import ConfigDict
from pictures import encoded, photo
from PIL import Image

from nml_jax.core.errors import UserError
from nml_jax.data import augment, decode


def test_shift_crop_moves_and_mirrors_but_keeps_the_size():
    image = np.arange(32 * 32 * 3, dtype=np.uint32).astype(np.uint8).reshape(32, 32, 3)
    apply = augment.make("shift_crop", size=32, padding=0, flip=True)
    results = [apply(image, np.random.default_rng(i)) for i in range(20)]
    assert all(np.array_equal(r, image) or np.array_equal(r, image[:, ::-1]) for r in results)
    assert len({r.tobytes() for r in results}) == 2


def test_random_resized_crop_takes_areas_in_its_scale():
    """The crop of a ramp tells its width and height by the range of its values."""
    ramp = np.stack([*np.meshgrid(np.arange(200), np.arange(200)), np.zeros((200, 200))], -1).astype(np.uint8)
    apply = augment.make("random_resized_crop", size=64, scale=(0.25, 0.5), flip=True)
    for seed in range(50):
        crop = apply(ramp, np.random.default_rng(seed)).astype(float)
        width = abs(crop[:, -1, 0] - crop[:, 0, 0]).mean()
        height = abs(crop[-1, :, 1] - crop[0, :, 1]).mean()
        assert crop.shape == (64, 64, 3)
        assert 0.24 < width * height / 200**2 < 0.52
        assert 0.7 < width / height < 1.4


@pytest.mark.parametrize("decoder", decode.DECODERS)
@pytest.mark.parametrize(
    ("name", "options"),
    [
        (
            "random_resized_crop",
            {"size": 192, "scale": (0.08, 1.0), "flip": True, "interpolation": "random"},
        ),
        ("shift_crop", {"size": 64, "padding": 4, "flip": True}),
    ],
)
def test_files_are_augmented_as_arrays_are(name, options, decoder):
    """The same boxes, flips and operations; the pixels are Pillow's, or near them."""
    file = encoded(photo(375, 500))
    apply = augment.make(name, **options)
    for seed in range(10):
        from_array = apply(decode.rgb(file, name="x"), np.random.default_rng(seed)).astype(float)
        from_file = apply(decode.picture(file, name="x", decoder=decoder), np.random.default_rng(seed))
        assert np.abs(from_file - from_array).mean() < (2 if decoder != "pillow" else 1e-9)


def test_mirrored():
    image = photo(7, 5)
    for view in (image, image[1:6, 1:4]):
        np.testing.assert_array_equal(augment.mirrored(view), view[:, ::-1])


def test_random_interpolation_is_either():
    image = photo(100, 100)
    results = {}
    for kind in ("bilinear", "bicubic", "random"):
        apply = augment.make(
            "random_resized_crop", size=40, scale=(1, 1), ratio=(1, 1), flip=False, interpolation=kind
        )
        results[kind] = [apply(image, np.random.default_rng(i)).tobytes() for i in range(40)]
    (bilinear,), (bicubic,) = set(results["bilinear"]), set(results["bicubic"])
    assert 8 < results["random"].count(bilinear) < 32
    assert results["random"].count(bilinear) + results["random"].count(bicubic) == 40


def test_rand_augment_comes_after_the_crop_and_takes_its_options_from_a_config():
    image = photo(90, 70)
    plain = {"size": 48, "scale": (0.5, 1.0), "flip": True}
    options = {"ops": 2, "magnitude": 7, "std": 0.5, "increasing": True}
    with_options = ConfigDict({**plain, "rand_augment": options})
    crop = augment.make("random_resized_crop", **plain)
    both = augment.make("random_resized_crop", **with_options)
    same = [
        np.array_equal(crop(image, np.random.default_rng(i)), both(image, np.random.default_rng(i)))
        for i in range(60)
    ]
    assert 5 < sum(same) < 30  # a quarter has neither of its two operations
    never = augment.make("random_resized_crop", **plain, rand_augment={**options, "probability": 0.0})
    np.testing.assert_array_equal(
        never(image, np.random.default_rng(1)), crop(image, np.random.default_rng(1))
    )


def test_center_crop_is_the_middle():
    image = np.zeros((40, 60, 3), np.uint8)
    image[4:36, 14:46] = 255
    assert (augment.center_crop(size=32, crop_pct=0.8)(image) == 255).mean() > 0.9
    same = np.random.default_rng(0).integers(0, 255, (32, 32, 3)).astype(np.uint8)
    np.testing.assert_array_equal(augment.center_crop(size=32, crop_pct=1.0)(same), same)


def test_normalize_against_numpy():
    image = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 3)).astype(np.uint8)
    expected = (image / 255 - np.array(augment.IMAGENET_MEAN)) / np.array(augment.IMAGENET_STD)
    result = augment.normalize(image, augment.IMAGENET_MEAN, augment.IMAGENET_STD)
    np.testing.assert_allclose(result, expected, atol=1e-5)


def test_what_is_not_there_is_said():
    with pytest.raises(UserError, match="valid: shift_crop, random_resized_crop"):
        augment.make("rotate")
    with pytest.raises(UserError, match="its options are size, padding, flip"):
        augment.make("shift_crop", size=8, padding=1, flip=True, angle=3)
    plain = {"size": 8, "scale": (0.5, 1.0), "flip": True}
    with pytest.raises(UserError, match="'nearest'; valid: bilinear, bicubic, random"):
        augment.make("random_resized_crop", **plain, interpolation="nearest")
    with pytest.raises(UserError, match="has no option strength.*data.augment.rand_augment"):
        augment.make("random_resized_crop", **plain, rand_augment={"strength": 3})
    options = {"ops": 2, "magnitude": 70, "std": 0.5, "increasing": True}
    with pytest.raises(UserError, match="magnitude in \\[0, 10\\]"):
        augment.make("random_resized_crop", **plain, rand_augment=options)


# ------------------------------------------------------------------------------- against torchvision and timm


@pytest.mark.peers
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_the_same_box_gives_torchvisions_pixels(interpolation):
    torch_peers.torchvision()
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms import functional as peer

    file = encoded(photo(375, 500))
    whole = Image.fromarray(decode.rgb(file, name="x"))
    rng = np.random.default_rng(0)
    for _ in range(10):
        box = augment.random_box(375, 500, (0.08, 1.0), (3 / 4, 4 / 3), rng)
        expected = peer.hflip(peer.resized_crop(whole, *box, [224, 224], InterpolationMode(interpolation)))
        picture = decode.picture(file, name="x")
        np.testing.assert_array_equal(picture.crop_resized(box, 224, 224, interpolation)[:, ::-1], expected)


@pytest.mark.peers
@pytest.mark.parametrize(("height", "width"), [(375, 500), (500, 90), (60, 600)])
def test_boxes_are_distributed_as_timms(height, width):
    """Two-sample Kolmogorov-Smirnov tests of area, aspect and place; the thin images need the central box too."""
    torch_peers.timm()
    from scipy.stats import ks_2samp
    from timm.data.transforms import RandomResizedCropAndInterpolation as Peer

    scale, ratio, count = (0.08, 1.0), (3 / 4, 4 / 3), 4000
    rng, image = np.random.default_rng(0), Image.new("RGB", (width, height))
    random.seed(0)
    ours = np.array([augment.random_box(height, width, scale, ratio, rng) for _ in range(count)], float)
    theirs = np.array([Peer.get_params(image, scale, ratio) for _ in range(count)], float)
    statistics = {
        "area": lambda x: x[:, 2] * x[:, 3],
        "aspect": lambda x: x[:, 3] / x[:, 2],
        "top": lambda x: x[:, 0],
        "left": lambda x: x[:, 1],
    }
    for name, statistic in statistics.items():
        assert ks_2samp(statistic(ours), statistic(theirs)).pvalue > 1e-3, name


@pytest.mark.peers
@pytest.mark.parametrize(
    "size", [(375, 500), (500, 375), (331, 333), (224, 224), (101, 777), (256, 257), (40, 50)]
)
@pytest.mark.parametrize(("crop", "crop_pct"), [(224, 0.875), (224, 0.95), (224, 1.0), (160, 0.9), (33, 0.7)])
def test_evaluation_gives_timms_pixels(size, crop, crop_pct):
    torch_peers.timm()
    from timm.data import create_transform

    image = photo(*size)
    peer = create_transform(crop, crop_pct=crop_pct, interpolation="bicubic", normalize=False)
    expected = np.moveaxis(peer(Image.fromarray(image)).numpy(), 0, 2)
    np.testing.assert_array_equal(augment.center_crop(size=crop, crop_pct=crop_pct)(image), expected)
