import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, balanced_accuracy_score, log_loss
from torch.nn.functional import cross_entropy
from torch.testing import assert_close
from torchmetrics.functional.classification import (
    multiclass_calibration_error,
    multiclass_confusion_matrix,
)

from stepwell.evaluation import churn, evaluate, gather_logits, tally
from stepwell.evaluation.accuracy import Tally
from stepwell.types import Batch

CLASSES = ("a", "b", "c")


def data(n, sizes):
    """Batches of the given sizes, whose images are their own logits."""
    logits = torch.randn(n, 3) * 2
    labels = torch.randint(3, (n,))
    parts = zip(logits.split(sizes), labels.split(sizes), strict=True)
    return logits, labels, [Batch(x, y) for x, y in parts]


def test_measures_equal_sklearns_with_an_uneven_last_batch():
    logits, labels, batches = data(23, [10, 10, 3])
    got = evaluate(lambda x: {"half": x / 2, "full": x}, batches)
    for name, z in {"half": logits / 2, "full": logits}.items():
        top, p = z.argmax(1), z.double().softmax(1)
        assert got[f"{name}/accuracy"] == pytest.approx(accuracy_score(labels, top))
        assert got[f"{name}/nll"] == pytest.approx(log_loss(labels, p, labels=range(3)), rel=1e-5)
        assert got[f"{name}/ece"] == pytest.approx(ece(p, labels), abs=1e-5)
    assert got["half/agreement"] == got["full/agreement"] == 1.0


def ece(p, labels, bins=15):
    """Written out: bins of equal width, weighted by their examples."""
    confidence, top = p.max(1)
    right = (top == labels).double()
    total = 0.0
    for i in range(bins):
        inside = (confidence > i / bins) & (confidence <= (i + 1) / bins)
        if inside.any():
            gap = (confidence[inside].double().mean() - right[inside].mean()).abs()
            total += float(gap) * float(inside.double().mean())
    return total


def test_sums_equal_the_formulas_on_all_logits_at_once():
    """Uneven classes, several names and an uneven last batch."""
    logits, _, _ = data(101, [101])
    labels = torch.cat([torch.zeros(60), torch.ones(25), torch.full((16,), 2)]).long()
    named = {"half": logits.flip(1), "full": logits}
    parts = torch.arange(101).split(16)
    sums = tally(
        lambda rows: {name: z[rows] for name, z in named.items()},
        [Batch(rows, labels[rows]) for rows in parts],
    )
    got = sums.measures(CLASSES)
    assert got == Tally().add(named, labels).measures(CLASSES)
    assert sums.churn() == churn(named, labels)
    assert sums.examples == 101
    for name, z in named.items():
        right = z.argmax(1) == labels
        assert got[f"{name}/accuracy"] == right.double().mean().item()
        assert got[f"{name}/agreement"] == (z.argmax(1) == logits.argmax(1)).double().mean().item()
        nll = cross_entropy(z.double(), labels).item()
        assert got[f"{name}/nll"] == pytest.approx(nll, rel=1e-12)
        ece = multiclass_calibration_error(z.softmax(1), labels, num_classes=3, n_bins=15).item()
        assert got[f"{name}/ece"] == pytest.approx(ece, abs=1e-6)  # torchmetrics sums in 32 bits
        for i, c in enumerate(CLASSES):
            expected = right[labels == i].double().mean().item()
            assert got[f"{name}/accuracy/{c}"] == expected


def test_how_the_data_is_cut_into_batches_does_not_matter():
    logits, labels, _ = data(20, [20])
    cuts = [
        evaluate(
            lambda x: x,
            [Batch(a, b) for a, b in zip(logits.split(s), labels.split(s), strict=True)],
        )
        for s in ([20], [7, 7, 6], [1] * 20)
    ]
    assert cuts[0] == cuts[1] == cuts[2]
    assert set(cuts[0]) == {"accuracy", "nll", "ece"}


def test_uneven_classes_are_measured_each():
    labels = torch.tensor([0] * 10 + [1] * 4 + [2] * 2)
    logits = torch.nn.functional.one_hot(torch.tensor([0] * 12 + [1] * 4), 3).float()
    got = evaluate(lambda x: {"1": x}, [Batch(logits, labels)], CLASSES)
    assert [got[f"1/accuracy/{c}"] for c in CLASSES] == [1.0, 0.5, 0.0]
    expected = balanced_accuracy_score(labels, logits.argmax(1))
    assert got["1/balanced_accuracy"] == pytest.approx(expected)
    even = evaluate(lambda x: {"1": x[:6]}, [Batch(logits, labels[[0, 1, 10, 11, 14, 15]])], CLASSES)
    assert not any("/accuracy/" in name for name in even)


def test_confusion_counts_equal_torchmetrics():
    logits, labels, batches = data(50, [20, 20, 10])
    found = tally(lambda x: {"half": x.flip(1), "full": x}, batches).confusion(CLASSES)
    for name, z in {"half": logits.flip(1), "full": logits}.items():
        expected = multiclass_confusion_matrix(z, labels, num_classes=3)
        got = [[found[name].get(true, {}).get(said, 0) for said in CLASSES] for true in CLASSES]
        assert got == expected.tolist()
        assert all(count for answers in found[name].values() for count in answers.values())


def test_agreement_is_with_the_last_name():
    logits, _, batches = data(50, [50])
    got = evaluate(lambda x: {"other": x.flip(1), "full": x}, batches)
    expected = np.mean(logits.flip(1).argmax(1).numpy() == logits.argmax(1).numpy())
    assert got["other/agreement"] == pytest.approx(expected)
    assert got["full/agreement"] == 1.0


def test_logits_come_back_in_order():
    logits, labels, batches = data(9, [4, 4, 1])
    got, target = gather_logits(lambda x: x, batches)
    assert_close(got[""], logits)
    assert_close(target, labels)


def test_no_gradient_is_recorded():
    weight = torch.ones(3, requires_grad=True)
    batches = data(4, [4])[2]

    def predict(x):
        assert not torch.is_grad_enabled()
        return x * weight

    assert evaluate(predict, batches).keys() == {"accuracy", "nll", "ece"}
    assert not gather_logits(predict, batches)[0][""].requires_grad


def test_no_data_is_an_error():
    with pytest.raises(ValueError, match="nothing to evaluate"):
        evaluate(lambda x: x, [])
    with pytest.raises(ValueError, match="there is no example to measure on"):
        Tally().add({"": torch.zeros(0, 3)}, torch.zeros(0, dtype=torch.long)).measures()


def test_labels_are_classes_of_any_integer_type():
    z, labels = torch.randn(6, 3), torch.tensor([0, 1, 2, 0, 1, 2])
    expected = Tally().add({"": z}, labels).measures()
    assert Tally().add({"": z}, labels.int()).measures() == expected
    for strange in (-1, 3):
        with pytest.raises(ValueError, match=f"a label of {strange} is none of the 3 classes"):
            Tally().add({"": z}, labels.where(labels != 2, strange))
