"""Small members of every family, which its real networks would be too slow to test by."""

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import timm
import torch
from timm.layers import BatchNormAct2d
from timm.models.resnetv2 import ResNetV2
from torch import Tensor, nn
from torch.nn.functional import dropout
from torchvision.models.convnext import CNBlockConfig, ConvNeXt
from torchvision.models.mobilenetv2 import MobileNetV2
from torchvision.models.vgg import VGG, make_layers
from torchvision.models.vision_transformer import VisionTransformer

from stepwell.nets.families import mobilenet, vgg

Net = TypeVar("Net", bound=nn.Module)


class Family(NamedTuple):
    """make: a plain network of so many blocks a stage; stages: of the network of these blocks."""

    make: Callable[[Sequence[int]], nn.Module]
    blocks: tuple[int, ...]
    stages: Sequence[str]
    subnets: dict[str, tuple[int, ...]]
    input_size: tuple[int, ...]


def small_vgg(blocks: Sequence[int]) -> VGG:
    widths: list[str | int] = []
    for width, count in zip((4, 6, 8), blocks, strict=True):
        widths += [width] * count + ["M"]
    with torch.device("meta"):
        net = VGG(make_layers(widths, batch_norm=True), 5, init_weights=False)
    net.features = make_layers(widths, batch_norm=True)
    net.avgpool, net.classifier = nn.AdaptiveAvgPool2d(1), nn.Linear(8, 5)
    return net


def small_mobilenet(blocks: Sequence[int]) -> MobileNetV2:
    setting = [[t, c, n, s] for (t, c, s), n in zip(mobilenet.STAGES, blocks, strict=True)]
    return MobileNetV2(5, width_mult=0.1, inverted_residual_setting=setting)


def small_convnext(blocks: Sequence[int]) -> ConvNeXt:
    setting = [CNBlockConfig(8, 12, blocks[0]), CNBlockConfig(12, None, blocks[1])]
    return ConvNeXt(setting, stochastic_depth_prob=0.3, layer_scale=0.5, num_classes=5)


def small_vit(blocks: Sequence[int], size: int = 16) -> VisionTransformer:
    return VisionTransformer(size, 8, blocks[0], 2, 16, 32, num_classes=5, dropout=0.2)


def small_deit(blocks: Sequence[int], size: int = 16) -> nn.Module:
    return timm.create_model(
        "deit_tiny_patch16_224",
        img_size=size, patch_size=8, embed_dim=16, num_heads=2, depth=blocks[0], num_classes=5,
    )  # fmt: skip


def small_timm_convnext(blocks: Sequence[int]) -> nn.Module:
    return timm.create_model("convnext_atto", depths=blocks, dims=(8, 8, 12, 12), num_classes=5)


def small_swin(blocks: Sequence[int]) -> nn.Module:
    return timm.create_model(
        "swin_tiny_patch4_window7_224",
        img_size=32, embed_dim=8, depths=blocks, num_heads=(1, 2), num_classes=5,
    )  # fmt: skip


def small_timm_resnet(blocks: Sequence[int]) -> nn.Module:
    return ResNetV2(
        layers=blocks, channels=(8, 12), stem_chs=8, basic=True, norm_layer=BatchNormAct2d,
        num_classes=5, drop_rate=0.2,
    )  # fmt: skip


class Mixed(nn.Module):
    """What a path must cope with: functional calls between stages that differ by mode, own parameters
    and buffers, a plain list of blocks, GroupNorm and RMSNorm."""

    def __init__(self, blocks: Sequence[int]) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((6, 1, 1), 0.7))
        self.register_buffer("shift", torch.full((6, 1, 1), 0.1))
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.body = nn.ModuleDict(
            {
                "first": nn.ModuleList(_residual(6, nn.GroupNorm(2, 6)) for _ in range(blocks[0])),
                "second": nn.Sequential(*(nn.Sequential(nn.Linear(6, 6), nn.RMSNorm(6), nn.GELU())
                                          for _ in range(blocks[1]))),
            }
        )  # fmt: skip
        self.out = nn.Linear(6, 5)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = self.stem(x) * self.scale + self.shift
        if mask is not None:
            x = x * mask
        for block in self.body["first"]:
            x = block(x)
        x = dropout(x.mean((2, 3)), 0.2, self.training)
        return self.out(self.body["second"](x))


def _residual(width: int, norm: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(width, width, 3, padding=1), norm, nn.ReLU())


VGG_BLOCKS = (1, 2, 3)
MOBILENET_BLOCKS = (1, 2, 3, 2, 1, 2, 1)
FAMILIES = {
    "vgg": Family(small_vgg, VGG_BLOCKS, vgg.stages(VGG_BLOCKS), {"a": (1, 1, 2), "b": (1, 2, 2)},
                  (3, 8, 8)),
    "mobilenet": Family(small_mobilenet, MOBILENET_BLOCKS, mobilenet.stages(MOBILENET_BLOCKS),
                        {"a": (1, 1, 2, 1, 1, 2, 1), "b": (1, 2, 2, 2, 1, 1, 1)}, (3, 32, 32)),
    "convnext": Family(small_convnext, (2, 3), ("features.1", "features.3"),
                       {"a": (1, 2), "b": (2, 1)}, (3, 16, 16)),
    "vit": Family(small_vit, (4,), ("encoder.layers",), {"2": (2,), "3": (3,)}, (3, 16, 16)),
    "deit": Family(small_deit, (4,), ("blocks",), {"2": (2,), "3": (3,)}, (3, 16, 16)),
    "timm convnext": Family(small_timm_convnext, (1, 1, 3, 1),
                            tuple(f"stages.{i}.blocks" for i in range(4)),
                            {"a": (1, 1, 1, 1), "b": (1, 1, 2, 1)}, (3, 32, 32)),
    "timm swin": Family(small_swin, (2, 2), ("layers.0.blocks", "layers.1.blocks"),
                        {"a": (1, 1), "b": (2, 1)}, (3, 32, 32)),
    "timm resnetv2": Family(small_timm_resnet, (2, 2), ("stages.0.blocks", "stages.1.blocks"),
                            {"a": (1, 1)}, (3, 32, 32)),
    "mixed": Family(Mixed, (2, 3), ("body.first", "body.second"), {"a": (1, 1), "b": (2, 1)},
                    (3, 8, 8)),
}  # fmt: skip


def lively(net: Net) -> Net:
    """Parameters and statistics far from where they start, so that a mixed-up one shows."""
    for name, value in net.named_parameters():
        nn.init.normal_(value, mean=float("norm" in name.lower()), std=0.3)
    for name, value in net.named_buffers():
        if "running" in name:
            nn.init.uniform_(value, 0.5, 1.5)
    return net
