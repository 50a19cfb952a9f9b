"""One depth as an ONNX file, checked against its network.

The file holds its weights, or points at them: each initialiser is then a byte range of the nested net's
safetensors file in the same folder, and all depths together store every weight once. Both formats store
values row by row in little-endian order, so a range needs no conversion.
"""

import json
import logging
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from stepwell.export.check import Parity, compare
from stepwell.export.interface import INTERFACES, Interface
from stepwell.export.subnet import about
from stepwell.files import write_whole
from stepwell.nets import NestedNet
from stepwell.nets.files.onnx import file_sha256, require, runner, session
from stepwell.types import Images

#: The data types of safetensors that a network's weights may have, by their name in ONNX.
TYPES = {
    "F64": "DOUBLE", "F32": "FLOAT", "F16": "FLOAT16", "BF16": "BFLOAT16", "I64": "INT64",
    "I32": "INT32", "I16": "INT16", "I8": "INT8", "U8": "UINT8", "BOOL": "BOOL",
}  # fmt: skip

#: Number of training images for the scales of int8 activations, and the batch size for them.
CALIBRATION, BATCH = 256, 32


class Range(NamedTuple):
    """The position of a tensor's bytes in a safetensors file."""

    offset: int  # from the start of the file
    length: int
    type: str
    shape: tuple[int, ...]


def export_onnx(
    net: NestedNet, depth: str, path: Path, images: Tensor, *, weights: Path | None = None
) -> Parity:
    """Write one depth as an ONNX file of any batch size, and check it with onnxruntime.

    The graph maps normalised `images` (batch, 3, size, size), or `input_ids` and `attention_mask`
    (batch, tokens), to `logits` (batch, classes). The metadata holds class names, size, mean and std.
    Nothing is written unless the check passes.

    Args:
        images: normalised images, or token ids, for the check; at least two, preferably real ones.
        weights: the nested net's file, in the folder of `path`, for the initialisers to point into; by
            default the ONNX file holds its weights.

    Raises:
        ValueError: the depth was never trained or calibrated; fewer than two images; the exported
            graph gives other logits; `weights` is no file of this network.
        ImportError: the extra `onnx` is not installed.
    """
    net.require_ready(depth)
    metadata, names = about(net, depth), net.stored_names(depth)
    interface = INTERFACES[net.card.input]
    return write_onnx(net.subnet(depth), path, images, metadata, names, weights, interface)


def write_onnx(
    plain: nn.Module, path: Path, images: Tensor, described: Mapping[str, Any],
    names: Mapping[str, str], weights: Path | None, interface: Interface = INTERFACES["image"],
) -> Parity:  # fmt: skip
    """Write a plain network as an ONNX file, checked with onnxruntime before; errors as `export_onnx`.

    Args:
        plain: takes images to logits.
        described: the file's metadata.
        names: the name in `weights` of each tensor of the network.
        weights: a file in the folder of `path` for the initialisers to point into, or None.
        interface: the graph's inputs.
    """
    require_onnx()
    plain = plain.cpu().eval()
    metadata = dict(described)
    if weights is not None:
        metadata |= {"weights": weights.name, "weights_sha256": file_sha256(weights)}
    proto = graph_of(plain, torch.zeros_like(images[:2]), interface, metadata)
    if weights is not None:
        _point(proto, names, ranges(weights), weights)
    data = proto.SerializeToString()
    opened = session(data, None if weights is None else weights.parent)
    run = runner(opened, interface.names, partial(interface.inputs, plain))
    parity = compare(plain, run, images, path.name)
    write_whole(path, data)
    return parity


def export_int8(model: Path, path: Path, images: Images) -> None:
    """Write the int8 version of an exported ONNX depth, by static quantisation of onnxruntime.

    Norms are folded into convolutions and every layer has its own scales, so the file shares no weights
    with other depths. Weights are signed and use seven of the eight bits: without VNNI instructions
    full-range products overflow, and accuracy would depend on the machine.

    Args:
        model: the depth as `export_onnx` wrote it, with any external weights in place.
        images: normalised training images, without augmentation.
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


def ranges(path: Path) -> dict[str, Range]:
    """The position of each tensor in a safetensors file, by name."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    positions = {}
    for name, entry in header.items():
        start, stop = entry["data_offsets"]
        shape = tuple(entry["shape"])
        positions[name] = Range(8 + length + start, stop - start, entry["dtype"], shape)
    return positions


def require_onnx() -> None:
    """Check that the extra `onnx` is installed, including torch's exporter, else ImportError."""
    require("onnx", "onnxruntime", "onnxscript")


def graph_of(
    plain: nn.Module, inputs: Tensor, interface: Interface, described: Mapping[str, Any],
    outputs: Sequence[str] = ("logits",),
) -> Any:  # fmt: skip
    """The ONNX model of a plain network, for any batch size; of texts, for up to "size" tokens.

    Args:
        inputs: two examples.
        described: the metadata.
    """
    import onnx

    with warnings.catch_warnings(), _quiet("onnx_ir"):
        warnings.simplefilter("ignore")  # the exporter warns of its own internals
        # optimize would fold norms into convolutions that depths share; onnxruntime fuses at load
        program = torch.onnx.export(
            plain, interface.inputs(plain, inputs), dynamo=True, optimize=False, verbose=False,
            input_names=[*interface.names], output_names=[*outputs],
            dynamic_shapes=interface.dynamic_shapes(int(described["size"])),
        )  # fmt: skip
    assert program is not None
    proto = program.model_proto
    # The exporter's notes (which line of which file made a node) would be most of a small file.
    for part in (proto.graph, *proto.graph.node, *proto.graph.value_info, *proto.functions):
        del part.metadata_props[:]
    _drop_zero_biases(proto.graph)
    onnx.helper.set_model_props(proto, as_metadata(described))
    return proto


def as_metadata(facts: Mapping[str, Any]) -> dict[str, str]:
    """Facts as the metadata of a graph has them: texts, and all else as JSON."""
    return {k: v if isinstance(v, str) else json.dumps(v) for k, v in facts.items()}


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Keep a library's warnings off the screen."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _drop_zero_biases(graph: Any) -> None:
    """Remove the zero bias that the exporter adds to a convolution without bias.

    The zeros are computed at each run, and prevent onnxruntime from folding norms into convolutions.
    """
    producers = {name: node for node in graph.node for name in node.output}
    for node in graph.node:
        if node.op_type == "Conv" and len(node.input) == 3 and _is_zero(node.input[2], producers):
            del node.input[2]
    unused: list[Any] = [None]
    while unused:
        used = {output.name for output in graph.output} | set(_inputs(graph))
        unused = [node for node in graph.node if not used.intersection(node.output)]
        for node in unused:
            graph.node.remove(node)
    known = {name for node in graph.node for name in (*node.input, *node.output)}
    for value in [value for value in graph.value_info if value.name not in known]:
        graph.value_info.remove(value)


def _is_zero(name: str, producers: Mapping[str, Any]) -> bool:
    """True if a value is a constant zero, expanded to some shape."""
    from onnx.numpy_helper import to_array

    node = producers.get(name)
    while node is not None and node.op_type in ("Expand", "CastLike"):
        node = producers.get(node.input[0])
    if node is None or node.op_type != "Constant":
        return False
    (value,) = node.attribute
    return value.name == "value" and not to_array(value.t).any()


def _inputs(graph: Any) -> Iterator[str]:
    """Every name that a node of the graph, or of a graph inside it, reads."""
    for node in graph.node:
        yield from node.input
        for attribute in node.attribute:
            yield from _inputs(attribute.g)


def _point(proto: Any, names: Mapping[str, str], stored: Mapping[str, Range], weights: Path) -> None:
    """Replace each initialiser that is a tensor of the network by its byte range in `weights`.

    Constants of the graph, which that file lacks, stay in the graph.
    """
    import onnx

    for tensor in proto.graph.initializer:
        if tensor.name not in names:
            continue
        name = names[tensor.name]
        place = stored.get(name)
        kind = None if place is None else getattr(onnx.TensorProto, TYPES[place.type])
        if place is None or (tuple(tensor.dims), tensor.data_type) != (place.shape, kind):
            raise ValueError(f"{weights} is no file of this network: {name} is missing or differs")
        raw = {"location": weights.name, "offset": place.offset, "length": place.length}
        entries = [onnx.StringStringEntryProto(key=k, value=str(v)) for k, v in raw.items()]
        moved = onnx.TensorProto(
            name=tensor.name, dims=tensor.dims, data_type=tensor.data_type,
            data_location=onnx.TensorProto.EXTERNAL, external_data=entries,
        )  # fmt: skip
        tensor.CopyFrom(moved)
