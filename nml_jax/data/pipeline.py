"""Source -> batches by Grain, the same for every number of workers and processes.

Shuffling, repeating and augmenting come before a process takes its share: a global batch holds the same records with
the same augmentation in the same rows however many processes there are. Batching is done while the pipeline is still a
MapDataset: after it, each worker would batch its own records and drop its own remainder.
"""

import functools
import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable

import grain
import jax
import numpy as np

from nml_jax.core import mesh as meshes
from nml_jax.core.errors import UserError
from nml_jax.data import augment as augments
from nml_jax.data import decode
from nml_jax.data.source import Source

# More threads than this fight for the interpreter's lock.
_READ = grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)


def train_iterator(
    source: Source,
    targets: dict[str, np.ndarray],
    *,
    augment: augments.Augment,
    batch_size: int,
    seed: int,
    num_workers: int,
    repeats: int = 1,
    decoder: str = "pillow",
) -> grain.DatasetIterator:
    """Endless shuffled batches: this process's rows of each.

    A record whose image cannot be decoded is replaced by another as a whole, image and targets (`replacements`).

    Args:
      targets: name -> (N, ...) array whose row i belongs to record i of the source.
      batch_size: rows of the global batch.
      num_workers: processes that decode and augment; 0: a thread of this process.
      repeats: repeated augmentation (Hoffer et al. 2020, arXiv:1901.09335): each drawn record comes this many times in
        a row, augmented anew. An epoch keeps its length, so it draws N / repeats of the records. Where `batch_size` is
        not a multiple, the last record of a batch goes on in the next one.
      decoder: one of `decode.DECODERS`.

    Returns:
      A Grain iterator (its position can be checkpointed) of {"image": (B, H, W, 3) uint8, **targets,
      "index": (B,) int64, the record that was asked for, "replaced": (B,) bool}.

    Raises:
      UserError: there is no such decoder, or `repeats` is not in 1 to N. From the iterator: an image cannot be decoded
        and there is no record in its place.
    """
    decode.check_decoder(decoder)
    if not 1 <= repeats <= len(source):
        raise UserError(f"repeats={repeats} of {source.name!r}: give 1 (none) to {len(source)}.")
    dataset = grain.MapDataset.range(len(source)).seed(seed).shuffle()
    if repeats > 1:
        dataset = _Reordered(dataset, functools.partial(_repeated, len(source), repeats))
    dataset = dataset.repeat().random_map(_Augmented(source, targets, augment, decoder))
    return _iterator(_batches(dataset, batch_size), num_workers)


def in_order(
    image: Callable[[int], np.ndarray], count: int, *, batch_size: int, num_workers: int
) -> grain.DatasetIterator:
    """`image(0)`, `image(1)`, ... `image(count - 1)` in batches: this process's rows of each, (B, H, W, 3).

    The last batch is filled up with the last image.
    """
    batches = -(-count // batch_size)
    dataset = grain.MapDataset.range(batches * batch_size).map(_UpTo(image, count))
    return _iterator(_batches(dataset, batch_size), min(num_workers, batches))


def replacements(index: int, targets: dict[str, np.ndarray], count: int) -> np.ndarray:
    """The records that may take the place of record `index` of `count`, best first: those after it, cyclically.

    Where there are labels, those with the same label only: the shares of the classes, and of their noise, stay.
    """
    labels = targets.get("label")
    alike = np.ones(count, bool) if labels is None or labels.ndim > 1 else labels == labels[index]
    others = np.flatnonzero(alike)
    others = others[others != index]
    return np.roll(others, -np.searchsorted(others, index))


def _batches(dataset: grain.MapDataset, batch_size: int) -> grain.MapDataset:
    """This process's rows of the global batches: consecutive ones, as `put_batch` lays them out."""
    local = meshes.local_batch_size(batch_size)
    if jax.process_count() > 1:
        first = jax.process_index() * local
        dataset = _Reordered(
            dataset, functools.partial(_share, batch_size, local, first), jax.process_count()
        )
    return dataset.batch(local, drop_remainder=True)


def _iterator(dataset: grain.MapDataset, num_workers: int) -> grain.DatasetIterator:
    dataset = dataset.to_iter_dataset(_READ)
    if num_workers:
        options = grain.MultiprocessingOptions(num_workers=num_workers)
        dataset = dataset.mp_prefetch(options, worker_init_fn=_in_worker)
    return iter(dataset)


def _repeated(count: int, repeats: int, index: int) -> int:
    epoch, position = divmod(index, count)
    return epoch * count + position // repeats


def _share(batch_size: int, local: int, first: int, index: int) -> int:
    batch, row = divmod(index, local)
    return batch * batch_size + first + row


class _Reordered(grain.MapDataset):
    """Element i is element `parent_index(i)` of the parent; there are `shares` times fewer of them."""

    _MUTATES_ELEMENT_SPEC = False

    def __init__(self, parent: grain.MapDataset, parent_index: Callable[[int], int], shares: int = 1):
        super().__init__(parent)
        self._parent_index, self._shares = parent_index, shares

    def __len__(self) -> int:
        return len(self._parent) // self._shares

    def __getitem__(self, index: int):
        return self._parent[self._parent_index(index)]

    @property
    def _element_spec(self):
        return self._parent._element_spec


class _UpTo:
    """Index -> image, the last one for all further indices."""

    def __init__(self, image: Callable[[int], np.ndarray], count: int):
        self._image, self._count = image, count

    def __call__(self, index: int) -> np.ndarray:
        with _Told():
            return np.ascontiguousarray(self._image(min(index, self._count - 1)))


class _Augmented:
    """Index -> record, augmented; a class because Grain sends it to worker processes."""

    def __init__(
        self, source: Source, targets: dict[str, np.ndarray], augment: augments.Augment, decoder: str
    ):
        self._source, self._targets, self._augment, self._decoder = source, targets, augment, decoder

    def __call__(self, index: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        with _Told():
            row, image = index, self._image(index, rng)
            if isinstance(image, decode.Undecodable):
                row, image = self._replacement(index, rng, image)
            rows = {name: column[row] for name, column in self._targets.items()}
            return {"image": image, **rows, "index": np.int64(index), "replaced": np.bool_(row != index)}

    def _image(self, index: int, rng: np.random.Generator) -> np.ndarray | decode.Undecodable:
        try:
            return np.ascontiguousarray(self._augment(self._source.picture(index, self._decoder), rng))
        except decode.Undecodable as error:
            return error

    def _replacement(
        self, index: int, rng: np.random.Generator, error: decode.Undecodable
    ) -> tuple[int, np.ndarray]:
        for row in replacements(index, self._targets, len(self._source)):
            image = self._image(int(row), rng)
            if not isinstance(image, decode.Undecodable):
                return int(row), image
        raise UserError(f"{error} No other record can take its place.")


class _Told:
    """An error in here reaches the training process with its traceback, whatever its kind.

    A worker sends its exceptions through a queue: one that does not survive that would leave the reader waiting.
    """

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if isinstance(error, Exception) and not isinstance(error, UserError):
            told = "".join(traceback.format_exception(error))
            raise RuntimeError(f"A record could not be read or augmented.\n{told}") from None


def _in_worker(index: int, count: int) -> None:
    """Prepares a worker process."""
    os.environ["JAX_PLATFORMS"] = "cpu"  # it needs no accelerator, and must not take its memory
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    # Launchers send these to all processes. The training process decides: it has a step to finish and a state to save.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_leave_with_parent, daemon=True).start()


def _leave_with_parent() -> None:
    """Ends this process when the training process is gone, also by SIGKILL: nobody reads what it makes."""
    multiprocessing.parent_process().join()
    os._exit(1)
