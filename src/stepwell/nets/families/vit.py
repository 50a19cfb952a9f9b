"""Vision transformers: torchvision's ViT-B/16, whose depths are its numbers of blocks."""

from torchvision.models.vision_transformer import VisionTransformer

from stepwell.nets.families.builder import Stem

FAMILY = {str(n): (n,) for n in range(1, 13)}
STAGES = ("encoder.layers",)


def vit_b(
    *, num_classes: int = 1000, image_size: int = 224, stem: Stem = "imagenet", dropout: float = 0.0
) -> VisionTransformer:
    """torchvision's ViT-B/16; with `stem="small"` its patches have 4×4 pixels."""
    patch = 4 if stem == "small" else 16
    if image_size % patch:
        raise ValueError(f"images of {image_size} pixels are no multiple of the patches' {patch}")
    return VisionTransformer(
        image_size, patch, 12, 12, 768, 3072, num_classes=num_classes, dropout=dropout
    )
