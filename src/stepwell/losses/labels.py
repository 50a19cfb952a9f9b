"""Learning from labels, where some images may have none."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from stepwell.losses.precision import in_full_precision
from stepwell.types import Logits


def class_cross_entropy(
    logits: Logits, labels: Int[Tensor, " batch"] | Float[Tensor, "batch classes"], **options: Any
) -> Float[Tensor, "*images"]:
    """torch's cross entropy in nats, with a clear word on labels out of range.

    It is the mean over the batch, or each image's with `reduction="none"`.

    Args:
        logits: (batch, classes).
        labels: (batch,) class indices, or (batch, classes) shares of the classes.
        options: of `torch.nn.functional.cross_entropy`.

    Raises:
        ValueError: a label is no index of the classes. (Only on the CPU: a GPU stops with an error of
            its own, as to ask it for the labels would make it wait.)
    """
    try:
        return F.cross_entropy(logits, labels, **options)
    except IndexError as error:
        low, high, classes = int(labels.min()), int(labels.max()), logits.shape[1]
        raise ValueError(
            f"labels run from {low} to {high}, and this network tells {classes} classes apart "
            f"(0 to {classes - 1}): build it with more (num_classes), or number the labels from 0"
        ) from error


@in_full_precision
def label_cross_entropy(
    logits: Logits, labels: Int[Tensor, " batch"] | Float[Tensor, "batch classes"]
) -> Float[Tensor, ""]:
    """Cross entropy in nats, a mean over the labels that there are; 0 where there are none.

    Args:
        logits: (batch, classes).
        labels: (batch,) class indices, -1: no label; or (batch, classes) shares of the classes, as
            MixUp and CutMix give them. A row that sums to less than 1 counts for as much less.

    Raises:
        ValueError: as for `class_cross_entropy`.
    """
    if labels.ndim == 1:
        total = class_cross_entropy(logits, labels, ignore_index=-1, reduction="sum")
        return total / labels.ge(0).sum().clamp_min(1)
    total = -(labels * logits.log_softmax(1)).sum()
    return total / labels.sum().clamp_min(torch.finfo(labels.dtype).tiny)
