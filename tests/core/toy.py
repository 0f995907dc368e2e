"""A Task small enough to train a hundred steps in a second, and its data."""

from collections.abc import Iterator

import flax.linen as nn
import grain
import jax
import jax.numpy as jnp
import numpy as np

from nml_jax.core import mesh as meshes
from nml_jax.core.task import Task
from nml_jax.data import pipeline
from nml_jax.models.drop_path import DropPath
from nml_jax.models.norm import BatchNorm

DIM, CLASSES, RECORDS = 6, 3, 96
IDS = np.array([f"record_{i:03d}" for i in range(RECORDS)])


class Network(nn.Module):
    """Two layers with BatchNorm, and a branch that is dropped for some samples."""

    drop: float

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        x = nn.relu(BatchNorm(name="norm")(nn.Dense(16, name="first")(x), train=train))
        x = x + DropPath(self.drop)(nn.Dense(16, name="branch")(x), train=train)
        return nn.Dense(CLASSES, name="last")(x)


def task(drop: float = 0.0) -> Task:
    """Cross-entropy on {"x": (B, DIM), "y": (B,)}."""
    model = Network(drop)

    def init(rng, batch):
        variables = model.init(rng, jnp.zeros((2, DIM)), train=False)
        return variables["params"], {}, variables["batch_stats"]

    def loss(params, frozen, stats, batch, rng):
        logits, updated = model.apply(
            {"params": params, "batch_stats": stats},
            batch["x"],
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": rng},
        )
        log_p = jax.nn.log_softmax(logits)
        value = -jnp.take_along_axis(log_p, batch["y"][:, None], 1).mean()
        accuracy = (logits.argmax(1) == batch["y"]).mean()
        return value, (updated["batch_stats"], {"accuracy": accuracy})

    def predict(params, frozen, stats, batch):
        return model.apply({"params": params, "batch_stats": stats}, batch["x"], train=False)

    return Task(init, loss, predict)


def records() -> dict[str, np.ndarray]:
    """x depends on y, so that there is something to learn."""
    rng = np.random.default_rng(0)
    y = rng.integers(CLASSES, size=RECORDS).astype(np.int32)
    x = rng.standard_normal((RECORDS, DIM)).astype(np.float32) + 2 * np.eye(CLASSES, DIM, dtype=np.float32)[y]
    return {"x": x, "y": y}


def spec(rows: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Of a global batch."""
    return {
        "x": jax.ShapeDtypeStruct((rows, DIM), jnp.float32),
        "y": jax.ShapeDtypeStruct((rows,), jnp.int32),
    }


class _Record:
    def __init__(self, bad: tuple[int, ...], nan: tuple[int, ...]):
        self._records, self._bad, self._nan = records(), bad, nan

    def __call__(self, index: int) -> dict[str, np.ndarray]:
        replaced = index in self._bad
        row = (index + 1) % RECORDS if replaced else index
        x = self._records["x"][row] * (np.nan if index in self._nan else 1)
        return {
            "x": x.astype(np.float32),
            "y": self._records["y"][row],
            "index": np.int64(index),
            "replaced": np.bool_(replaced),
        }


def iterator(rows: int, *, bad: tuple[int, ...] = (), nan: tuple[int, ...] = ()) -> Iterator[dict]:
    """As `data.pipeline.train_iterator`; the records `bad` are replaced, those of `nan` hold NaN."""
    dataset = grain.MapDataset.range(RECORDS).seed(0).shuffle().repeat().map(_Record(bad, nan))
    return iter(pipeline._batches(dataset, rows).to_iter_dataset())


def mesh_of(devices: int, fsdp: int = 1) -> jax.sharding.Mesh:
    """The first so many of the simulated devices."""
    axes = {"axis_types": (jax.sharding.AxisType.Auto,) * 2}
    return jax.make_mesh((devices // fsdp, fsdp), meshes.AXES, devices=jax.devices()[:devices], **axes)
