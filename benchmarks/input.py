"""Training images from JPEG bytes on one core, beside torchvision's and tf.data's own: docs/benchmarks.md, "input".

    make benchmark-input
    make benchmark-input ARGS="--tensorflow_python=PATH"    # tf.data too, by a Python that has TensorFlow

Decode, RandomResizedCrop and flip at 224, on 500x375 JPEGs of quality 92 that are made on the spot. Everything runs on
one core, in turns, and is timed by the processor's time that it takes, all threads together: what else the machine does
meanwhile does not count. Needs the extra `peers`.
"""

import argparse
import base64
import io
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from absl import flags
from PIL import Image

SIZE, BATCH = 224, 32
HEIGHT, WIDTH, QUALITY = 375, 500, 92
AIMS = {"peer": 1.7, "tensorflow": 0.9, "grain": 0.15}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15, help="turns of which each number is the median")
    parser.add_argument("--images", type=int, default=64, help="different files, all decoded in each turn")
    parser.add_argument(
        "--tensorflow_python", default="", help="a Python with TensorFlow; empty: not measured"
    )
    parser.add_argument(
        "--grain_batches", type=int, default=60, help="batches of 32 of which Grain's speed is taken"
    )
    args = parser.parse_args()
    flags.FLAGS(sys.argv[:1])  # Grain's workers want parsed flags
    all_cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(all_cores)})
    from benchmarks import measure

    files = [photograph(seed) for seed in range(args.images)]
    text = [
        "## Input: JPEG bytes to training images\n",
        f"`benchmarks/input.py` on {measure.machine()}; {versions()}.\n",
        f"{len(files)} synthetic photographs of {WIDTH}x{HEIGHT}, quality {QUALITY}, 4:2:0, "
        f"{np.mean([len(f) for f in files]) / 1000:.0f} kB each; crops of 8 to 100 % of the area to {SIZE}x{SIZE}, "
        f"flipped at random. Images a second of one core's time, medians of {args.rounds} turns.\n",
        one_core(measure, files, args.rounds, args.tensorflow_python),
        through_grain(measure, files, args.grain_batches, args.rounds, all_cores),
    ]
    measure.write_section("input", "\n".join(text))
    print("\n".join(text))


def photograph(seed: int) -> bytes:
    """Structure at all scales with strengths as in photographs (falling with the frequency), edges, sensor noise."""
    rng = np.random.default_rng(seed)
    image = np.full((HEIGHT, WIDTH, 3), 120.0)
    for cells, strength in ((4, 50), (9, 28), (20, 18), (45, 12), (100, 8), (220, 5)):
        noise = rng.normal(0, strength, (cells, cells * 4 // 3, 1)) + rng.normal(
            0, strength / 3, (cells, cells * 4 // 3, 3)
        )
        small = Image.fromarray(np.uint8(np.clip(noise + 128, 0, 255)))
        image += np.asarray(small.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)) - 128.0
    for _ in range(12):
        top, left = rng.integers(0, HEIGHT - 60), rng.integers(0, WIDTH - 60)
        height, width = rng.integers(20, 150, 2)
        image[top : top + height, left : left + width] += rng.normal(0, 25, 3)
    image += rng.normal(0, 3, (HEIGHT, WIDTH, 3))
    buffer = io.BytesIO()
    Image.fromarray(np.uint8(np.clip(image, 0, 255))).save(
        buffer, "JPEG", quality=QUALITY, subsampling="4:2:0"
    )
    return buffer.getvalue()


def versions() -> str:
    from importlib.metadata import version

    names = ("pillow", "simplejpeg", "opencv-python-headless", "torchvision", "torch", "grain")
    return ", ".join(f"{name} {version(name)}" for name in names)


# ---------------------------------------------------------------------------------------------------------- one core


def one_core(measure, files: list[bytes], rounds: int, tensorflow_python: str) -> str:
    """Images a second of a core of ours by decoder, of the peer, and of TensorFlow's, for both interpolations."""
    rows, ratios, peer_version = [], [], ""
    for interpolation in ("bilinear", "bicubic"):
        turns = {"torchvision on Pillow": over(files, peer(interpolation))}
        for decoder in ("pillow", "opencv", "simplejpeg"):
            turns[decoder] = over(files, ours(decoder, interpolation))
        if tensorflow_python:
            tensorflow = Tensorflow(tensorflow_python, files, interpolation)
            turns["tf.data"] = tensorflow.run
        speed = {name: len(files) / s for name, s in in_turns(turns, rounds).items()}
        if tensorflow_python:
            tensorflow.close()
            peer_version = f" (TensorFlow {tensorflow.version})"
        rows += [[interpolation, name, f"{s:,.0f}"] for name, s in speed.items()]
        ratio = speed["simplejpeg"] / speed["torchvision on Pillow"]
        ratios.append([interpolation, "simplejpeg / torchvision", f"{ratio:.2f}", f"at least {AIMS['peer']}"])
        exact = speed["pillow"] / speed["torchvision on Pillow"]
        ratios.append([interpolation, "pillow (the same pixels) / torchvision", f"{exact:.2f}", "1"])
        said = (
            f"{speed['simplejpeg'] / speed['tf.data']:.2f}"
            if tensorflow_python
            else "not measured: no TensorFlow"
        )
        ratios.append([interpolation, "simplejpeg / tf.data", said, f"at least {AIMS['tensorflow']}"])
    return (
        "torchvision: Pillow opens the bytes, RandomResizedCrop (antialiased), RandomHorizontalFlip, PILToTensor, as "
        f"in a DataLoader's worker. tf.data{peer_version}: `decode_and_crop_jpeg` of a box of "
        "`sample_distorted_bounding_box`, `tf.image.resize` (which does not antialias) and a flip, in a map on one "
        "thread. Ours, by decoder: the box is drawn from the size in the file's header, the file is cut to the rows "
        "down to the box's end, and only the box is resized: by Pillow, or nearly as Pillow does.\n\n"
        + measure.table(["resize", "", "images/s"], rows)
        + "\n"
        + measure.table(["resize", "", "here", "aim"], ratios)
    )


def in_turns(functions: dict[str, Callable[[], float]], rounds: int) -> dict[str, float]:
    """Median over `rounds` of the seconds that each function returns, after one call to warm up."""
    for function in functions.values():
        function()
    seconds = [{name: function() for name, function in functions.items()} for _ in range(rounds)]
    return {name: float(np.median([turn[name] for turn in seconds])) for name in functions}


def timed(function: Callable[[], None]) -> Callable[[], float]:
    """Seconds of the processor that a call takes."""

    def run() -> float:
        start = time.process_time()
        function()
        return time.process_time() - start

    return run


def over(files: list[bytes], function: Callable[[bytes], object]) -> Callable[[], float]:
    return timed(lambda: [function(file) for file in files])


def ours(decoder: str, interpolation: str) -> Callable[[bytes], np.ndarray]:
    from nml_jax.data import augment, decode

    crop = augment.make(
        "random_resized_crop", size=SIZE, scale=(0.08, 1.0), flip=True, interpolation=interpolation
    )
    rng = np.random.default_rng(0)
    return lambda file: np.ascontiguousarray(crop(decode.picture(file, name="", decoder=decoder), rng))


def peer(interpolation: str) -> Callable[[bytes], object]:
    sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
    import torch_peers

    transforms = torch_peers.torchvision().transforms
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)
    random.seed(0)
    transform = transforms.Compose(
        [
            transforms.RandomResizedCrop(SIZE, interpolation=transforms.InterpolationMode(interpolation)),
            transforms.RandomHorizontalFlip(),
            transforms.PILToTensor(),
        ]
    )
    return lambda file: transform(Image.open(io.BytesIO(file)).convert("RGB"))


class Tensorflow:
    """tf.data in a process of its own, on the same core; a turn is asked for over a pipe, and timed there."""

    CODE = r"""
import base64, json, sys, time
import tensorflow as tf
size, interpolation = int(sys.argv[1]), sys.argv[2]
files = [base64.b64decode(line) for line in json.loads(sys.stdin.readline())]
print(tf.__version__, flush=True)

def image(file):
    begin, extent, _ = tf.image.sample_distorted_bounding_box(
        tf.image.extract_jpeg_shape(file), tf.zeros([0, 0, 4], tf.float32), area_range=(0.08, 1.0),
        aspect_ratio_range=(3 / 4, 4 / 3), max_attempts=10, use_image_if_no_bounding_boxes=True)
    window = tf.stack([begin[0], begin[1], extent[0], extent[1]])
    crop = tf.image.decode_and_crop_jpeg(file, window, channels=3)
    crop = tf.image.random_flip_left_right(tf.image.resize(crop, [size, size], interpolation))
    return tf.cast(tf.clip_by_value(crop, 0, 255), tf.uint8)

# Nothing is read ahead: the time between two turns belongs to others.
options = tf.data.Options()
options.threading.private_threadpool_size = 1
options.autotune.enabled = False
options.experimental_optimization.apply_default_optimizations = False  # else map and batch are fused, and read ahead
data = tf.data.Dataset.from_tensor_slices(files).repeat().map(image).batch(len(files))
batches = iter(data.with_options(options))
before = time.process_time()
for _ in sys.stdin:
    next(batches)
    after = time.process_time()
    print(after - before, flush=True)
    before = after
"""

    def __init__(self, python: str, files: list[bytes], interpolation: str):
        quiet = {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "", "TF_NUM_INTRAOP_THREADS": "1"}
        self._process = subprocess.Popen(
            [python, "-c", self.CODE, str(SIZE), interpolation],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=os.environ | quiet,
        )
        self._ask(json.dumps([base64.b64encode(f).decode() for f in files]))
        self.version = self._process.stdout.readline().strip()

    def _ask(self, line: str) -> None:
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def run(self) -> float:
        self._ask("")
        return float(self._process.stdout.readline())

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()


# ------------------------------------------------------------------------------------------------------------- Grain


class Files:
    """A source as long as CIFAR-10 of the same few files: Grain's shuffle is slow for very short ones."""

    name, split, in_memory = "files", "train", False

    def __init__(self, files: list[bytes]):
        self._files = files

    def __len__(self) -> int:
        return 50_000

    def picture(self, index: int, decoder: str):
        from nml_jax.data import decode

        return decode.picture(self._files[index % len(self._files)], name=str(index), decoder=decoder)


def through_grain(measure, files: list[bytes], batches: int, rounds: int, all_cores: set[int]) -> str:
    """What Grain adds to a bare loop over the same work on one core; and two workers on two."""
    from nml_jax.data import augment, pipeline

    crop = augment.make(
        "random_resized_crop", size=SIZE, scale=(0.08, 1.0), flip=True, interpolation="bilinear"
    )
    source = Files(files)
    label = np.arange(len(source))
    options = {"augment": crop, "batch_size": BATCH, "seed": 0, "decoder": "simplejpeg"}
    rng = np.random.default_rng(0)
    order = [i % len(files) for i in range(BATCH * 4)]

    def bare() -> None:
        for start in range(0, len(order), BATCH):
            rows = order[start : start + BATCH]
            images = [np.ascontiguousarray(crop(source.picture(i, "simplejpeg"), rng)) for i in rows]
            _ = {"image": np.stack(images), "label": label[rows]}

    iterator = pipeline.train_iterator(source, {"label": label}, num_workers=0, **options)

    def grain() -> None:
        """As many batches; what was read ahead before is made up for by what is read ahead after."""
        for _ in range(4):
            next(iterator)
        time.sleep(0.5)  # so that it is

    seconds = in_turns({"bare": timed(bare), "grain": timed(grain)}, rounds)
    iterator.close()
    overhead = seconds["grain"] / seconds["bare"] - 1
    rows = [
        ["bare loop, one core", f"{len(order) / seconds['bare']:,.0f}", ""],
        [
            "Grain, no workers, one core",
            f"{len(order) / seconds['grain']:,.0f}",
            f"{overhead:+.0%}; aim: at most {AIMS['grain']:.0%}",
        ],
    ]
    os.sched_setaffinity(0, all_cores)
    iterator = pipeline.train_iterator(source, {"label": label}, num_workers=2, **options)
    for _ in range(8):
        next(iterator)
    start = time.perf_counter()
    for _ in range(batches):
        next(iterator)
    two = batches * BATCH / (time.perf_counter() - start)
    iterator.close()
    rows.append([f"Grain, two workers, {len(all_cores)} cores, by the clock on the wall", f"{two:,.0f}", ""])
    return (
        f"Through Grain, in batches of {BATCH} (decoder simplejpeg, bilinear; the bare loop decodes, crops, flips and "
        "stacks the same files):\n\n" + measure.table(["", "images/s", "overhead"], rows)
    )


if __name__ == "__main__":
    main()
