"""A function of images over a whole split, exact to the last image on any number of devices."""

import functools
import json
from collections.abc import Callable

import jax
import numpy as np
from ml_collections import ConfigDict

from nml_jax.core import artifacts, runtime
from nml_jax.core import mesh as meshes
from nml_jax.core.writer import progress_bar
from nml_jax.data import augment
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
      data: `eval_batch_size`, `evaluate` (options of the evaluation transform) and `augment` (of the training one).
      view: 0 is the evaluation transform; v > 0 is the v-th augmented copy, which depends on (seed, v, index) alone.
      progress: description of a progress bar; "" shows none.
    """
    image = _images(source, data, view, seed)
    mesh = meshes.make()
    compiled = jax.jit(function, out_shardings=meshes.batch_sharding(mesh))
    batch_size = -(-data.eval_batch_size // jax.device_count()) * jax.device_count()
    local = meshes.local_batch_size(batch_size)
    outputs = []
    with progress_bar(len(source), progress, unit="image", show=bool(progress) and runtime.is_lead()) as bar:
        for start in range(0, len(source), batch_size):
            real = min(batch_size, len(source) - start)
            # The last batch is filled up with its last image, so that one program serves all batches.
            first = start + jax.process_index() * local
            indices = np.minimum(np.arange(first, first + local), start + real - 1)
            images = np.stack([image(i) for i in indices])
            output = compiled(*variables, meshes.put_batch(mesh, {"image": images})["image"])
            outputs.append(runtime.gather(output)[:real])
            bar.update(real)
    return np.concatenate(outputs)


def _images(source: Source, data: ConfigDict, view: int, seed: int) -> Callable[[int], np.ndarray]:
    """Index -> transformed image; made once for all encoders where the source is in memory."""
    name = "augment" if view else "evaluate"
    options = json.dumps(artifacts.plain(data)[name], sort_keys=True)
    if source.in_memory:
        return _kept(source, options, view, seed).__getitem__
    return functools.partial(_image, source, _transform(options, view), view, seed)


@functools.lru_cache(maxsize=64)
def _kept(source: Source, options: str, view: int, seed: int) -> list[np.ndarray]:
    transform = _transform(options, view)
    return [_image(source, transform, view, seed, i) for i in range(len(source))]


def _transform(options: str, view: int) -> Callable:
    return augment.make(**json.loads(options)) if view else augment.center_crop(**json.loads(options))


def _image(source: Source, transform: Callable, view: int, seed: int, index: int) -> np.ndarray:
    if view == 0:
        return transform(source.image(index))
    rng = np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, view, int(index)]))
    return transform(source.image(index), rng)
