"""What the papers report, as data. All in percent.

Sources: "Understanding and Mitigating the Label Noise in Pre-training on Downstream Tasks" (ICLR 2024, arXiv
2309.17002v2) and its journal version "Impact of Noisy Supervision in Foundation Model Learning" (TPAMI 2025,
arXiv 2403.06869). Each number has one pre-trained model behind it, so none has an error over pre-training.
"""

from typing import NamedTuple

LINKS = (
    ("ICLR 2024, arXiv 2309.17002", "https://arxiv.org/abs/2309.17002"),
    ("TPAMI 2025, arXiv 2403.06869", "https://arxiv.org/abs/2403.06869"),
)
NOISE_RATIOS = (0.0, 0.05, 0.10, 0.20, 0.30)
FIGURE_1 = "ICLR 2024, Fig. 1, read from its vector paths (±0.01)"
PRETRAINED = "ICLR 2024, Table 3; TPAMI 2025, Table 1"


class Curve(NamedTuple):
    """Values (percent) at `NOISE_RATIOS`."""

    objective: str
    encoder: str
    suite: str
    method: str
    values: tuple[float, ...]
    source: str

    @property
    def changes(self) -> tuple[float, ...]:
        """Percentage points relative to γ = 0, for each γ > 0."""
        return tuple(v - self.values[0] for v in self.values[1:])


# Means at 100 % of the training data. ID: 14 data sets, of which SVHN counts twice (the official code loads it
# under the name PatchCamelyon). OOD: the six DomainNet pairs that start from Sketch or Real.
IN1K, YFCC = "ResNet-50, IN-1K", "CLIP ResNet-50, YFCC15M"
ACCURACY = (
    Curve("supervised", IN1K, "id", "linear_probe", (73.54, 74.12, 73.23, 72.61, 71.43), FIGURE_1),
    Curve("supervised", IN1K, "id", "nmtune", (75.06, 74.87, 74.28, 73.71, 72.38), FIGURE_1),
    Curve("supervised", IN1K, "ood", "linear_probe", (31.32, 30.91, 29.93, 28.82, 29.20), FIGURE_1),
    Curve("supervised", IN1K, "ood", "nmtune", (36.27, 35.70, 34.80, 33.91, 33.74), FIGURE_1),
    Curve("contrastive", YFCC, "id", "linear_probe", (65.24, 66.08, 65.44, 64.59, 63.73), FIGURE_1),
    Curve("contrastive", YFCC, "id", "nmtune", (67.34, 67.44, 66.95, 66.47, 65.16), FIGURE_1),
    Curve("contrastive", YFCC, "ood", "linear_probe", (22.12, 21.25, 20.30, 19.22, 18.30), FIGURE_1),
    Curve("contrastive", YFCC, "ood", "nmtune", (26.11, 25.51, 24.69, 23.59, 22.57), FIGURE_1),
)

# ImageNet-1K top-1 accuracy of the encoders themselves: of the classifier (supervised), zero-shot (contrastive).
PRETRAINING = (
    Curve("supervised", IN1K, "pretrain", "", (79.96, 79.18, 78.61, 76.27, 73.11), PRETRAINED),
    Curve("contrastive", YFCC, "pretrain", "", (32.64, 30.86, 29.54, 27.72, 26.53), PRETRAINED),
    Curve("supervised", "ViT-B/16, IN-1K", "pretrain", "", (78.70, 78.13, 77.19, 74.67, 68.12), PRETRAINED),
    Curve(
        "contrastive",
        "CLIP ViT-B/16, YFCC15M + CC12M",
        "pretrain",
        "",
        (45.43, 44.10, 43.22, 40.48, 38.57),
        PRETRAINED,
    ),
)
