"""The training loop: every method that learns from batches of records goes through here."""

import math
import time
from collections.abc import Iterator
from typing import Any

import jax
import optax
from clu import parameter_overview
from jax.sharding import Mesh

from nml_jax.core import artifacts, runtime
from nml_jax.core import mesh as meshes
from nml_jax.core.checkpoint import Checkpoints
from nml_jax.core.errors import UserError
from nml_jax.core.task import Task, TrainState
from nml_jax.core.writer import MetricWriter, progress_bar


def train(
    task: Task,
    tx: optax.GradientTransformation,
    data: Iterator[dict],
    *,
    batch_spec: dict[str, jax.ShapeDtypeStruct],
    total_steps: int,
    mesh: Mesh,
    seed: int,
    workdir: str,
    save_every: int,
    log_every: int,
    description: str,
    progress: bool,
) -> TrainState:
    """Trains to `total_steps` and returns the state; goes on from the newest checkpoint in `workdir`.

    Args:
      data: a Grain iterator of this process's rows of the global batches; its position is saved with the state.
      batch_spec: shapes and dtypes of a global batch.
      save_every: steps between checkpoints; the last step is always saved.
      log_every: steps between lines in metrics.jsonl, each a mean over the steps since the last one.
      description: what the progress bar calls this run.

    Raises:
      UserError: the loss is not finite; the message names the step and the last good checkpoint.
    """
    # NOTE: the order matters. Shapes first, so that no device ever holds an unsharded state.
    create = lambda rng: _create(task, tx, batch_spec, rng)  # noqa: E731
    rng = runtime.key(seed, "init")
    shapes = jax.eval_shape(create, rng)
    shardings = meshes.parameter_shardings(mesh, shapes)
    step_fn = jax.jit(_step(task, tx, seed), donate_argnums=0, out_shardings=(shardings, None))

    with Checkpoints(f"{workdir}/checkpoints", save_every=save_every) as checkpoints:
        if checkpoints.latest_step is None:
            state = jax.jit(create, out_shardings=shardings)(rng)
        else:
            with_shardings = jax.tree.map(
                lambda s, sh: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=sh), shapes, shardings
            )
            state = checkpoints.restore(with_shardings, data)
        first = int(state.step)
        if runtime.is_lead():
            with artifacts.replacing(f"{workdir}/parameters.txt") as file:
                file.write(
                    parameter_overview.get_parameter_overview(state.params, include_stats="sharding") + "\n"
                )
        rows = next(iter(batch_spec.values())).shape[0]
        pending, since = [], time.perf_counter()
        show = progress and runtime.is_lead()
        with (
            MetricWriter(workdir, start_step=first, enabled=runtime.is_lead()) as writer,
            progress_bar(total_steps, description, unit="step", initial=first, show=show) as bar,
        ):
            for step in range(first, total_steps):
                # Saved before the next batch is drawn: the iterator and the state stand at the same step.
                if step > first:
                    checkpoints.save(step, state, data)
                batch = meshes.put_batch(mesh, next(data))
                state, metrics = step_fn(state, batch)
                pending.append(metrics)
                bar.update()
                if (step + 1) % log_every == 0 or step + 1 == total_steps:
                    means = _means(jax.device_get(pending))
                    speed = rows * len(pending) / (time.perf_counter() - since)
                    if not math.isfinite(means["loss"]):
                        raise UserError(
                            f"The loss is {means['loss']} at step {step + 1} of {description}. The last checkpoint "
                            f"is of step {checkpoints.latest_step} in {workdir}/checkpoints. Lower the learning rate, "
                            "lengthen the warm-up, or look at the batches from there on."
                        )
                    writer.write(step + 1, means | {"images_per_s": speed})
                    bar.set_postfix_str(f"loss {means['loss']:.3f}, {speed:,.0f} images/s")
                    pending, since = [], time.perf_counter()
            checkpoints.save(total_steps, state, data, force=True)
    return state


def _create(task: Task, tx: optax.GradientTransformation, batch_spec: Any, rng: jax.Array) -> TrainState:
    params, frozen, stats = task.init(rng, batch_spec)
    step = jax.numpy.zeros((), jax.numpy.int32)
    return TrainState(step=step, params=params, frozen=frozen, stats=stats, opt_state=tx.init(params))


def _step(task: Task, tx: optax.GradientTransformation, seed: int):
    def step(state: TrainState, batch: dict[str, jax.Array]) -> tuple[TrainState, dict[str, jax.Array]]:
        rng = runtime.key(seed, "loss", state.step)
        grad_fn = jax.value_and_grad(task.loss, has_aux=True)
        (loss, (stats, metrics)), grads = grad_fn(state.params, state.frozen, state.stats, batch, rng)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        state = state.replace(step=state.step + 1, params=params, stats=stats, opt_state=opt_state)
        return state, {"loss": loss, **metrics}

    return step


def _means(metrics: list[dict[str, Any]]) -> dict[str, float]:
    return {name: float(sum(m[name] for m in metrics) / len(metrics)) for name in metrics[0]}
