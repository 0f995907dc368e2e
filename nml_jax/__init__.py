"""Noisy Model Learning in JAX.

Noisy records go in, a pre-trained encoder comes out, its features are stored once, heads are tuned on
them, spectra explain them, a report compares them with the papers; every arrow is a file on disk.

core      what every stage stands on: plug-ins, mesh, training loop, checkpoints, artefacts
noise     clean supervision -> noisy supervision
data      records -> batches
models    Linen encoders
pretrain  an encoder from noisy supervision
features  a checkpoint and a data set -> features on disk
tune      heads on stored features: linear probe, MLP, NMTune
analysis  singular value spectra of features
report    result files -> figures, tables and an HTML page
study     a study -> jobs -> the stages above, in order, resumable
"""

__version__ = "0.1.0"
