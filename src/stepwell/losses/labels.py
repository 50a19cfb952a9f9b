"""Learning from labels, where some images may have none."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from stepwell.losses.precision import in_full_precision
from stepwell.types import Logits


@in_full_precision
def label_cross_entropy(
    logits: Logits, labels: Int[Tensor, "batch"] | Float[Tensor, "batch classes"]
) -> Float[Tensor, ""]:
    """Cross entropy in nats, a mean over the labels that there are; 0 where there are none.

    Args:
        logits: (batch, classes).
        labels: (batch,) class indices, -1: no label; or (batch, classes) shares of the classes, as
            MixUp and CutMix give them. A row that sums to less than 1 counts for as much less.
    """
    if labels.ndim == 1:
        total = F.cross_entropy(logits, labels, ignore_index=-1, reduction="sum")
        return total / labels.ge(0).sum().clamp_min(1)
    total = -(labels * logits.log_softmax(1)).sum()
    return total / labels.sum().clamp_min(torch.finfo(labels.dtype).tiny)
