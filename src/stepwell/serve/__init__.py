"""Using a trained network: predictions at any depth, within a budget."""

from stepwell.moved import moved_name
from stepwell.serve.files import Prediction, as_batch, expand, predict_files, to_csv

__all__ = ["Prediction", "as_batch", "expand", "predict_files", "to_csv"]


def __getattr__(name: str) -> object:
    return moved_name(__name__, name)
