"""BatchNorm against NumPy in float64 and torch, and on eight devices: under jit, by device, and in a shard_map."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from nml_jax.core import mesh as meshes
from nml_jax.core.errors import UserError
from nml_jax.models.norm import BatchNorm

B, H, C = 16, 3, 5
ALL = PartitionSpec(meshes.AXES)


def case(seed: int = 0, shape: tuple[int, ...] = (B, H, H, C), mean: float = 3.0):
    rng = np.random.default_rng(seed)
    x = (mean + rng.normal(size=shape) * rng.uniform(0.5, 2, C)).astype(np.float32)
    params = {"scale": rng.normal(size=C).astype(np.float32), "bias": rng.normal(size=C).astype(np.float32)}
    stats = {"mean": rng.normal(size=C).astype(np.float32), "var": rng.uniform(1, 2, C).astype(np.float32)}
    return x, {"params": params, "batch_stats": stats}


def reference(x, variables, rows):
    """float64: output and running statistics, each `rows` samples on their own."""
    x, params, stats = x.astype(np.float64), variables["params"], variables["batch_stats"]
    groups, means, variances = [], [], []
    for start in range(0, len(x), rows):
        group = x[start : start + rows]
        flat = group.reshape(-1, C)
        means.append(flat.mean(0))
        variances.append(flat.var(0, ddof=1))
        normal = (group - flat.mean(0)) / np.sqrt(flat.var(0) + 1e-5)
        groups.append(normal * params["scale"] + params["bias"])
    new = {"mean": np.mean(means, axis=0), "var": np.mean(variances, axis=0)}
    return np.concatenate(groups), {k: stats[k] + 0.1 * (new[k] - stats[k]) for k in stats}


def train(module, variables, x):
    y, new = module.apply(variables, x, train=True, mutable=["batch_stats"])
    return y, new["batch_stats"]


@pytest.mark.parametrize("rows", [0, 4, 16])
@pytest.mark.parametrize("shape", [(B, H, H, C), (B, C)])
def test_float64(rows, shape):
    x, variables = case(shape=shape)
    y, stats = jax.jit(train, static_argnums=0)(BatchNorm(rows=rows), variables, x)
    expected, expected_stats = reference(x, variables, rows or B)
    # rows are read twice; images once, with a mean up to six standard deviations from the running one
    factor = 1 if len(shape) == 2 else 10
    np.testing.assert_allclose(y, expected, atol=2e-6 * factor)
    for name in stats:
        np.testing.assert_allclose(stats[name], expected_stats[name], rtol=1e-6 * factor)


def test_evaluation_uses_the_running_statistics():
    x, variables = case()
    stats, params = variables["batch_stats"], variables["params"]
    expected = (x - stats["mean"]) / np.sqrt(stats["var"] + 1e-5) * params["scale"] + params["bias"]
    np.testing.assert_allclose(BatchNorm(rows=3).apply(variables, x, train=False), expected, atol=1e-5)


def test_a_large_mean_does_not_drown_the_variance():
    """Rows are centred first; images once the running mean is near, as it is after some steps."""
    rows, variables = case(shape=(64, C), mean=3000.0)
    y, _ = train(BatchNorm(), variables, rows)
    np.testing.assert_allclose(y, reference(rows, variables, 64)[0], atol=5e-3)
    images, variables = case(mean=3000.0)
    variables["batch_stats"]["mean"] = images.mean((0, 1, 2)) + 0.5
    y, _ = train(BatchNorm(), variables, images)
    np.testing.assert_allclose(y, reference(images, variables, B)[0], atol=5e-3)


def test_bfloat16_is_normalised_in_float32():
    x, variables = case()
    x = jnp.asarray(x, jnp.bfloat16)
    y, stats = train(BatchNorm(dtype=jnp.bfloat16), variables, x)
    assert y.dtype == jnp.bfloat16
    assert all(s.dtype == jnp.float32 for s in stats.values())
    expected, expected_stats = reference(np.asarray(x, np.float32), variables, B)
    np.testing.assert_allclose(np.asarray(y, np.float32), expected, rtol=2**-8, atol=1e-6)  # rounded once
    np.testing.assert_allclose(stats["var"], expected_stats["var"], rtol=1e-5)


def test_rows_must_divide_the_batch():
    x, variables = case()
    with pytest.raises(UserError, match="over 3 samples at a time cannot divide the 16"):
        train(BatchNorm(rows=3), variables, x)


def value(variables, x, rows):
    """A loss that is no symmetric function of the samples, its new statistics, and nothing else."""
    y, stats = train(BatchNorm(rows=rows), variables, x)
    return (jnp.sin(y) * jnp.cos(x * jnp.arange(C))).mean(), stats


def whole(variables, x, rows):
    return jax.value_and_grad(value, argnums=(0, 1), has_aux=True)(variables, x, rows)


def by_device(variables, x, rows):
    """As `whole`, each device on its share."""

    def shared(variables, x):
        (loss, stats), (grads, grad_x) = whole(variables, x, rows)
        grads, loss = jax.lax.pmean((grads, loss), meshes.AXES)
        return (loss, stats), (grads, grad_x / 8)

    specs = ((PartitionSpec(), PartitionSpec()), (PartitionSpec(), ALL))
    return jax.shard_map(shared, in_specs=(PartitionSpec(), ALL), out_specs=specs, check_vma=False)(
        variables, x
    )


@pytest.mark.parametrize("rows", [0, 2, 1])
@pytest.mark.parametrize("program", [whole, by_device])
def test_eight_devices_compute_what_one_does(program, rows):
    """Loss, statistics and gradients. In a shard_map, "sync" (0) must take the moments of all devices."""
    x, variables = case()
    expected = jax.jit(whole, static_argnums=2)(variables, x, rows)
    mesh = meshes.make(2)
    with jax.set_mesh(mesh):
        sharded = jax.device_put(x, meshes.batch_sharding(mesh))
        result = jax.jit(program, static_argnums=2)(variables, sharded, rows)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), result, expected)


def test_a_checked_shard_map_gives_the_same():
    """With check_vma JAX sums the gradient of what is replicated over the devices by itself."""
    x, variables = case()
    (loss, stats), (grads, _) = jax.jit(whole, static_argnums=2)(variables, x, 0)

    def shared(variables, x):
        (loss, stats), (grads, _) = whole(variables, x, 0)
        return jax.lax.pmean(loss, meshes.AXES), stats, jax.tree.map(lambda g: g / 8, grads)

    with jax.set_mesh(meshes.make(2)):
        none = PartitionSpec()
        result = jax.jit(jax.shard_map(shared, in_specs=(none, ALL), out_specs=none))(variables, x)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), result, (loss, stats, grads)
    )


def test_a_shard_map_over_something_else_is_not_averaged():
    """Eight models, one on each device, each with its own batch."""
    xs = np.stack([case(seed)[0] for seed in range(8)])
    _, variables = case()
    mesh = jax.make_mesh((8,), ("models",), axis_types=(AxisType.Auto,))
    each = lambda x: train(BatchNorm(), variables, x[0])[0][None]  # noqa: E731
    models = PartitionSpec("models")
    ys = jax.jit(jax.shard_map(each, mesh=mesh, in_specs=models, out_specs=models))(xs)
    for x, y in zip(xs, ys, strict=True):
        np.testing.assert_allclose(y, train(BatchNorm(), variables, x)[0], atol=1e-4)


@pytest.mark.parametrize(("rows", "reductions"), [(0, True), (2, False)])
def test_by_device_communicates_nothing_but_running_statistics(rows, reductions):
    x, variables = case()
    mesh = meshes.make()
    forward = jax.jit(
        lambda x: train(BatchNorm(rows=rows), variables, x)[0],
        in_shardings=meshes.batch_sharding(mesh),
        out_shardings=meshes.batch_sharding(mesh),
    )
    program = forward.lower(x).compile().as_text()
    assert bool(re.search(r"all-reduce|all-gather|all-to-all|collective", program)) == reductions


def test_it_starts_as_the_identity_of_normalised_rows():
    x, _ = case()
    variables = BatchNorm().init(jax.random.key(0), x, train=True)
    np.testing.assert_array_equal(variables["batch_stats"]["mean"], np.zeros(C))
    np.testing.assert_array_equal(variables["batch_stats"]["var"], np.ones(C))
    np.testing.assert_array_equal(variables["params"]["scale"], np.ones(C))
