"""`stepwell predict`."""

from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tyro.conf import Positional

from stepwell.commands.arguments import Json, Module, check_place, imported
from stepwell.console import fail, print_json, say, show, table
from stepwell.kinds import Predicted, open_network, recorded_kind, takes_texts

if TYPE_CHECKING:
    from stepwell.serve import Prediction

#: Unreadable images to name, at most.
NAMED = 10
#: Boxes to show, at most.
SHOWN = 50
_note = attrgetter("note")
#: Flags for the kind of network.
FLAGS = (
    "depth", "budget_ms", "budget_macs", "min_accuracy", "cascade", "top", "min_score", "coco", "draw"
)  # fmt: skip


def predict(
    run: Positional[Path],
    files: Positional[tuple[str, ...]],
    *,
    depth: str | None = None,
    budget_ms: float | None = None,
    budget_macs: float | None = None,
    min_accuracy: float | None = None,
    cascade: bool = False,
    top: int | None = None,
    min_score: float | None = None,
    coco: Path | None = None,
    draw: Path | None = None,
    csv: Path | None = None,
    module: Module = None,
    json: Json = False,
) -> None:
    """Classify images or texts, or find the objects in images.

    A network that was trained with --regression predicts a number for each text. Unreadable images are
    named and skipped; the exit code is then 2.

    Examples:
        stepwell predict runs/digits three.png
        stepwell predict runs/photos holiday/ --depth 18 --csv holiday.csv
        stepwell predict runs/photos holiday/ --budget-ms 30
        stepwell predict runs/photos holiday/ --cascade --top 3
        stepwell predict runs/reviews "a lovely film" more.tsv
        stepwell predict runs/cells slides/ --coco cells.json --draw pictures/

    Args:
        run: a run directory, or the file of its network.
        files: images, or clips or complex networks if the run was trained on them, or folders of
            them; for a network of texts: texts, tab-separated files, or - for the lines of standard
            input.
        depth: the depth that predicts; the full net by default. A network that chooses resolutions
            or widths chooses by default; --depth then also takes one of its choices (24, 0.5).
        budget_ms: use the deepest depth that needs at most this many milliseconds an input here, unless
            a shallower one is clearly more accurate; by the table in the network's file (`stepwell cost
            RUN --save`), else measured now. A network that chooses keeps the mean within the budget.
        budget_macs: as --budget-ms, in MACs an input.
        min_accuracy: use the cheapest depth, or the highest cost penalty, with at least this accuracy
            (0.95 is 95 %).
        cascade: shallow first, deeper when unsure, as saved by `stepwell eval RUN --cascade --save`.
        top: number of most probable classes to give for each input; 1 by default.
        min_score: least score of a box that a detector predicts; 0.3 by default.
        coco: write the boxes of a detector to this file, as COCO json with scores.
        draw: write the images with the boxes of a detector drawn in them to this folder.
        csv: write file, class and probability (or number), depth and box to this file.
    """
    flags = {name: value for name, value in locals().items() if name in FLAGS}
    budget = any(value is not None for value in (budget_ms, budget_macs, min_accuracy))
    if (depth is not None) + budget + cascade > 1:
        raise ValueError(
            "give one of --depth, a budget (--budget-ms, --budget-macs, --min-accuracy), --cascade"
        )
    if csv is not None:
        check_place("--csv", csv, ".csv", ".tsv", ".txt")
    if coco is not None:
        check_place("--coco", coco, ".json")
        if csv is not None and csv.resolve() == coco.resolve():
            raise ValueError(f"--csv and --coco name one file, {csv}: name two")
    if kind := recorded_kind(run):
        _check_there(files, kind)
    network = open_network(run, to="predict", module=imported(module))
    _check_there(files, network.kind)
    named = files if takes_texts(network.kind) else tuple(map(Path, files))
    predicted: Predicted = network.do("predict", named, **flags)
    predictions = predicted.predictions
    readable = [p for p in predictions if not p.error]
    if predicted.speed is not None and not json:
        for line in predicted.speed():
            say(line)
    if csv is not None:
        from stepwell.serve import to_csv

        to_csv(csv, predictions)
        say(f"wrote {len(readable)} predictions to {csv}")
    if json:
        print_json([_as_json(p, top) for p in predictions])
    elif csv is None and readable:
        show(_table(predicted, readable))
    for note, of_note in groupby(sorted(predictions, key=_note), _note):
        first, *others = [p.file for p in of_note]
        if note:
            say(f"note: {first}{f' and {len(others)} more' if others else ''}: {note}")
    if unreadable := [p for p in predictions if p.error]:
        if len(predictions) == 1:
            raise ValueError(unreadable[0].error)
        for p in unreadable[:NAMED]:
            fail(p.error)
        more = f"; the first {NAMED} are named above" if len(unreadable) > NAMED else ""
        # an image has a prediction for each of its objects
        boxed = len({p.file for p in predictions if p.box is not None})
        count = boxed + sum(p.box is None for p in predictions)
        raise ValueError(f"{len(unreadable)} of {count} {predicted.noun}s could not be read{more}")


def _check_there(files: tuple[str, ...], kind: str) -> None:
    """Raise ValueError for files that do not exist, unless the kind of network reads texts."""
    if not takes_texts(kind):
        for file in files:
            if not Path(file).exists():
                raise ValueError(f"no file or folder {file}")


def _table(predicted: Predicted, readable: "list[Prediction]") -> Any:
    """A table of classes and probabilities, or of numbers."""
    first, *_ = readable
    if first.value is not None:
        numbers = [[str(p.file), f"{p.value:.4g}", p.depth] for p in readable]
        return table(predicted.title, [predicted.noun, first.label, predicted.row], numbers)
    if any(p.box is not None for p in readable):
        return _box_table(predicted, readable)
    rows = [
        [str(p.file) if name == p.label else "", name, f"{100 * share:.1f} %", p.depth]
        for p in readable
        for name, share in p.top or ((p.label, p.probability),)
    ]
    columns = [predicted.noun, "class", "probability", predicted.row]
    return table(predicted.title, columns, rows, words=2)


def _box_table(predicted: Predicted, readable: "list[Prediction]") -> Any:
    """A table of the first boxes."""
    rows = [[str(p.file), p.label or "nothing", *_cells(p), p.depth] for p in readable[:SHOWN]]
    more = f", the first {SHOWN} of {len(readable)}" if len(readable) > SHOWN else ""
    columns = [predicted.noun, "class", "score", "x1, y1, x2, y2", predicted.row]
    return table(f"{predicted.title}{more}", columns, rows, words=2)


def _cells(p: "Prediction") -> list[str]:
    if not p.box:
        return ["", ""]
    return [f"{100 * p.probability:.1f} %", ", ".join(f"{value:.0f}" for value in p.box)]


def _as_json(prediction: "Prediction", top: int | None) -> dict[str, Any]:
    """Describe a prediction by the words of the table; an unreadable image has its error."""
    p = prediction
    if p.value is not None:
        return {"file": str(p.file), "number": p.value, "depth": p.depth}
    row = {"file": str(p.file), "class": p.label, "probability": p.probability, "depth": p.depth}
    if p.error:
        return {"file": str(p.file), "error": p.error}
    if p.box is not None:
        if not p.box:
            return {"file": str(p.file), "class": None, "depth": p.depth}
        row["box"] = [round(value, 2) for value in p.box]
    if top is not None:
        row["top"] = [{"class": name, "probability": share} for name, share in p.top]
    return row | ({"note": p.note} if p.note else {})
