"""Further scores, by torchmetrics: MCC and F1 of classes, correlations of numbers."""

import warnings
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from stepwell.evaluation.accuracy import Tally, in_single_precision


class ClassTally(Tally):
    """A tally that also gives MCC (Matthews correlation) and F1 of every name.

    MCC is 0 where all answers or all labels are equal.
    F1 of two classes is that of the second one, as in GLUE; of more, the mean over the classes (macro).
    """

    def measures(self, classes: Sequence[str] = ()) -> dict[str, float]:
        """The measures of a tally, "mcc" and "f1"."""
        from torchmetrics.functional import classification as scores

        results = super().measures(classes)
        count = len(self._labels)
        cells = torch.tensor([*self._confused.elements()])
        names, true, top = cells // count**2, cells // count % count, cells % count
        for i, name in enumerate(self.names):
            pair = top[names == i], true[names == i]
            prefix = f"{name}/" if name else ""
            varied = all(len(part.unique()) > 1 for part in pair)  # else torchmetrics gives -0.4
            mcc = scores.multiclass_matthews_corrcoef(*pair, num_classes=count) if varied else 0.0
            f1 = (
                scores.binary_f1_score(*pair)
                if count == 2
                else scores.multiclass_f1_score(*pair, num_classes=count, average="macro")
            )
            results |= {f"{prefix}mcc": float(mcc), f"{prefix}f1": float(f1)}
        return results


class NumberTally(Tally):
    """Predicted and true numbers; "pearson", "spearman" and "rmse" of every name.

    A correlation is 0 where all predictions or all numbers are equal. RMSE, the root of the mean
    squared error, has the unit of the numbers.
    """

    def add(
        self, logits: Mapping[str, Float[Tensor, "batch 1"]], labels: Float[Tensor, " batch"]
    ) -> "NumberTally":
        """Add a batch: one output for each example, by name, and the true numbers."""
        outputs = in_single_precision(logits)[:, :, 0].double()
        if not self.examples:
            self.names = tuple(logits)
            self._outputs, self._truth = [outputs], [labels.double()]
        else:
            self._outputs.append(outputs)
            self._truth.append(labels.double())
        self.examples += len(labels)
        return self

    def measures(self, classes: Sequence[str] = ()) -> dict[str, float]:
        """The correlations and the error of every name, over all examples."""
        from torchmetrics.functional import mean_squared_error, pearson_corrcoef, spearman_corrcoef

        outputs, truth = torch.cat(self._outputs, 1), torch.cat(self._truth)
        results: dict[str, float] = {}
        for name, predicted in zip(self.names, outputs, strict=True):
            with warnings.catch_warnings():  # about equal numbers, which the next line settles
                warnings.simplefilter("ignore", UserWarning)
                correlations = pearson_corrcoef(predicted, truth), spearman_corrcoef(predicted, truth)
            pearson, spearman = (0.0 if x != x else x for x in map(float, correlations))
            numbers = {"pearson": pearson, "spearman": spearman}
            numbers["rmse"] = float(mean_squared_error(predicted, truth)) ** 0.5
            results |= {f"{name}/{key}" if name else key: value for key, value in numbers.items()}
        return results

    def confusion(self, classes: Sequence[str]) -> dict[str, dict[str, dict[str, int]]]:
        """Nothing: numbers have no classes."""
        return {}

    def churn(self) -> dict[str, float]:
        """Nothing: numbers have no classes."""
        return {}
