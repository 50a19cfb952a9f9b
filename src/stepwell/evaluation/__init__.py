"""Measures of a network's predictions: an evaluator takes `predict(batch) -> {name: logits}`."""

from stepwell.evaluation.accuracy import evaluate, gather_logits

__all__ = ["evaluate", "gather_logits"]
