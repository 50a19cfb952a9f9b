"""DenseNet-201 that holds sub-nets as deep as DenseNet-169 and 121.

torchvision's three differ in every width behind the third transition. Here the layers behind a
shallower dense block read the first columns of their weights. The full net is torchvision's.
"""

from collections import OrderedDict
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from stepwell.nets.families.builder import Stem
from stepwell.types import Images, Logits

FAMILY = {"121": (6, 12, 24, 16), "169": (6, 12, 32, 32), "201": (6, 12, 48, 32)}
STAGES = tuple(f"features.denseblock{i}" for i in range(1, 5))
#: (batch, channels, height, width)
Maps = Float[Tensor, "batch _ _ _"]


class SlicedConv(nn.Conv2d):
    """A convolution that reads as many columns of its weight as its input has channels."""

    def forward(self, input: Maps) -> Maps:
        """(batch, up to in_channels, height, width) to (batch, out_channels, ...)."""
        return self._conv_forward(input, self.weight[:, : input.shape[1]], self.bias)


class SlicedLinear(nn.Linear):
    """A linear layer that reads as many columns of its weight as its input has features."""

    def forward(self, input: Float[Tensor, "batch _"]) -> Float[Tensor, "batch {self.out_features}"]:
        """Up to `in_features` to `out_features`."""
        return F.linear(input, self.weight[:, : input.shape[1]], self.bias)


class SlicedNorm(nn.BatchNorm2d):
    """A BatchNorm that uses, and updates, the values of as many channels as its input has."""

    def forward(self, input: Maps) -> Maps:
        """(batch, up to num_features, height, width), normalised."""
        n, rate = input.shape[1], self.momentum
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        if self.training:
            self.num_batches_tracked.add_(1)
            if rate is None:  # a plain average
                rate = 1.0 / float(self.num_batches_tracked)
        mean, var = self.running_mean[:n], self.running_var[:n]
        weight, bias = self.weight[:n], self.bias[:n]
        return F.batch_norm(input, mean, var, weight, bias, self.training, rate or 0.0, self.eps)


class DenseLayer(nn.Module):
    """Appends `growth` channels to its input: norm, 1×1, norm, 3×3 (Huang et al. 2017, sec. 3)."""

    def __init__(self, width: int, growth: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(width)
        self.conv1 = nn.Conv2d(width, 4 * growth, kernel_size=1, bias=False)
        self.norm2 = nn.BatchNorm2d(4 * growth)
        self.conv2 = nn.Conv2d(4 * growth, growth, kernel_size=3, padding=1, bias=False)

    def forward(self, x: Maps) -> Maps:
        """(batch, width, height, width) to (batch, width + growth, ...)."""
        new = self.conv1(F.relu(self.norm1(x)))
        return torch.cat([x, self.conv2(F.relu(self.norm2(new)))], 1)


class DenseNet(nn.Module):
    """torchvision's DenseNet; the layers behind a dense block also take a shorter block's output.

    `growth` is the number of channels that a layer adds. The "small" stem has a 3×3 convolution of
    stride 1 and no pooling.
    """

    def __init__(
        self,
        blocks: Sequence[int],
        *,
        num_classes: int = 1000,
        stem: Stem = "imagenet",
        growth: int = 32,
    ) -> None:
        super().__init__()
        width, small = 2 * growth, stem == "small"
        first = (3, 1, 1) if small else (7, 2, 3)
        parts: OrderedDict[str, nn.Module] = OrderedDict(
            conv0=nn.Conv2d(3, width, *first, bias=False),
            norm0=nn.BatchNorm2d(width),
            relu0=nn.ReLU(inplace=True),
            pool0=nn.Identity() if small else nn.MaxPool2d(3, 2, 1),
        )
        for i, layers in enumerate(blocks, start=1):
            block: list[nn.Module] = [DenseLayer(width + j * growth, growth) for j in range(layers)]
            named = OrderedDict((f"denselayer{j}", layer) for j, layer in enumerate(block, start=1))
            parts[f"denseblock{i}"] = nn.Sequential(named)
            width += layers * growth
            if i < len(blocks):
                parts[f"transition{i}"] = _transition(width, width // 2)
                width //= 2
        parts["norm5"] = SlicedNorm(width)
        self.features = nn.Sequential(parts)
        self.classifier = SlicedLinear(width, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, x: Images) -> Logits:
        """Images (batch, 3, height, width) to logits (batch, classes)."""
        x = F.relu(self.features(x))
        return self.classifier(F.adaptive_avg_pool2d(x, 1).flatten(1))


def _transition(width_in: int, width: int) -> nn.Sequential:
    return nn.Sequential(
        OrderedDict(
            norm=SlicedNorm(width_in),
            relu=nn.ReLU(inplace=True),
            conv=SlicedConv(width_in, width, kernel_size=1, bias=False),
            pool=nn.AvgPool2d(2),
        )
    )
