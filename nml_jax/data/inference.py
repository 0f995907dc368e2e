"""A function of images over a whole split, exact to the last image on any number of devices."""

import contextlib
import functools
import json
from collections.abc import Callable, Iterator

import jax
import numpy as np
from ml_collections import ConfigDict

from nml_jax.core import artifacts, runtime
from nml_jax.core import mesh as meshes
from nml_jax.core.writer import progress_bar
from nml_jax.data import augment, pipeline
from nml_jax.data.source import Source


def run(
    function: Callable[..., jax.Array],
    variables: tuple,
    source: Source,
    data: ConfigDict,
    *,
    view: int = 0,
    seed: int = 0,
    progress: str = "",
) -> np.ndarray:
    """`function(*variables, images)` for every image of `source`, in order: (N, ...) NumPy on every process.

    Args:
      variables: trees that the function needs, passed as arguments of the jitted program.
      data: `eval_batch_size`, `evaluate` (options of the evaluation transform), `augment` (of the training one), and
        `num_workers` (processes that decode and transform, where the source is not in memory; 0: a thread).
      view: 0 is the evaluation transform; v > 0 is the v-th augmented copy, which depends on (seed, v, index) alone.
      progress: description of a progress bar; "" shows none.

    Raises:
      UserError: an image cannot be decoded; the message names its record. None is left out or replaced.
    """
    mesh = meshes.make()
    compiled = jax.jit(function, out_shardings=meshes.batch_sharding(mesh))
    batch_size = -(-data.eval_batch_size // jax.device_count()) * jax.device_count()
    outputs, count, waiting = [], len(source), None
    with (
        progress_bar(count, progress, unit="image", show=bool(progress) and runtime.is_lead()) as bar,
        contextlib.closing(_batches(source, data, view, seed, batch_size)) as batches,
    ):
        for start in range(0, count, batch_size):
            output = compiled(*variables, meshes.put_batch(mesh, {"image": next(batches)})["image"])
            # The device works on a batch while the next is fetched and the one before is gathered.
            if waiting is not None:
                outputs.append(runtime.gather(waiting))
            waiting = output
            bar.update(min(batch_size, count - start))
        outputs.append(runtime.gather(waiting))
    return np.concatenate(outputs)[:count]


def _batches(source: Source, data: ConfigDict, view: int, seed: int, batch_size: int) -> Iterator[np.ndarray]:
    """This process's rows of each batch, (B, H, W, 3); the last one is filled up with the last image."""
    options = json.dumps(artifacts.plain(data)["augment" if view else "evaluate"], sort_keys=True)
    if not source.in_memory:
        image = functools.partial(_image, source, _transform(options, view), view, seed)
        return pipeline.in_order(image, len(source), batch_size=batch_size, num_workers=data.num_workers)
    return _kept_batches(_kept(source, options, view, seed), batch_size)


def _kept_batches(images: list[np.ndarray], batch_size: int) -> Iterator[np.ndarray]:
    local = meshes.local_batch_size(batch_size)
    for start in range(0, len(images), batch_size):
        first = start + jax.process_index() * local
        yield np.stack([images[min(i, len(images) - 1)] for i in range(first, first + local)])


@functools.lru_cache(maxsize=64)
def _kept(source: Source, options: str, view: int, seed: int) -> list[np.ndarray]:
    """All images, transformed once for all encoders."""
    transform = _transform(options, view)
    return [_image(source, transform, view, seed, i) for i in range(len(source))]


def _transform(options: str, view: int) -> Callable:
    return augment.make(**json.loads(options)) if view else augment.center_crop(**json.loads(options))


def _image(source: Source, transform: Callable, view: int, seed: int, index: int) -> np.ndarray:
    if view == 0:
        return transform(source.picture(index))
    rng = np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, view, int(index)]))
    return transform(source.picture(index), rng)
