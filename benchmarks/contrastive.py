"""Contrastive losses: memory, arithmetic and time by method; CLIP steps beside open_clip: docs/benchmarks.md.

    make benchmark-contrastive                                # what this machine can measure
    make benchmark-contrastive ARGS="--batch_size=512"        # pairs a step of the GPU rows

Needs the extra `peers` (torch, torchvision, open_clip). Memory is XLA's own count for the compiled program and needs no
device that could run it. Pairs/s are whole training steps on a synthetic batch that lies in the device's memory; on a
GPU at 224 px in bfloat16, open_clip with torch.compile, autocast and fused AdamW.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from ml_collections import ConfigDict

from benchmarks import measure
from benchmarks.pretrain import GPU, started
from configs.pretrain import glyphs_contrastive
from nml_jax.core import cost, loop, optim
from nml_jax.core import mesh as meshes
from nml_jax.pretrain import contrastive, tiles
from nml_jax.pretrain.pairwise import METHODS, TILE
from tests import hlo, torch_peers

DIM = 512
LARGE = 32_768
SCALARS = {"info_nce": (1 / 0.07,), "sigmoid_loss": (10.0, -10.0)}
SIMULATED = 8
# open_clip's name -> our image tower, and the dimensions of the embeddings
MODELS = {"ViT-B-16": ("clip_vit", "vit_b16", 512), "RN50": ("clip_resnet", "rn50", 1024)}
TEXTBOOK = "softmax cross-entropy of the logits, by optax"
AIM = "at least 1.0 on a GPU, better 1.2"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--batch_size", type=int, default=256 if GPU else 4, help="pairs a step")
    parser.add_argument("--size", type=int, default=224 if GPU else 64, help="pixels")
    parser.add_argument("--pairs", type=int, default=LARGE if GPU else 4096, help="of the loss that is timed")
    parser.add_argument(
        "--rounds", type=int, default=7 if GPU else 3, help="turns; each number is their median"
    )
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--only", default="loss,devices,step", help="sections to measure")
    args = parser.parse_args()
    sections = args.only.split(",")
    if "loss" in sections:
        measure.write_section("contrastive: loss", loss(args.pairs, args.rounds))
    if "devices" in sections:
        if jax.device_count() == SIMULATED:
            measure.write_section("contrastive: devices", devices(args.rounds))
        else:
            flags = f"--xla_force_host_platform_device_count={SIMULATED}"
            simulated = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
            command = [
                sys.executable,
                "-m",
                "benchmarks.contrastive",
                "--only=devices",
                f"--rounds={args.rounds}",
            ]
            subprocess.run(command, env=os.environ | simulated, check=True)
    if "step" in sections:
        text = step(args.models.split(","), args.batch_size, args.size, args.rounds)
        measure.write_section("contrastive: step", text)


def compiled(name: str, method: str, pairs: int, mesh: jax.sharding.Mesh) -> jax.stages.Compiled:
    """Loss and all gradients, of embeddings divided over the devices."""
    embeddings = jax.ShapeDtypeStruct((pairs, DIM), jnp.float32, sharding=meshes.batch_sharding(mesh))
    scalar = jax.ShapeDtypeStruct((), jnp.float32, sharding=meshes.replicated(mesh))
    arguments = (embeddings, embeddings, *(scalar for _ in SCALARS[name]))

    def value(*arguments: jax.Array) -> jax.Array:
        if method == TEXTBOOK:
            return textbook(*arguments)
        return getattr(contrastive, name)(*arguments, method=method, mesh=mesh)

    function = jax.value_and_grad(value, argnums=tuple(range(len(arguments))))
    return jax.jit(function).lower(*arguments).compile()


def textbook(image: jax.Array, text: jax.Array, scale: jax.Array) -> jax.Array:
    """InfoNCE as it is usually written."""
    logits, own = scale * tiles.cosines(image, text), jnp.arange(len(image))
    by_image = optax.softmax_cross_entropy_with_integer_labels(logits, own).mean()
    return (by_image + optax.softmax_cross_entropy_with_integer_labels(logits.T, own).mean()) / 2


def caller(program: jax.stages.Compiled, name: str, pairs: int, mesh: jax.sharding.Mesh) -> Callable[[], Any]:
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((2, pairs, DIM)).astype(np.float32)
    x, y = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (x, y))
    same = meshes.replicated(mesh)
    scalars = [jax.device_put(jnp.float32(s), same) for s in SCALARS[name]]
    arguments = (*meshes.put_batch(mesh, {"x": x, "y": y}).values(), *scalars)
    return lambda: jax.block_until_ready(program(*arguments))


def loss(pairs: int, rounds: int) -> str:
    """Memory at 32,768 pairs, and time at `pairs`, of each method on one device."""
    mesh, rows = meshes.make(), []
    for name in SCALARS:
        methods = METHODS if name == "sigmoid_loss" else (TEXTBOOK, *METHODS)
        memory = {m: compiled(name, m, LARGE, mesh).memory_analysis().temp_size_in_bytes for m in methods}
        turns = {m: caller(compiled(name, m, pairs, mesh), name, pairs, mesh) for m in methods}
        seconds = measure.in_turns(turns, rounds)
        for method in methods:
            rows.append(
                [
                    name,
                    method,
                    f"{memory[method] / 2**20:,.0f}",
                    f"{memory[methods[0]] / memory[method]:.1f}",
                    f"{1e3 * seconds[method]:,.1f}",
                ]
            )
    header = ["loss", "method", f"MiB at {LARGE:,} pairs", "first row / this", f"ms at {pairs:,} pairs"]
    gpu = "" if GPU else f" Time at {LARGE:,} pairs on a GPU: {measure.NOT_MEASURED}."
    return (
        f"## Contrastive losses with all gradients, d = {DIM}, one device\n\n`benchmarks/contrastive.py` on "
        f"{measure.machine()}. float32 at full precision; tiles of {TILE} texts. Memory is what the program needs "
        f"beside the embeddings and their gradients. Aim of chunked: 20 times less than naive, and than InfoNCE as it "
        f"is usually written, which needs less than our naive form (that keeps the digits of small losses).{gpu}\n\n"
        f"{measure.table(header, rows)}"
    )


def devices(rounds: int) -> str:
    """Arithmetic, largest array and messages of each of eight devices, and the time of all on these cores."""
    mesh, rows = meshes.make(), []
    for name in SCALARS:
        for method in METHODS[1:]:
            for pairs in (1024, 2048, 4096):
                program = compiled(name, method, pairs, mesh)
                read = hlo.Program(program)
                each = 2 * DIM * pairs**2 / SIMULATED
                call = caller(program, name, pairs, mesh)
                seconds = measure.in_turns({"": call}, rounds)[""]
                rows.append(
                    [
                        name,
                        method,
                        f"{pairs:,}",
                        f"{read.matmul_flops() / 1e9:,.2f}",
                        f"{read.matmul_flops() / each:.2f}",
                        f"{read.largest() / pairs**2:.4f}",
                        f"{1e3 * seconds:,.0f}",
                        f"{1e9 * seconds / pairs**2:.1f}",
                    ]
                )
    header = [
        "loss",
        "method",
        "pairs B",
        "GFLOP a device",
        "of 2 d B²/8",
        "largest array / B²",
        "ms, all eight",
        "ns / B²",
    ]
    return (
        f"## Contrastive losses with all gradients on {SIMULATED} simulated devices, d = {DIM}\n\n"
        f"`benchmarks/contrastive.py` on {measure.machine()}: the devices share these cores, so the time is that of "
        "all of them one after another. GFLOP are the matrix products in the compiled program of one device, loops "
        f"counted out; naive on one device has 6 d B².\n\n{measure.table(header, rows)}"
    )


def step(names: list[str], batch_size: int, size: int, rounds: int) -> str:
    """Pairs a second of a whole training step: both towers forward and backward, loss, optimiser."""
    rows = []
    for name in names:
        run, costs, steps = ours(name, batch_size, size)
        turns = {"ours": run, "theirs": peer(name, batch_size, size, steps)}
        seconds = {k: v / steps for k, v in measure.in_turns(turns, rounds).items()}
        per_second, peak = {k: batch_size / v for k, v in seconds.items()}, cost.peak_flops()
        rows.append(
            [
                name,
                f"{per_second['theirs']:,.1f}",
                f"{per_second['ours']:,.1f}",
                f"{per_second['ours'] / per_second['theirs']:.2f}",
                f"{costs.flops / seconds['ours'] / peak:.1%}" if peak else "-",
                f"{costs.temporary / 2**30:.1f}",
                AIM,
            ]
        )
    header = ["", "open_clip, pairs/s", "nml_jax, pairs/s", "ratio", "MFU", "GiB of activations", "aim"]
    kind = "bfloat16" if GPU else "float32"
    note = "" if GPU else f" The GPU's rows (256 pairs at 224 px in bfloat16): {measure.NOT_MEASURED}."
    return (
        f"## A CLIP training step, {batch_size} pairs at {size} px, {kind}\n\n`benchmarks/contrastive.py` on "
        f"{measure.machine()}, PyTorch {torch.__version__.split('+')[0]} with torch.compile.{note}\n\n"
        f"{measure.table(header, rows)}"
    )


def configuration(name: str, size: int) -> ConfigDict:
    """CLIP's own towers and optimiser."""
    config = glyphs_contrastive.get_config()
    module, variant, config.embed_dim = MODELS[name]
    dtype = "bfloat16" if GPU else "float32"
    config.model = ConfigDict({"name": module, "options": {"variant": variant, "dtype": dtype}})
    config.text.update(vocab_size=49_408, length=77)
    config.text.options = ConfigDict({"width": 512, "layers": 12, "heads": 8, "dtype": dtype})
    config.data.augment.size = config.data.evaluate.size = size
    config.optim.update(learning_rate=5e-4, weight_decay=0.1)
    return config


def batch(batch_size: int, size: int) -> dict[str, np.ndarray]:
    """Images, and captions of 10 to 20 tokens with CLIP's ids of start and end."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(1000, 40_000, (batch_size, 77)).astype(np.int32)
    ends, place = rng.integers(10, 21, (batch_size, 1)), np.arange(77)
    tokens[:, 0] = 49_406
    tokens = np.where(place == ends, 49_407, np.where(place > ends, 0, tokens))
    images = rng.integers(0, 256, (batch_size, size, size, 3)).astype(np.uint8)
    return {"image": images, "tokens": tokens.astype(np.int32)}


def ours(name: str, batch_size: int, size: int) -> tuple[Callable[[], Any], cost.Cost, int]:
    """(some steps on one batch, what one costs, how many they are)."""
    config = configuration(name, size)
    task = contrastive.make_task(config, *contrastive.towers(config))
    tx = optim.make(total_steps=10_000, **config.optim)
    data = meshes.put_batch(meshes.make(), batch(batch_size, size))
    options = loop.Options(total_steps=10_000, seed=0, save_every=1, log_every=1)
    state, program, costs = started(task, tx, options, data)
    steps = 20 if GPU else 1

    def call() -> None:
        nonlocal state
        for _ in range(steps):
            state, metrics = program(state, data)
        jax.block_until_ready((state, metrics))

    return call, costs, steps


def peer(name: str, batch_size: int, size: int, steps: int) -> Callable[[], Any]:
    """So many steps of open_clip on the same batch."""
    torch_peers.torchvision()
    import open_clip
    from open_clip.loss import ClipLoss

    device, config = "cuda" if GPU else "cpu", configuration(name, size)
    model = open_clip.create_model(name, pretrained=None, force_image_size=size).to(device).train()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=5e-4, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.1, fused=GPU
    )
    arrays, compare = batch(batch_size, size), ClipLoss()
    mean, std = (torch.tensor(v, device=device).view(1, 3, 1, 1) for v in (config.data.mean, config.data.std))
    images = torch.tensor(arrays["image"], device=device).permute(0, 3, 1, 2).contiguous()
    tokens = torch.tensor(arrays["tokens"], device=device).long()

    @torch.compile
    def loss_of(images: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        with torch.autocast(device, torch.bfloat16, enabled=GPU):
            image, text, scale = model((images.float() / 255 - mean) / std, tokens)[:3]
            return compare(image, text, scale)

    def call() -> None:
        for _ in range(steps):
            optimizer.zero_grad(set_to_none=True)
            loss_of(images, tokens).backward()
            optimizer.step()
            with torch.no_grad():
                model.logit_scale.clamp_(0, np.log(contrastive.LARGEST_SCALE))
        if GPU:
            torch.cuda.synchronize()

    return call


if __name__ == "__main__":
    main()
