"""Types that every part of the library shares."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int, Int64
from torch import Tensor

Logits = Float[Tensor, "batch classes"]
Labels = Int[Tensor, "batch"]
#: Class indices, or numbers to predict.
Targets = Int[Tensor, "batch"] | Float[Tensor, "batch"]
Images = Float[Tensor, "batch channels height width"]


#: Rows of probabilities sum to 1 within this margin, in half precision too.
SUM = 1e-2


def probabilities_in(logits: Logits, who: str) -> str | None:
    """A sentence saying that `who` gives probabilities, or None where `logits` cannot be probabilities.

    A few rows of logits may look like probabilities by chance, above all of two classes.
    """
    if logits.shape[1] == 1:  # a number
        return None
    if (logits >= 0).all() and ((logits.sum(1) - 1).abs() < SUM).all():
        return f"{who} gives probabilities, not logits (no negative numbers, each row sums to 1)"
    return None


def not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """The name of the first tensor with a value that is NaN or infinite; None without one."""
    for name, value in tensors.items():
        # a sum costs a fraction of a test of every value; a large one may overflow without any
        if value.is_floating_point() and not value.sum().isfinite() and not value.isfinite().all():
            return name
    return None


class Exit(NamedTuple):
    """The output of a network at one depth.

    logits: (batch, classes), before any softmax.
    features: outputs of the stages in order, shallow to deep, (batch, channels, height, width) or
        (batch, tokens, channels). An exit that ends early has fewer. A stage that hands on several
        tensors gives its last one. Empty where a network has no stages.
    extras: further outputs that a loss asked for, such as attention maps. Each name has one tensor
        for every step that gave it, in the order of the path. Empty where nobody asked.
    """

    logits: Tensor
    features: tuple[Tensor, ...] = ()
    extras: Mapping[str, tuple[Tensor, ...]] = {}

    def detach(self) -> "Exit":
        """The same values without their graph: no gradient flows through them."""
        return Exit(
            self.logits.detach(),
            tuple(f.detach() for f in self.features),
            {name: tuple(t.detach() for t in given) for name, given in self.extras.items()},
        )


class Step(NamedTuple):
    """The result of one training step: a scalar to minimise, and its parts by name for the log."""

    loss: Tensor
    logs: Mapping[str, Tensor]


class Batch(NamedTuple):
    """Inputs and their labels.

    inputs: images (batch, channels, height, width) as normalised floats, token ids (batch, tokens), or
        whatever the network takes.
    labels: class indices (batch,), -1 for no label; of mixed images, shares of the classes
        (batch, classes); or numbers to predict (batch,), which are floats.
    """

    inputs: Tensor
    labels: Tensor

    @property
    def images(self) -> Tensor:
        """The inputs, where they are images."""
        return self.inputs


class Boxes(NamedTuple):
    """The boxes of one image.

    boxes: (n, 4), as x1, y1, x2, y2 in pixels.
    labels: (n,) classes.
    crowd: (n,) True for a region of many objects, which training ignores and COCO's evaluation skips.
    areas: (n,) in square pixels, for COCO's sizes; of an outline, less than its box's.
    scores: (n,) of predicted boxes; 1 for true ones.
    """

    boxes: Float[Tensor, "n 4"]
    labels: Int64[Tensor, " n"]
    crowd: Bool[Tensor, " n"]
    areas: Float[Tensor, " n"]
    scores: Float[Tensor, " n"]

    @classmethod
    def of(
        cls, boxes: Sequence[Sequence[float]] | Tensor, labels: Sequence[int] | Tensor,
        scores: Sequence[float] | Tensor | None = None,
    ) -> "Boxes":  # fmt: skip
        """Boxes that are no crowd; `scores` are 1 if not given."""
        corners = torch.as_tensor(boxes, dtype=torch.float32).reshape(-1, 4)
        classes = torch.as_tensor(labels, dtype=torch.long).reshape(-1)
        crowd = torch.zeros(len(corners), dtype=torch.bool)
        areas = (corners[:, 2:] - corners[:, :2]).prod(1)
        sure = torch.ones(len(corners)) if scores is None else torch.as_tensor(scores).float()
        return cls(corners, classes, crowd, areas, sure)

    def chosen(self, which: Bool[Tensor, " n"] | Int64[Tensor, " some"]) -> "Boxes":
        """Some of the boxes, by a mask or by their numbers."""
        return Boxes(*(values[which] for values in self))

    def with_area(self) -> "Boxes":
        """The boxes that have width and height."""
        x1, y1, x2, y2 = self.boxes.unbind(1)
        return self.chosen((x2 > x1) & (y2 > y1))

    @property
    def total(self) -> int:
        """The number of boxes."""
        return len(self.boxes)


class BoxBatch(NamedTuple):
    """Images with boxes.

    images: (batch, 3, height, width), normalised; smaller images stand in the upper left corner, and
        zeros fill the rest.
    sizes: height and width of each image.
    truth: the boxes of each image, in its pixels here.
    known: for each image, True for each class that its boxes tell of (classes,); other classes are no
        negatives there. None: all classes of all images.
    """

    images: Images
    sizes: tuple[tuple[int, int], ...]
    truth: tuple[Boxes, ...]
    known: tuple[Bool[Tensor, " classes"], ...] | None = None


#: Maps a batch of inputs to logits by name, or to one lone tensor of logits.
Predict = Callable[[Tensor], Mapping[str, Tensor] | Tensor]
