"""Contrastive image-text pre-training of two small towers on the embedded glyphs and captions, with caption swaps.

python -m nml_jax.main --config=configs/pretrain/glyphs_contrastive.py --workdir=DIR --config.noise.ratio=0.1
"""

from ml_collections import ConfigDict

from configs.pretrain import glyphs_supervised


def get_config(arg: str | None = None) -> ConfigDict:
    c = glyphs_supervised.get_config(arg)
    c.objective = "contrastive"
    c.noise.name = "caption_swap"
    c.embed_dim = 64
    c.text = ConfigDict(
        {
            "name": "text_transformer",
            "tokenizer": "trained",  # on the run's captions; "clip", or the file of its vocabulary: CLIP's own
            "vocab_size": 1024,
            "length": 32,
            "options": {"width": 64, "layers": 1, "heads": 2},
        }
    )
    c.optim = ConfigDict(
        {
            "name": "adamw",
            "learning_rate": 1e-3,
            "b2": 0.98,
            "eps": 1e-6,
            "weight_decay": 0.02,
            "decay": "matrices",
            "warmup_steps": 50,
        }
    )
    # name: info_nce or sigmoid (SigLIP); method: naive, local or chunked, the last with so many texts at a time
    c.loss = ConfigDict({"name": "info_nce", "method": "local", "tile": 512})
    c.eval = ConfigDict(
        {
            "templates": (),  # of class names, ("clip80",) or ("a drawing of {}.", ...); none: training captions
            "prompts_per_class": 20,  # of these captions
            "class_names": "",  # a file with a line for each class, where the data set's own names are not words
            "data": "",  # the labelled data set of zero-shot classification, its split and label; "": the test split
            "split": "",
            "label": "",
            "retrieval": True,  # among the pairs of the test split
        }
    )
    del c.mixing
    if arg != "smoke":
        c.batch_size, c.epochs = 64, 3
    return c
