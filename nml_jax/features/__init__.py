"""A checkpoint and a data set -> features on disk.

store   the files: x.npy, y.npy, manifest.json; written whole, checked when opened
files   embeddings and labels that somebody has already: .npz, .safetensors, .parquet
run     the stage: encodes the splits of a data set, clean and in augmented views
"""
