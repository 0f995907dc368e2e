"""Heads on stored features. One file is one method.

The contract of `nml_jax/tune/<name>.py`:

    make(*, dim, num_classes, **head) -> core.task.Task       the same arguments give the same Task
    views(**head) -> int                                      how many augmented views a step draws; 0 = the clean one
    SWEEPABLE                                                 names in the Task's `frozen` that a sweep may change

`init` and `loss` take a batch {"x": (B, V, D) float32, "y": (B,) integers}, V = max(1, views(**head)); `predict`
takes {"x": (B, D)} and gives the logits (B, C) in evaluation mode. `frozen` is a dict of what the optimiser does not
move. `loss` returns metrics with at least "loss" and "accuracy". An unknown keyword dies as a `UserError` with the
valid names. That the same arguments give the same Task (`functools.cache`) lets hundreds of fits share one compiled
program.

linear_probe  a linear classifier on the clean view
mlp           the NMTune head, cross-entropy alone
nmtune        the NMTune head and its three regularisers
head          the networks
regularizers  consistency, covariance, dominant singular value
polar         singular values by matrix products alone
runs          what one head is trained on, and with what; checked
trainer       fit and predict: many heads at once
program       the compiled functions that it calls
feed          features in device memory, or streamed
memory        how much fits into a device
sweep         which heads a config asks for, and which are chosen by validation
fraction      class-balanced subsets of the training set, and what is held out of them
saved         a tuned head as one safetensors file
run           the stage: features or files -> results.jsonl, heads, predictions
"""
