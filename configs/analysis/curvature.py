"""Top eigenvalues and trace of the Hessian of a tuned head's loss (the official code has them from PyHessian).

    python -m nml_jax.main --config=configs/analysis/curvature.py --workdir=runs/curvature \
        --config.inputs.head=runs/nmtune/head.safetensors --config.inputs.features=runs/features

For a head that was tuned on a file, --config.inputs.train=a.npz in place of the features. `of="classifier"` are the
parameters that the official code analysed; "all" are those of the whole head.
Hardware: any device. Time: some hundred passes over the training features.
"""

from ml_collections import ConfigDict

from nml_jax.core.errors import UserError


def get_config(arg: str | None = None) -> ConfigDict:
    """The config; "smoke" asks for two eigenvalues and a rough trace."""
    if arg not in (None, "smoke"):
        raise UserError(f"Unknown config argument {arg!r}; valid: none, or smoke, as in curvature.py:smoke.")
    return ConfigDict(
        {
            "stage": "analysis",
            "method": "curvature",
            "inputs": {"head": "", "features": "", "train": ""},
            "split": "train",
            "label": "",  # empty: the first label of the features
            "of": "classifier",  # or all
            "top_k": 2 if arg == "smoke" else 50,
            "samples": 4 if arg == "smoke" else 100,  # random vectors for the trace
            "seed": 0,
            "progress": True,
        }
    )
