"""Measures of predictions; an evaluator takes `predict(batch) -> {name: logits}`."""

from stepwell.evaluation.accuracy import Tally, churn, evaluate, gather_logits, tally
from stepwell.evaluation.cka import cka
from stepwell.evaluation.fidelity import fidelity, fidelity_of
from stepwell.evaluation.scores import ClassTally, NumberTally

__all__ = [
    "ClassTally", "NumberTally", "Tally", "churn", "cka", "evaluate", "fidelity", "fidelity_of",
    "gather_logits", "tally",
]  # fmt: skip
