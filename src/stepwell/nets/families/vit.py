"""Vision transformers, whose depths are their numbers of blocks: ViT-B/16, and a small one."""

from typing import Any

from torch import nn
from torchvision.models.vision_transformer import VisionTransformer

from stepwell.nets.decisions.experts import with_experts
from stepwell.nets.families.builder import Stem

FAMILY = {str(n): (n,) for n in range(1, 13)}
SMALL = {str(n): (n,) for n in range(1, 7)}
STAGES = ("encoder.layers",)


def vit_b(
    *, num_classes: int = 1000, image_size: int = 224, stem: Stem = "imagenet", dropout: float = 0.0,
    **mixture: Any,
) -> nn.Module:  # fmt: skip
    """torchvision's ViT-B/16; with `stem="small"` its patches have 4×4 pixels.

    `mixture` are the arguments of `with_experts`.
    """
    patch = 4 if stem == "small" else 16
    if image_size % patch:
        raise ValueError(f"images of {image_size} pixels are no multiple of the patches' {patch}")
    module = VisionTransformer(
        image_size, patch, 12, 12, 768, 3072, num_classes=num_classes, dropout=dropout
    )
    return with_experts(module, **mixture)


def vit6(
    *, num_classes: int = 10, image_size: int = 32, dropout: float = 0.0, **mixture: Any
) -> nn.Module:
    """torchvision's ViT with 6 blocks of 96 channels, for small images.

    Patches have 4×4 pixels, of images below 16 pixels 2×2. `mixture` are the arguments of
    `with_experts`.
    """
    patch = 4 if image_size >= 16 else 2
    if image_size % patch:
        raise ValueError(f"images of {image_size} pixels are no multiple of the patches' {patch}")
    module = VisionTransformer(
        image_size, patch, 6, 3, 96, 384, num_classes=num_classes, dropout=dropout
    )
    return with_experts(module, **mixture)
