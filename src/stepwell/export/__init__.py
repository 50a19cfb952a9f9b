"""Depths as files that other programs load."""

from stepwell.export.check import Parity, Sample, check_images, take
from stepwell.export.delta import Delta, apply_delta, export_delta
from stepwell.export.dynamic import OpenDynamic, export_dynamic
from stepwell.export.folder import Int8, export_folder
from stepwell.export.int8 import export_int8
from stepwell.export.onnx import export_onnx
from stepwell.export.program import export_pt2
from stepwell.export.subnet import export_safetensors
from stepwell.nets.onnx_file import open_onnx

__all__ = [
    "Delta",
    "Int8",
    "OpenDynamic",
    "Parity",
    "Sample",
    "apply_delta",
    "check_images",
    "export_delta",
    "export_dynamic",
    "export_folder",
    "export_int8",
    "export_onnx",
    "export_pt2",
    "export_safetensors",
    "open_onnx",
    "take",
]
