"""Linen encoders; a file is an architecture, and its name is its config value.

Contract of `nml_jax/models/<name>.py`:

    def make(**config) -> nn.Module
    Model.__call__(image, *, train) -> (logits, {"features": (B, D), ...})   # an image encoder
    Model.__call__(tokens, *, train) -> {"features": (B, D)}                 # a text encoder (`ENCODES = "text"`)

Parameters are float32; `dtype` is the type of the computation. `num_classes=0` leaves the classifier out:
logits are None.
"""
