"""CLIP's vision transformer (Radford et al. 2021), layer by layer as OpenAI's and open_clip's.

It is `models.vit` with the tokens normalised before the first block, patches without a bias, and open_clip's initial
values. `project` is CLIP's own: the embedding of the class token, without a bias.
"""

from nml_jax.models import options, transformer, vit

ENCODES = "image"
# (width, layers, heads, patch); the embeddings have 512, 512 and 768 dimensions
VARIANTS = {
    "vit_b32": (768, 12, 12, 32),
    "vit_b16": (768, 12, 12, 16),
    "vit_l14": (1024, 24, 16, 14),
}


def make(
    *,
    variant: str = "",
    num_classes: int = 0,
    width: int = 0,
    layers: int = 0,
    heads: int = 0,
    patch: int = 0,
    activation: str = "gelu",
    dropout: float = 0.0,
    drop_path: float = 0.0,
    remat: str = "none",
    project: int = 0,
    attention_implementation: str = "",
    dtype: str = "float32",
) -> vit.VisionTransformer:
    """CLIP's image tower by `variant` (a key of VARIANTS), or by its own `width`, `layers`, `heads` and `patch`.

    `activation` is "gelu" (open_clip's default) or "quick_gelu" (OpenAI's weights, and what is trained from them).
    The other options are those of `models.vit.make`.

    Raises:
      UserError: an option that is not valid, or options that exclude each other.
    """
    width, layers, heads, patch = vit.shape(variant, VARIANTS, width, layers, heads, patch)
    model = vit.make(
        num_classes=num_classes,
        width=width,
        layers=layers,
        heads=heads,
        patch=patch,
        dropout=dropout,
        drop_path=drop_path,
        remat=remat,
        project=project,
        attention_implementation=attention_implementation,
        dtype=dtype,
    )
    return model.clone(
        clip=True, activation=options.choice(activation, transformer.ACTIVATIONS, "activation")
    )
