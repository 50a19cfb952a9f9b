"""Accuracy, likelihood, calibration and agreement of several predictors, summed batch by batch."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import combinations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import cross_entropy

from stepwell.evaluation.calibration import BINS, bins_of
from stepwell.types import Batch, Labels, Logits, Predict, Targets


class Tally:
    """Counts and sums over the examples seen so far; `measures` and `churn` divide them once.

    Sums are of double precision and run example by example, so no number depends on the batches.
    All names have the same examples and classes. The last name is the full net's.
    """

    examples = 0

    def add(self, logits: Mapping[str, Logits], labels: Labels) -> "Tally":
        """Add a batch: logits (batch, classes) by name, in single precision, and the true classes.

        ValueError for a label that is no class, such as -1 (no label).
        """
        z, labels = in_single_precision(logits), labels.long()
        names, batch, classes = z.shape
        if strange := labels[(labels < 0) | (labels >= classes)].tolist():
            raise ValueError(f"a label of {strange[0]} is none of the {classes} classes: leave it out")
        if not self.examples:
            self.names = tuple(logits)
            self._same = self._both_right = torch.zeros(names, names, dtype=torch.long)
            self._labels = torch.zeros(classes, dtype=torch.long)
            self._right = torch.zeros(names, classes, dtype=torch.long)
            self._nll = torch.zeros(names, dtype=torch.float64)
            self._gaps = torch.zeros(names * BINS, dtype=torch.float64)
            self._confused: Counter[int] = Counter()
        self.examples += batch
        confidence, top = z.softmax(2).amax(2), z.argmax(2)  # (names, batch)
        right = top == labels
        self._same = self._same + (top[:, None] == top).sum(2)
        self._both_right = self._both_right + (right[:, None] & right).sum(2)
        self._labels.index_add_(0, labels, torch.ones_like(labels))
        self._right.index_add_(1, labels, right.long())
        cells = (torch.arange(names)[:, None] * classes + labels) * classes + top
        self._confused.update(cells.flatten().tolist())
        nll = cross_entropy(z.double().flatten(0, 1), labels.repeat(names), reduction="none")
        self._nll = torch.cat([self._nll[:, None], nll.view(names, batch)], 1).cumsum(1)[:, -1]
        places = bins_of(confidence, BINS) + BINS * torch.arange(names)[:, None]
        self._gaps.index_add_(0, places.flatten(), (right.double() - confidence.double()).flatten())
        return self

    def measures(self, classes: Sequence[str] = ()) -> dict[str, float]:
        """Accuracy, NLL, ECE and agreement of every name, as `evaluate` returns them."""
        if not self.examples:
            raise ValueError("there is no example to measure on")
        n, present = self.examples, self._labels.nonzero().flatten().tolist()
        counts = self._labels[present]
        uneven = int(counts.max()) >= 1.5 * int(counts.min())
        results: dict[str, float] = {}
        for i, name in enumerate(self.names):
            prefix = f"{name}/" if name else ""
            results[f"{prefix}accuracy"] = int(self._both_right[i, i]) / n
            results[f"{prefix}nll"] = float(self._nll[i]) / n
            results[f"{prefix}ece"] = float(self._gaps.view(-1, BINS)[i].abs().sum()) / n
            if len(self.names) > 1:
                results[f"{prefix}agreement"] = int(self._same[i, -1]) / n
            if uneven and classes:
                shares = (self._right[i, present] / counts.double()).tolist()
                per_class = {classes[c]: s for c, s in zip(present, shares, strict=True)}
                results |= {f"{prefix}accuracy/{c}": value for c, value in per_class.items()}
                results[f"{prefix}balanced_accuracy"] = sum(shares) / len(shares)
        return results

    def confusion(self, classes: Sequence[str]) -> dict[str, dict[str, dict[str, int]]]:
        """Count the examples by name, true class and predicted class; empty cells are left out."""
        counts: dict[str, dict[str, dict[str, int]]] = {name: {} for name in self.names}
        for cell, count in sorted(self._confused.items()):
            row, top = divmod(cell, len(self._labels))
            name, label = divmod(row, len(self._labels))
            counts[self.names[name]].setdefault(classes[label], {})[classes[top]] = count
        return counts

    def churn(self) -> dict[str, float]:
        """Shares of the examples whose prediction flips between two names, as `churn` returns them."""
        n, names = self.examples, self.names
        if len(names) < 2:
            return {}
        results = {
            f"{names[i]}/churn/{names[j]}": (n - int(self._same[i, j])) / n
            for i, j in combinations(range(len(names)), 2)
        }
        for i, name in enumerate(names):
            both = int(self._both_right[i, -1])
            results[f"{name}/negative_flips"] = (int(self._both_right[-1, -1]) - both) / n
            results[f"{name}/positive_flips"] = (int(self._both_right[i, i]) - both) / n
        return results


def in_single_precision(logits: Mapping[str, Tensor]) -> Float[Tensor, "names batch classes"]:
    """The logits of all names together, on the CPU; ValueError if one is not finite."""
    z = torch.stack([value.float() for value in logits.values()]).cpu()
    if not z.isfinite().all():
        raise ValueError(
            "logits are not finite, so nothing can be measured: the training diverged. Start again "
            "with a lower --lr or --clip"
        )
    return z


@torch.no_grad()
def tally(predict: Predict, batches: Iterable[Batch], *sums: Tally) -> Tally:
    """Run `predict` over the batches, and add to all `sums`; gives the first of them.

    By default accuracy is counted, in constant memory. ValueError without a batch.
    """
    sums = sums or (Tally(),)
    for logits, labels in _predictions(predict, batches):
        for each in sums:
            each.add(logits, labels)
    return sums[0]


def evaluate(
    predict: Predict, batches: Iterable[Batch], classes: Sequence[str] = ()
) -> dict[str, float]:
    """Accuracy, NLL, ECE and agreement of every name that `predict` gives.

    NLL in nats; ECE with 15 bins of equal width (Guo et al. 2017); agreement is the share of examples
    with the same top class as the last name's, the full net's. Where classes are uneven (the largest
    has at least 1.5 times the examples of the smallest), the accuracy of each class and their mean are
    added. All are sums over the examples, divided once by the examples seen; ValueError without any.

    Args:
        predict: images (batch, ...) to logits by name; a lone tensor counts as named "".
        classes: names of the classes, for the accuracy of each.

    Returns:
        Flat numbers, such as "20/accuracy", "20/accuracy/cat" or, for a lone tensor, "accuracy".
    """
    return tally(predict, batches).measures(classes)


def churn(logits: Mapping[str, Logits], labels: Labels) -> dict[str, float]:
    """Share of the predictions that flip between depths.

    Args:
        logits: (n, classes) by depth, shallow to deep; the last is the full net's.
        labels: (n,) class indices.

    Returns:
        "A/churn/B" for each pair: the share whose top class differs; and for each depth
        "A/negative_flips" (the full net is right, A is wrong) and "A/positive_flips" (the reverse).
        Nothing for a lone depth.
    """
    return Tally().add(logits, labels).churn()


@torch.no_grad()
def gather_logits(predict: Predict, batches: Iterable[Batch]) -> tuple[dict[str, Logits], Targets]:
    """Logits (n, classes) of every name that `predict` gives, and the labels (n,), on the CPU.

    `tally` needs no such memory. Raises ValueError if there is no batch.
    """
    logits: dict[str, list[Tensor]] = {}
    labels: list[Tensor] = []
    for output, target in _predictions(predict, batches):
        for name, value in output.items():
            logits.setdefault(name, []).append(value.float().cpu())
        labels.append(target)
    return {name: torch.cat(parts) for name, parts in logits.items()}, torch.cat(labels)


def _predictions(
    predict: Predict, batches: Iterable[Batch]
) -> Iterator[tuple[Mapping[str, Tensor], Tensor]]:
    empty = True
    for images, labels in batches:
        output = predict(images)
        yield ({"": output} if isinstance(output, Tensor) else output), labels
        empty = False
    if empty:
        raise ValueError("nothing to evaluate: the data gave no batch")
