"""Accuracy, likelihood and calibration of every depth in one pass over the data."""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from stepwell.types import Batch, Predict

#: Bins of the expected calibration error.
BINS = 15


@torch.no_grad()
def gather_logits(predict: Predict, batches: Iterable[Batch]) -> tuple[dict[str, Tensor], Tensor]:
    """Logits (n, classes) of every name that `predict` gives, and the labels (n,), on the CPU.

    Raises:
        ValueError: there is no batch.
    """
    logits: dict[str, list[Tensor]] = {}
    labels: list[Tensor] = []
    for images, target in batches:
        output = predict(images)
        named = {"": output} if isinstance(output, Tensor) else output
        for name, value in named.items():
            logits.setdefault(name, []).append(value.float().cpu())
        labels.append(target)
    if not labels:
        raise ValueError("nothing to evaluate: the data gave no batch")
    return {name: torch.cat(parts) for name, parts in logits.items()}, torch.cat(labels)


def evaluate(
    predict: Predict, batches: Iterable[Batch], classes: Sequence[str] = ()
) -> dict[str, float]:
    """Accuracy, NLL, ECE and agreement of every name that `predict` gives.

    NLL in nats; ECE with 15 bins of equal width (Guo et al. 2017); agreement is the share of examples
    with the same top class as the last name's, the full net's. Where classes are uneven (the largest
    has half as many examples again as the smallest), the accuracy of each class and their mean are
    added. All are sums over the examples, divided once by the examples seen.

    Args:
        predict: images (batch, ...) to logits by name; a lone tensor counts as named "".
        classes: names of the classes, for the accuracy of each.

    Returns:
        Flat numbers, such as "20/accuracy", "20/accuracy/cat" or, for a lone tensor, "accuracy".
    """
    return measures(*gather_logits(predict, batches), classes)


def measures(
    logits: Mapping[str, Tensor], labels: Tensor, classes: Sequence[str] = ()
) -> dict[str, float]:
    """What `evaluate` gives, of logits (n, classes) that are at hand."""
    from torchmetrics.functional.classification import multiclass_calibration_error

    results: dict[str, float] = {}
    counts = torch.bincount(labels, minlength=len(classes))
    present = counts[counts > 0]
    uneven = int(present.max()) >= 1.5 * int(present.min())
    last = list(logits.values())[-1].argmax(1)
    for name, values in logits.items():
        prefix = f"{name}/" if name else ""
        right = values.argmax(1) == labels
        results[f"{prefix}accuracy"] = right.double().mean().item()
        results[f"{prefix}nll"] = cross_entropy(values.double(), labels).item()
        results[f"{prefix}ece"] = multiclass_calibration_error(
            values.softmax(1), labels, num_classes=values.shape[1], n_bins=BINS
        ).item()
        if len(logits) > 1:
            results[f"{prefix}agreement"] = (values.argmax(1) == last).double().mean().item()
        if uneven and classes:
            per_class = {
                classes[i]: right[labels == i].double().mean().item()
                for i in range(len(classes))
                if counts[i]
            }
            results |= {f"{prefix}accuracy/{c}": value for c, value in per_class.items()}
            results[f"{prefix}balanced_accuracy"] = sum(per_class.values()) / len(per_class)
    return results
