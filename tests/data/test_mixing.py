import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch_peers
from scipy.stats import beta, kstest

from nml_jax.core import mesh as meshes
from nml_jax.data import mixing

IMAGES = np.random.default_rng(0).integers(0, 256, (16, 12, 10, 3)).astype(np.uint8)
TARGETS = np.eye(16, dtype=np.float32)


def by_hand(image, target, weight, cut, box):
    """One row at a time, float64."""
    image, target = image.astype(np.float64), target.astype(np.float64)
    mixed, targets = image.copy(), target.copy()
    for i in range(len(image)):
        other = len(image) - 1 - i
        if cut:
            top, bottom, left, right = box
            mixed[i, top:bottom, left:right] = image[other, top:bottom, left:right]
            weight = 1 - (bottom - top) * (right - left) / (image.shape[1] * image.shape[2])
        else:
            mixed[i] = weight * image[i] + (1 - weight) * image[other]
        targets[i] = weight * target[i] + (1 - weight) * target[other]
    return mixed, targets


@pytest.mark.parametrize("cut", [True, False])
@pytest.mark.parametrize("box", [(0, 12, 0, 10), (3, 9, 2, 4), (0, 5, 7, 10), (4, 4, 5, 5)])
@pytest.mark.parametrize("kind", [np.uint8, np.float32])
def test_blend_against_numpy(kind, box, cut):
    image, target = mixing.blend(IMAGES.astype(kind), TARGETS, jnp.float32(0.3), cut, mixing.Box(*box))
    expected = by_hand(IMAGES, TARGETS, np.float64(np.float32(0.3)), cut, box)
    assert image.dtype == target.dtype == np.float32
    np.testing.assert_allclose(image, expected[0], atol=5e-5)
    np.testing.assert_allclose(target, expected[1], atol=1e-6)
    np.testing.assert_allclose(np.sum(target, 1), 1, atol=1e-6)


def test_nothing_is_mixed_where_both_are_off():
    image, target = mixing.mix(jax.random.key(0), IMAGES, TARGETS, mixup=0.0, cutmix=0.0)
    assert image.dtype == np.float32
    np.testing.assert_array_equal(image, IMAGES)
    np.testing.assert_array_equal(target, TARGETS)


def drawn(count: int, **options) -> tuple[np.ndarray, np.ndarray]:
    """(own weight in row 0's target, whether the image was cut) of many batches."""

    def one(rng):
        image, target = mixing.mix(rng, IMAGES, TARGETS, **options)
        # Mixup gives values between the two images; CutMix has each from one of them.
        either = (image[0] == IMAGES[0]) | (image[0] == IMAGES[-1])
        return target[0, 0], jnp.all(either)

    weights, cut = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(1), count))
    return np.asarray(weights, np.float64), np.asarray(cut)


@pytest.mark.parametrize("alpha", [0.1, 0.2, 0.8, 1.0])
def test_mixups_weight_is_beta(alpha):
    weights, _ = drawn(4000, mixup=alpha, cutmix=0.0)
    low = weights[weights < 0.5]  # near 1, float32 is too coarse for small alphas
    assert abs(len(low) / 4000 - 0.5) < 0.03
    assert kstest(low, lambda x: 2 * beta(alpha, alpha).cdf(x)).pvalue > 1e-3


def test_cutmixs_box_has_the_area_of_its_weight():
    """Uniform weights (alpha 1); the boxes lose what the borders cut off, so the image's own share is larger."""
    weights, cut = drawn(4000, mixup=0.0, cutmix=1.0)
    assert cut.all()
    rng = np.random.default_rng(0)
    expected = []
    for _ in range(4000):  # Yun et al. 2019, algorithm 1
        side = np.sqrt(1 - rng.uniform())
        span = []
        for length in (12, 10):
            cut_length, centre = int(length * side), rng.integers(length)
            span.append(min(centre + (cut_length + 1) // 2, length) - max(centre - cut_length // 2, 0))
        expected.append(1 - span[0] * span[1] / 120)
    assert abs(weights.mean() - np.mean(expected)) < 0.02
    np.testing.assert_allclose(
        np.quantile(weights, [0.1, 0.3, 0.5, 0.7, 0.9]),
        np.quantile(expected, [0.1, 0.3, 0.5, 0.7, 0.9]),
        atol=0.05,
    )


def test_switch_and_probability_are_shares_of_the_batches():
    weights, cut = drawn(2000, mixup=1.0, cutmix=1.0, switch=0.25)
    assert abs(cut.mean() - 0.25) < 0.04
    weights, _ = drawn(2000, mixup=1.0, cutmix=0.0, probability=0.3)
    assert abs((weights < 1).mean() - 0.3) < 0.04


@pytest.mark.parametrize("options", [{"mixup": 0.2, "cutmix": 0.0}, {"mixup": 0.0, "cutmix": 1.0}])
def test_one_and_eight_devices_give_the_same(options):
    """And no more than bytes of the images travel between them."""
    function = jax.jit(functools.partial(mixing.mix, **options))
    expected = function(jax.random.key(3), IMAGES, TARGETS)
    sharding = meshes.batch_sharding(meshes.make())
    shards = jax.device_put((IMAGES, TARGETS), sharding)
    compiled = (
        jax.jit(functools.partial(mixing.mix, **options), out_shardings=sharding)
        .lower(jax.random.key(3), *shards)
        .compile()
    )
    for seen, alone in zip(compiled(jax.random.key(3), *shards), expected, strict=True):
        np.testing.assert_allclose(seen, alone, rtol=1e-6)
    moved = re.findall(
        r"= \(?(\w+)\[([\d,]*)\][^=]* (?:all-gather|collective-permute|all-to-all)", compiled.as_text()
    )
    assert moved
    assert all(kind == "u8" for kind, shape in moved if shape.count(",") == 3), moved


@pytest.mark.peers
@pytest.mark.parametrize("alphas", [(0.2, 0.0), (0.0, 1.0), (0.1, 1.0)])
def test_against_timm(alphas, monkeypatch):
    """The weight and the box that timm drew, put into `blend`."""
    timm = torch_peers.timm()
    import torch
    from timm.data import mixup as peer

    assert timm
    boxes = []
    original = peer.rand_bbox
    monkeypatch.setattr(peer, "rand_bbox", lambda *a, **k: boxes.append(original(*a, **k)) or boxes[-1])
    mixer = peer.Mixup(*alphas, label_smoothing=0.0, num_classes=16)
    weights = []
    params = mixer._params_per_batch
    monkeypatch.setattr(mixer, "_params_per_batch", lambda: weights.append(params()) or weights[-1])
    for seed in range(12):
        np.random.seed(seed)
        boxes.clear()
        image, target = mixer(
            torch.from_numpy(IMAGES.astype(np.float32)).permute(0, 3, 1, 2).contiguous(), torch.arange(16)
        )
        weight, cut = weights[-1]
        box = mixing.Box(*(int(x) for x in boxes[0])) if boxes else mixing.Box(0, 0, 0, 0)
        seen = mixing.blend(IMAGES, TARGETS, jnp.float32(weight), bool(cut), box)
        np.testing.assert_allclose(seen[0], image.permute(0, 2, 3, 1).numpy(), atol=1e-4)
        np.testing.assert_allclose(seen[1], target.numpy(), atol=1e-6)
    assert {bool(cut) for _, cut in weights} == {
        bool(a) for a in ([False] * bool(alphas[0]) + [True] * bool(alphas[1]))
    }


@pytest.mark.peers
def test_boxes_are_timms():
    """timm's rand_bbox (1.0.31: earlier ones lose a pixel of odd sides); all centres of a small image occur."""
    torch_peers.timm()
    from timm.data import mixup as peer

    rng = np.random.default_rng(0)
    for weight in (0.0, 0.1, 0.37, 0.5, 0.9, 1.0):
        theirs = {tuple(int(x) for x in peer.rand_bbox((3, 7, 5), weight)) for _ in range(800)}
        keys = jax.random.split(jax.random.key(int(rng.integers(1000))), 800)
        boxes = jax.vmap(lambda key, w=weight: mixing.random_box(key, 7, 5, jnp.float32(w)))(keys)
        ours = {(int(a), int(b), int(c), int(d)) for a, b, c, d in zip(*boxes, strict=True)}
        assert ours == theirs
