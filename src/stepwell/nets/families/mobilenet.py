"""MobileNetV2: torchvision's network as a family of nested depths, a stage for each width."""

from collections.abc import Sequence
from itertools import accumulate, pairwise

from torchvision.models.mobilenetv2 import MobileNetV2

from stepwell.nets.families.builder import Stem

#: Expansion, width and stride of each stage (Sandler et al. 2018, table 2).
STAGES = ((1, 16, 1), (6, 24, 2), (6, 32, 2), (6, 64, 2), (6, 96, 1), (6, 160, 2), (6, 320, 1))
#: Named by the number of inverted residuals.
FAMILY = {"7": (1,) * 7, "11": (1, 1, 2, 2, 2, 2, 1), "17": (1, 2, 3, 4, 3, 3, 1)}


def mobilenet_v2(
    blocks: Sequence[int], *, num_classes: int = 1000, stem: Stem = "imagenet", dropout: float = 0.2
) -> MobileNetV2:
    """torchvision's MobileNetV2; with `stem="small"` the first two strides are 1, not 2."""
    setting = [
        [expansion, width, count, 1 if stem == "small" and i == 1 else stride]
        for i, ((expansion, width, stride), count) in enumerate(zip(STAGES, blocks, strict=True))
    ]
    net = MobileNetV2(num_classes, inverted_residual_setting=setting, dropout=dropout)
    if stem == "small":
        net.features[0][0].stride = (1, 1)
    return net


def stages(blocks: Sequence[int]) -> tuple[str, ...]:
    """The stages in `features`, behind the first convolution."""
    return tuple(f"features[{a}:{b}]" for a, b in pairwise(accumulate(blocks, initial=1)))
