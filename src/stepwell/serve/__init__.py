"""Using a trained network: predictions at any depth, within a budget."""

from stepwell.serve.cascade import calibrate_cascade, cascade_macs, check_depths, measure_cascade
from stepwell.serve.files import Prediction, as_batch, expand, predict_files, to_csv

__all__ = [
    "Prediction",
    "as_batch",
    "calibrate_cascade",
    "cascade_macs",
    "check_depths",
    "expand",
    "measure_cascade",
    "predict_files",
    "to_csv",
]
