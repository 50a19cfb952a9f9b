"""One depth as an ONNX file, checked against the network it came from."""

import json
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from stepwell.files import write_whole
from stepwell.nets import NestedNet

#: Largest difference of logits allowed, as a share of the largest logit.
TOLERANCE = 1e-4


class Parity(NamedTuple):
    """How an exported depth compares with the network on the images it was checked on."""

    path: Path
    images: int
    difference: float  # largest, of logits
    same_class: float  # share of images


def export_onnx(net: NestedNet, depth: str, path: Path, images: Tensor) -> Parity:
    """Write one depth as an ONNX file of any batch size, and check it with onnxruntime.

    The graph takes `images` (batch, 3, size, size), normalised, to `logits` (batch, classes). Class
    names, size, mean and std stand in the file's metadata. Nothing is written unless the check passes.

    Args:
        images: normalised images to check on; at least two, real ones where there are any.

    Raises:
        ValueError: the depth was never trained or calibrated; fewer than two images; the exported
            graph gives other logits.
        ImportError: the extra `onnx` is not installed.
    """
    net.require_ready(depth)
    if len(images) < 2:
        raise ValueError("checking an export takes at least two images")
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401  (torch's exporter needs it)
    except ImportError as error:
        raise ImportError(
            f"exporting to ONNX needs {error.name}: pip install 'stepwell[onnx]'"
        ) from error
    plain = net.subnet(depth).cpu().eval()
    images = images.contiguous()
    proto = _export(plain, images[:2])
    onnx.helper.set_model_props(proto, _metadata(net, depth))
    data = proto.SerializeToString()
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    parity = _compare(plain, session, images, path)
    write_whole(path, data)
    return parity


def _export(plain: torch.nn.Module, images: Tensor) -> Any:
    """The ONNX model of a plain network, its batch size left open."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns of its own internals
        program = torch.onnx.export(
            plain,
            (images,),
            dynamo=True,
            # folding norms would change convolutions that depths share; onnxruntime fuses at load
            optimize=False,
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            verbose=False,
        )
    assert program is not None
    return program.model_proto


def _metadata(net: NestedNet, depth: str) -> dict[str, str]:
    card = net.card
    return {
        "depth": depth,
        "blocks": json.dumps(net.depths[depth]),
        "classes": json.dumps(card.classes),
        "size": str(card.size),
        "mean": json.dumps(card.mean),
        "std": json.dumps(card.std),
    }


@torch.inference_mode()
def _compare(plain: torch.nn.Module, session: Any, images: Tensor, path: Path) -> Parity:
    expected = plain(images)
    whole = torch.from_numpy(session.run(None, {"images": images.numpy()})[0])
    single = torch.from_numpy(session.run(None, {"images": images[:1].numpy()})[0])
    difference = max(
        float((whole - expected).abs().max()), float((single - expected[:1]).abs().max())
    )
    allowed = TOLERANCE * max(1.0, float(expected.abs().max()))
    if not difference <= allowed:
        raise ValueError(
            f"the ONNX graph for {path} differs from the network by {difference:.2g} in a logit "
            f"(allowed: {allowed:.2g}); nothing was written"
        )
    same = (whole.argmax(1) == expected.argmax(1)).double().mean().item()
    return Parity(path, len(images), difference, same)
