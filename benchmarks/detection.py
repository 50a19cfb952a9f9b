"""Detectors and pseudo labels: labelling, fusion, evaluation, training steps, memory.

Images are composites of real digits on real photographs. Labelling is measured by the clock on the
wall, because images are read and boxes written beside the teacher; everything else by the processor's.
"""

import io
import os
import resource
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stdout
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList

from benchmarks.timing import on_threads, ratio, side_by_side
from stepwell.claims.pseudo.composites import write_composites
from stepwell.cost import count_joint_macs, count_macs
from stepwell.data.box_batches import BoxBatches
from stepwell.data.boxes import BoxSet, read_boxes
from stepwell.evaluation.detection import average_precision
from stepwell.export.detector import Heads
from stepwell.measure.detection import detect
from stepwell.methods import Detection
from stepwell.nets.detection.detector import Detector, build_detector
from stepwell.pseudo_labels.fusion import fuse
from stepwell.pseudo_labels.store import Store
from stepwell.pseudo_labels.teachers import BoxTeacher
from stepwell.types import BoxBatch, Boxes

IMAGES, BATCH, ROUNDS, SIDE = 512, 16, 5, 160
#: Images and classes of the boxes that are fused and evaluated.
FUSED, EVALUATED, CLASSES = 1000, 500, 3
NAME = "fcos/resnet14_s4"
#: A teacher of a usual size, the longer side of its images, and how many it labels.
USUAL, USUAL_SIDE, USUAL_IMAGES = "fcos/resnet18", 320, 32


def measure() -> dict[str, Any]:
    """Ratios of ours to the alternatives, each in one process."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        write_composites(root, "train", IMAGES)
        images = read_boxes(root / "train.json", root / "images")
        return {
            **labelling(images, root), **fusion(), **evaluation(), **steps(images),
            **memory(images, root),
            **labelling(images.subset(range(USUAL_IMAGES)), root, USUAL, USUAL_SIDE,
                        f", {USUAL}, {USUAL_SIDE} pixels"),
        }  # fmt: skip


def teacher(mark: str = "1", name: str = NAME, side: int = SIDE) -> tuple[Detector, BoxTeacher]:
    """A detector with random weights, and the same as a teacher."""
    torch.manual_seed(0)
    detector = build_detector(name, 10).eval()
    full = detector.net.full

    def load(images: BoxSet) -> BoxBatches:
        return BoxBatches(images, BATCH, size=side)

    def find(batches: BoxBatches) -> list[Boxes]:
        return detect(detector, batches, [full])[full]

    return detector, BoxTeacher("teacher", mark, tuple(map(str, range(10))), load, find)


def labelling(
    images: BoxSet, root: Path, name: str = NAME, side: int = SIDE, by: str = ""
) -> dict[str, Any]:
    """Labelling against the teacher's bare forward passes, and reading what is labelled.

    Images are decoded and boxes written beside the passes. On one thread, a core is free for that.
    `by`: words about the teacher for the names of the results.
    """
    detector, known = teacher("known", name, side)
    ready = [*BoxBatches(images, BATCH, size=side)]
    marks = iter(range(10**6))

    def bare() -> None:
        with torch.inference_mode():
            for batch in ready:
                detector(batch.images, batch.sizes)

    store = Path(tempfile.mkdtemp(dir=root))

    def label() -> None:
        Store(store, teacher(str(next(marks)), name, side)[1]).boxes(images)

    def read() -> None:
        Store(store, known).boxes(images)

    read()  # the first time, it labels
    calls = {"bare": bare, "labelling": label, "reading": read}
    found: dict[str, Any] = {}
    for threads in (1, 2):
        with on_threads(threads):
            times = side_by_side(calls, rounds=min(3, ROUNDS))
        found[f"labelling/of bare speed{by}, {threads} threads"] = ratio(times, "bare", "labelling")
    found[f"labelling/read again{by}, times as fast"] = ratio(times, "labelling", "reading")
    return found


def fusion() -> dict[str, Any]:
    """Fusion of two teachers against ensemble-boxes, with equal results."""
    from ensemble_boxes import weighted_boxes_fusion

    rng = np.random.default_rng(0)
    images = min(FUSED, 2 * IMAGES)
    teachers = [[_boxes(rng) for _ in range(images)] for _ in range(2)]
    covers = torch.ones(2, images, CLASSES, dtype=torch.bool)
    rows = [
        [
            [(getattr(boxes[i], name) / scale).tolist() for boxes in teachers]
            for name, scale in (("boxes", 100), ("scores", 1), ("labels", 1))
        ]
        for i in range(images)
    ]

    def theirs() -> list[Any]:
        return [weighted_boxes_fusion(*row, iou_thr=0.55) for row in rows]

    for fused, (boxes, scores, _) in zip(fuse(teachers, covers), theirs(), strict=True):
        assert fused.total == len(boxes)
        assert np.allclose(fused.scores, scores, atol=1e-4)
    calls: dict[str, Callable[[], object]] = {"ours": lambda: fuse(teachers, covers), "theirs": theirs}
    times = side_by_side(calls, rounds=min(3, ROUNDS), clock=time.process_time)
    return {f"fusion/{images} images, times as fast": ratio(times, "theirs", "ours")}


def _boxes(rng: np.random.Generator) -> Boxes:
    count = int(rng.integers(20, 60))
    low = rng.uniform(0, 80, (count, 2))
    corners = np.concatenate([low, np.minimum(low + rng.uniform(2, 20, (count, 2)), 100)], 1)
    labels = rng.integers(0, CLASSES, count)
    scores = torch.from_numpy(rng.uniform(0, 1, count))
    return Boxes.of(torch.from_numpy(corners), torch.from_numpy(labels), scores)


def evaluation() -> dict[str, Any]:
    """Average precision against pycocotools, with equal results."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    rng = np.random.default_rng(0)
    images = min(EVALUATED, IMAGES)
    true = [_boxes(rng) for _ in range(images)]
    truth, predictions = [], []
    for id, boxes in enumerate(true, 1):
        rows = zip(boxes.boxes.tolist(), boxes.labels.tolist(), boxes.scores.tolist(), strict=True)
        for (x1, y1, x2, y2), label, score in [*rows][:24]:
            box = {"image_id": id, "category_id": label + 1}
            area = (x2 - x1) * (y2 - y1)
            truth.append({
                **box, "id": len(truth) + 1, "bbox": [x1, y1, x2 - x1, y2 - y1], "area": area,
                "iscrowd": 0,
            })  # fmt: skip
            moved = rng.normal(0, 1, 2)
            predictions.append(
                {**box, "bbox": [x1 + moved[0], y1 + moved[1], x2 - x1, y2 - y1], "score": score}
            )
    content: Mapping[str, Any] = {
        "images": [{"id": i, "width": 100, "height": 100} for i in range(1, images + 1)],
        "annotations": truth,
        "categories": [{"id": i, "name": str(i)} for i in range(1, CLASSES + 1)],
    }

    def theirs() -> float:
        with redirect_stdout(io.StringIO()):
            coco = COCO()
            coco.dataset = {"info": {}, **content}
            coco.createIndex()
            measured = COCOeval(coco, coco.loadRes([dict(row) for row in predictions]), "bbox")
            measured.evaluate()
            measured.accumulate()
            measured.summarize()
        return float(measured.stats[0])

    def ours() -> float:
        return average_precision(content, predictions)["ap"]

    assert abs(ours() - theirs()) < 1e-12
    calls = {"ours": ours, "theirs": theirs}
    times = side_by_side(calls, rounds=min(3, ROUNDS), clock=time.process_time)
    name = f"evaluation/{images} images, {len(predictions)} boxes, times as fast"
    return {name: ratio(times, "theirs", "ours")}


class Backbone(nn.Module):
    """A detector's backbone and pyramid as torchvision's detectors call one."""

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.detector = [detector]
        self.out_channels = detector.width

    def forward(self, images: Tensor) -> Mapping[str, Tensor]:
        """The pyramid's maps."""
        (detector,) = self.detector
        (exit,) = detector.net.forward_all(images, [detector.net.full]).values()
        return detector.maps(exit.features)


class Ready(nn.Module):
    """A transform of images that are scaled and normalised already."""

    def forward(self, images: Tensor, targets: Any) -> tuple[ImageList, Any]:
        """The images as they are."""
        size = (int(images.shape[2]), int(images.shape[3]))
        return ImageList(images, [size] * len(images)), targets


def steps(images: BoxSet) -> dict[str, Any]:
    """A training step against torchvision's own forward pass, and a nested one against its bound."""
    torch.manual_seed(0)
    batch: BoxBatch = BoxBatches(images, BATCH, size=SIDE, shuffle=True).at(0)
    single, nested = build_detector(NAME, 10), build_detector(NAME, 10, ["8"])
    objectives = {"ours": Detection(single), "nested": Detection(nested)}
    for objective in objectives.values():
        objective.progress = 1.0
    plain = build_detector(NAME, 10)
    head = plain.head
    reference = type(head).__new__(type(head))
    reference.__dict__.update(head.__dict__)
    reference._modules = dict(head._modules) | {"backbone": Backbone(plain), "transform": Ready()}
    targets = [{"boxes": boxes.boxes, "labels": boxes.labels} for boxes in batch.truth]

    def theirs() -> None:
        plain.zero_grad()
        torch.stack([*reference(batch.images, targets).values()]).sum().backward()

    def step(name: str) -> Callable[[], None]:
        objective = objectives[name]

        def call() -> None:
            objective.zero_grad()
            objective.training_step(batch).loss.backward()

        return call

    calls = {"theirs": theirs, "ours": step("ours"), "nested": step("nested")}
    times = side_by_side(calls, rounds=ROUNDS, clock=time.process_time)
    bound = _bound(nested, batch.images[:1])
    return {
        "step/of a loop by hand": ratio(times, "ours", "theirs"),
        "step/nested, of one depth": ratio(times, "nested", "ours"),
        "step/nested, bound by MACs": bound,
    }


def _bound(detector: Detector, x: Tensor) -> float:
    """MACs of a nested step over those of the full depth: each depth runs pyramid and head."""

    net = detector.eval().net
    full, joint = count_macs(net.subnet(net.full), x), count_joint_macs(net, x)
    behind = count_macs(Heads(detector, net.full), x) - full
    detector.train()
    return (joint + len(net.depths) * behind) / (full + behind)


def memory(images: BoxSet, root: Path) -> dict[str, Any]:
    """Growth of a process while it labels four times as many images, in MiB.

    The process is a new one: the peak of this one is that of its whole life.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        growth = pool.submit(_growth, images, root).result()
    return {"labelling/growth by 4 times as many images, MiB": growth}


def _growth(images: BoxSet, root: Path) -> float:
    few = images.subset(range(len(images) // 4))
    Store(root / "memory", teacher("few")[1]).boxes(few)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    Store(root / "memory", teacher("many")[1]).boxes(images)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return (after - before) / 1024


if __name__ == "__main__":
    os.environ["STEPWELL_QUIET"] = "1"
    print(measure())
