"""A synthetic study whose truth is known: accuracies follow planted effects plus noise of a planted size."""

import math

import numpy as np

RATIOS = (0.0, 0.05, 0.2)
SEEDS = (0, 1, 2)
ENCODERS = {"supervised": ("resnet18", "symmetric"), "contrastive": ("clip_small", "caption_swap")}
ID_TASKS = {"cifar10": 0.8, "dtd": 0.6, "flowers102": 0.7, "eurosat": 0.9}
OOD_TASKS = {"sketch": ("clipart", "real"), "photo": ("art", "cartoon", "sketch")}
METHODS = ("linear_probe", "mlp", "nmtune", "nmtune_paper")
GAINS = {"linear_probe": 0.0, "mlp": 0.01, "nmtune": 0.03, "nmtune_paper": 0.03}
FRACTIONS = (0.1, 0.25, 0.5, 0.75, 1.0)
ID_EFFECT = {0.0: 0.0, 0.05: 0.012, 0.2: -0.02}
OOD_EFFECT = {0.0: 0.0, 0.05: -0.02, 0.2: -0.06}


def make_study(
    base_dir=None, *, spread=0.002, seeds=SEEDS, ratios=RATIOS, methods=METHODS, objectives=tuple(ENCODERS)
):
    """Records of 2 objectives × 3 γ × 3 seeds × 6 tasks × 4 methods; spectra are written if `base_dir` is given."""
    rng = np.random.default_rng(0)
    records = []
    for objective in objectives:
        model, noise = ENCODERS[objective]
        for ratio in ratios:
            for seed in seeds:
                encoder = {
                    "objective": objective,
                    "model": model,
                    "noise": noise,
                    "noise_ratio": ratio,
                    "pretrain_seed": seed,
                    "versions": {"nml_jax": "0.1.0", "jax": "0.10.2"},
                }
                records.append(pretraining(encoder, rng, spread))
                records += tuning(encoder, rng, spread, methods)
                records += spectra(encoder, rng, base_dir)
    return records


def pretraining(encoder, rng, spread):
    base = 0.75 if encoder["objective"] == "supervised" else 0.3
    accuracy = base - 0.4 * encoder["noise_ratio"] + spread * rng.standard_normal()
    metrics = {"test_accuracy": accuracy, "test_loss": 1.0, "train_loss": 0.8}
    return {
        "kind": "pretrain",
        **encoder,
        "realised_ratio": encoder["noise_ratio"],
        "metrics": metrics,
        "steps": 100,
    }


def tune(encoder, method, task, suite, test_split, fraction, accuracy):
    return {
        "kind": "tune",
        **encoder,
        "method": method,
        "task": task,
        "suite": suite,
        "label": "label",
        "train_split": "train",
        "test_split": test_split,
        "fraction": fraction,
        "seed": 0,
        "num_classes": 10,
        "train_size": 1000,
        "test_size": 500,
        "accuracy": float(np.clip(accuracy, 0, 1)),
        "mean_per_class": float(np.clip(accuracy - 0.01, 0, 1)),
        "macro_f1": float(np.clip(accuracy - 0.02, 0, 1)),
    }


def tuning(encoder, rng, spread, methods):
    ratio, records = encoder["noise_ratio"], []
    for method in methods:
        for fraction in FRACTIONS if method == "linear_probe" else (1.0,):
            less = 0.08 * math.log10(fraction)
            for task, base in ID_TASKS.items():
                damage = ID_EFFECT.get(ratio, 0.0) * (
                    0.5 if method.startswith("nmtune") and ratio > 0.1 else 1.0
                )
                accuracy = base + GAINS[method] + damage + less + spread * rng.standard_normal()
                records.append(tune(encoder, method, task, "id", "test", fraction, accuracy))
            for i, (task, targets) in enumerate(OOD_TASKS.items()):
                for j, target in enumerate(targets):
                    damage = OOD_EFFECT.get(ratio, 0.0) * (0.5 if method.startswith("nmtune") else 1.0)
                    accuracy = 0.35 + 0.1 * i + 0.04 * j + GAINS[method] + damage + less
                    accuracy += spread * rng.standard_normal()
                    records.append(tune(encoder, method, task, "ood", target, fraction, accuracy))
                accuracy = 0.7 + 0.1 * i + GAINS[method] + less + spread * rng.standard_normal()
                records.append(tune(encoder, method, task, "source", task, fraction, accuracy))
    return records


def spectra(encoder, rng, base_dir):
    records = []
    tests = [(t, "id", "test") for t in ID_TASKS] + [(t, "source", t) for t in OOD_TASKS]
    for i, (task, suite, split) in enumerate(tests):
        decay = 0.9 - 0.6 * encoder["noise_ratio"] + 0.03 * i
        s = 50 * np.arange(1, 129) ** -decay * np.exp(0.02 * rng.standard_normal(128))
        s = np.append(np.sort(s)[::-1][:-1], 1e-15)
        p = s / s.sum()
        record = {
            "kind": "spectrum",
            **encoder,
            "task": task,
            "suite": suite,
            "split": split,
            "preprocess": "official",
            "sve": float(-(p * np.log(p)).sum()),
            "lsvr": float(-np.log(p[0])),
            "file": "spectrum.npz",
        }
        if base_dir is not None:
            name = f"{encoder['objective']}-{encoder['noise_ratio']}-{encoder['pretrain_seed']}-{task}"
            record["path"] = f"jobs/{name}/spectrum.npz"
            (base_dir / "jobs" / name).mkdir(parents=True)
            np.savez(base_dir / record["path"], singular_values=s)
        records.append(record)
    return records
