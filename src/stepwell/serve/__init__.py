"""Predictions for image files: at a depth, within a budget, by a cascade."""

from stepwell.moved import moved_name
from stepwell.nets.predictions import Prediction
from stepwell.serve.files import expand, predict_files, to_csv

__all__ = ["Prediction", "expand", "predict_files", "to_csv"]


def __getattr__(name: str) -> object:
    return moved_name(__name__, name)
