"""The whole job on CIFAR-10: encode and tune for 30 epochs, beside the loop that encodes in every step.

Both have the same encoder (a small ResNet that nml_jax pre-trains once on 32 px ImageNet, its weights copied into
PyTorch), the same images at 64 px and the same recipe. The published loop augments and encodes two views of each image
in each epoch, 60 in all; nml_jax encodes two views once, and tunes the heads of all seeds in one program.
"""

import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch
from ml_collections import ConfigDict
from PIL import Image
from sklearn.linear_model import LogisticRegression

from benchmarks import heads, measure, published
from configs.features import default
from configs.pretrain import tiny_imagenet32
from nml_jax.core import checkpoint, stage
from nml_jax.core import mesh as meshes
from nml_jax.data import inference
from nml_jax.data import source as sources
from nml_jax.pretrain import supervised
from nml_jax.tune import linear_probe, nmtune, runs, trainer

STAGES, WIDTH, SIZE = (1, 1, 1), 16, 64
SEEDS = (0, 1, 2)


def run(data_dir: str, workdir: str, *, rows: int, test_rows: int, epochs: int) -> str:
    """Measures the job on `rows` training images, and says what came out as Markdown."""
    config, variables = _encoder(data_dir, Path(workdir) / "encoder")
    train = sources.open("cifar10", f"train[:{rows}]", data_dir=data_dir, in_memory=True)
    test = sources.open("cifar10", f"test[:{test_rows}]", data_dir=data_dir, in_memory=True)
    y, y_test = train.column("label"), test.column("label")
    images = [train.image(i) for i in range(len(train))]

    data = default.get_config().data
    data.augment.update({"size": SIZE, "flip": True})
    data.evaluate.size = SIZE
    encode = supervised.encode(config)
    view = lambda source, number: inference.run(encode, variables, source, data, view=number)  # noqa: E731
    clean, clean_test = view(train, 0), view(test, 0)

    start = time.perf_counter()
    augmented = np.stack([view(train, 1), view(train, 2)], axis=1)
    encoded = time.perf_counter() - start
    start = time.perf_counter()
    # View 0 is the clean one; the official recipe trains on augmented ones and never reads it.
    x = np.concatenate([augmented[:, :1], augmented], axis=1)
    task = nmtune.make(dim=x.shape[2], num_classes=10)
    options = {"views": 2, "batch_size": heads.BATCH, "epochs": epochs, "optim": heads.ADAMW}
    fitted = trainer.fit(task, x, [runs.Run(y, seed=seed) for seed in SEEDS], **options)
    tuned = time.perf_counter() - start
    ours = [_accuracy(trainer.predict(task, head.state, clean_test), y_test) for head in fitted]

    torch_encoder = published.Encoder(
        *jax.device_get(variables), STAGES, WIDTH, config.data.mean, config.data.std
    )
    pixels = np.stack([np.asarray(Image.fromarray(image).resize((SIZE, SIZE))) for image in images[:32]])
    np.testing.assert_allclose(torch_encoder(torch.tensor(pixels)), encode(*variables, pixels), atol=1e-3)
    theirs, seconds = [], []
    for seed in SEEDS:
        start = time.perf_counter()
        head = _published(torch_encoder, images, y, epochs, seed)
        seconds.append(time.perf_counter() - start)
        with torch.no_grad():
            theirs.append(_accuracy(head.eval()(torch.tensor(clean_test))[1].numpy(), y_test))
        print(f"published loop, seed {seed}: {seconds[-1]:.0f} s, accuracy {theirs[-1]:.4f}", flush=True)

    rows_ = [
        ["published loop, 3 seeds", f"{sum(seconds):.0f}", _spread(theirs)],
        [
            "nml_jax, 3 seeds",
            f"{encoded + tuned:.0f} ({encoded:.0f} encoding, {tuned:.0f} tuning)",
            _spread(ours),
        ],
    ]
    about = __doc__.partition("\n\n")[2].strip()
    text = (
        f"## The whole job: CIFAR-10, {rows} training images, {epochs} epochs, 3 seeds\n\n{about}\n\n"
        f"{heads.described()}\n\n{measure.table(['', 'seconds', 'test accuracy, %'], rows_)}\n"
        f"Ratio {sum(seconds) / (encoded + tuned):.1f} (aim: 20); difference in accuracy "
        f"{100 * (np.mean(ours) - np.mean(theirs)):+.2f} points (aim: within 0.3).\n\n"
        + _logistic(clean, y, clean_test, y_test, epochs)
    )
    return text


def _encoder(data_dir: str, workdir: Path) -> tuple[ConfigDict, tuple[Any, Any]]:
    """The pre-training's config, and (params, stats); pre-trained when first asked for."""
    config = tiny_imagenet32.get_config()
    config.data_dir = data_dir
    config.epochs = 1
    config.model.options.update({"stages": STAGES, "width": WIDTH, "stem": "cifar"})
    stage.execute(config, workdir)
    return config, checkpoint.load_variables(workdir / "checkpoints", meshes.make())


def _published(
    encoder: published.Encoder, images: list[np.ndarray], y: np.ndarray, epochs: int, seed: int
) -> published.Head:
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    pictures, labels = [Image.fromarray(image) for image in images], torch.tensor(y)
    head = published.Head(WIDTH * 2 ** (len(STAGES) - 1), 10)
    steps = epochs * -(-len(y) // heads.BATCH)
    step = published.stepper(head, **heads.peer_options(), total_steps=steps)
    for _ in range(epochs):
        for rows in published.batches(len(y), heads.BATCH, rng):
            views = [
                np.stack([published.random_resized_crop(pictures[i], SIZE, rng) for i in rows])
                for _ in range(2)
            ]
            with torch.no_grad():
                features = encoder(torch.tensor(np.concatenate(views)))
            step(features, labels[torch.as_tensor(rows)])
    return head


def _logistic(x: np.ndarray, y: np.ndarray, x_test: np.ndarray, y_test: np.ndarray, epochs: int) -> str:
    """scikit-learn's logistic regression beside the linear probe, on the clean features."""
    rows = []
    start = time.perf_counter()
    exact = LogisticRegression(C=1.0, max_iter=1000).fit(x, y)
    rows.append(["LogisticRegression", time.perf_counter() - start, np.mean(exact.predict(x_test) == y_test)])
    task = linear_probe.make(dim=x.shape[1], num_classes=10)
    options = {
        "views": 0,
        "batch_size": heads.BATCH,
        "epochs": epochs,
        "optim": heads.ADAMW | {"learning_rate": 0.01},
    }
    for name in ("linear probe, compiling", "linear probe, again"):
        start = time.perf_counter()
        (head,) = trainer.fit(task, x[:, None], [runs.Run(y)], **options)
        spent = time.perf_counter() - start
        rows.append([name, spent, _accuracy(trainer.predict(task, head.state, x_test), y_test)])
    body = measure.table(
        ["", "seconds", "test accuracy, %"], [[n, f"{s:.2f}", f"{100 * a:.2f}"] for n, s, a in rows]
    )
    return f"### scikit-learn beside the linear probe, on the same {len(x)} x {x.shape[1]} features\n\n{body}"


def _accuracy(logits: np.ndarray, y: np.ndarray) -> float:
    return float(np.mean(logits.argmax(axis=1) == y))


def _spread(accuracies: list[float]) -> str:
    return f"{100 * np.mean(accuracies):.2f} ({', '.join(f'{100 * a:.2f}' for a in accuracies)})"
