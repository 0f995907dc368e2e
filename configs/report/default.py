"""Figures, tables, findings and one HTML page from a study's results.

    python -m nml_jax.main --config=configs/report/default.py --workdir=runs/report \
        --config.inputs.results=runs/study/results.jsonl

Hardware: the host's CPU. Time: two to five seconds.
Expected: runs/report/index.html, which opens in any browser, and results.csv, summary.csv, findings.json, figures/.
"""

from ml_collections import ConfigDict

from nml_jax.core.errors import UserError


def get_config(arg: str | None = None) -> ConfigDict:
    """The config; "smoke" is the same one, since the results alone decide how large the work is."""
    if arg not in (None, "smoke"):
        raise UserError(f"Unknown config argument {arg!r}; valid: none, or smoke, as in default.py:smoke.")
    return ConfigDict(
        {
            "stage": "report",
            "inputs": {"results": ""},
            "title": "Noisy Model Learning: a study",
            "progress": True,
        }
    )
