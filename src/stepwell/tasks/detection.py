"""The task of detection: how a run opens images with boxes and a detector, and ends."""

import base64
import io
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from stepwell.data.box_batches import MEAN, STD, BoxBatches, scaled
from stepwell.data.box_files import NO_VALIDATION, BoxFiles, BoxParts, check_objects, read_parts
from stepwell.data.boxes import BoxSet
from stepwell.data.preprocess import whole
from stepwell.device import device_name
from stepwell.evaluation.detection import precision_recall
from stepwell.extras import extra
from stepwell.files import write_whole
from stepwell.measure.detection import detect, measure_detector, precisions
from stepwell.nets import Card
from stepwell.nets.detection.detector import Detector, build_detector
from stepwell.nets.detection.file import load_detector, save_detector
from stepwell.nets.detection.heads import check_name
from stepwell.nets.files.container import DETECTOR, kind_of
from stepwell.nets.files.initial_weights import initialise, start_pretrained
from stepwell.nets.files.nested import fingerprint
from stepwell.pseudo_labels.thresholds import matched
from stepwell.ranges import SURE
from stepwell.results import BOXES
from stepwell.tasks.classification import input_arguments
from stepwell.tasks.finishing import finished, spent
from stepwell.tasks.task import Inputs, Task, check_patience
from stepwell.training.optimisation import Optimisation
from stepwell.training.progress import tell
from stepwell.types import Boxes

#: The boxes of each depth on the test images, beside a run's results.
PREDICTIONS = "predictions.json"
#: Images on a run's page, at most, and their longer side.
PICTURES, SIDE = 12, 320


def check_extra() -> None:
    """Raise ImportError without the extra that evaluates boxes: not after an epoch of training."""
    with extra("detection"):
        import faster_coco_eval  # noqa: F401


def read_boxes_of(data: str, out: Path, files: BoxFiles) -> BoxParts:
    """The parts of `data`, with its notes told.

    Errors as for `read_parts`; ImportError without the extra that evaluates boxes.
    """
    check_extra()
    parts = read_parts(Path(data), files)
    for note in parts.notes:
        warnings.warn(note, stacklevel=3)
    return parts


def start_detector(
    name: str, classes: Sequence[str], depths: Sequence[str] = (), *, width: int | None = None,
    convs: int | None = None, init: Literal["pretrained"] | Path | None = None,
) -> Detector:  # fmt: skip
    """Build a detector, whose weights are random, or those of `init`.

    Args:
        init: "pretrained" for the published weights of the backbone; a run or file of a classifier, for
            the backbone; or of a detector, for all parts that fit.

    Raises:
        ValueError: no such head, backbone or depth; `init` does not fit.
    """
    _, backbone = check_name(name)
    arguments = input_arguments(backbone, 320, None)
    detector = build_detector(name, len(classes), depths, width=width, convs=convs, **arguments)
    if init == "pretrained":
        start_pretrained(detector.net)
    elif init is not None:
        initialise(detector.net, init)
        if kind_of(init) == DETECTOR:
            _start_as(detector, init)
    return detector


def _start_as(detector: Detector, init: Path) -> None:
    """Fill pyramid and head from another detector's file, where names and shapes are equal."""
    other = load_detector(init)
    if (other.name, other.width) != (detector.name, detector.width):
        raise ValueError(
            f"--init {init} is a {other.name} of width {other.width}, and this one a {detector.name} "
            f"of width {detector.width}: name the same head and --width"
        )
    for own, theirs in ((detector.pyramid, other.pyramid), (detector.head, other.head)):
        state = own.state_dict()
        fitting = {k: v for k, v in theirs.state_dict().items() if state[k].shape == v.shape}
        own.load_state_dict(state | fitting)
        if fresh := state.keys() - fitting.keys():
            tell(f"note: {init} is for other classes: {len(fresh)} tensors of the head start fresh")


def prepare(
    parts: BoxParts, files: BoxFiles, training: Optimisation, name: str, init: Path | str | None = None
) -> Inputs[BoxBatches]:
    """Turn the parts into batches; a validation part is set aside if the data has none."""
    train, validation = parts.train, parts.validation
    if validation is None and training.val_fraction:
        train, validation = train.split(training.val_fraction)
        check_objects(validation, "validation", NO_VALIDATION)
    check_patience(training, validation is not None)
    assert training.batch_size is not None
    batches = BoxBatches(
        train, training.batch_size, size=files.size, flip=files.flip, zoom=files.zoom, shuffle=True,
        seed=training.seed,
    )  # fmt: skip
    aside = None if validation is None else batches.with_examples(validation)
    about = {
        "name": name, "classes": list(train.classes), "size": files.size, "train": len(train),
        "validation": len(validation) if validation else 0, "test": len(parts.test),
        "fingerprint": "/".join(p.fingerprint for p in (train, validation, parts.test) if p),
    }  # fmt: skip
    weights = (fingerprint(init),) if isinstance(init, Path) else ()
    return Inputs(batches, aside, batches.with_examples(parts.test), None, about, weights)


def shown(
    test: BoxSet, predictions: Mapping[str, Sequence[Boxes]], judged: str,
    pictured: Mapping[str, Sequence[Boxes]],
) -> dict[str, Any]:  # fmt: skip
    """Write the pictures and curves of a run's page: the test images on which `judged` errs most.

    Errors are missed true boxes, and wrong boxes with a score of at least `SURE`.
    """
    predictions = {name: test.judged(boxes) for name, boxes in predictions.items()}
    sure = {
        name: [boxes.chosen(boxes.scores >= SURE) for boxes in by_image]
        for name, by_image in predictions.items()
    }
    sure |= {name: [*by_image] for name, by_image in pictured.items()}
    errors = []
    for boxes, truth in zip(sure[judged], test.truth, strict=True):
        matches = matched([boxes], [truth], len(test.classes))
        errors.append(len(matches.right) + int(matches.true.sum()) - 2 * int(matches.right.sum()))
    worst = sorted(range(len(test)), key=lambda i: -errors[i])[:PICTURES]
    images = []
    for i in worst:
        pixels = whole(test.files[i], SIDE)
        high, wide = pixels.shape[:2]
        scale = wide / test.sizes[i][1], high / test.sizes[i][0]
        jpeg = io.BytesIO()
        Image.fromarray(pixels).save(jpeg, "JPEG", quality=80)
        drawn = {"truth": test.truth[i]} | {name: by_image[i] for name, by_image in sure.items()}
        images.append({
            "file": test.files[i].name, "size": [high, wide], "errors": errors[i],
            "jpeg": base64.b64encode(jpeg.getvalue()).decode(),
            "boxes": {name: _rounded(scaled(boxes, *scale)) for name, boxes in drawn.items()},
        })  # fmt: skip
    coco = test.coco()
    curves = {
        name: precision_recall(coco, test.results(by_image)) for name, by_image in predictions.items()
    }
    return {
        "score": SURE,
        "classes": [*test.classes],
        "judged": judged,
        "images": images,
        "curves": curves,
    }


def _rounded(boxes: Boxes) -> list[list[float]]:
    """The corners, class and score of each box, short enough for a page."""
    rows = zip(boxes.boxes.tolist(), boxes.labels.tolist(), boxes.scores.tolist(), strict=True)
    return [[*(round(v, 1) for v in box), label, round(score, 3)] for box, label, score in rows]


def validator(detector: Detector, task: Task[BoxBatches]) -> Callable[[], dict[str, float]] | None:
    """A call that measures all depths on the validation part; none without such a part."""
    batches = task.validation
    if batches is None:
        return None

    def validate() -> dict[str, float]:
        numbers = precisions(batches.examples, detect(detector, batches))
        return {name: value for name, value in numbers.items() if name.count("/") == 1}

    return validate


def finish(
    task: Task[BoxBatches], detector: Detector, record: Mapping[str, Any] | None = None,
    others: Mapping[str, Sequence[Boxes]] | None = None,
    pictured: Mapping[str, Sequence[Boxes]] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Measure the trained detector once on the test part, write the run's results, and return them.

    Writes net.safetensors, predictions.json, boxes.json for the page and, last, results.json. A
    finished run keeps them.

    Args:
        record: further entries of the results.
        others: boxes of others on the test part, such as teachers, by name.
        pictured: which of them the page draws; by default those with a score of at least `SURE`.
    """
    run, file = task.run, task.run.path / "net.safetensors"
    finished_detector, results = finished(run, load_detector, predictions=False)
    if results is not None and (run.path / PREDICTIONS).is_file():
        return results
    if finished_detector is None:
        detector.eval()
        detector.net.mark("trained")
        examples = task.train.examples
        detector.net.card = Card(examples.classes, task.train.size, MEAN, STD)
    else:
        detector = finished_detector
    test = task.test.examples
    tell(f"measuring on {len(test)} test {test.NOUN}", quiet=not run.writes)
    measured, predictions = measure_detector(detector.to(task.device), task.test)
    results = {**measured, **spent(run), **(record or {})}
    if run.writes:
        if finished_detector is None:
            net = detector.net
            net.card = net.card.with_costs(measured["costs"], device_name())
            save_detector(detector, file)
        results["file_bytes"] = file.stat().st_size
        all_predictions = predictions | dict(others or {})
        rows = {name: test.results(boxes) for name, boxes in all_predictions.items()}
        write_whole(run.path / PREDICTIONS, json.dumps(rows).encode())
        page = shown(test, all_predictions, [*predictions][-1], pictured or {})
        write_whole(run.path / BOXES, json.dumps(page).encode())
        run.write_json("results.json", results)
    return results
