"""Export of depths as files for other programs."""

from stepwell.export.check import Parity, Sample, check_images, take
from stepwell.export.choices import OpenChoices
from stepwell.export.delta import Delta, apply_delta, export_delta
from stepwell.export.folder import Int8, export_folder
from stepwell.export.onnx import export_int8, export_onnx
from stepwell.export.resolution import export_resolution
from stepwell.export.subnet import export_pt2, export_safetensors
from stepwell.export.widths import export_widths
from stepwell.moved import moved_name
from stepwell.nets.files.onnx import open_onnx

__all__ = [
    "Delta", "Int8", "OpenChoices", "Parity", "Sample", "apply_delta", "check_images",
    "export_delta", "export_folder", "export_int8", "export_onnx", "export_pt2",
    "export_resolution", "export_safetensors", "export_widths", "open_onnx", "take",
]  # fmt: skip


def __getattr__(name: str) -> object:
    return moved_name(__name__, name)
