"""Records -> batches.

source     opens a data set by name: anything in TFDS (array_record), or a plug-in of this folder
decode     encoded image bytes -> RGB, no more than is asked for (jpeg, fast_jpeg)
augment    training and evaluation transforms by name (rand_augment)
pipeline   source -> Grain batches, the same for every number of workers and processes
mixing     mixup and CutMix, on the device
columns    labels, ids and captions, kept beside the data (texts)
inference  a function of every image of a split, in order
tokenize   captions -> token ids
glyphs, digits   the embedded data sets; image-text pairs from the web: nml_jax/convert

Contract of a data plug-in, `nml_jax/data/<name>.py`:

    def builder(name, data_dir) -> tfds.core.DatasetBuilder

`name` is the full name ("glyphs/pretrain"); the builder prepares itself without a network or TensorFlow,
and `source.open` lets it do so when its data are first asked for. Its records have `image`, `label` and a stable `id`.
"""
