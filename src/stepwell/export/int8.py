"""One depth in whole numbers of eight bits: post-training static quantisation through onnxruntime.

Norms are folded into the convolutions before them and every layer gets scales of its own, so such a
file shares no weight with another depth: it stands alone.
"""

import tempfile
import warnings
from pathlib import Path

from torch import Tensor

from stepwell.export.onnx import require_onnx
from stepwell.files import write_whole

#: Training images whose activations give the scales, and how many of them run at once.
CALIBRATION, BATCH = 256, 32


def export_int8(model: Path, path: Path, images: Tensor) -> None:
    """Write the int8 version of an exported ONNX depth.

    QDQ format; weights signed with a scale for each output channel, in seven of the eight bits: on
    processors without VNNI instructions products of full range overflow, and accuracy would depend on
    the machine. Activations unsigned, from the least to the greatest value that `images` give.

    Args:
        model: the depth as `export_onnx` wrote it, with its weights where it points at them.
        images: normalised training images, without augmentation.

    Raises:
        ImportError: the extra `onnx` is not installed.
    """
    require_onnx()
    import onnx
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quantize_static,
    )
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
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
        described = {
            e.key: e.value for e in whole.metadata_props if not e.key.startswith("weights")
        }
        onnx.save(whole, alone)
        quant_pre_process(str(alone), str(folded), skip_symbolic_shape=True)
        quantize_static(
            str(folded),
            str(done),
            Reader(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        quantised = onnx.load(done)
        del quantised.metadata_props[:]
        onnx.helper.set_model_props(quantised, described)
        write_whole(path, quantised.SerializeToString())
