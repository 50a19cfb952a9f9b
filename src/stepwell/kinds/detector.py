"""Detectors: a nested backbone with a pyramid and a head."""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stepwell.colours import OKABE_ITO
from stepwell.console import row_table, say, show, show_conditions, size, table, track, written
from stepwell.files import check_folder
from stepwell.kinds import Costs, Network, Predicted, classifier
from stepwell.kinds.serving import Engine
from stepwell.measures import MEASURES, of_row
from stepwell.ranges import SURE

if TYPE_CHECKING:
    from stepwell.data.boxes import BoxSet
    from stepwell.nets.detection.detector import Detector
    from stepwell.nets.predictions import Prediction
    from stepwell.serve.served import Served
    from stepwell.types import Boxes

NAME = "a detector"
#: The input's size is its longer side.
SIZE = "{} pixels (longer side)"
ADVICE = {
    "delta": "export each depth",
    "calibrate": "its norms have no statistics: name the depths with --depths when you train",
}
NEXT = (
    "stepwell eval {run}", "stepwell export {run}", "stepwell report {run}",
    "stepwell predict {run} IMAGE|FOLDER... --draw PICTURES",
)  # fmt: skip
SECTIONS = (
    [f"stepwell.report.sections:{name}" for name in ("cost_figures", "row_table", "run_figures")]
    + ["stepwell.report.detection:boxes_section"]
    + [f"stepwell.report.sections:{name}" for name in ("facts", "arguments")]
)
#: Columns after a training, and of an evaluation.
TRAINED = ("blocks", "params", "macs", "ap", "ap50", "ms")
EVALUATED = (*TRAINED[:3], "ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "ms")
#: Classes in a table, at most; images of a batch.
CLASSES, BATCH = 30, 16
#: Images on which an export is checked.
CHECKED = 16


def open(path: Path, module: Callable[[], Any] | None = None) -> "Detector":
    """Read the detector of a run or a file; errors as for `load_detector`."""
    if module is not None:
        raise ValueError(f"{path} holds {NAME}, which has no module of its own: leave --module out")
    from stepwell.nets.detection.file import load_detector

    detector = load_detector(path)
    classifier.check_card(path, detector.net)
    return detector


def evaluate(network: Network, *, data: str | None = None) -> dict[str, Any]:
    """Measure every depth on the test part of the run's data or of other data. Flags as for `eval`."""
    from stepwell.data.box_batches import BoxBatches
    from stepwell.measure.detection import measure_detector

    net = network.net.net
    net.require_ready()
    name = data or network.config.get("arguments", {}).get("data")
    if name is None:
        raise ValueError(f"{network.path} does not say its data: name some with --data")
    test = _test_part(network, data)
    results, _ = measure_detector(network.net, BoxBatches(test, BATCH, size=net.card.size), track=track)
    fingerprint = test.fingerprint
    own = network.config.get("data", {}).get("fingerprint", "").endswith(fingerprint)
    return results | {"data": {"name": name, "fingerprint": fingerprint, "own": own}}


def _test_part(network: Network, data: str | None) -> "BoxSet":
    """The test part of the run's data, or of other data; errors as for `read_boxes`."""
    from stepwell.data.box_files import BoxFiles, read_kept, read_parts, read_test
    from stepwell.flags import recorded
    from stepwell.nets.files.container import folder_of

    classes, arguments = network.net.net.card.classes, network.config.get("arguments", {})
    if data is not None:
        return read_test(Path(data), classes)
    test = read_kept(folder_of(network.path), classes)
    files = recorded(BoxFiles, _as_paths(arguments))
    return read_parts(Path(arguments["data"]), files).test if test is None else test


def _as_paths(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """A run's arguments, in which names of files are paths."""
    files = ("images", "test", "valid")
    return {k: Path(v) if k in files and v is not None else v for k, v in arguments.items()}


def predict(
    network: Network, paths: Sequence[Path], *, depth: str | None = None, min_score: float = SURE,
    coco: Path | None = None, draw: Path | None = None, budget_ms: float | None = None,
    budget_macs: float | None = None,
) -> Predicted:  # fmt: skip
    """Find objects in images, at one depth or within a budget. Flags as for `predict`."""
    from stepwell.data.box_batches import BoxBatches
    from stepwell.data.boxes import unlabelled
    from stepwell.files import write_whole
    from stepwell.measure.detection import detect
    from stepwell.nets.detection.predicting import each_object
    from stepwell.nets.predictions import Prediction
    from stepwell.serve import expand

    detector, net = network.net, network.net.net
    budget = {"ms": budget_ms, "macs": budget_macs}
    if limits := {name: value for name, value in budget.items() if value is not None}:
        depth = classifier.depth_within(net, limits, network.path, lambda: _costs(detector))
    depth = net.full if depth is None else depth
    net.require_ready(depth)
    files, unreadable = _readable(expand(paths))
    drawings = [] if draw is None else _drawings(draw, files)
    if coco is not None:
        _check_replaced(coco)
    predictions = [Prediction(file, error=error) for file, error in unreadable.items()]
    if files:
        images = unlabelled(files, net.card.classes)
        batches = BoxBatches(images, BATCH, size=net.card.size)
        boxes = detect(detector, batches, [depth], track=track)[depth]
        sure = [image_boxes.chosen(image_boxes.scores >= min_score) for image_boxes in boxes]
        predictions += [
            prediction
            for file, image_boxes in zip(files, sure, strict=True)
            for prediction in each_object(image_boxes, net.card.classes, depth, file)
            or [Prediction(file, depth=depth, box=())]
        ]
        if coco is not None:
            content = images.with_boxes(sure).coco()
            write_whole(coco, json.dumps(content).encode())
            say(f"wrote {len(content['annotations'])} boxes to {coco}")
        if draw is not None:
            draw.mkdir(parents=True, exist_ok=True)
            _draw(drawings, files, sure, net.card.classes)
            say(f"drew {len(files)} images in {draw}")
    return Predicted(predictions, f"depth {depth}")


def serve(network: Network, *, engine: Engine = "torch") -> "Served":
    """Give every depth to a server. Flags as for `serve`."""
    import numpy as np

    from stepwell.data.decoding import decoded, is_small
    from stepwell.nets.detection.predicting import Scaled, objects_in
    from stepwell.serve.served import Served

    if engine != "torch":
        raise ValueError(f"a detector runs in torch: leave --engine {engine} out")
    detector, net = network.net.eval(), network.net.net
    card = net.card
    net.require_ready(net.full)
    rows = tuple(depth for depth, status in net.status.items() if status != "fresh")

    def read(content: bytes, name: str = "") -> Any:
        return decoded(content, lambda image: Scaled.of(image, card.size))

    def run(inputs: Sequence[Any], row: str, top: int) -> "list[Prediction]":
        return objects_in(detector, inputs, row)

    side = -(-card.size // 32) * 32
    example = Scaled(np.zeros((side, side, 3), np.uint8), (side, side))
    return Served(
        rows, net.full, read, run, example, card.costs,
        quick=lambda content: is_small(content, card.size),
    )  # fmt: skip


def _check_replaced(coco: Path) -> None:
    """Refuse to write over a json file that holds anything else than boxes with scores; ValueError."""
    from stepwell.data.coco import read_content

    if not coco.is_file():
        return
    try:
        replaced = all("score" in row for row in read_content(coco)["annotations"])
    except (ValueError, TypeError, KeyError):
        replaced = False
    if not replaced:
        raise ValueError(f"--coco {coco} holds no boxes with scores: name another file, or remove it")


def _readable(files: Sequence[Path]) -> tuple[list[Path], dict[Path, str]]:
    """The files that are whole images, and the errors of the others."""
    from stepwell.data.decoding import check_files

    good: list[Path] = []
    bad: dict[Path, str] = {}
    for file in files:
        try:
            check_files([file])
            good.append(file)
        except ValueError as error:
            bad[file] = str(error)
    return good, bad


def _drawings(folder: Path, files: Sequence[Path]) -> list[Path]:
    """Files for the drawings, with the names of the images; of several alike, with that of the folder.

    ValueError for a folder that cannot be written, two drawings of one name, and one that would replace
    an image.
    """
    check_folder("--draw", folder)
    counts = Counter(file.stem for file in files)
    names = [
        file.stem if counts[file.stem] == 1 else f"{file.resolve().parent.name}_{file.name}"
        for file in files
    ]
    drawings = [folder / f"{name}.png" for name in names]
    inputs, seen = {file.resolve() for file in files}, set[Path]()
    for drawing in drawings:
        if drawing in seen:
            raise ValueError(
                f"--draw: two drawings would have the name {drawing.name}: predict into two --draw "
                "folders"
            )
        if drawing.resolve() in inputs:
            raise ValueError(
                f"--draw {folder} would write over the image {drawing}: name another folder"
            )
        seen.add(drawing)
    return drawings


def _draw(
    drawings: Sequence[Path], files: Sequence[Path], boxes: Sequence["Boxes"], classes: Sequence[str]
) -> None:
    """Write the images with their boxes as PNG files."""
    import torch
    from PIL import Image
    from torchvision.utils import draw_bounding_boxes

    from stepwell.data.preprocess import whole

    for drawing, file, image_boxes in zip(drawings, files, boxes, strict=True):
        pixels = torch.from_numpy(whole(file)).permute(2, 0, 1)
        rows = zip(image_boxes.labels.tolist(), image_boxes.scores.tolist(), strict=True)
        labels = [f"{classes[label]} {score:.2f}" for label, score in rows]
        colours = [OKABE_ITO[label % len(OKABE_ITO)] for label in image_boxes.labels.tolist()]
        if labels:
            pixels = draw_bounding_boxes(pixels, image_boxes.boxes, labels, colours, width=2)
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(drawing)


def _costs(detector: "Detector", size: int | None = None, batch: int = 1) -> dict[str, dict[str, Any]]:
    import torch

    from stepwell.measure.detection import cost_table

    side = -(-(size or detector.net.card.size) // 32) * 32
    return cost_table(detector, torch.zeros(batch, 3, side, side))


def cost(network: Network, *, size: int | None = None, batch: int = 1, save: bool = False) -> Costs:
    """Measure the costs of every depth on an empty square image. Flags as for `cost`.

    With `save`, they are kept in the file, for `predict --budget-ms`.
    """
    from stepwell.device import device_name
    from stepwell.nets.files.nested import net_digest, rewrite_card, rewriting

    detector, net = network.net, network.net.net
    if save and size not in (None, net.card.size):
        raise ValueError(f"--save measures images of {net.card.size} pixels: leave out --size")
    costs = _costs(detector, size, batch)
    if save:
        with rewriting(network.path, net_digest(net)) as (file, card):
            rewrite_card(file, card.with_costs(costs, device_name()))
    side = size or net.card.size
    return Costs(costs, f"{side}×{side}")


def export(
    network: Network, folder: Path, *, format: str = "onnx", depth: str | None = None,
    data: str | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Write depths as ONNX graphs with a host loop, checked on images. Flags as for `export`."""
    from stepwell.data.box_batches import decode
    from stepwell.export.detector import export_detector, noise

    if format != "onnx":
        raise ValueError(f"--format {format}: a detector is exported as onnx")
    net = network.net.net
    images, part = noise(net.card.size), "noise"
    if data or network.config.get("arguments", {}).get("data"):
        try:
            test = _test_part(network, data)
            images, part = decode(test.files[:CHECKED], net.card.size), "test"
        except ValueError as error:
            if data:
                raise
            say(f"note: checked on noise, because the run's data cannot be used: {error}")
    own = classifier.is_own(network, folder)
    return export_detector(network.net, folder, images, part, depth=depth, own=own, say=say)


def show_export(title: str, result: Mapping[str, Any]) -> None:
    """Print exported files: size and check."""
    rows = [
        [
            row["depth"], row["file"], size(row["bytes"]), f"{row['parity']['difference']:.1e}",
            f"{100 * row['parity']['same_boxes']:.1f} %",
        ]
        for row in result["files"]
    ]  # fmt: skip
    columns = ["depth", "file", "size", "largest difference", "same boxes"]
    show(table(title, columns, rows, words=2))
    parity = result["files"][0]["parity"]
    counts = f"{parity['boxes']} boxes in {parity['images']} {parity['part']} images"
    show(f"checked on {counts}; detect.py runs a graph with onnxruntime and numpy", style="dim")


def show_results(results: Mapping[str, Any], title: str, *, brief: bool = False) -> None:
    """Print results as tables; `brief`: as after a training."""
    costs, test, rows = (results[k] for k in ("costs", "test", "rows"))
    show(row_table(title, TRAINED if brief else EVALUATED, costs, test, row=rows))
    for row in costs:
        if f"{row}/ap_low" in test:
            ends = (f"{100 * test[f'{row}/ap_{end}']:.1f}" for end in ("low", "high"))
            show(f"{rows} {row}: the 95 % interval of AP over images is {' to '.join(ends)} %")
    show_classes(test, results["detect"]["boxes"], [*costs])
    if labels := results.get("pseudo"):
        show_labels(labels)
    show(
        "AP: mean over overlaps (IoU) of 0.5 to 0.95 and over classes, as COCO defines it; AP50: at an "
        "overlap of 0.5",
        style="dim",
    )
    show_conditions(costs)


def show_labels(record: Mapping[str, Any]) -> None:
    """Print what the labels of teachers were made of, of many classes the first."""
    classes = [*record["classes"].items()][:CLASSES]
    known = [key for key in ("precision", "recall") if any(key in row for _, row in classes)]
    rows = [
        [
            name, f"{row['threshold']:.2f}", str(row["boxes"]),
            *(f"{100 * row[key]:.0f} %" if key in row else "–" for key in known),
        ]
        for name, row in classes
    ]  # fmt: skip
    show(table("labels from teachers", ["class", "threshold", "boxes", *known], rows))
    ap = record["teacher_test"].get("teachers/ap")
    note = "; the teachers have no predictions for the test images"
    if ap is not None:
        note = f"; the teachers have an AP of {100 * ap:.1f} % on the test part"
    if record["truth"] == "teacher":
        note = "; there are no labels, so the test part has the teachers' boxes, and AP says how well "
        note += "the student agrees with them"
    show(f"{record['boxes']:,} boxes in {record['images']:,} training images{note}", style="dim")


def show_classes(test: Mapping[str, float], boxes: Mapping[str, int], rows: Sequence[str]) -> None:
    """Print the average precision of each class, of many the worst at the last row."""
    last = of_row(test, rows[-1])
    names = [name for name in boxes if f"ap/{name}" in last]
    if len(names) < 2:
        return
    names.sort(key=lambda name: last[f"ap/{name}"])
    few = f", the {CLASSES} worst of {len(names)}" if len(names) > CLASSES else ""
    columns = [f"{measure} {row}" for row in rows for measure in ("AP", "AP50")]
    cells = [
        [name, str(boxes[name])]
        + [
            written(MEASURES[key], of_row(test, row)[f"{key}/{name}"])
            for row in rows
            for key in ("ap", "ap50")
        ]
        for name in names[:CLASSES]
    ]
    show(table(f"by class{few}", ["class", "true boxes", *columns], cells))
