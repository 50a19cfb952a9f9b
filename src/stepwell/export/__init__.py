"""Depths as files that other programs load."""

from stepwell.export.check import check_images
from stepwell.export.onnx import export_onnx
from stepwell.export.subnet import export_safetensors

__all__ = ["check_images", "export_onnx", "export_safetensors"]
