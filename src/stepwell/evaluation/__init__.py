"""Measures of a network's predictions: an evaluator takes `predict(batch) -> {name: logits}`."""

from stepwell.evaluation.accuracy import evaluate, gather_logits
from stepwell.evaluation.churn import churn
from stepwell.evaluation.cka import cka
from stepwell.evaluation.fidelity import fidelity, fidelity_of

__all__ = ["churn", "cka", "evaluate", "fidelity", "fidelity_of", "gather_logits"]
