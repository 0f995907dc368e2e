"""What the losses become on eight devices: arrays, messages and arithmetic, read off the compiled programs."""

import jax
import jax.numpy as jnp
import pytest

from nml_jax.core import mesh as meshes
from nml_jax.pretrain import contrastive
from tests import hlo
from tests.core import toy

DIM, DEVICES = 16, 8
SCALARS = {"info_nce": (14.0,), "sigmoid_loss": (10.0, -10.0)}


def program(name: str, method: str, rows: int, *, devices: int = DEVICES, gradients: bool, tile: int = 32):
    """Compiled, of embeddings that lie divided over the devices."""
    mesh = toy.mesh_of(devices)
    embeddings = jax.ShapeDtypeStruct((rows, DIM), jnp.float32, sharding=meshes.batch_sharding(mesh))
    scalar = jax.ShapeDtypeStruct((), jnp.float32, sharding=meshes.replicated(mesh))
    arguments = (embeddings, embeddings, *(scalar for _ in SCALARS[name]))

    def loss(*arguments):
        return getattr(contrastive, name)(*arguments, method=method, tile=tile, mesh=mesh)

    function = jax.value_and_grad(loss, argnums=tuple(range(len(arguments)))) if gradients else loss
    return hlo.Program(jax.jit(function).lower(*arguments).compile())


@pytest.mark.parametrize("name", SCALARS)
@pytest.mark.parametrize("method", ["local", "chunked"])
@pytest.mark.parametrize("gradients", [False, True])
def test_no_device_holds_the_logits_of_all_pairs(name, method, gradients):
    rows = 1024
    largest = program(name, method, rows, gradients=gradients).largest()
    share = rows * (rows // DEVICES)
    assert largest == share if method == "local" else largest <= rows * DIM < share
    assert program(name, "naive", rows, devices=1, gradients=gradients).largest() == rows * rows


@pytest.mark.parametrize(("name", "gathers"), [("info_nce", 2), ("sigmoid_loss", 1)])
@pytest.mark.parametrize("method", ["local", "chunked"])
def test_what_the_devices_send_each_other(name, gathers, method):
    """The texts, and for InfoNCE two numbers a text and device; each comes back once, and nothing is sent in a loop."""
    rows = 1024
    sent = [rows * DIM, 2 * DEVICES * rows][:gathers]
    forward = program(name, method, rows, gradients=False)
    outside, inside = forward.sizes("all-gather")
    assert (sorted(outside), inside) == (sorted(sent), [])
    whole = program(name, method, rows, gradients=True)
    outside, inside = whole.sizes("all-gather")
    assert (sorted(outside), inside) == (sorted(sent), [])
    outside, inside = whole.sizes("reduce-scatter")
    assert (sorted(outside), inside) == (sorted(n // DEVICES for n in sent), [])
    for found in (forward, whole):
        outside, inside = found.sizes("all-reduce")
        assert sum(outside) <= 8  # scalars
        assert not inside
        assert found.sizes("all-to-all") == found.sizes("collective-permute") == ([], [])


@pytest.mark.parametrize("name", SCALARS)
@pytest.mark.parametrize("method", ["local", "chunked"])
def test_arithmetic_is_that_of_all_pairs_by_the_number_of_devices(name, method):
    """Forward one product for each pair, 2 d; with gradients 6 d, and 2 d more where the tiles are computed again."""
    for rows, devices in [(512, 8), (1024, 8), (1024, 2), (1024, 1)]:
        each = 2 * DIM * rows**2 / devices
        forward = program(name, method, rows, devices=devices, gradients=False)
        assert forward.matmul_flops() == each
        whole = program(name, method, rows, devices=devices, gradients=True)
        assert whole.matmul_flops() == (4 if method == "chunked" else 3) * each


def test_memory_of_the_tiles_does_not_grow_with_the_square_of_the_batch():
    largest = [program("info_nce", "chunked", rows, gradients=True).largest() for rows in (1024, 2048, 4096)]
    assert largest == [rows * DIM for rows in (1024, 2048, 4096)]
