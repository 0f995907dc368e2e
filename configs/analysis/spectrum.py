"""SVE and LSVR of one task's test features (the papers' §3; NMTune's Fig. 3).

    python -m nml_jax.main --config=configs/analysis/spectrum.py --workdir=runs/spectrum \
        --config.inputs.features=runs/features --config.task.name=cifar10

Hardware: the host's CPU. Time: a second for 10,000 x 512; about a minute for 26,000 x 2048 on two busy cores.
Expected: SVE 7.100 and LSVR 3.497 for the papers' IN-1K ResNet-50 at γ = 0 on CIFAR-10 (from their plotted spectra).
"""

from ml_collections import ConfigDict

from nml_jax.core.errors import UserError


def get_config(arg: str | None = None) -> ConfigDict:
    """The config; "smoke" is the same one, since the features alone decide how large the work is."""
    if arg not in (None, "smoke"):
        raise UserError(f"Unknown config argument {arg!r}; valid: none, or smoke, as in spectrum.py:smoke.")
    return ConfigDict(
        {
            "stage": "analysis",
            "method": "spectrum",
            "inputs": {"features": ""},
            "task": {"name": "", "suite": "id"},  # suite: id, ood or source
            "split": "test",
            "label": "",  # empty: the first label of the features
            "preprocess": "official",  # official, centred or none
            "progress": True,
        }
    )
