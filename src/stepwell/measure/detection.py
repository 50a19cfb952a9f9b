"""A trained detector on images with boxes: average precision and costs of every depth."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from stepwell.cost import costs_of
from stepwell.data.box_batches import BoxBatches, restored
from stepwell.data.boxes import BoxSet
from stepwell.evaluation.detection import average_precision, precision_interval
from stepwell.nets.detection.detector import Detector
from stepwell.train_mode import in_eval_mode
from stepwell.types import Boxes, Images

#: Most images of which an interval is computed; a hundred resamples of more would take minutes.
RESAMPLED = 1000
Track = Callable[[Iterable[Any], str, int], Iterable[Any]]


def detect(
    detector: Detector, batches: BoxBatches, depths: Sequence[str] | None = None, *,
    track: Track | None = None,
) -> dict[str, list[Boxes]]:  # fmt: skip
    """The boxes of every image at all depths (or those named), in pixels of the image on disk.

    Boxes that lie outside of their image are left out.

    `track` shows progress.
    """
    device = next(detector.parameters()).device
    names = [*detector.net.depths] if depths is None else [*depths]
    examples, order = batches.examples, iter(batches.order)
    detections: dict[str, list[Boxes]] = {name: [Boxes.of([], [])] * len(examples) for name in names}
    steps = batches if track is None else track(batches, "detecting", len(batches))
    with in_eval_mode(detector), torch.inference_mode():
        for batch in steps:
            by_depth = detector.by_depth(batch.images.to(device), batch.sizes, names)
            for row, size in enumerate(batch.sizes):
                index = next(order)
                for name, answers in by_depth.items():
                    answer = answers[row]
                    boxes = restored(answer.boxes, size, examples.sizes[index])
                    detections[name][index] = Boxes.of(boxes, answer.labels, answer.scores).with_area()
    return detections


def precisions(examples: BoxSet, detections: Mapping[str, Sequence[Boxes]]) -> dict[str, float]:
    """Average precision by "ROW/measure", of the boxes that each row found in the examples.

    Boxes of classes that an image's truth does not tell of are neither right nor wrong.
    """
    truth = examples.coco()
    return {
        f"{row}/{name}": value
        for row, boxes in detections.items()
        for name, value in average_precision(truth, examples.results(examples.judged(boxes))).items()
    }


def intervals(examples: BoxSet, detections: Mapping[str, Sequence[Boxes]]) -> dict[str, float]:
    """The ends of the 95 % interval over images of each row's average precision."""
    truth = examples.coco()
    numbers: dict[str, float] = {}
    for row, boxes in detections.items():
        low, high = precision_interval(truth, examples.results(examples.judged(boxes)))
        if low == low:  # images without a true box have none
            numbers |= {f"{row}/ap_low": low, f"{row}/ap_high": high}
    return numbers


def cost_table(detector: Detector, x: Images) -> dict[str, dict[str, Any]]:
    """Measure the costs of every depth on images `x`: backbone, pyramid, head and NMS.

    By depth: "blocks", and the costs of `stepwell.cost.cost_of`.
    """
    net = detector.net
    costs = costs_of({depth: _AtDepth(detector, depth) for depth in net.depths}, x)
    for depth, cost in costs.items():
        parts = (net.subnet(depth), detector.pyramid, detector.head)
        cost["params"] = sum(p.numel() for part in parts for p in part.parameters())
        tensors = [t for part in parts for t in (*part.parameters(), *part.buffers())]
        cost["weight_bytes"] = sum(t.nbytes for t in tensors)
    return {depth: {"blocks": list(blocks)} | costs[depth] for depth, blocks in net.depths.items()}


def measure_detector(
    detector: Detector, test: BoxBatches, *, track: Track | None = None
) -> tuple[dict[str, Any], dict[str, list[Boxes]]]:
    """Measure every depth on labelled images; the detector is on the CPU afterwards.

    Returns:
        Results as results.json has them: "kind", "rows", "test", "examples", "costs", and "detect" with
        the number of boxes of each class; and what each depth found.
    """
    detections = detect(detector, test, track=track)
    costs = cost_table(detector.cpu(), test.at(0).images[:1])
    numbers = precisions(test.examples, detections)
    if len(test.examples) <= RESAMPLED:
        numbers |= intervals(test.examples, detections)
    results = {
        "kind": "detector", "rows": "depth", "test": numbers,
        "examples": len(test.examples), "costs": costs,
        "detect": {"boxes": test.examples.counts, "size": test.size},
    }  # fmt: skip
    return results, detections


class _AtDepth(nn.Module):
    """A detector at one depth, from images to the coordinates of all boxes."""

    def __init__(self, detector: Detector, depth: str) -> None:
        super().__init__()
        self.detector, self.depth = detector, depth

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([detections.boxes for detections in self.detector(x, None, self.depth)])
