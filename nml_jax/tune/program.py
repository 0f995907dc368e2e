"""The compiled functions of head training, each over many heads at once.

A program is built for a task, views, batch size, kind of optimiser and devices, and JAX caches it by shape. All else
that differs between heads or fits goes in as an argument: seed, labels, rows, learning rate, weight decay, the
weights of the regularisers, the number of steps.

What one head is given, a "lane", is a dict; with a leading axis of heads it is a sweep:

    init, epoch  (2,) uint32   the data of its random keys
    y            (N,)          the labels that it is told: integers, or numbers for a regression
    train        (N,) bool     the rows that it is trained on; equally many in all heads of a call
    validation   (M,) int32    the rows that it is validated on
    optim        name -> ()    the values of `core.optim.TRACEABLE`
    frozen       name -> ()    values in place of those that Task.init gives
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from nml_jax.core import optim
from nml_jax.core.task import PyTree, Task, TrainState

Lane = dict[str, PyTree]
Metrics = dict[str, jax.Array]
HEADS = PartitionSpec("heads")


class Program(NamedTuple):
    """What `build` gives. States, lanes and results have a leading axis of heads; h is its length.

    An epoch on features in device memory is one call of `epoch`; on streamed features it is `order` and, block after
    block of S steps, `pick` and `block`. Both run the same steps on the same batches.
    """

    start: Callable[[Lane], TrainState]
    """lane -> state."""
    epoch: Callable[..., tuple[TrainState, Metrics]]
    """(state, lane, x (N, V, D), rows, steps, epoch) -> state, metrics summed over the steps."""
    order: Callable[..., jax.Array]
    """(lane, epoch) -> (h, N) row numbers, those of `train` first, in random order."""
    pick: Callable[..., tuple[jax.Array, jax.Array]]
    """(lane, order, epoch, rows, numbers (S,)) -> rows (h, S, B) and views (h, S, B, V) of these steps."""
    block: Callable[..., tuple[TrainState, Metrics]]
    """(state, lane, x (h, S, B, V, D), rows (h, S, B), epoch, first, count) -> as `epoch`."""
    score: Callable[..., Metrics]
    """(state, y (h, R), x (h, R, D), mask (h, R)) -> sums over the rows: "loss", and "accuracy" for integer y."""
    take: Callable[[np.ndarray, jax.Array], jax.Array]
    """(rows (h, R), x (N, V, D)) -> view 0 of these rows (h, R, D)."""
    keep: Callable[[PyTree, PyTree, np.ndarray], PyTree]
    """(tree, other, choose (h,)) -> `other` for the heads where `choose`, `tree` for the rest."""
    devices: tuple[jax.Device, ...]
    place: Callable[[Any, bool], Any]
    """(arrays, divided) -> on the devices, their first axis divided over these, or whole on each."""


@functools.cache
def build(
    task: Task,
    views: int,
    stored: int,
    batch_size: int,
    dim: int,
    kind: tuple[tuple[str, Any], ...],
    devices: tuple[jax.Device, ...],
    width: int,
) -> Program:
    """The program; each of its functions is compiled when first called with new shapes.

    Args:
      views: augmented views that a step draws; 0 takes view 0.
      stored: views that the features have, view 0 among them.
      kind: the arguments of `core.optim.make` that are not traceable.
      devices: the heads are divided over them, and none talks to another.
      width: how many heads of a device go through an epoch side by side, the others after them.
    """
    mesh = jax.make_mesh((len(devices),), ("heads",), axis_types=(AxisType.Auto,), devices=devices)

    def optimizer(lane: Lane) -> optax.GradientTransformation:
        return optim.make(**dict(kind), **lane["optim"])

    def start(lane: Lane) -> TrainState:
        shape = (batch_size, max(1, views), dim)
        batch = {
            "x": jax.ShapeDtypeStruct(shape, jnp.float32),
            "y": jax.ShapeDtypeStruct(shape[:1], lane["y"].dtype),
        }
        params, frozen, stats = task.init(jax.random.wrap_key_data(lane["init"]), batch)
        frozen = {**frozen, **lane["frozen"]}
        opt_state = optimizer(lane).init(params)
        step = jnp.int32(0)
        return TrainState(
            step=step, params=params, frozen=frozen, stats=stats, opt_state=opt_state, average={}
        )

    def step(state: TrainState, lane: Lane, batch: dict, rng: jax.Array) -> tuple[TrainState, Metrics]:
        grad_fn = jax.grad(task.loss, has_aux=True)
        grads, (stats, metrics) = grad_fn(state.params, state.frozen, state.stats, batch, rng)
        updates, opt_state = optimizer(lane).update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return state.replace(step=state.step + 1, params=params, stats=stats, opt_state=opt_state), metrics

    def steps(state: TrainState, lane: Lane, number, first, count, fetch) -> tuple[TrainState, Metrics]:
        """Steps first ... first + count - 1 of epoch `number`; step first + i on x, rows = fetch(i)."""
        _, rng = _epoch_keys(lane, number)

        def one(i: jax.Array, state: TrainState) -> tuple[TrainState, Metrics]:
            x, rows = fetch(i)
            _, loss_rng = _step_keys(rng, first + i)
            return step(state, lane, {"x": x, "y": lane["y"][rows]}, loss_rng)

        def body(i: jax.Array, carry: tuple[TrainState, Metrics]) -> tuple[TrainState, Metrics]:
            state, metrics = one(i, carry[0])
            return state, jax.tree.map(jnp.add, carry[1], metrics)

        shapes = jax.eval_shape(one, jnp.int32(0), state)[1]
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        # A loop over a count that is an argument: an epoch on a tenth of the rows is the same program.
        return jax.lax.fori_loop(0, count, body, (state, zeros))

    def order(lane: Lane, number: jax.Array) -> jax.Array:
        rng, _ = _epoch_keys(lane, number)
        # The other rows sort last.
        return jnp.argsort(jnp.where(lane["train"], jax.random.uniform(rng, lane["train"].shape), 2.0))

    def draw(lane: Lane, order: jax.Array, number, rows, i: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The rows (B,) and views (B, V) of step i."""
        views_rng, _ = _step_keys(_epoch_keys(lane, number)[1], i)
        chosen = order[(i * batch_size + jnp.arange(batch_size)) % rows]
        return chosen, _draw_views(views_rng, batch_size, stored, views)

    def epoch(state: TrainState, lane: Lane, x: jax.Array, rows, count, number):
        in_order = order(lane, number)

        def fetch(i: jax.Array) -> tuple[jax.Array, jax.Array]:
            chosen, drawn = draw(lane, in_order, number, rows, i)
            return x[chosen[:, None], drawn], chosen

        return steps(state, lane, number, 0, count, fetch)

    def pick(lane: Lane, in_order: jax.Array, number, rows, numbers: jax.Array):
        return jax.vmap(lambda i: draw(lane, in_order, number, rows, i))(numbers)

    def block(state: TrainState, lane: Lane, x: jax.Array, rows: jax.Array, number, first, count):
        return steps(state, lane, number, first, count, lambda i: (x[i], rows[i]))

    def score(state: TrainState, y: jax.Array, x: jax.Array, mask: jax.Array) -> Metrics:
        outputs = task.predict(state.params, state.frozen, state.stats, {"x": x})
        if jnp.issubdtype(y.dtype, jnp.integer):
            loss = optax.softmax_cross_entropy_with_integer_labels(outputs, y)
            values = {"loss": loss, "accuracy": (outputs.argmax(axis=1) == y).astype(jnp.float32)}
        else:
            values = {"loss": jnp.square(outputs[:, 0] - y)}
        return {name: jnp.sum(jnp.where(mask, value, 0.0)) for name, value in values.items()}

    def take(rows: jax.Array, x: jax.Array) -> jax.Array:
        return x[rows, 0]

    def keep(tree: PyTree, other: PyTree, choose: jax.Array) -> PyTree:
        return jax.tree.map(lambda a, b: jnp.where(choose, b, a), tree, other)

    def place(arrays: Any, divided: bool) -> Any:
        return jax.device_put(arrays, NamedSharding(mesh, HEADS if divided else PartitionSpec()))

    def compiled(one: Callable, common: int = 0, **options: Any) -> Callable:
        """`one` for many heads, compiled; its last `common` arguments are the same for all."""

        def many(*arguments: Any) -> Any:
            own, shared = arguments[: len(arguments) - common], arguments[len(arguments) - common :]
            heads = jax.tree.leaves(own)[0].shape[0]
            if heads == 1:  # batched matrix products of one are slower than plain ones
                return _expanded(one(*_squeezed(own), *shared))
            together = max(n for n in range(1, min(width, heads) + 1) if heads % n == 0)
            if together == heads:
                return jax.vmap(lambda *own: one(*own, *shared))(*own)
            batch_size = together if together > 1 else None
            return jax.lax.map(lambda own: one(*own, *shared), own, batch_size=batch_size)

        def divided(*arguments: Any) -> Any:
            specs = (HEADS,) * (len(arguments) - common) + (PartitionSpec(),) * common
            over = jax.shard_map(many, mesh=mesh, in_specs=specs, out_specs=HEADS, check_vma=False)
            return over(*arguments)

        return jax.jit(many if len(devices) == 1 else divided, **options)

    return Program(
        start=compiled(start),
        epoch=compiled(epoch, common=4, donate_argnums=0),
        order=compiled(order, common=1),
        pick=compiled(pick, common=3),
        block=compiled(block, common=3, donate_argnums=0),
        score=compiled(score),
        take=compiled(take, common=1),
        keep=compiled(keep, donate_argnums=0),
        devices=devices,
        place=place,
    )


def _squeezed(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda a: a[0], tree)


def _expanded(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda a: a[None], tree)


def _epoch_keys(lane: Lane, number: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The keys of an epoch's order and of its steps."""
    return tuple(jax.random.split(jax.random.fold_in(jax.random.wrap_key_data(lane["epoch"]), number)))


def _step_keys(rng: jax.Array, i: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The keys of step i's views and of its loss."""
    return tuple(jax.random.split(jax.random.fold_in(rng, i)))


def _draw_views(rng: jax.Array, rows: int, stored: int, views: int) -> jax.Array:
    """(rows, views) different view numbers in 1 ... stored - 1, at random; or view 0 for all, if `views` is 0."""
    if views == 0:
        return jnp.zeros((rows, 1), jnp.int32)
    return 1 + jnp.argsort(jax.random.uniform(rng, (rows, stored - 1)), axis=1)[:, :views]


def key_data(key: jax.Array) -> np.ndarray:
    """(2,) uint32: a random key in the form that a lane holds."""
    return np.asarray(jax.random.key_data(key))
