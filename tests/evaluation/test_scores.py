"""MCC, F1 and correlations, against scikit-learn's and scipy's."""

import pytest
import torch
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import f1_score, matthews_corrcoef

from stepwell.evaluation import ClassTally, NumberTally, Tally
from stepwell.measures import correlation_interval, score_among


@pytest.mark.parametrize(("classes", "average"), [(2, "binary"), (4, "macro")])
def test_mcc_and_f1_equal_scikit_learns(classes, average):
    labels = torch.randint(classes, (60,))
    named = {"half": torch.randn(60, classes), "full": torch.randn(60, classes)}
    sums = ClassTally()
    for rows in torch.arange(60).split(25):
        sums.add({name: z[rows] for name, z in named.items()}, labels[rows])
    got = sums.measures()
    for name, z in named.items():
        top = z.argmax(1)
        assert got[f"{name}/mcc"] == pytest.approx(matthews_corrcoef(labels, top), abs=1e-6)
        assert got[f"{name}/f1"] == pytest.approx(f1_score(labels, top, average=average), abs=1e-6)
    plain = Tally().add(named, labels)
    assert {k: v for k, v in got.items() if k[5:] not in ("mcc", "f1")} == plain.measures()


def test_one_answer_for_all_has_no_correlation():
    labels = torch.tensor([0, 1, 1])
    got = ClassTally().add({"": torch.tensor([[1.0, 0.0]] * 3)}, labels).measures()
    assert (got["mcc"], got["f1"]) == (0.0, 0.0)
    got = NumberTally().add({"": torch.ones(3, 1)}, torch.tensor([1.0, 2.0, 3.0])).measures()
    assert (got["pearson"], got["spearman"]) == (0.0, 0.0)
    assert got["rmse"] == pytest.approx((5 / 3) ** 0.5)


def test_scores_of_numbers_equal_scipys():
    truth = torch.randn(40) * 3 + 100
    named = {"half": truth[:, None] + torch.randn(40, 1), "full": truth[:, None] ** 3 / 1e4}
    sums = NumberTally()
    for rows in torch.arange(40).split(15):
        sums.add({name: z[rows] for name, z in named.items()}, truth[rows])
    got = sums.measures()
    assert sums.examples == 40
    assert sums.churn() == sums.confusion(("score",)) == {}
    for name, z in named.items():
        own = z[:, 0]
        assert got[f"{name}/pearson"] == pytest.approx(pearsonr(own, truth).statistic, abs=1e-5)
        assert got[f"{name}/spearman"] == pytest.approx(spearmanr(own, truth).statistic, abs=1e-6)
        expected = float((own - truth).square().mean().sqrt())
        assert got[f"{name}/rmse"] == pytest.approx(expected, rel=1e-5)
    assert score_among(got) == "pearson"
    low, high = correlation_interval(0.5, 40)
    expected = pearsonr(*_correlated(0.5)).confidence_interval(0.95)
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=1e-6)
    with pytest.raises(ValueError, match="logits are not finite"):
        NumberTally().add({"": torch.full((3, 1), torch.nan)}, torch.zeros(3))


def _correlated(r, n=40):
    """Two samples whose correlation is r."""
    x = torch.randn(n, dtype=torch.double)
    y = torch.randn(n, dtype=torch.double)
    x, y = ((v - v.mean()) for v in (x, y))
    y = y - (x @ y) / (x @ x) * x
    return x, r * x / x.norm() + (1 - r**2) ** 0.5 * y / y.norm()
