"""The small CNN that classifies pictures of complex networks (Xin, Zhang, Shao 2020)."""

from collections import OrderedDict
from collections.abc import Sequence
from functools import partial

from torch import nn

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
    if image_size < 8:
        raise ValueError(f"pictures of {image_size} pixels are too small: use --size 8 or more")
    stages, width = OrderedDict[str, nn.Module](), 3
    for number, more in enumerate(channels, 1):
        convolution = nn.Conv2d(width, more, 5, padding=2, bias=not norm)
        layers = [convolution, *([nn.BatchNorm2d(more)] * norm), nn.ReLU(), nn.MaxPool2d(2)]
        stages[f"stage{number}"], width = nn.Sequential(nn.Sequential(*layers)), more
    side = image_size // 2 ** len(channels)
    head = nn.Sequential(
        nn.Flatten(), nn.Linear(width * side**2, hidden), nn.ReLU(), nn.Dropout(dropout),
        nn.Linear(hidden, num_classes),
    )  # fmt: skip
    return nn.Sequential(OrderedDict(features=nn.Sequential(stages), classifier=head))


#: By name: the paper's network, and one of more channels with norms.
NETWORKS = {"cnc": partial(picture_cnn, PAPER), "cnc_wide": partial(picture_cnn, WIDE, norm=True)}
