"""Supervised pre-training beside PyTorch, and what the training loop adds to a step: docs/benchmarks.md.

    make benchmark-pretrain                                   # what this machine can measure
    make benchmark-pretrain ARGS="--batch_size=256"           # images a step of the GPU rows

Needs the extra `peers` (torch, torchvision, timm). The same synthetic batch lies in the device's memory for both sides:
this is the step alone, without input. On a GPU: 224 px, bfloat16, PyTorch with torch.compile, channels-last and
autocast. Without one the rows are a small float32 batch on the CPU, and the GPU's are said not to be measured.
"""

import argparse
import contextlib
import tempfile
from collections.abc import Callable
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
import torch
from ml_collections import ConfigDict

from benchmarks import measure
from configs.pretrain import resnet50_imagenet, vit_b16_imagenet
from nml_jax.core import cost, loop, optim, writer
from nml_jax.core import mesh as meshes
from nml_jax.core.task import Task
from nml_jax.pretrain import supervised
from nml_jax.pretrain.objective import image_encoder
from tests import torch_peers

GPU = jax.default_backend() == "gpu" and torch.cuda.is_available()
CLASSES = 1000
MODELS = {"ResNet-50": resnet50_imagenet, "ViT-B/16": vit_b16_imagenet}
AIMS = {"ResNet-50": "at least 1.0 on a GPU, 5,500 images/s on an H200", "ViT-B/16": "at least 1.0 on a GPU"}
STEP = 0.020  # seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--batch_size", type=int, default=256 if GPU else 8)
    parser.add_argument("--size", type=int, default=224 if GPU else 128, help="pixels")
    parser.add_argument(
        "--rounds", type=int, default=7 if GPU else 3, help="turns; each number is their median"
    )
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--only", default="step,loop", help="sections to measure")
    args = parser.parse_args()
    if "step" in args.only.split(","):
        names = args.models.split(",")
        measure.write_section("pretrain: step", step(names, args.batch_size, args.size, args.rounds))
    if "loop" in args.only.split(","):
        measure.write_section("pretrain: loop", overhead(args.rounds))


def step(names: list[str], batch_size: int, size: int, rounds: int) -> str:
    """Images a second of a whole training step: forward, backward, optimiser."""
    rows = []
    for name in names:
        config = MODELS[name].get_config()
        run, costs, steps = ours(config, batch_size, size)
        turns = {"ours": run, "theirs": peer(name, config, batch_size, size, steps)}
        seconds = {k: v / steps for k, v in measure.in_turns(turns, rounds).items()}
        per_second = {k: batch_size / v for k, v in seconds.items()}
        peak = cost.peak_flops()
        rows.append(
            [
                name,
                f"{per_second['theirs']:,.1f}",
                f"{per_second['ours']:,.1f}",
                f"{seconds['theirs'] / seconds['ours']:.2f}",
                f"{costs.flops / seconds['ours'] / peak:.1%}" if peak else "-",
                f"{costs.bytes_accessed / 2**30:.1f}",
                f"{costs.bytes_accessed / seconds['ours'] / 1e9:,.0f}",
                AIMS[name],
            ]
        )
    header = ["", "PyTorch, images/s", "nml_jax, images/s", "ratio", "MFU", "GiB a step", "GB/s", "aim"]
    kind = "bfloat16" if GPU else "float32"
    note = (
        ""
        if GPU
        else f" The GPU's rows (batches of 256 at 224 px in bfloat16; H200): {measure.NOT_MEASURED}. "
        "torch.compile is used on the CPU too."
    )
    return (
        f"## A training step, batch {batch_size} at {size} px, {kind}\n\n`benchmarks/pretrain.py` on "
        f"{measure.machine()}, PyTorch {torch.__version__.split('+')[0]}.{note} GiB a step is XLA's own count of bytes "
        f"read and written; GB/s is that count by the time.\n\n{measure.table(header, rows)}"
    )


def ours(config: ConfigDict, batch_size: int, size: int) -> tuple[Callable[[], Any], cost.Cost, int]:
    """(some steps on one batch, what one costs, how many they are)."""
    config.data.augment.size = config.data.evaluate.size = size
    config.mixing.update(mixup=0.0, cutmix=0.0)
    config.model.options.dtype = "bfloat16" if GPU else "float32"
    model = image_encoder(config, num_classes=CLASSES)
    task = supervised.make_task(config, model, CLASSES)
    tx = optim.make(total_steps=10_000, **config.optim)
    images, labels = batch(batch_size, size)
    data = meshes.put_batch(meshes.make(), {"image": images, "label": labels.astype(np.int32)})
    options = loop.Options(total_steps=10_000, seed=0, save_every=1, log_every=1)
    state, compiled, costs = started(task, tx, options, data)
    steps = 20 if GPU else 2

    def call() -> None:
        nonlocal state
        for _ in range(steps):
            state, metrics = compiled(state, data)
        jax.block_until_ready((state, metrics))

    return call, costs, steps


def started(task: Task, tx: Any, options: loop.Options, data: dict[str, jax.Array]) -> tuple:
    """(first state, compiled step, its cost)."""
    mesh = meshes.make()
    spec = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), data)
    create = lambda rng: loop._create(task, tx, spec, rng, 0.0)  # noqa: E731
    state = jax.jit(create, out_shardings=meshes.replicated(mesh))(jax.random.key(0))
    compiled, costs = loop.compile_step(task, tx, options, state, spec, mesh)
    return state, compiled, costs


def peer(name: str, config: ConfigDict, batch_size: int, size: int, steps: int) -> Callable[[], Any]:
    """So many steps of PyTorch on the same batch."""
    device = "cuda" if GPU else "cpu"
    if name == "ResNet-50":
        model = torch_peers.torchvision().models.resnet50(num_classes=CLASSES)
        make_optimizer = lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=1e-4)  # noqa: E731
    else:
        torch_peers.timm()
        import timm

        model = timm.create_model("vit_base_patch16_224", img_size=size, num_classes=CLASSES)
        make_optimizer = lambda p: torch.optim.AdamW(p, lr=1e-3, weight_decay=0.1, fused=GPU)  # noqa: E731
    layout = torch.channels_last if name == "ResNet-50" else torch.contiguous_format
    model = model.to(device, memory_format=layout).train()
    optimizer = make_optimizer(model.parameters())
    images, labels = batch(batch_size, size)
    mean, std = (torch.tensor(v, device=device).view(1, 3, 1, 1) for v in (config.data.mean, config.data.std))
    x = torch.tensor(images, device=device).permute(0, 3, 1, 2).contiguous(memory_format=layout)
    y = torch.tensor(labels, device=device)
    smoothing = config.loss.label_smoothing

    @torch.compile
    def loss_of(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        with torch.autocast(device, torch.bfloat16, enabled=GPU):
            return torch.nn.functional.cross_entropy(
                model((x.float() / 255 - mean) / std), y, label_smoothing=smoothing
            )

    def call() -> None:
        for _ in range(steps):
            loss = loss_of(x, y)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
        if GPU:
            torch.cuda.synchronize()

    return call


def batch(batch_size: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """uint8 images and labels."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (batch_size, size, size, 3)).astype(np.uint8)
    return images, rng.integers(CLASSES, size=batch_size)


def overhead(rounds: int) -> str:
    """What the loop adds to a step of 20 ms, which one core computes in the place of an accelerator."""
    steps, rows, size = 300, 128, 224
    tx = optim.make("sgd", learning_rate=0.0, total_steps=steps)
    options = loop.Options(
        total_steps=steps, seed=0, save_every=10 * steps, log_every=100, progress=False, description="loop"
    )
    spec = {"image": jax.ShapeDtypeStruct((rows, size, size, 3), jnp.uint8)}
    data = {"image": jnp.zeros(spec["image"].shape, jnp.uint8)}

    def bare(iterations: int) -> Callable[[], None]:
        state, compiled, _ = started(busy_task(iterations), tx, options, data)

        def call() -> None:
            nonlocal state
            for _ in range(steps // 3):
                state, metrics = compiled(state, data)
            jax.block_until_ready((state, metrics))

        return call

    trial = 100_000
    iterations = round(trial * STEP * (steps // 3) / measure.in_turns({"": bare(trial)}, 3)[""])
    task, alone = busy_task(iterations), bare(iterations)
    seconds, whole = [], []
    for _ in range(rounds):
        seconds.append(measure.in_turns({"": alone}, 1)[""] / (steps // 3))
        with tempfile.TemporaryDirectory() as workdir, contextlib.closing(ready(spec)) as batches:
            loop.train(
                task,
                tx,
                batches,
                options,
                batch_spec=spec,
                ids=np.arange(rows),
                mesh=meshes.make(),
                workdir=workdir,
            )
            whole.append(writer.read_lines(f"{workdir}/metrics.jsonl")[-1]["step_s"])
    seconds = float(np.median(seconds))
    found = float(np.median(whole))
    rows_ = [
        ["the jitted step alone", f"{1e3 * seconds:.3f}"],
        ["in the loop", f"{1e3 * found:.3f}"],
        ["what the loop adds", f"{(found - seconds) / seconds:.2%} (aim: at most 2 %)"],
    ]
    return (
        f"## The training loop around a step of {1e3 * STEP:.0f} ms, {rows} x {size} x {size} x 3 bytes a batch\n\n"
        f"`benchmarks/pretrain.py` on {measure.machine()}. One core computes the step; the loop "
        "draws ready batches, places them on the device, logs every 100 steps, and looks out for "
        "SIGTERM.\n\n" + measure.table(["", "ms a step"], rows_)
    )


def busy_task(iterations: int) -> Task:
    """A step of so many dependent scalar operations: one core at work in the background, the other free for the loop.

    (XLA's CPU client runs Python callbacks, which could simply sleep, in the foreground.)
    """

    def init(rng: jax.Array, batch: Any):
        return {"w": jnp.ones(())}, {}, {}

    def loss(params: Any, frozen: Any, stats: Any, batch: Any, rng: jax.Array):
        start = jax.lax.stop_gradient(params["w"]) + batch["image"][0, 0, 0, 0]
        end = jax.lax.fori_loop(0, iterations, lambda _, x: jnp.sin(x), start)
        return params["w"] * end, (stats, {"accuracy": end})

    return Task(init, loss, lambda *_: None)


def ready(spec: dict[str, jax.ShapeDtypeStruct]) -> grain.DatasetIterator:
    """The same batch for ever, at once."""
    rows = spec["image"].shape[0]
    batch = {
        "image": np.zeros(spec["image"].shape, np.uint8),
        "index": np.arange(rows),
        "replaced": np.zeros(rows, bool),
    }
    return iter(grain.MapDataset.range(1).repeat().map(lambda _: batch).to_iter_dataset())


if __name__ == "__main__":
    main()
