"""Clean supervision -> noisy supervision. One file is one noise model; NumPy, and SciPy's normal distribution.

The contract of `nml_jax/noise/<name>.py`:

    CORRUPTS: tuple[str, ...]      what it takes: "labels", "captions" or both

    corrupt(labels, *, num_classes, ratio, seed, ids=None, ...) -> (N,) int64       if it takes labels
    corrupt(captions, *, ratio, seed, ids=None, ...) -> (N,) captions               if it takes captions
    sources(captions, *, ratio, seed, ids=None, ...) -> (N,) int64                  the row each caption comes from

It may also have:

    NEEDS: tuple[str, ...]         what `corrupt` takes beyond the labels, by name, from the data set:
                                   "features", (N, d) numbers of each sample; "class_names", C strings
    check_options(*, num_classes, ...)     raises for options that are wrong whatever the data are; without it
                                           `corrupt` is tried on a label of each class

What holds for every noise model:

* `ratio` is the realised fraction, exactly (not with `mode="official"`, the authors' scripts, where there is one):
  round(ratio * n_c) labels change in each class c, round(ratio * N) captions. A half goes to the even neighbour. No
  changed label is the old one, no changed caption has the old text. (Human labels: round(ratio * N) in all, because
  people err more in some classes than in others.)
* Nested: for one seed the samples corrupted at 5 % are among those corrupted at 10 %, and a corrupted sample has
  the same wrong label at every ratio, so a curve over the ratio compares the same samples. (A caption's partner
  changes with the ratio: the captions are exchanged among the chosen pairs.)
* A pure function of (seed, sample id). Rows in another order, with their ids, give the same result in that order;
  neither host, worker, epoch nor NumPy version matters. `ids` are N different integers or strings; left out, they
  are the row numbers.
* What is given wrongly dies as a `UserError` before anything is corrupted.

choice       which samples are corrupted, and the checks of labels and ratio
keys         (seed, stream, id) -> 64 random bits
relations    which class is mistaken for which: groups, pairs, a matrix, or a file of them
label_file   labels or a matrix that others stored: .npz, .npy, .csv, .parquet
record       noise.npz: clean and noisy supervision on disk, for this program and any baseline
"""
