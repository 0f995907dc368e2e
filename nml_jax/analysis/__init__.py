"""What stored features, and heads tuned on them, look like from inside. One file is one analysis.

The contract of `nml_jax/analysis/<name>.py`:

    check(config)                     raises a UserError for what can be seen to be wrong before any work
    analyse(config, workdir) -> dict  the work: a line for `results.jsonl`; files of its own go into `workdir`

spectrum   singular values of features, their entropy (SVE), the share of the largest (LSVR) -> spectrum.npz
curvature  top eigenvalues and trace of the Hessian of a tuned head's loss
hessian    Lanczos and Hutchinson, on products with the Hessian alone
run        the stage
"""
