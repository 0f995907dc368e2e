"""Head training beside the published loop in PyTorch, on the same features: docs/benchmarks.md, section "heads".

    make benchmark-heads                                    # one step, and many heads
    make benchmark-heads ARGS="--data_dir=DATA"             # the whole job too, on CIFAR-10 (TFDS, array_record)

Needs the extra `peers`. Rows that need a GPU say so where there is none.
"""

import argparse
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch

from benchmarks import measure, published
from nml_jax.core import optim
from nml_jax.tune import memory, nmtune, program, runs, trainer

GPU = jax.default_backend() == "gpu" and torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
BATCH, CLASSES, STORED = 64, 10, 3
ADAMW = {"name": "adamw", "learning_rate": 1e-3, "weight_decay": 1e-4}
HEADS = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="turns of which each number is the median")
    parser.add_argument("--dims", default="64,128,256,512", help="D of the sweep")
    parser.add_argument(
        "--data_dir", default="", help="TFDS folder with cifar10 and tiny_imagenet32; empty: no job"
    )
    parser.add_argument("--workdir", default="runs/benchmark_heads", help="where the job keeps its encoder")
    parser.add_argument("--rows", type=int, default=5000, help="training images of the job")
    parser.add_argument("--only", default="step,sweep,job", help="sections to measure")
    args = parser.parse_args()
    sections = args.only.split(",")
    if "step" in sections:
        measure.write_section("heads: step", step(2048, args.rounds))
    if "sweep" in sections:
        measure.write_section("heads: sweep", sweep([int(d) for d in args.dims.split(",")], args.rounds))
    if "job" in sections and args.data_dir:
        from benchmarks import heads_job

        sizes = {"rows": args.rows, "test_rows": 10_000, "epochs": 30}
        measure.write_section("heads: job", heads_job.run(args.data_dir, args.workdir, **sizes))


def step(dim: int, rounds: int) -> str:
    """One head: a step of the peer, eager and compiled, of ours, and the floor."""
    x, y = features(dim, 1024)
    turns = {
        "PyTorch eager": peer(x, y, compiled=False),
        "PyTorch compiled": peer(x, y, compiled=True),
        "nml_jax": ours(x, y, heads=1),
        "nml_jax without the singular values": ours(x, y, heads=1, singular_value_weight=0.0),
        "floor: the matrix products": matmuls(dim),
        "floor: one pass of AdamW": adamw(dim),
    }
    seconds = measure.in_turns({name: function for name, (function, _) in turns.items()}, rounds)
    each = {name: 1e3 * seconds[name] / steps for name, (_, steps) in turns.items()}
    ms, plain = each["nml_jax"], each["nml_jax without the singular values"]
    floor = each["floor: the matrix products"] + each["floor: one pass of AdamW"]
    rows = [[name, f"{value:.1f}"] for name, value in each.items()]
    ratios = [
        ["PyTorch eager / nml_jax", f"{each['PyTorch eager'] / ms:.2f}", "2 on two CPU cores, 10 on a GPU"],
        ["PyTorch compiled / nml_jax", f"{each['PyTorch compiled'] / ms:.2f}", "3 on a GPU"],
        ["nml_jax / floor", f"{ms / floor:.2f}", "at most 1.5 on two CPU cores"],
        ["share of the singular values", f"{(ms - plain) / plain:.1%}", "at most 15 % (10 % on a GPU)"],
    ]
    text = (
        f"## One step of one head, 2 x {BATCH} x {dim}, {CLASSES} classes\n\n{described()}\n\n"
        + measure.table(["", "ms a step"], rows)
        + "\n"
        + measure.table(["", "here", "aim"], ratios)
    )
    return text


def sweep(dims: list[int], rounds: int) -> str:
    """64 heads in one program, beside one alone and beside the peer one after another."""
    rows = []
    for dim in dims:
        x, y = features(dim, 1024)
        turns = {"peer": peer(x, y, compiled=False), "alone": ours(x, y, 1), "together": ours(x, y, HEADS)}
        seconds = measure.in_turns({name: function for name, (function, _) in turns.items()}, rounds)
        each = {name: 1e3 * seconds[name] / steps for name, (_, steps) in turns.items()}
        each["together"] /= HEADS
        rows.append(
            [
                str(dim),
                *(f"{each[name]:.2f}" for name in turns),
                f"{each['alone'] / each['together']:.2f}",
                f"{each['peer'] / each['together']:.1f}",
            ]
        )
    header = [
        "D",
        "PyTorch eager",
        "nml_jax, one head",
        f"nml_jax, {HEADS} heads",
        "alone / together",
        "PyTorch / together",
    ]
    text = (
        f"## {HEADS} heads in one program, 2 x {BATCH} rows a step, {CLASSES} classes: ms a step and head\n\n"
        f"{described()}\n\n{measure.table(header, rows)}\n"
        "Aims: alone / together above 1 on a CPU for D up to 512; PyTorch / together at least 15 on a GPU"
        f"{'' if GPU else f' ({measure.NOT_MEASURED})'}.\n"
    )
    return text


def features(dim: int, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """x (N, 3, D), view 0 clean and two augmented, and y (N,)."""
    rng = np.random.default_rng(0)
    y = rng.integers(CLASSES, size=rows)
    means = rng.normal(size=(CLASSES, 1, dim))
    return np.maximum(means[y] + rng.normal(size=(rows, STORED, dim)), 0).astype(np.float32), y


def peer(x: np.ndarray, y: np.ndarray, compiled: bool) -> tuple[Callable[[], object], int]:
    """An epoch of the published loop's head steps on features in memory, and how many steps it has."""
    torch.manual_seed(0)
    head = published.Head(x.shape[2], CLASSES).to(DEVICE)
    make_step = published.stepper(head, **peer_options(), total_steps=10_000, compiled=compiled)
    features, labels = torch.tensor(x, device=DEVICE), torch.tensor(y, device=DEVICE)
    rng = np.random.default_rng(0)

    def epoch() -> None:
        for rows in published.batches(len(y), BATCH, rng):
            chosen = torch.as_tensor(rows, device=DEVICE)
            make_step(torch.cat([features[chosen, 1], features[chosen, 2]]), labels[chosen])
        if GPU:
            torch.cuda.synchronize()

    return epoch, math.ceil(len(y) / BATCH)


def peer_options() -> dict[str, float]:
    """What the peer takes of ADAMW."""
    return {name: ADAMW[name] for name in ("learning_rate", "weight_decay")}


def ours(x: np.ndarray, y: np.ndarray, heads: int, **head: float) -> tuple[Callable[[], object], int]:
    """An epoch of so many heads at once, and how many steps it has."""
    task = nmtune.make(dim=x.shape[2], num_classes=CLASSES, **head)
    kind, _ = runs.split_optim(ADAMW, 1)
    device, sweep = jax.devices()[0], [runs.Run(y, seed=s) for s in range(heads)]
    width = memory.width(task, runs.batch_spec(x, sweep, 2, BATCH), device)
    built = program.build(task, 2, STORED, BATCH, x.shape[2], kind, (device,), width)
    lane = built.place(runs.lanes(sweep, ADAMW, 10_000), True)
    placed, steps = built.place(x, False), math.ceil(len(y) / BATCH)
    state = built.start(lane)

    def epoch() -> None:
        nonlocal state
        with trainer.blas_limits():
            state, sums = built.epoch(state, lane, placed, len(y), steps, 0)
            jax.block_until_ready((state, sums))

    return epoch, steps


def matmuls(dim: int, times: int = 4) -> tuple[Callable[[], object], int]:
    """The five matrix products of a step (D -> 4D -> D; the input needs no gradient)."""
    rng = np.random.default_rng(0)
    x, w1, w2 = (
        jnp.asarray(rng.normal(size=shape), jnp.float32)
        for shape in ((2 * BATCH, dim), (dim, 4 * dim), (4 * dim, dim))
    )

    def products(i: jax.Array, carry: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        x, _g1, _g2 = carry
        hidden = x @ w1
        z = hidden @ w2
        return 1e-4 * z, x.T @ (z @ w2.T), hidden.T @ z

    run = jax.jit(lambda x, g1, g2: jax.lax.fori_loop(0, times, products, (x, g1, g2)), donate_argnums=(1, 2))
    held = (x, jnp.zeros_like(w1), jnp.zeros_like(w2))

    def call() -> None:
        nonlocal held
        held = jax.block_until_ready(run(x, *held[1:]))

    return call, times


def adamw(dim: int, times: int = 4) -> tuple[Callable[[], object], int]:
    """AdamW alone, on the parameters of a head."""
    shapes = ((dim, 4 * dim), (4 * dim, dim), (4 * dim,), (dim,))
    params = [jnp.zeros(shape) for shape in shapes]
    gradient = [jnp.ones(shape) for shape in shapes]
    tx = optim.make(**ADAMW, total_steps=10_000)

    def update(i: jax.Array, carry: tuple) -> tuple:
        params, state = carry
        updates, state = tx.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    run = jax.jit(lambda carry: jax.lax.fori_loop(0, times, update, carry), donate_argnums=0)
    held = (params, tx.init(params))

    def call() -> None:
        nonlocal held
        held = jax.block_until_ready(run(held))

    return call, times


def described() -> str:
    threads = f"{torch.get_num_threads()} threads of PyTorch {torch.__version__.split('+')[0]}"
    note = "" if GPU else f" GPU rows: {measure.NOT_MEASURED}."
    return f"`benchmarks/heads.py` on {measure.machine()}, {threads}, float32.{note}"


if __name__ == "__main__":
    main()
