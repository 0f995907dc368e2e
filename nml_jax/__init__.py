"""Noisy Model Learning in JAX.

Noisy records go in, a pre-trained encoder comes out, its features are stored once, heads are tuned on
them, spectra explain them, a report compares them with the papers; every arrow is a file on disk.

core        what every stage stands on: plug-ins, mesh, training loop, checkpoints, artefacts
noise       clean supervision -> noisy supervision
data        records -> batches
convert     image-text pairs as they are downloaded -> data sets
models      Linen encoders
pretrain    an encoder from noisy supervision
features    a checkpoint and a data set -> features on disk
tune        heads on stored features: linear probe, MLP, NMTune
analysis    singular value spectra of features
report      result files -> figures, tables and an HTML page
study       a study -> jobs -> the stages above, in order, resumable
estimators  NMTune and the linear probe for scikit-learn: embeddings and labels in, predictions out

The estimators, and `load_head` for what they and the stage `tune` save, are also here; JAX is imported when one of
them is asked for.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nml_jax.estimators import LinearProbeClassifier, NMTuneClassifier, NMTuneRegressor
    from nml_jax.tune.saved import load as load_head

__version__ = "0.1.0"
__all__ = ["LinearProbeClassifier", "NMTuneClassifier", "NMTuneRegressor", "load_head"]


def __getattr__(name: str) -> Any:
    if name == "load_head":
        return importlib.import_module("nml_jax.tune.saved").load
    if name in __all__:
        return getattr(importlib.import_module("nml_jax.estimators"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
