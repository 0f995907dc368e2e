"""Heads on stored features. One file is one method.

The contract of `nml_jax/tune/<name>.py`:

    make(*, dim, num_classes, **head) -> core.task.Task       the same arguments give the same Task
    views(**head) -> int                                      how many augmented views a step draws; 0 = the clean one

`init` and `loss` take a batch {"x": (B, V, D) float32, "y": (B,) integers}, V = max(1, views(**head)); `predict`
takes {"x": (B, D)} and gives the logits (B, C) in evaluation mode. `loss` returns metrics with at least "loss" and
"accuracy". An unknown keyword dies as a `UserError` with the valid names. That the same arguments give the same
Task (`functools.cache`) lets hundreds of fits share one compiled program.

linear_probe  a linear classifier on the clean view
mlp           the NMTune head, cross-entropy alone
nmtune        the NMTune head and its three regularisers
head          the networks
regularizers  consistency, covariance, dominant singular value
trainer       fit and predict on features in device memory
fraction      class-balanced subsets of the training set
run           the stage: features -> results.jsonl
"""
