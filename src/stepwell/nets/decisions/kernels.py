"""Convolutions whose kernel is mixed for each example: CondConv and dynamic convolution.

y = x * (sum over kernels i of r_i(x) · W_i)

CondConv (Yang et al. 2019): r = sigmoid(R · mean of x over positions). Dynamic convolution (Chen et al.
2020): r = softmax(two layers on that mean, divided by a temperature).
"""

from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import conv2d, relu
from torchvision.models.resnet import BasicBlock, Bottleneck

from stepwell.nets.decisions.deciding import Deciding, deciding_parts, drawn_anew, like_block
from stepwell.ranges import POSITIVE, check_choice, check_number

#: condconv: sigmoids, in the last stage. dynamic: attention, in all blocks.
Routing = Literal["condconv", "dynamic"]
Maps = Float[Tensor, "batch _ _ _"]
Shares = Float[Tensor, "batch kernels"]
#: Examples whose kernels are mixed at once, at most, and the bytes of these kernels.
EXAMPLES, CACHE = 8, 2**21
#: Positions, and values, of an image's maps below which a CPU convolves it faster in float32 than in
#: bfloat16.
POSITIONS, VALUES = 256, 2**14


class MixedConv2d(Deciding):
    """A convolution with several kernels, mixed by the input.

    Args:
        conv: the kernels are like its own, with random values.
        kernels: number of kernels.

    Raises:
        ValueError: fewer than two kernels; no such routing.
    """

    in_graphs = MappingProxyType(
        dict.fromkeys(("onnx", "pt2"), "every kernel of a mixed convolution, which takes longer")
    )

    def __init__(self, conv: nn.Conv2d, kernels: int, routing: Routing) -> None:
        super().__init__()
        if not isinstance(kernels, int) or kernels < 2:
            raise ValueError(
                f"a mixed convolution takes a whole number of kernels, 2 or more, not {kernels!r}"
            )
        check_choice("routing", routing, Routing)
        assert (conv.bias, conv.groups, conv.padding_mode) == (None, 1, "zeros")
        self.kind = routing
        self.options: dict[str, Any] = {
            name: getattr(conv, name) for name in ("stride", "padding", "dilation")
        }
        self.kernels = kernels
        # kernel by kernel: (kernels · channels out, channels in, height, width)
        self.weight = nn.Parameter(torch.cat([drawn_anew(conv.weight) for _ in range(kernels)]))
        channels = conv.in_channels
        self.routing = (
            nn.Linear(channels, kernels, bias=False)
            if routing == "condconv"
            else nn.Sequential(
                nn.Linear(channels, max(1, channels // 4)),
                nn.ReLU(),
                nn.Linear(max(1, channels // 4), kernels),
            )
        )

    def shares(self, x: Maps, temperature: float = 1.0) -> Shares:
        """The weights of the kernels for each example; CondConv has no temperature.

        ValueError for a temperature that is not positive.
        """
        check_number("the temperature of mixed kernels is", temperature, POSITIVE)
        scores = self.routing(x.mean((2, 3)))
        shares: Tensor = (
            scores.sigmoid() if self.kind == "condconv" else (scores / temperature).softmax(1)
        )
        return shares

    def run(self, x: Maps, shares: Shares) -> Maps:
        """Convolve each example with its own kernel.

        The kernels of a few examples are mixed at once: those of more would leave the processor's
        cache. The examples are one grouped convolution, with a group for each; maps whose channels are
        last in memory would be copied for that, and are convolved one by one. A graph that is exported
        runs every kernel instead, because it has one number of groups for all batches. On CPUs, small
        maps are convolved in float32 whatever autocast says.
        """
        if torch.compiler.is_compiling():
            every = conv2d(x, self.weight, **self.options)
            every = every.unflatten(1, (self.kernels, -1))  # (batch, kernels, channels, height, width)
            return (every * shares[:, :, None, None, None]).sum(1)
        if not len(x):
            return conv2d(x, self.weight.chunk(self.kernels)[0], **self.options)
        small = x[0, 0].numel() < POSITIONS or x[0].numel() < VALUES
        if small and x.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
            with torch.autocast("cpu", enabled=False):
                y = self.run(x.to(self.weight.dtype), shares)
            return y.to(torch.get_autocast_dtype("cpu"))
        count = len(x)
        if x.device.type == "cpu":
            count = max(1, min(EXAMPLES, CACHE // (self.weight.nbytes // self.kernels)))
        pieces = zip(x.split(count), shares.to(self.weight.dtype).split(count), strict=True)
        return torch.cat([self._run_at_once(maps, self.mixed(few)) for maps, few in pieces])

    def _run_at_once(self, x: Maps, mixed: Float[Tensor, "filters _ _ _"]) -> Maps:
        """Convolve a few examples with their kernels."""
        count = len(x)
        if x.device.type == "cpu" and not x.is_contiguous():
            pairs = zip(x.split(1), mixed.chunk(count), strict=True)
            return torch.cat([conv2d(example, kernel, **self.options) for example, kernel in pairs])
        y = conv2d(x.reshape(1, -1, *x.shape[2:]), mixed, groups=count, **self.options)
        return y.view(count, -1, *y.shape[2:])

    def mixed(self, shares: Shares) -> Float[Tensor, "filters channels height width"]:
        """The kernels of all examples, example by example."""
        last = not self.weight.is_contiguous()  # channels are last in memory: mix it as it lies
        weight = self.weight.permute(0, 2, 3, 1) if last else self.weight
        mixed = (shares @ weight.reshape(self.kernels, -1)).view(-1, *weight.shape[1:])
        return mixed.permute(0, 3, 1, 2) if last else mixed

    def forward(self, x: Maps) -> Maps:
        """Maps to maps."""
        return self.run(x, self.shares(x))

    def from_plain(self, plain: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Copies of one kernel, and this part's own routing.

        They begin as the plain convolution: softmax sums to one, and sigmoids are near a half.
        """
        kernel = plain.get("weight")
        if kernel is None or len(plain) > 1:
            return dict(plain)
        scale = 2 / self.kernels if self.kind == "condconv" else 1.0
        return {**state, "weight": (kernel * scale).repeat(self.kernels, 1, 1, 1)}


class MixedBlock(nn.Module):
    """A residual block of mixed convolutions.

    It has the children of torchvision's block under their names.
    """

    def forward(
        self, x: Maps, extras: Collection[str] = (), temperature: float = 1.0
    ) -> Maps | tuple[Maps, Mapping[str, Tensor]]:
        """The block's output; with `extras`, also "shares" (batch, convolutions, kernels)."""
        shortcut = self._modules.get("downsample")
        base = x if shortcut is None else shortcut(x)
        shares, y = [], x
        convs = [child for name, child in self.named_children() if name.startswith("conv")]
        for i, conv in enumerate(convs, start=1):
            assert isinstance(conv, MixedConv2d)
            shares.append(conv.shares(y, temperature))
            y = self.get_submodule(f"bn{i}")(conv.run(y, shares[-1]))
            y = relu(y + base if i == len(convs) else y)
        return (y, {"shares": torch.stack(shares, 1)}) if extras else y


def with_kernels(module: nn.Module, *, kernels: int = 0, routing: Routing = "dynamic") -> nn.Module:
    """A ResNet whose blocks mix `kernels` in each convolution (0: as it is); see `MixedConv2d`.

    "condconv" changes the last stage, "dynamic" all blocks. First layer and shortcuts stay plain.
    ValueError for another routing without kernels, and as for `MixedConv2d`.
    """
    if not kernels:
        if routing != "dynamic":
            raise ValueError("routing is of networks with mixed kernels: give their number, too")
        return module
    stages = [child for name, child in module.named_children() if name.startswith("layer")]
    for stage in stages[-1:] if routing == "condconv" else stages:
        for name, block in stage.named_children():
            assert isinstance(block, BasicBlock | Bottleneck)
            convs = {n: c for n, c in block.named_children() if isinstance(c, nn.Conv2d)}
            mixed = {n: MixedConv2d(conv, kernels, routing) for n, conv in convs.items()}
            stage.set_submodule(name, like_block(MixedBlock, block, mixed))
    return module


def kernel_layers(module: nn.Module) -> list[tuple[str, MixedConv2d]]:
    """The mixed convolutions of a network by name, in order."""
    return [(name, part) for name, part in deciding_parts(module) if isinstance(part, MixedConv2d)]
