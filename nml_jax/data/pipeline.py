"""Source -> batches by Grain, the same batches for every number of workers and processes.

Shuffling, repeating and augmenting come before the slice of a process: a global batch holds the same
records with the same augmentation however many processes share it. Batching is done while the pipeline is
still a MapDataset: after it, each worker would batch its own records and drop its own remainder.
"""

import os
from collections.abc import Iterator

import grain
import jax
import numpy as np

from nml_jax.core import mesh as meshes
from nml_jax.data import augment as augments
from nml_jax.data.source import Source


def train_iterator(
    source: Source,
    targets: dict[str, np.ndarray],
    *,
    augment: augments.Augment,
    batch_size: int,
    seed: int,
    num_workers: int,
) -> Iterator[dict[str, np.ndarray]]:
    """Endless shuffled batches {"image": (B, H, W, 3) uint8, **targets}: this process's rows of each.

    Args:
      targets: name -> (N, ...) array whose row i belongs to record i of the source.
      batch_size: rows of the global batch.

    Returns:
      A Grain iterator (its position can be checkpointed).
    """
    dataset = grain.MapDataset.range(len(source)).seed(seed).shuffle().repeat()
    dataset = dataset.random_map(_Augmented(source, targets, augment))
    dataset = dataset[jax.process_index() :: jax.process_count()]
    dataset = dataset.batch(meshes.local_batch_size(batch_size), drop_remainder=True)
    if num_workers:
        options = grain.MultiprocessingOptions(num_workers=num_workers)
        dataset = dataset.to_iter_dataset(_READ).mp_prefetch(options, worker_init_fn=_hide_accelerators)
        return iter(dataset)
    return iter(dataset.to_iter_dataset(_READ))


# More threads than this fight for the interpreter's lock.
_READ = grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)


class _Augmented:
    """Index -> record, augmented; a class because Grain sends it to worker processes."""

    def __init__(self, source: Source, targets: dict[str, np.ndarray], augment: augments.Augment):
        self._source, self._targets, self._augment = source, targets, augment

    def __call__(self, index: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        image = np.ascontiguousarray(self._augment(self._source.image(index), rng))
        return {"image": image} | {name: rows[index] for name, rows in self._targets.items()}


def _hide_accelerators(index: int, count: int) -> None:
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
