"""Linen encoders; a file is an architecture, and its name is its config value.

Contract of `nml_jax/models/<name>.py`:

    def make(**config) -> nn.Module
    Model.__call__(image, *, train) -> (logits, {"features": (B, D), ...})   # an image encoder
    Model.__call__(tokens, *, train) -> {"features": (B, D)}                 # a text encoder (`ENCODES = "text"`),
                                                                             # (B, L) int32 with 0 as padding

    # nml_jax/models/<name>_torch.py, beside an architecture that torchvision or timm has
    from_torch(state_dict) -> (params, stats)      # `torch_file.read` gives the state dict in a file
    to_torch(params, stats) -> state_dict          # the inverse
    # both towers of a CLIP model at once, in OpenAI's and open_clip's names: nml_jax/models/clip_torch.py

With `train=True`, `apply` needs mutable=["batch_stats"] where the model has BatchNorm, and rngs={"dropout": key} where
an option makes it draw (drop_path, dropout, drop_rate). Within a jax.shard_map over the batch all devices are given the
same key and batch_stats: the layers then compute what jit computes of the whole batch (`models/shard.py`).

Parameters are float32; `dtype` is the type of the computation. `num_classes=0` leaves the classifier out:
logits are None. `project` above 0 makes the features an embedding of so many dimensions, not normalised.
"""
