"""InfoNCE and the sigmoid loss against NumPy in float64: values and gradients, every method, 1, 2 and 8 devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nml_jax.core.errors import UserError
from nml_jax.pretrain import contrastive, pairwise
from tests import torch_peers
from tests.core import toy

DIM = 24
# (pairs, tile): the tile divides neither 64 nor any device's share; one tile holds more than all; a tile is one text
TILES = [(64, 24), (64, 16), (64, 1000), (32, 1)]


def pairs(count: int, noise: float = 3.0) -> tuple[np.ndarray, np.ndarray]:
    """Unit embeddings, texts the nearer to their images the smaller `noise` is."""
    rng = np.random.default_rng(0)
    image, text = rng.standard_normal((2, count, DIM))
    text = image + noise * text
    return tuple((x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32) for x in (image, text))


def info_nce_truth(x: np.ndarray, y: np.ndarray, t: float) -> tuple[float, list]:
    """The loss, and its gradients with respect to x, y and t."""
    x, y = x.astype(np.float64), y.astype(np.float64)
    cosines, eye = x @ y.T, np.eye(len(x))
    z = np.exp(t * cosines - t)
    rows, columns = z / z.sum(1, keepdims=True), z / z.sum(0)
    loss = -(np.log(np.diag(rows)) + np.log(np.diag(columns))).mean() / 2
    d = (rows + columns - 2 * eye) / (2 * len(x))
    return loss, [t * d @ y, t * d.T @ x, (d * cosines).sum()]


def sigmoid_truth(x: np.ndarray, y: np.ndarray, t: float, b: float) -> tuple[float, list]:
    x, y = x.astype(np.float64), y.astype(np.float64)
    cosines, signs = x @ y.T, 2 * np.eye(len(x)) - 1
    z = signs * (t * cosines + b)
    loss = np.logaddexp(0, -z).sum() / len(x)
    d = -signs / (1 + np.exp(z)) / len(x)
    return loss, [t * d @ y, t * d.T @ x, (d * cosines).sum(), d.sum()]


LOSSES = {
    "info_nce": (contrastive.info_nce, info_nce_truth, (1 / 0.07,)),
    "sigmoid": (contrastive.sigmoid_loss, sigmoid_truth, (10.0, -10.0)),
}


def computed(name: str, arrays: tuple, scalars: tuple, method: str, devices: int, tile: int):
    """(loss, gradients) under jit, the embeddings divided over the devices."""
    function, mesh = LOSSES[name][0], toy.mesh_of(devices)
    divided = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(("data", "fsdp")))
    arrays = [jax.device_put(a, divided) for a in arrays]

    def loss(*arguments):
        return function(*arguments, method=method, tile=tile, mesh=mesh)

    arguments = (*arrays, *(jnp.asarray(s, jnp.promote_types(arrays[0].dtype, "float32")) for s in scalars))
    value_and_grad = jax.value_and_grad(loss, argnums=tuple(range(len(arguments))))
    return jax.device_get(jax.jit(value_and_grad)(*arguments))


def error(found, expected) -> float:
    """The largest error, relative to the largest value."""
    return float(np.abs(np.asarray(found, np.float64) - expected).max() / np.abs(expected).max())


def errors(found, expected) -> list[float]:
    (loss, gradients), (true_loss, true_gradients) = found, expected
    return [error(loss, true_loss), *map(error, gradients, true_gradients)]


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("devices", [1, 2, 8])
@pytest.mark.parametrize("method", pairwise.METHODS)
def test_value_and_gradients_against_numpy(name, method, devices):
    _, truth, scalars = LOSSES[name]
    for count, tile in TILES if method == "chunked" else TILES[:1]:
        arrays = pairs(count)
        found = computed(name, arrays, scalars, method, devices, tile)
        assert max(errors(found, truth(*arrays, *scalars))) < 1e-6


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("method", ["local", "chunked"])
def test_every_method_is_the_same_function(name, method):
    """In float64 nothing is left but the formulas."""
    _, truth, scalars = LOSSES[name]
    with jax.enable_x64(True):
        arrays = [a.astype(np.float64) for a in pairs(64)]
        found = computed(name, arrays, scalars, method, 8, 24)
        assert max(errors(found, truth(*arrays, *scalars))) < 1e-13


@pytest.mark.parametrize(("noise", "tolerance"), [(1.5, 3e-6), (0.7, 1e-4)])
@pytest.mark.parametrize("method", pairwise.METHODS)
def test_trained_towers_at_the_largest_scale(method, noise, tolerance):
    """A scale of 100 multiplies the rounding of the cosines; with noise 0.7 nothing but the last digits is left.

    A softmax of logits in float32 is off by 4e-3 there.
    """
    arrays = pairs(64, noise)
    truth = info_nce_truth(*arrays, 100.0)
    assert truth[0] > 1 if noise == 1.5 else truth[0] < 1e-4
    assert max(errors(computed("info_nce", arrays, (100.0,), method, 8, 24), truth)) < tolerance


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("method", ["local", "chunked"])
def test_bfloat16_embeddings(name, method):
    """The loss is computed in float32 from them; gradients come back in bfloat16, rounded once."""
    _, truth, scalars = LOSSES[name]
    arrays = [jnp.asarray(a, jnp.bfloat16) for a in pairs(64)]
    loss, gradients = computed(name, arrays, scalars, method, 8, 24)
    exact = [np.asarray(a, np.float32) for a in arrays]
    true_loss, true_gradients = truth(*exact, *scalars)
    assert error(loss, true_loss) < 1e-6
    assert [g.dtype for g in gradients[:2]] == [jnp.bfloat16] * 2
    assert max(map(error, gradients[:2], true_gradients)) < 2**-8
    assert max(map(error, gradients[2:], true_gradients[2:])) < 1e-6


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("method", pairwise.METHODS)
def test_within_a_shard_map_over_the_batch(name, method):
    """As gradient caching has it: the loss is one number, and each device has the gradient of its rows."""
    function, truth, scalars = LOSSES[name]
    arrays, mesh = pairs(64), toy.mesh_of(8, fsdp=2)
    divided, same = jax.sharding.PartitionSpec(("data", "fsdp")), jax.sharding.PartitionSpec()
    specs = (divided, divided, *(same,) * len(scalars))
    of_rows = jax.value_and_grad(
        lambda *a: function(*a, method=method, tile=24), argnums=tuple(range(len(specs)))
    )
    everywhere = jax.shard_map(of_rows, mesh=mesh, in_specs=specs, out_specs=(same, specs))
    found = jax.jit(everywhere)(*arrays, *map(jnp.float32, scalars))
    assert max(errors(found, truth(*arrays, *scalars))) < 1e-6


@pytest.mark.parametrize("name", LOSSES)
def test_the_mesh_of_the_context_or_all_devices(name):
    function, truth, scalars = LOSSES[name]
    arrays = pairs(64)
    expected, _ = truth(*arrays, *scalars)
    assert error(function(*arrays, *scalars, method="local"), expected) < 1e-6
    with jax.set_mesh(toy.mesh_of(2)):
        found = jax.jit(lambda *a: function(*a, *scalars, method="local"))(*arrays)
    assert error(found, expected) < 1e-6


@pytest.mark.parametrize("method", pairwise.METHODS)
def test_accuracy_is_that_of_the_largest_logit(method):
    image, text = pairs(32, noise=1.5)
    text[10] = text[3]  # the first of equal logits counts, as in argmax
    expected = ((image.astype(np.float64) @ text.T.astype(np.float64)).argmax(1) == np.arange(32)).mean()
    assert 0.1 < expected < 0.9
    assert pairwise.info_nce_and_accuracy(image, text, 10.0, method, tile=12)[1] == pytest.approx(expected)
    assert pairwise.sigmoid_loss_and_accuracy(image, text, 10.0, -3.0, method, tile=12)[1] == pytest.approx(
        expected
    )


def test_the_temperature_is_clamped_and_comes_back():
    inside, above = jnp.log(50.0), jnp.log(200.0)
    value = jax.value_and_grad(lambda x, sign: sign * contrastive.scale_of(x))
    np.testing.assert_allclose(value(inside, 1.0), (50.0, 50.0), rtol=1e-6)
    np.testing.assert_allclose(value(inside, -1.0), (-50.0, -50.0), rtol=1e-6)
    assert value(above, -1.0) == (-100.0, 0.0)  # a descent would raise it further
    assert value(above, 1.0) == (100.0, 100.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "ring"}, "valid: naive, local, chunked"),
        ({"method": "chunked", "tile": 0}, "loss.tile=0"),
        ({"method": "local", "mesh": toy.mesh_of(8)}, "6 pairs cannot be shared by 8 devices"),
    ],
)
def test_what_cannot_work_is_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        contrastive.info_nce(*pairs(6), 14.0, **arguments)


@pytest.mark.peers
def test_against_open_clip():
    torch_peers.open_clip()
    import torch
    from open_clip import loss as peer

    image, text = pairs(64)
    tensors = torch.tensor(image), torch.tensor(text)
    theirs = peer.ClipLoss()(*tensors, torch.tensor(14.0)).item()
    assert error(contrastive.info_nce(image, text, 14.0, "local"), theirs) < 1e-6
    theirs = peer.SigLipLoss()(*tensors, torch.tensor(10.0), torch.tensor(-10.0)).item()
    assert error(contrastive.sigmoid_loss(image, text, 10.0, -10.0, "local"), theirs) < 1e-6
