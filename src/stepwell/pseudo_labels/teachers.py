"""Teachers that predict boxes: detectors of Stepwell, torchvision and ONNX, or files of predictions."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from stepwell.data.box_batches import BoxBatches, decode, restored
from stepwell.data.box_predictions import predictions_for
from stepwell.data.boxes import BoxSet
from stepwell.data.coco import is_no_class, read_content
from stepwell.files import read_json
from stepwell.measure.detection import detect
from stepwell.nets.detection.file import load_detector
from stepwell.nets.detection.onnx import OnnxDetector
from stepwell.nets.files.container import DETECTOR, kind_of, network_file
from stepwell.nets.files.nested import fingerprint
from stepwell.nets.files.onnx import file_sha256, onnx_fingerprint, open_onnx
from stepwell.teachers.opening import path_and_depth
from stepwell.types import Boxes

#: The forms of a teacher's name, for errors.
KINDS = (
    "a run of `stepwell train detect` or its file (@DEPTH picks a depth), an .onnx file, a .json file "
    "or a folder of predictions, torchvision/NAME (a download), or NAME=FILE for weights of "
    "torchvision's NAME"
)
PREFIX = "torchvision/"
#: Images that a detector gets at a time.
BATCH = 16


class BoxTeacher(NamedTuple):
    """A teacher of boxes.

    name: as the user named it.
    fingerprint: a hash of all that its boxes depend on.
    classes: names by the labels of its boxes; "" for a label that is no class.
    load: reads images from disk, in another thread than `find`.
    find: maps what `load` gave to the boxes of each image, in pixels of the image on disk; None for an
        image that it says nothing about.
    keeps: False if its boxes are read from a file, and need no store.
    """

    name: str
    fingerprint: str
    classes: tuple[str, ...]
    load: Callable[[BoxSet], Any]
    find: Callable[[Any], Sequence[Boxes | None]]
    keeps: bool = True


class Pixels:
    """Images that are decoded one ahead of their use, so that large photographs need little memory.

    size: longer side to which they are scaled; their own by default.
    """

    def __init__(self, images: BoxSet, size: int | None) -> None:
        self.images, self.size = images, size

    def __len__(self) -> int:
        return len(self.images)

    def __iter__(self) -> Iterator[tuple[Tensor, tuple[int, int]]]:
        """RGB bytes of each image, and its height and width on disk."""

        def read(file: Path, original: tuple[int, int]) -> Tensor:
            return decode([file], self.size or max(original))[0]

        pairs = [*zip(self.images.files, self.images.sizes, strict=True)]
        with ThreadPoolExecutor(1) as pool:
            ahead = [pool.submit(read, *pair) for pair in pairs[:1]]
            for i, (_, original) in enumerate(pairs):
                pixels = ahead.pop().result()
                if i + 1 < len(pairs):
                    ahead.append(pool.submit(read, *pairs[i + 1]))
                yield pixels, original


def module_teacher(
    name: str, module: nn.Module, classes: Sequence[str], *, size: int | None = None, mark: str
) -> BoxTeacher:
    """A teacher of a module of torchvision's form.

    Args:
        module: maps a list of images (3, height, width) in [0, 1] to a list of dicts with "boxes" (in
            pixels), "labels" and "scores".
        classes: names by label; those of `stepwell.data.coco.NO_CLASS` are no class.
        size: longer side to which images are scaled before; their own by default.
        mark: a hash of the module's weights.
    """
    names = tuple("" if is_no_class(name) else name for name in classes)
    module = module.eval().requires_grad_(False)
    load = partial(Pixels, size=size)
    return BoxTeacher(name, f"{mark}:{size}", names, load, partial(_by_module, module))


def open_box_teachers(
    names: Sequence[str], *, size: int | None = None, known: BoxSet | None = None
) -> list[BoxTeacher]:
    """Open teachers by name.

    Args:
        names: see `KINDS`.
        size: longer side of the images that detectors see; by default their own.
        known: labelled images, whose categories and ids a list of COCO results uses.

    Raises:
        ValueError: no name, or one twice; a file is damaged, or does not say its classes; a detector's
            depth was never trained.
        FileNotFoundError: there is no such file.
    """
    if not names:
        raise ValueError(f"--teacher: name one or more, each {KINDS}")
    if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        raise ValueError(f"teacher {twice[0]} is named twice: name each once")
    teachers = [_open(name, size, known) for name in names]
    seen: dict[str, str] = {}
    for teacher in teachers:
        first = seen.setdefault(teacher.fingerprint, teacher.name)
        if first != teacher.name:
            raise ValueError(f"teachers {first} and {teacher.name} are one and the same: name it once")
    return teachers


def _open(name: str, size: int | None, known: BoxSet | None) -> BoxTeacher:
    path = Path(name)
    if name.startswith(PREFIX) and not path.exists():
        return _torchvision(name, name.removeprefix(PREFIX), None, size)
    builder, equals, file = name.partition("=")
    if equals and not path.exists():
        return _torchvision(name, builder.removeprefix(PREFIX), Path(file), size)
    path, depth = path_and_depth(name, KINDS)
    if path.suffix == ".onnx":
        detector = OnnxDetector.open(path, open_onnx(path))
        sides = "" if size is None else f":{size}"
        return BoxTeacher(
            name, f"{onnx_fingerprint(path)}{detector.mark}{sides}", detector.classes,
            partial(Pixels, size=detector.longest(size)), partial(_by_onnx, detector),
        )  # fmt: skip
    is_run = (path / "config.json").exists() or (path / "net.safetensors").exists()
    if path.suffix == ".json" or (path.is_dir() and not is_run and any(path.glob("*.json"))):
        return _predictions(name, path, known)
    if path.is_file() and path.suffix != ".safetensors":
        raise ValueError(f"teacher {path} is no detector: name {KINDS}")
    return _run(name, path, depth, size)


def _run(name: str, path: Path, depth: str | None, size: int | None) -> BoxTeacher:
    """A detector of Stepwell."""
    file = network_file(path)
    content = fingerprint(file)  # also says what is wrong with a damaged file, which has no kind
    if (kind := kind_of(file)) != DETECTOR:
        raise ValueError(f"teacher {path} holds a {kind}, which predicts no boxes: name {KINDS}")
    detector = load_detector(file)
    depth = depth or detector.net.full
    try:
        detector.net.require_ready(depth)
    except ValueError as error:
        raise ValueError(f"teacher {name}: {error}") from error
    side = size or detector.net.card.size

    def find(batches: BoxBatches) -> list[Boxes]:
        return detect(detector, batches, [depth])[depth]

    mark = f"{content}@{depth}:{side}"
    load = partial(BoxBatches, batch_size=BATCH, size=side)
    return BoxTeacher(name, mark, detector.net.card.classes, load, find)


def _torchvision(name: str, builder: str, file: Path | None, size: int | None) -> BoxTeacher:
    """One of torchvision's detectors with its published weights, or those of a file."""
    from torchvision.models import detection, get_model, get_model_weights, list_models

    if builder not in (names := list_models(module=detection)):
        raise ValueError(f"no detector {builder!r} in torchvision: there are {', '.join(names)}")
    published = get_model_weights(builder).DEFAULT
    classes: Sequence[str] = published.meta["categories"]
    if file is None:
        try:
            module = get_model(builder, weights=published)
        except OSError as error:
            raise ValueError(
                f"the weights of {name} could not be downloaded from {published.url} ({error}): put "
                f"that file into {torch.hub.get_dir()}/checkpoints, or name --teacher {builder}=FILE"
            ) from error
        return module_teacher(name, _sized(module, size), classes, size=size, mark=str(published))
    if not file.is_file():
        raise FileNotFoundError(f"no file {file} of weights for {builder}")
    if (listed := file.with_suffix(".json")).is_file():
        classes = _classes_in(listed)
    module = get_model(builder, weights=None, weights_backbone=None, num_classes=len(classes))
    try:
        module.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    except Exception as error:  # pickle and torch raise a dozen kinds here
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"{file} holds no weights of {builder} with {len(classes)} classes ({reason}): name its "
            "state_dict. If it has other classes, write their names by label to "
            f'{listed}, as {{"classes": ["__background__", ...]}}'
        ) from error
    mark = hashlib.sha256(f"{file_sha256(file)}{classes}".encode()).hexdigest()[:16]
    return module_teacher(name, _sized(module, size), classes, size=size, mark=mark)


def _sized(module: Any, size: int | None) -> nn.Module:
    """A detector of torchvision that does not scale images of `size` again."""
    transform = module.transform
    if size is not None and getattr(transform, "fixed_size", None) is None:
        transform.min_size, transform.max_size = (size,), size
    detector: nn.Module = module
    return detector


def _classes_in(file: Path) -> list[str]:
    content = read_json(file, 'write {"classes": ["__background__", ...]}')
    names = content.get("classes")
    if not isinstance(names, list) or not names or not all(isinstance(n, str) for n in names):
        raise ValueError(f'{file} needs "classes", a list of names by label')
    return names


def _predictions(name: str, path: Path, known: BoxSet | None) -> BoxTeacher:
    """Boxes that another program predicted."""
    files = sorted(path.glob("*.json")) if path.is_dir() else [path]
    classes: list[str] = []
    mark = hashlib.sha256()
    for file in files:
        content = read_content(file)
        mark.update(file_sha256(file).encode())
        named = content.get("categories") if isinstance(content, dict) else None
        if isinstance(named, list):
            rows = [row for row in named if isinstance(row, dict) and isinstance(row.get("name"), str)]
            names = [row["name"] for row in sorted(rows, key=lambda row: str(row.get("id")).zfill(9))]
        elif known is not None:
            names = [*known.classes]
        else:
            raise ValueError(
                f"{file} does not say the names of its categories: give a COCO json with images, "
                "categories and scored annotations, or name --labels with the same ids"
            )
        classes += [n for n in names if n not in classes and not is_no_class(n)]
    find = partial(predictions_for, path, classes=tuple(classes), known=known)
    return BoxTeacher(name, mark.hexdigest()[:16], tuple(classes), lambda x: x, find, keeps=False)


@torch.inference_mode()
def _by_module(module: nn.Module, loaded: Pixels) -> list[Boxes]:
    predictions = []
    for pixels, original in loaded:
        (row,) = module([pixels.float() / 255])
        boxes = restored(row["boxes"].cpu(), (pixels.shape[1], pixels.shape[2]), original)
        predictions.append(Boxes.of(boxes, row["labels"].cpu(), row["scores"].cpu()))
    return predictions


def _by_onnx(detector: OnnxDetector, loaded: Pixels) -> list[Boxes]:
    predictions = []
    for pixels, original in loaded:
        detected = detector.find(pixels)
        boxes = restored(detected.boxes, (pixels.shape[1], pixels.shape[2]), original)
        predictions.append(Boxes.of(boxes, detected.labels, detected.scores))
    return predictions
