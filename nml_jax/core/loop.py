"""The training loop: every method that learns from batches of records goes through here."""

import math
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from clu import parameter_overview
from jax.sharding import Mesh

from nml_jax.core import artifacts, cost, gradients, runtime
from nml_jax.core import mesh as meshes
from nml_jax.core.checkpoint import Checkpoints
from nml_jax.core.errors import Preempted, UserError
from nml_jax.core.preemption import Notice
from nml_jax.core.profiler import Profiler
from nml_jax.core.task import Task, TrainState
from nml_jax.core.undecodable import Undecodables
from nml_jax.core.writer import MetricWriter, progress_bar

# The host hands out no more steps than this before the device has done them: batches that wait take device memory.
STEPS_AHEAD = 2


class Options(NamedTuple):
    """How to train, whatever the method."""

    total_steps: int
    seed: int
    save_every: int
    """Steps between checkpoints; the last step is always saved."""
    log_every: int
    """Steps between lines in metrics.jsonl, each a mean over the steps since the last one."""
    eval_every: int = 0
    """Steps between evaluations; 0: none while training."""
    accumulate: int = 1
    """Microbatches a step (see `core.gradients`)."""
    average_decay: float = 0.0
    """Of the exponential moving average of parameters and statistics; 0: none is kept."""
    max_undecodable: float = 0.0
    """The fraction of the records that may be replaced because their images cannot be decoded."""
    description: str = "train"
    """What the progress bar and messages call this run."""
    progress: bool = True


def train(
    task: Task,
    tx: optax.GradientTransformation,
    data: Iterator[dict],
    options: Options,
    *,
    batch_spec: dict[str, jax.ShapeDtypeStruct],
    ids: np.ndarray,
    mesh: Mesh,
    workdir: str,
    evaluate: Callable[[TrainState], dict[str, float]] | None = None,
) -> TrainState:
    """Trains to `total_steps` and returns the state; goes on from the newest checkpoint in `workdir`.

    Args:
      data: a Grain iterator of this process's rows of the global batches; its position is saved with the state. What
        `batch_spec` has goes to the devices; "index" (row in `ids`) and "replaced" stay here.
      batch_spec: shapes and dtypes of a global batch.
      ids: (N,) names of the records, for messages.
      evaluate: state -> metrics, written as test_<name> every `eval_every` steps.

    Raises:
      UserError: the loss is not finite (the message names the step, its records and the last good checkpoint), too many
        images cannot be decoded, a checkpoint cannot be written, or the program does not fit into the device.
      Preempted: a SIGTERM came, and the state is saved.
    """
    # NOTE: the order matters. Shapes first, so that no device ever holds an unsharded state; then the program, so that
    # one that does not fit is known before anything is loaded or made.
    create = lambda rng: _create(task, tx, batch_spec, rng, options.average_decay)  # noqa: E731
    rng = runtime.key(options.seed, "init")
    shapes = jax.eval_shape(create, rng)
    shardings = meshes.parameter_shardings(mesh, shapes)
    abstract = jax.tree.map(
        lambda s, sharding: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=sharding), shapes, shardings
    )
    step_fn, costs = compile_step(task, tx, options, abstract, batch_spec, mesh)
    say(costs, options, workdir)

    lead = runtime.is_lead()
    show = options.progress and lead
    with Checkpoints(f"{workdir}/checkpoints", save_every=options.save_every) as checkpoints:
        state = checkpoints.restore(abstract, data)
        if state is None:
            state = jax.jit(create, out_shardings=shardings)(rng)
        first = int(state.step)
        if lead:
            with artifacts.replacing(f"{workdir}/parameters.txt") as file:
                file.write(
                    parameter_overview.get_parameter_overview(state.params, include_stats="sharding") + "\n"
                )
        undecodables = Undecodables(workdir, ids, options.max_undecodable)
        profiler = Profiler(workdir)
        window = Window(batch_spec, costs)
        with (
            Notice() as notice,
            MetricWriter(workdir, start_step=first, enabled=lead) as writer,
            progress_bar(
                options.total_steps, options.description, unit="step", initial=first, show=show
            ) as bar,
        ):
            for step in range(first, options.total_steps):
                # Saved before the next batch is drawn: the iterator and the state stand at the same step.
                if notice.reached(step):
                    window.check(step, options.description, ids, checkpoints.latest_step, workdir)
                    stop(step, state, data, checkpoints, options)
                if step > first:
                    checkpoints.save(step, state, data)
                host, batch = window.draw(data, mesh)
                state, metrics = step_fn(state, batch)
                window.add(metrics, host["index"])
                undecodables.add(host["index"], host["replaced"])
                profiler.stop(step + 1, metrics)
                bar.update()
                if (step + 1) % options.log_every == 0 or step + 1 == options.total_steps:
                    undecodables.check()
                    means = window.check(step + 1, options.description, ids, checkpoints.latest_step, workdir)
                    speed = window.speed()
                    writer.write(step + 1, means | speed)
                    bar.set_postfix_str(f"loss {means['loss']:.3f}, {speed['images_per_s']:,.0f} images/s")
                    if lead:
                        profiler.poll(step + 1, options.total_steps)
                    window = Window(batch_spec, costs)
                if evaluate and options.eval_every and (step + 1) % options.eval_every == 0:
                    writer.write(step + 1, {f"test_{k}": v for k, v in evaluate(state).items()})
                    window.restart()
            checkpoints.save(options.total_steps, state, data, force=True)
            if notice.reached(options.total_steps):
                stop(options.total_steps, state, data, checkpoints, options)
    return state


def stop(
    step: int, state: TrainState, data: Iterator[dict], checkpoints: Checkpoints, options: Options
) -> None:
    """Saves, waits until it is on disk, and raises Preempted."""
    checkpoints.save(step, state, data, force=True)
    checkpoints.wait()
    raise Preempted(f"{options.description} stopped at step {step} of {options.total_steps}, which is saved.")


class Window:
    """The steps since the last line of metrics."""

    def __init__(self, batch_spec: dict[str, jax.ShapeDtypeStruct], costs: cost.Cost):
        self._names = tuple(batch_spec)
        self._rows = next(iter(batch_spec.values())).shape[0]
        self._flops = costs.flops
        self._metrics: list[dict[str, jax.Array]] = []
        self._indices: list[np.ndarray] = []
        self._waited = 0.0
        self._since = time.perf_counter()

    def draw(self, data: Iterator[dict], mesh: Mesh) -> tuple[dict[str, np.ndarray], dict[str, jax.Array]]:
        """The next batch: what stays on the host, and what lies on the devices."""
        started = time.perf_counter()
        batch = next(data)
        self._waited += time.perf_counter() - started
        return batch, meshes.put_batch(mesh, {name: batch[name] for name in self._names})

    def add(self, metrics: dict[str, jax.Array], index: np.ndarray) -> None:
        """Notes a step; waits until the device is not too far behind."""
        self._metrics.append(metrics)
        self._indices.append(index)
        if len(self._metrics) > STEPS_AHEAD:
            jax.block_until_ready(self._metrics[-1 - STEPS_AHEAD])

    def check(
        self, step: int, description: str, ids: np.ndarray, saved: int | None, workdir: str
    ) -> dict[str, float]:
        """Means of the metrics over the steps of the window, of which `step` comes next.

        Raises:
          UserError: the loss of one of them is not finite.
        """
        values = jax.device_get(self._metrics)
        losses = np.array([m["loss"] for m in values], np.float64)
        if not np.isfinite(losses).all():
            bad = int(np.argmin(np.isfinite(losses)))
            index = runtime.gather_rows(self._indices[bad])
            named = ", ".join(map(str, ids[index][:512]))
            raise UserError(
                f"The loss is {losses[bad]} at step {step - len(losses) + bad + 1} of {description}. The last "
                f"checkpoint is of step {saved} in {workdir}/checkpoints. Lower the learning rate, lengthen the "
                f"warm-up, or look at the records of that step: {named}{', ...' if len(index) > 512 else ''}."
            )
        return {name: math.fsum(float(m[name]) for m in values) / len(values) for name in (values or [{}])[0]}

    def speed(self) -> dict[str, float]:
        """Images a second, the share of the time spent waiting for data, and the use of the devices' peak if known."""
        seconds = time.perf_counter() - self._since
        done = len(self._metrics)
        speed = {
            "images_per_s": self._rows * done / seconds,
            "step_s": seconds / done,
            "data_wait": self._waited / seconds,
        }
        peak = cost.peak_flops()
        return speed | ({"mfu": self._flops * done / seconds / peak} if peak else {})

    def restart(self) -> None:
        """Leaves what was done since out of the speed."""
        self._since, self._waited = time.perf_counter(), 0.0


def compile_step(
    task: Task,
    tx: optax.GradientTransformation,
    options: Options,
    state: Any,
    batch_spec: dict[str, jax.ShapeDtypeStruct],
    mesh: Mesh,
) -> tuple[jax.stages.Compiled, cost.Cost]:
    """(state, batch) -> (state, metrics), compiled for an abstract state with shardings; the state is donated."""
    shardings = jax.tree.map(lambda s: s.sharding, state)
    divided = meshes.batch_sharding(mesh)
    batch = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=divided), batch_spec)
    outputs = (shardings, meshes.replicated(mesh))
    step = jax.jit(_step(task, tx, options, mesh), donate_argnums=0, out_shardings=outputs)
    compiled, costs = cost.compile(step, state, batch)
    if options.accumulate > 1:
        # XLA counts what is in a loop once. The whole batch takes as many operations as its parts together.
        whole = jax.jit(_step(task, tx, options._replace(accumulate=1), mesh)).lower(state, batch)
        costs = costs._replace(flops=float(whole.cost_analysis()["flops"]) / mesh.size)
    return compiled, costs


def say(costs: cost.Cost, options: Options, workdir: str) -> None:
    """Reports what a step costs, on the terminal and in `program.json`."""
    if runtime.is_lead():
        artifacts.write_json(f"{workdir}/program.json", {**costs._asdict(), "device": runtime.machine()})
        if options.progress:
            print(f"{options.description}: {cost.described(costs)}", flush=True)


def _create(task: Task, tx: optax.GradientTransformation, batch_spec: Any, rng: jax.Array, decay: float):
    params, frozen, stats = task.init(rng, batch_spec)
    average = {"params": params, "stats": stats} if decay else {}
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        frozen=frozen,
        stats=stats,
        opt_state=tx.init(params),
        average=jax.tree.map(jnp.copy, average),
    )


def _step(task: Task, tx: optax.GradientTransformation, options: Options, mesh: Mesh):
    grad_fn = gradients.make(task, accumulate=options.accumulate, mesh=mesh)
    decay = options.average_decay

    def step(state: TrainState, batch: dict[str, jax.Array]) -> tuple[TrainState, dict[str, jax.Array]]:
        batch = task.prepare(batch, runtime.key(options.seed, "prepare", state.step))
        rng = runtime.key(options.seed, "loss", state.step)
        (loss, (stats, metrics)), grads = grad_fn(state.params, state.frozen, state.stats, batch, rng)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        average = state.average
        if decay:
            now = {"params": params, "stats": stats}
            average = jax.tree.map(lambda a, x: decay * a + (1 - decay) * x, average, now)
        state = state.replace(
            step=state.step + 1, params=params, stats=stats, opt_state=opt_state, average=average
        )
        return state, {"loss": loss, **metrics, "gradient_norm": optax.tree.norm(grads)}

    return step
