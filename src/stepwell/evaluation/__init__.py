"""Measures of predictions; an evaluator takes `predict(batch) -> {name: logits}`."""

from stepwell.evaluation.accuracy import Tally, churn, evaluate, gather_logits, tally
from stepwell.evaluation.cka import cka
from stepwell.evaluation.fidelity import fidelity, fidelity_of

__all__ = ["Tally", "churn", "cka", "evaluate", "fidelity", "fidelity_of", "gather_logits", "tally"]
