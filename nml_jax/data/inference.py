"""A function of images over a whole split, exact to the last image on any number of devices."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from nml_jax.core import mesh as meshes
from nml_jax.core import runtime
from nml_jax.core.writer import progress_bar
from nml_jax.data import augment
from nml_jax.data.source import Source


def run(
    function: Callable[..., jax.Array],
    variables: tuple,
    source: Source,
    data: ConfigDict,
    *,
    transform: Callable[[np.ndarray, int], np.ndarray] | None = None,
    progress: str = "",
) -> np.ndarray:
    """`function(*variables, images)` for every image of `source`, in order: (N, ...) NumPy on every process.

    Args:
      variables: trees that the function needs, passed as arguments of the jitted program.
      data: `eval_batch_size`, and `evaluate`, the options of the evaluation transform.
      transform: (image, index) -> image in place of the evaluation transform.
      progress: description of a progress bar; "" shows none.
    """
    if transform is None:
        crop = augment.center_crop(**data.evaluate)
        transform = lambda image, index: crop(image)  # noqa: E731
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
            images = np.stack([transform(source.image(i), i) for i in indices])
            output = compiled(*variables, meshes.put_batch(mesh, {"image": images})["image"])
            outputs.append(runtime.gather(output)[:real])
            bar.update(real)
    return np.concatenate(outputs)


def keyed_augment(name: str, options: dict[str, Any], *, seed: int, view: int) -> Callable:
    """The training transform `name` as a function of (image, index): the same copy whenever it is asked for."""
    apply = augment.make(name, **options)

    def transform(image: np.ndarray, index: int) -> np.ndarray:
        return apply(image, np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, view, index])))

    return transform
