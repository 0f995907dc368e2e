"""What the singular values of stored features say: SVE and LSVR.

spectrum  singular values, their entropy (SVE), the share of the largest (LSVR)
run       the stage: features on disk -> `spectrum.npz` and a line in `results.jsonl`
"""
