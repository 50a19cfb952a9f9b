"""Residual networks: torchvision's family and the CIFAR family, as families of nested depths.

ResNet-18 and 34 have basic blocks; 26, 50 and deeper have bottlenecks, so 18 and 50 share no weight.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from stepwell.nets.decisions.kernels import with_kernels
from stepwell.nets.decisions.pixels import MASKED
from stepwell.nets.decisions.skipping import GATED, Gated
from stepwell.nets.families.builder import Stem
from stepwell.types import Images, Logits

BASIC = {"18": (2, 2, 2, 2), "34": (3, 4, 6, 3)}
BOTTLENECK = {"26": (2, 2, 2, 2), "50": (3, 4, 6, 3), "101": (3, 4, 23, 3), "152": (3, 8, 36, 3)}
#: 6n + 2 layers for n blocks a stage (He et al. 2016, section 4.2).
CIFAR = {str(6 * n + 2): (n, n, n) for n in range(1, 19)}

#: Gates of all blocks: none, one for each image, or one for each position.
Gates = bool | Literal["pixels"]

STAGES = ("layer1", "layer2", "layer3", "layer4")
CIFAR_STAGES = STAGES[:3]
#: Half the channels in the last stage, or the last two: students for grafting (Shen et al. 2021).
SLIM, SLIMMER = (16, 32, 32), (16, 16, 32)


def resnet(
    block: type[BasicBlock | Bottleneck],
    blocks: Sequence[int],
    *,
    num_classes: int = 1000,
    stem: Stem = "imagenet",
    zero_init_residual: bool = True,
    gates: Gates = False,
    **mixed: Any,
) -> nn.Module:
    """torchvision's ResNet; with `stem="small"` a 3×3 stem of stride 1 for images of about 32 pixels.

    The last BatchNorm of every residual block starts at zero (Goyal et al. 2017, section 5.1), so a
    block that a sub-net newly enters starts as the identity.

    With `gates`, every block has a gate by which an image may skip it (`nets.decisions.skipping`); with
    "pixels", a mask of the positions that run it (`nets.decisions.pixels`).
    `mixed` are the arguments of `with_kernels`, for networks without gates.
    """
    check_options(gates, mixed)
    net = ResNet(
        block_of(block, gates),
        list(blocks),
        num_classes,
        zero_init_residual=zero_init_residual,
    )
    if stem == "small":
        net.conv1 = nn.Conv2d(3, 64, kernel_size=3, padding=1, bias=False)
        nn.init.kaiming_normal_(net.conv1.weight, mode="fan_out", nonlinearity="relu")
        net.maxpool = nn.Identity()
    return with_kernels(net, **mixed)


def block_of(
    plain: type[BasicBlock | Bottleneck], gates: Gates
) -> type[BasicBlock | Bottleneck | Gated]:
    """The class of the blocks with these gates; ValueError for gates that there are not."""
    if gates not in (True, False, "pixels"):
        raise ValueError(f"gates={gates!r}: True, False or 'pixels'")
    return plain if not gates else MASKED[plain] if gates == "pixels" else GATED[plain]


def check_options(gates: Gates, mixed: Mapping[str, Any]) -> None:
    """Refuse blocks with gates and mixed kernels at once."""
    if gates and mixed.get("kernels"):
        raise ValueError("a block has gates or mixed kernels: leave out gates=True or kernels=")


def cifar_resnet(blocks: Sequence[int], *, gates: Gates = False, **options: Any) -> nn.Module:
    """A `CifarResNet`; `options` may be those of `with_kernels`, too, for networks without gates."""
    mixed: dict[str, Any] = {k: options.pop(k) for k in ("kernels", "routing") if k in options}
    check_options(gates, mixed)
    return with_kernels(CifarResNet(blocks, gates=gates, **options), **mixed)


class CifarResNet(nn.Module):
    """ResNet for 32×32 images: 3×3 stem, stages of 16, 32 and 64 channels (He et al. 2016, 4.2).

    Built of torchvision's basic blocks under torchvision's names; where a stage changes the
    resolution, the shortcut is a 1×1 projection.

    Args:
        norm: "batch", or "layer": each image's map is normalised as a whole, with a scale and a shift
            per channel (a GroupNorm of one group). Without batch statistics, equal weights give equal
            predictions in training, too. Studies of distillation need it (Stanton et al. 2021, section
            6.2).
        widths: channels of the three stages.
        gates: as for `resnet`.
        stride: of the first convolution; with 4, the stages have strides 4, 8 and 16 in place of 1, 2
            and 4, as detectors need them.
    """

    def __init__(
        self,
        blocks: Sequence[int],
        *,
        num_classes: int = 10,
        zero_init_residual: bool = True,
        norm: Literal["batch", "layer"] = "batch",
        widths: tuple[int, int, int] = (16, 32, 64),
        gates: Gates = False,
        stride: int = 1,
    ) -> None:
        super().__init__()
        if gates == "pixels" and norm != "batch":
            raise ValueError("masks of positions need BatchNorm: name such a network (resnet20)")
        norm_of = nn.BatchNorm2d if norm == "batch" else partial(nn.GroupNorm, 1)
        first, second, third = widths
        kernel = max(3, 2 * stride - 1)
        self.conv1 = nn.Conv2d(3, first, kernel, stride=stride, padding=kernel // 2, bias=False)
        self.bn1 = norm_of(first)
        self.relu = nn.ReLU(inplace=True)
        stage = partial(_cifar_stage, block_of(BasicBlock, gates), norm_of=norm_of)
        self.layer1 = stage(first, first, blocks[0], stride=1)
        self.layer2 = stage(first, second, blocks[1], stride=2)
        self.layer3 = stage(second, third, blocks[2], stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(third, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, BasicBlock) and zero_init_residual:
                nn.init.zeros_(module.bn2.weight)

    def forward(self, x: Images) -> Logits:
        """Images (batch, 3, height, width) to logits (batch, classes)."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(self.avgpool(x).flatten(1))


def _cifar_stage(
    block: type[BasicBlock], width_in: int, width: int, blocks: int, *, stride: int,
    norm_of: Callable[[int], nn.Module],
) -> nn.Sequential:  # fmt: skip
    shortcut: Callable[[Tensor], Tensor] | None = None
    if stride != 1 or width_in != width:
        shortcut = nn.Sequential(
            nn.Conv2d(width_in, width, kernel_size=1, stride=stride, bias=False), norm_of(width)
        )
    first = block(width_in, width, stride, shortcut, norm_layer=norm_of)
    others = (block(width, width, norm_layer=norm_of) for _ in range(blocks - 1))
    return nn.Sequential(first, *others)
