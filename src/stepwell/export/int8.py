"""One depth in 8-bit integers: post-training static quantisation by onnxruntime.

Norms are folded into convolutions and every layer has its own scales, so an int8 file shares no weights
with other depths.
"""

import tempfile
import warnings
from pathlib import Path

from stepwell.export.onnx import require_onnx
from stepwell.files import write_whole
from stepwell.types import Images

#: Number of training images for the scales of activations, and the batch size for them.
CALIBRATION, BATCH = 256, 32


def export_int8(model: Path, path: Path, images: Images) -> None:
    """Write the int8 version of an exported ONNX depth.

    QDQ format. Weights are signed, with a scale for each output channel, and use seven of the eight
    bits: without VNNI instructions full-range products overflow, and accuracy would depend on the
    machine. Activations are unsigned and range over the values on `images`.

    Args:
        model: the depth as `export_onnx` wrote it, with any external weights in place.
        images: normalised training images, without augmentation.

    Raises:
        ImportError: the extra `onnx` is not installed.
    """
    require_onnx()
    import onnx
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self.batches = iter(images.split(BATCH))

        def get_next(self) -> dict[str, object] | None:
            batch = next(self.batches, None)
            return None if batch is None else {"images": batch.contiguous().numpy()}

    with tempfile.TemporaryDirectory() as name, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folder = Path(name)
        alone, folded, done = (folder / f"{step}.onnx" for step in ("alone", "folded", "int8"))
        whole = onnx.load(model)
        entries = {e.key: e.value for e in whole.metadata_props}
        described = {k: v for k, v in entries.items() if not k.startswith("weights")}
        onnx.save(whole, alone)
        quant_pre_process(str(alone), str(folded), skip_symbolic_shape=True)
        quantization.quantize_static(
            str(folded), str(done), Reader(), per_channel=True, reduce_range=True,
            quant_format=quantization.QuantFormat.QDQ, weight_type=quantization.QuantType.QInt8,
            activation_type=quantization.QuantType.QUInt8,
        )  # fmt: skip
        quantised = onnx.load(done)
        del quantised.metadata_props[:]
        onnx.helper.set_model_props(quantised, described)
        write_whole(path, quantised.SerializeToString())
