"""The small CNNs that classify pictures of complex networks (Xin, Zhang, Shao 2020).

The paper's reads a picture's cells by their place. `cnc_pooled` is ours: its head sees what the maps
hold anywhere, and statistics of the cells with nodes in them, which tell real networks apart.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn

#: The paper's channels for synthetic networks, and more.
PAPER, WIDE = (3, 5), (16, 32)
FAMILY = {"2": (1, 1)}
STAGES = ("features.stage1", "features.stage2")
#: Height and width of a picture.
SIZE = 48


def picture_cnn(
    channels: Sequence[int], *, num_classes: int = 2, image_size: int = SIZE, dropout: float = 0.5,
    hidden: int = 50, norm: bool = False,
) -> nn.Sequential:  # fmt: skip
    """Two convolutions of 5×5, each before a pooling that halves the picture; two linear layers.

    `norm`: a batch norm behind each convolution. ValueError for a picture of less than 8 pixels.
    """
    stages = OrderedDict[str, nn.Module](
        (name, nn.Sequential(nn.Sequential(*layers)))
        for name, layers in _stages(channels, norm, image_size).items()
    )
    width = channels[-1]
    side = image_size // 2 ** len(channels)
    head = nn.Sequential(
        nn.Flatten(), nn.Linear(width * side**2, hidden), nn.ReLU(), nn.Dropout(dropout),
        nn.Linear(hidden, num_classes),
    )  # fmt: skip
    return nn.Sequential(OrderedDict(features=nn.Sequential(stages), classifier=head))


def _stages(channels: Sequence[int], norm: bool, image_size: int) -> OrderedDict[str, list[nn.Module]]:
    """The layers of each stage, by its name."""
    if image_size < 8:
        raise ValueError(f"pictures of {image_size} pixels are too small: use --size 8 or more")
    stages, width = OrderedDict[str, list[nn.Module]](), 3
    for number, more in enumerate(channels, 1):
        convolution = nn.Conv2d(width, more, 5, padding=2, bias=not norm)
        norms = [nn.BatchNorm2d(more)] * norm
        stages[f"stage{number}"], width = [convolution, *norms, nn.ReLU(), nn.MaxPool2d(2)], more
    return stages


class LitCells(nn.Module):
    """Pictures (batch, 3, size, size) to the same and their statistics (batch, 10).

    The logarithm of the number of lit cells, in which the first channel is above its darkest, and mean,
    standard deviation and largest value of each channel over them.
    """

    def forward(
        self, x: Float[Tensor, "batch 3 size size"]
    ) -> tuple[Tensor, Float[Tensor, "batch 10"]]:
        lit = (x[:, :1] > x[:, :1].amin((2, 3), keepdim=True)).to(x.dtype)
        count = lit.sum((2, 3)).clamp(min=1)
        mean = (x * lit).sum((2, 3)) / count
        variance = ((x - mean[..., None, None]).square() * lit).sum((2, 3)) / count
        return x, torch.cat([count.log(), mean, (variance + 1e-6).sqrt(), x.amax((2, 3))], 1)


class OfMaps(nn.Sequential):
    """Layers of the maps, beside which the statistics stay."""

    def forward(self, values: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        maps, statistics = values
        return super().forward(maps), statistics


class PooledHead(nn.Module):
    """Mean and largest value of each map, and the statistics, to logits by two linear layers."""

    def __init__(self, channels: int, num_classes: int, hidden: int, dropout: float) -> None:
        super().__init__()
        inputs = 2 * channels + 10
        self.norm = nn.BatchNorm1d(inputs)
        self.hidden = nn.Linear(inputs, hidden)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(hidden, num_classes)

    def forward(self, values: tuple[Tensor, Tensor]) -> Float[Tensor, "batch classes"]:
        maps, statistics = values
        pooled = torch.cat([maps.mean((2, 3)), maps.amax((2, 3)), statistics], 1)
        logits: Tensor = self.fc(self.dropout(torch.relu(self.hidden(self.norm(pooled)))))
        return logits


def pooled_cnn(
    *, num_classes: int = 2, image_size: int = SIZE, dropout: float = 0.5, hidden: int = 50
) -> nn.Sequential:
    """The convolutions of `cnc_wide` with a head that knows no places; errors as for `picture_cnn`."""
    stages = OrderedDict[str, nn.Module](
        (name, nn.Sequential(OfMaps(*layers)))
        for name, layers in _stages(WIDE, True, image_size).items()
    )
    head = PooledHead(WIDE[-1], num_classes, hidden, dropout)
    return nn.Sequential(
        OrderedDict(statistics=LitCells(), features=nn.Sequential(stages), classifier=head)
    )


#: By name: the paper's network, one of more channels with norms, and that with a head without places.
NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "cnc": partial(picture_cnn, PAPER),
    "cnc_wide": partial(picture_cnn, WIDE, norm=True),
    "cnc_pooled": pooled_cnn,
}
