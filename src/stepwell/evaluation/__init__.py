"""Measures of a network's predictions: an evaluator takes `predict(batch) -> {name: logits}`."""

from stepwell.evaluation.accuracy import evaluate, gather_logits
from stepwell.evaluation.churn import churn

__all__ = ["churn", "evaluate", "gather_logits"]
