"""Losses on labels; some images may have none."""

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
    """torch's cross entropy in nats, with a clear error for labels out of range.

    The mean over the batch, or one value per image with `reduction="none"`.

    Args:
        logits: (batch, classes).
        labels: (batch,) class indices, or (batch, classes) shares of the classes.
        options: of `torch.nn.functional.cross_entropy`.

    Raises:
        ValueError: a label is no index of a class. Only on the CPU: a check on a GPU would wait for it,
            so a GPU stops with its own error.
    """
    try:
        return F.cross_entropy(logits, labels, **options)
    except IndexError as error:
        low, high, classes = int(labels.min()), int(labels.max()), logits.shape[1]
        raise ValueError(
            f"labels run from {low} to {high}, but this network has {classes} classes (0 to "
            f"{classes - 1}): build it with more (num_classes), or number the labels from 0"
        ) from error


@in_full_precision
def label_cross_entropy(
    logits: Logits, labels: Int[Tensor, " batch"] | Float[Tensor, "batch classes"]
) -> Float[Tensor, ""]:
    """Cross entropy in nats, a mean over the labeled images; 0 if no image has a label.

    `labels` are class indices, -1: no label; or shares of the classes, as from MixUp and CutMix, where
    a row's weight is its sum. Errors as for `class_cross_entropy`.
    """
    if labels.ndim == 1:
        total = class_cross_entropy(logits, labels, ignore_index=-1, reduction="sum")
        return total / labels.ge(0).sum().clamp_min(1)
    total = -(labels * logits.log_softmax(1)).sum()
    return total / labels.sum().clamp_min(torch.finfo(labels.dtype).tiny)
