"""A detector as ONNX: a graph a depth up to the heads, and a host loop in numpy, checked together."""

from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor, nn

from stepwell.data import detect as host
from stepwell.data.box_batches import MEAN, STD, collated
from stepwell.export import folder as folders
from stepwell.export.check import TOLERANCE
from stepwell.export.interface import Interface
from stepwell.export.onnx import graph_of, require_onnx
from stepwell.export.subnet import about
from stepwell.files import write_whole
from stepwell.nets.detection.detector import Detector
from stepwell.nets.files.container import state_digest
from stepwell.nets.files.onnx import session
from stepwell.types import Boxes

#: The host loop, and what it reads images with; both stand beside the graphs.
BESIDE = ("detect.py", "preprocess.py")
#: Share of the boxes that graph and host loop must find as the detector does. The boxes of a detector
#: that is hardly trained have almost equal scores, so that rounding decides which of them are dropped.
SAME = 0.9
#: Largest distance of the corners of equal boxes, in pixels, and of their scores.
_PIXELS, _SCORE = 0.05, 1e-3


class _AnySize(Interface):
    """Images of any number, whose sides are multiples of the strides."""

    def dynamic_shapes(self, limit: int) -> tuple[dict[int, Any], ...]:
        sides = {i: host.STRIDE * torch.export.Dim(name, min=1, max=4096 // host.STRIDE)
                 for i, name in ((2, "rows"), (3, "columns"))}  # fmt: skip
        return ({0: torch.export.Dim("batch"), **sides},)


class Heads(nn.Module):
    """A detector at one depth, from a normalised batch to what its heads give at every place."""

    def __init__(self, detector: Detector, depth: str) -> None:
        super().__init__()
        self.net, self.pyramid, self.heads = detector.net, detector.pyramid, detector.head.head
        self.depth, self._detector = depth, [detector]  # the list hides what is registered above

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """The tensors that `names` names."""
        features = self.net.forward_all(images, [self.depth])[self.depth].features
        outputs = self.heads([*self._detector[0].maps(features).values()])
        return tuple(outputs[name] for name in self.names)

    @property
    def names(self) -> list[str]:
        """The names of the outputs."""
        return ["cls_logits", "bbox_regression"] + ["bbox_ctrness"] * (self._detector[0].name == "fcos")


def export_detector(
    detector: Detector, folder: Path, images: Sequence[UInt8[Tensor, "3 _ _"]], part: str, *,
    depth: str | None = None, own: bool = False, say: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:  # fmt: skip
    """Write depths of a detector to `folder`, each checked with its host loop, and give the index.

    Args:
        images: RGB bytes for the check, from the `part` of the data.
        depth: one depth; all by default.

    Raises:
        ValueError: the detector has two stages; a depth was never trained; a graph and its host loop
            find other boxes than the detector; errors as for `put_in_place`.
        ImportError: the extra `onnx` is not installed.
    """
    if not hasattr(detector.head, "head"):
        raise ValueError(
            f"{detector.name} has two stages, and its second needs the first's boxes: no static graph "
            "holds it; train fcos, retinanet or ssdlite"
        )
    require_onnx()
    detector = detector.cpu().eval()
    net = detector.net
    chosen = [*net.depths] if depth is None else [depth]
    net.require_ready(*chosen)
    record: dict[str, Any] = {
        "network": state_digest(detector.state_dict()),
        **{k: v for k, v in about(net, net.full).items() if k not in ("depth", "blocks")},
        "mean": [*MEAN], "std": [*STD], "detector": described(detector),
    }  # fmt: skip
    beside = {name: resources.files("stepwell.data").joinpath(name).read_bytes() for name in BESIDE}
    with folders.put_in_place(folder, record, own=own, beside=beside) as (place, before):
        rows = []
        for name in chosen:
            say(f"depth {name}: onnx")
            rows.append(_write(detector, name, place, record, images, part))
        folders.write_index(place, before, record, rows)
    return record | {"files": rows}


def described(detector: Detector) -> dict[str, Any]:
    """All that the host loop needs to know of the head."""
    head = detector.head
    strides = [*detector.strides]
    generator = head.anchor_generator
    if detector.name == "ssdlite":
        anchors = [level.tolist() for level in generator._wh_pairs]
        numbers = {"nms": head.nms_thresh, "candidates": head.topk_candidates}
        kind, weights = "softmax", [*head.box_coder.weights]
    else:
        anchors = [cell.tolist() for cell in generator.cell_anchors]
        numbers = {"nms": head.nms_thresh, "candidates": head.topk_candidates}
        kind = "distances" if detector.name == "fcos" else "deltas"
        weights = [1.0] * 4
    return {
        "head": detector.name, "kind": kind, "strides": strides[: detector.own_levels],
        "more": len(strides) - detector.own_levels, "anchors": anchors,
        "anchors_each": [len(level) for level in anchors], "weights": weights,
        "score": head.score_thresh, "most": head.detections_per_img, **numbers,
    }  # fmt: skip


def _write(
    detector: Detector, depth: str, place: Path, record: dict[str, Any],
    images: Sequence[UInt8[Tensor, "3 _ _"]], part: str,
) -> dict[str, Any]:  # fmt: skip
    """Write one depth, check it, and describe the file."""
    heads = Heads(detector, depth).eval()
    metadata = about(detector.net, depth) | {
        name: record[name] for name in ("mean", "std", "detector")
    }  # fmt: skip
    interface = _AnySize(("images",), (("batch",),), lambda plain, x: (x,))
    example = torch.zeros(2, 3, 4 * host.STRIDE, 3 * host.STRIDE)
    proto = graph_of(heads, example, interface, metadata, heads.names)
    data = proto.SerializeToString()
    opened = session(data)
    file = place / f"{depth}.onnx"
    parity = _compared(detector, heads, host.Detector("", opened), images, file.name)
    write_whole(file, data)
    return {
        "depth": depth, "blocks": list(detector.net.depths[depth]), "format": "onnx",
        "file": file.name, "bytes": len(data), "parity": parity | {"part": part},
    }  # fmt: skip


@torch.inference_mode()
def _compared(
    detector: Detector, heads: Heads, loop: host.Detector, images: Sequence[UInt8[Tensor, "3 _ _"]],
    name: str,
) -> dict[str, Any]:  # fmt: skip
    """Compare the graph's tensors, and the boxes of the host loop, with the detector's."""
    difference, allowed, matches, boxes = 0.0, TOLERANCE, 0, 0
    for image in images:
        batch, sizes = collated([image])
        expected = heads(batch)
        arrays = loop.session.run(heads.names, {"images": batch.contiguous().numpy()})
        for tensor, array in zip(expected, arrays, strict=True):
            difference = max(difference, float((tensor - torch.from_numpy(array)).abs().max()))
            allowed = max(allowed, TOLERANCE * float(tensor.abs().max()))
        (own_boxes,) = detector(batch, sizes, heads.depth)
        corners, scores, labels = loop.find(image.permute(1, 2, 0).numpy())
        loop_boxes = Boxes.of(
            torch.from_numpy(corners), torch.from_numpy(labels), torch.from_numpy(scores)
        )
        matches += _equal(own_boxes, loop_boxes)
        boxes += max(own_boxes.total, loop_boxes.total)
    share = matches / boxes if boxes else 1.0
    if not difference <= allowed or share < SAME:
        raise ValueError(
            f"{name} differs from the detector by {difference:.2g} in an output (allowed: "
            f"{allowed:.2g}), and its host loop finds {100 * share:.0f} % of the boxes; nothing was "
            "written"
        )
    return {
        "difference": difference, "same_boxes": share, "boxes": boxes, "images": len(images)
    }  # fmt: skip


def _equal(boxes: Boxes, others: Boxes) -> int:
    """The number of boxes that both found, of equal class, place and score."""
    if not boxes.total or not others.total:
        return 0
    near = torch.cdist(boxes.boxes, others.boxes, p=torch.inf) < _PIXELS
    near &= boxes.labels[:, None] == others.labels
    near &= (boxes.scores[:, None] - others.scores).abs() < _SCORE
    return int(near.any(1).sum())


def noise(size: int, count: int = 4) -> list[UInt8[Tensor, "3 _ _"]]:
    """Images of noise, for a check without data."""
    generator = torch.Generator().manual_seed(0)
    shape = (count, 3, size, max(32, 3 * size // 4))
    pixels = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    return [*pixels]
