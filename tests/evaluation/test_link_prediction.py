"""Ranks, against a loop over candidates and against pykeen's evaluator."""

import subprocess
import sys
from importlib.util import find_spec

import numpy as np
import pytest
import torch

from stepwell.evaluation.link_prediction import (
    Ranks,
    concatenate,
    filtered_ranks,
    link_measures,
    retained_auc,
)


def queries(seed=0, n=7, entities=12):
    torch.manual_seed(seed)
    distance = torch.randint(6, (n, entities)).float()  # with many ties
    answer = torch.randint(entities, (n,))
    known = torch.rand(n, entities) < 0.3
    known[torch.arange(n), answer] = True
    return distance, answer, known


def loop_rank(distances, answer, known, candidate):
    others = [d for e, d in enumerate(distances) if e != answer and not known[e] and candidate[e]]
    best = 1 + sum(d < distances[answer] for d in others)
    worst = 1 + sum(d <= distances[answer] for d in others)
    return (best + worst) / 2, 1 + len(others)


@pytest.mark.parametrize("some", [False, True])
def test_ranks_are_those_of_a_loop_over_candidates(some):
    distance, answer, known = queries()
    candidate = torch.rand(distance.shape[1]) < 0.6 if some else None
    ranks = filtered_ranks(distance, answer, *known.nonzero().T, candidate)
    every = torch.ones(distance.shape[1], dtype=torch.bool) if candidate is None else candidate
    expected = [
        loop_rank(d.tolist(), int(a), k.tolist(), every.tolist())
        for d, a, k in zip(distance, answer, known, strict=True)
    ]
    assert list(zip(ranks.rank.tolist(), ranks.candidates.tolist(), strict=True)) == expected


def test_equal_scores_are_chance_and_nan_is_an_error():
    none = torch.zeros(0, dtype=torch.long)
    ranks = filtered_ranks(torch.zeros(2, 9), torch.tensor([0, 8]), none, none)
    assert ranks.rank.tolist() == [5, 5]
    assert link_measures(ranks)["adjusted"] == 0
    with pytest.raises(ValueError, match="not finite"):
        filtered_ranks(torch.full((1, 3), torch.nan), torch.tensor([0]), none, none)


def test_measures_worked_by_hand():
    ranks = concatenate([Ranks(torch.tensor([1.0, 4.0]).double(), torch.tensor([9, 9])),
                    Ranks(torch.tensor([20.0]).double(), torch.tensor([39]))])  # fmt: skip
    measures = link_measures(ranks)
    assert measures["mrr"] == pytest.approx((1 + 1 / 4 + 1 / 20) / 3)
    assert [measures[f"hits@{k}"] for k in (1, 3, 10)] == pytest.approx([1 / 3, 1 / 3, 2 / 3])
    assert measures["mean_rank"] == pytest.approx(25 / 3)
    assert measures["adjusted"] == pytest.approx(1 - 22 / (4 + 4 + 19))


def test_auc_counts_pairs():
    retained, deleted = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([2.0, 5.0])
    pairs = [(d > r) + 0.5 * (d == r) for r in retained for d in deleted]
    assert retained_auc(retained, deleted) == pytest.approx(float(sum(pairs)) / 6)


#: pykeen warns of its own when it is imported, so it works in a process of its own.
PYKEEN = """
import sys
import numpy as np, torch
from pykeen.evaluation import RankBasedEvaluator
data = np.load(sys.argv[1])
evaluator = RankBasedEvaluator(filtered=True)
scores = -torch.from_numpy(data["distance"])
answer = torch.from_numpy(data["answer"])
known = torch.from_numpy(data["known"])
rows = torch.arange(len(answer))
true = scores[rows, answer][:, None]
scores = scores.masked_fill(known, torch.nan)
scores[rows, answer] = true[:, 0]
for side in ("head", "tail"):
    evaluator.process_scores_(hrt_batch=torch.zeros(len(answer), 3, dtype=torch.long),
                              target=side, scores=scores, true_scores=true)
found = evaluator.finalize()
names = {"mrr": "inverse_harmonic_mean_rank", "hits@1": "hits_at_1", "hits@3": "hits_at_3",
         "hits@10": "hits_at_10", "mean_rank": "arithmetic_mean_rank",
         "adjusted": "adjusted_arithmetic_mean_rank_index"}
np.savez(sys.argv[2], **{k: found.get_metric(f"both.realistic.{v}") for k, v in names.items()})
"""


@pytest.mark.skipif(find_spec("pykeen") is None, reason="pykeen (extra kg) is not installed")
def test_measures_are_those_of_pykeens_evaluator(tmp_path):
    distance, answer, known = queries(n=40, entities=60)
    distance = torch.rand_like(distance).mul(40).round()  # some ties
    given, found = tmp_path / "given.npz", tmp_path / "found.npz"
    np.savez(given, distance=distance, answer=answer, known=known)
    subprocess.run([sys.executable, "-W", "ignore", "-c", PYKEEN, given, found], check=True)
    ours = link_measures(filtered_ranks(distance, answer, *known.nonzero().T))
    assert ours == pytest.approx({k: float(v) for k, v in np.load(found).items()}, rel=1e-4)
