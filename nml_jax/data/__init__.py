"""Records -> batches.

source     opens a data set by name: anything in TFDS (array_record), or a plug-in of this folder
decode     encoded image bytes -> RGB
augment    training and evaluation transforms by name
pipeline   source -> Grain batches, the same for every number of workers and processes
tokenize   captions -> token ids
glyphs, digits   the embedded data sets

Contract of a data plug-in, `nml_jax/data/<name>.py`:

    def builder(name, data_dir) -> tfds.core.DatasetBuilder

`name` is the full name ("glyphs/pretrain"); the builder prepares itself without a network or TensorFlow,
and `source.open` lets it do so when its data are first asked for. Its records have `image`, `label` and a stable `id`.
"""
