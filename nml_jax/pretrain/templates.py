"""Prompt templates of zero-shot classification, "{}" standing for the class's name.

The two ensembles are those that CLIP was evaluated with on ImageNet (Radford et al. 2021, section 3.1.4): all 80, and
the 7 of them that were found to do as well.
"""

CLIP_7 = (
    "itap of a {}.",
    "a bad photo of the {}.",
    "a origami {}.",
    "a photo of the large {}.",
    "a {} in a video game.",
    "art of the {}.",
    "a photo of the small {}.",
)

# Kinds of picture that come with "a" and with "the"; CLIP's list has both for each.
_BOTH = (
    "art of {a} {}.",
    "a bad photo of {a} {}.",
    "a black and white photo of {a} {}.",
    "a blurry photo of {a} {}.",
    "a bright photo of {a} {}.",
    "a close-up photo of {a} {}.",
    "a cropped photo of {a} {}.",
    "a dark photo of {a} {}.",
    "a doodle of {a} {}.",
    "a drawing of {a} {}.",
    "a good photo of {a} {}.",
    "a jpeg corrupted photo of {a} {}.",
    "a low resolution photo of {a} {}.",
    "a painting of {a} {}.",
    "a photo of {a} {}.",
    "a photo of {a} clean {}.",
    "a photo of {a} cool {}.",
    "a photo of {a} dirty {}.",
    "a photo of {a} hard to see {}.",
    "a photo of {a} large {}.",
    "a photo of {a} nice {}.",
    "a photo of {a} small {}.",
    "a photo of {a} weird {}.",
    "a pixelated photo of {a} {}.",
    "a rendering of {a} {}.",
    "a rendition of {a} {}.",
    "a sculpture of {a} {}.",
    "a sketch of {a} {}.",
    "a tattoo of {a} {}.",
    "graffiti of {a} {}.",
    "itap of {a} {}.",
    "{a} cartoon {}.",
    "{a} embroidered {}.",
    "{a} origami {}.",
    "{a} plastic {}.",
    "{a} plushie {}.",
    "{a} toy {}.",
    "{a} {} in a video game.",
)

CLIP_80 = (
    *(template.replace("{a}", article) for template in _BOTH for article in ("a", "the")),
    "a photo of many {}.",
    "a photo of my {}.",
    "a photo of one {}.",
    "itap of my {}.",
)

SETS = {"clip7": CLIP_7, "clip80": CLIP_80}
