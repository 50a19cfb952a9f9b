"""What classifies complex networks without their pictures: counts of nodes and edges, and degrees."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from stepwell.data import ImageSet

Table = NDArray[np.float64]
#: Facts about networks by the name of the baseline that reads them.
BASELINES: Mapping[str, Sequence[str]] = {
    "nodes and edges": ("nodes", "edges"),
    "degrees": ("degree_mean", "degree_std", "degree_max"),
}
#: The baseline that reads the sums of the picture's channels alone.
SUMS = "sum of the picture"


def baselines(train: ImageSet, test: ImageSet) -> dict[str, dict[str, float]]:
    """Accuracy and balanced accuracy on `test` of logistic regressions on few numbers, by name."""
    tables: dict[str, tuple[Table, ...]] = {
        name: tuple(np.stack([part.about[f] for f in facts], 1) for part in (train, test))
        for name, facts in BASELINES.items()
    }
    tables[SUMS] = tuple(_pixels(part).reshape(len(part), 3, -1).sum(2) for part in (train, test))
    labels = train.labels.numpy(), test.labels.numpy()
    return {name: regression(parts[0], parts[1], *labels) for name, parts in tables.items()}


def regression(
    train: Table, test: Table, train_labels: NDArray[np.int64], test_labels: NDArray[np.int64]
) -> dict[str, float]:
    """Accuracies of a logistic regression on standardised logarithms, with balanced classes."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression(C=10, max_iter=2000))
    model.fit(_logarithms(train), train_labels)
    right = model.predict(_logarithms(test)) == test_labels
    by_class = [right[test_labels == label].mean() for label in np.unique(test_labels)]
    return {"accuracy": float(right.mean()), "balanced_accuracy": float(np.mean(by_class))}


def _logarithms(table: Table) -> Table:
    """Logarithms that keep the sign, and 0."""
    table = np.nan_to_num(table)
    return np.hstack([np.sign(table) * np.log1p(abs(table)), table])


def _pixels(part: ImageSet) -> Table:
    import torch

    return part.pixels[torch.arange(len(part))].numpy().astype(np.float64)
