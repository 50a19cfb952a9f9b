"""Using a trained network: predictions at any depth, within a budget."""

from stepwell.serve.files import Prediction, depth_within, expand, predict_files, to_csv

__all__ = ["Prediction", "depth_within", "expand", "predict_files", "to_csv"]
