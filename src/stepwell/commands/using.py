"""Commands that put a network to use: `predict`, `export`, `patch`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from tyro.conf import Positional

from stepwell.commands.resolution import held_at, resolution_of, set_budget, show_exported
from stepwell.commands.run_files import Json, check_place, network_of, parts_of
from stepwell.console import (
    big,
    fail,
    print_json,
    say,
    show,
    show_delta,
    show_export,
    table,
)

#: Images that cannot be read: at most so many are named.
NAMED = 10


def predict(
    run: Positional[Path],
    files: Positional[tuple[Path, ...]],
    *,
    depth: str | None = None,
    budget_ms: float | None = None,
    budget_macs: float | None = None,
    min_accuracy: float | None = None,
    cascade: bool = False,
    csv: Path | None = None,
    json: Json = False,
) -> None:
    """Classify images. Those that cannot be read are named, and stop no other; the exit code is then 2.

    Examples:
        stepwell predict runs/digits three.png
        stepwell predict runs/photos holiday/ --depth 18 --csv holiday.csv
        stepwell predict runs/photos holiday/ --budget-ms 5
        stepwell predict runs/photos holiday/ --cascade

    Args:
        run: a run directory, or the file of its network.
        files: images, or folders of images.
        depth: which depth predicts; the full net by default. A network that chooses resolutions does
            so unless a depth, one of its choices (24, 14@24) or a cascade is asked for.
        budget_ms: take the most accurate depth that needs at most so many milliseconds an image here,
            by the table in the network's file (`stepwell cost RUN --save`), else measured now. A
            network that chooses resolutions takes the price of cost that gives so many in the mean.
        budget_macs: the same of MACs an image.
        min_accuracy: take the cheapest depth, or the highest price of cost, with at least this
            accuracy (0.95 is 95 %).
        cascade: shallow first, deeper when unsure, as `stepwell eval RUN --cascade --save` found it.
        csv: write file, class, probability and depth to this file.
    """
    from stepwell.measure.cascade import check_depths
    from stepwell.nets.nested.cascade import Cascade
    from stepwell.nets.resolution.chooser import ResolutionNet
    from stepwell.serve import expand, predict_files, to_csv

    asked = {"ms": budget_ms, "macs": budget_macs, "accuracy": min_accuracy}
    budget = {name: value for name, value in asked.items() if value is not None}
    if (depth is not None) + bool(budget) + cascade > 1:
        raise ValueError(
            "give one of --depth, a budget (--budget-ms, --budget-macs, --min-accuracy), --cascade"
        )
    if csv is not None:
        check_place("--csv", csv)
    net, _ = network_of(run)
    chooses = None if cascade else resolution_of(run)
    if budget and chooses is not None and not chooses.budgets:
        chooses = None  # it never chose: a depth fits the budget
    timed = chooses is not None and depth is None and not json
    if chooses is not None and depth is not None:
        chooses = held_at(chooses, depth)
    if budget and chooses is not None:
        set_budget(chooses, **budget)
    elif budget:
        depth = _depth_within(net, budget, run)
    depth = net.full if depth is None else depth
    if cascade:
        check_depths(net)
    by: str | Cascade | ResolutionNet = Cascade.of(net) if cascade else chooses or depth
    if isinstance(by, str):
        net.require_ready(by)
    predictions = list(predict_files(net, by, expand(files)))
    readable = [p for p in predictions if not p.error]
    if timed:
        _tell_speed(chooses, [p.file for p in readable])
    if csv is not None:
        to_csv(csv, predictions)
        say(f"wrote {len(readable)} predictions to {csv}")
    if json:
        print_json([p._asdict() | {"file": str(p.file)} for p in predictions])
    elif csv is None and readable:
        rows = [[str(p.file), p.label, f"{100 * p.probability:.1f} %", p.depth] for p in readable]
        what = "depth" if chooses is None else "choice"
        show(table(_title(by), ["file", "class", "probability", what], rows, words=2))
    if bad := [p for p in predictions if p.error]:
        for p in bad[:NAMED]:
            fail(p.error)
        more = f"; the first {NAMED} are named above" if len(bad) > NAMED else ""
        raise ValueError(f"{len(bad)} of {len(predictions)} images could not be read{more}")


def _title(by: Any) -> str:
    """What predicts, above the table of predictions."""
    if isinstance(by, str):
        return f"depth {by}"
    names = getattr(by, "depths", None)
    if names:
        return f"cascade of {', '.join(names)}"
    held = getattr(by.chooser, "choice", None)
    return f"chosen of {', '.join(by.names)}" if held is None else f"choice {by.names[held]}"


def _tell_speed(net: Any, files: Sequence[Path]) -> None:
    """Say how many images a second the network does, with its choice and without, if files suffice."""
    from stepwell.measure.resolution import BATCHES, TIMED, measure_speed
    from stepwell.serve import as_batch

    if len(files) < max(BATCHES):
        return  # a ratio of a few images is chance
    for row in measure_speed(net, as_batch(net.net.net, files[:TIMED])):
        say(
            f"in batches of {row['batch']}: {row['chosen']:.0f} images/s, at full size always "
            f"{row['fixed']:.0f}: {row['speed_up']:.2f} ×, of {row['by_macs']:.2f} × by MACs"
        )


def _depth_within(net: Any, budget: dict[str, float], run: Path) -> str:
    """The depth for a budget; what the file does not know of this device is measured first."""
    from stepwell.device import device_name
    from stepwell.measure.depths import cost_table

    here = device_name()
    known = net.card.latency.get(here, {}) if "ms" in budget else net.card.costs
    if any(depth not in known for depth, status in net.status.items() if status != "fresh"):
        missing = f"no times of {here}" if "ms" in budget else "not the costs of every depth"
        say(f"note: {run} has {missing}: measuring now; `stepwell cost {run} --save` keeps that")
        net.card = net.card.with_costs(cost_table(net, net.card.size), here)
    depth: str = net.for_budget(**budget)
    row = net.card.costs[depth] | net.card.latency.get(here, {}).get(depth, {})
    told = [f"{big(row['macs'])} MACs an image"]
    if "ms" in row:
        told.append(f"{row['ms']:.2f} ms an image here")
    if "accuracy" in row:
        told.append(f"{100 * row['accuracy']:.2f} % of {row['accuracy_on']} right")
    say(f"depth {depth}: {', '.join(told)}")
    return depth


def export(
    run: Positional[Path],
    *,
    format: Literal["onnx", "pt2", "safetensors"] | None = None,
    depth: str = "all",
    int8: bool = False,
    beyond: str | None = None,
    data: str | None = None,
    to: Path | None = None,
    out: Path | None = None,
    json: Json = False,
) -> None:
    """Write depths as files that other programs load, each checked against the network.

    `--depth all` with ONNX writes the weights once, net-CHECKSUM.safetensors, and a small graph a depth
    that points into it. Of a network that chooses resolutions it writes a graph a choice and the
    chooser's. Int8 versions and --beyond are not checked.

    Examples:
        stepwell export runs/digits
        stepwell export runs/photos --depth 18 --to shipping/
        stepwell export runs/photos --int8
        stepwell export runs/photos --depth 34 --beyond 18 --out 18-to-34.safetensors

    Args:
        run: a run directory, or the file of its network.
        format: `onnx` (the default): a graph for any batch size; `pt2`: a program of torch.export;
            `safetensors`: plain weights under torchvision's names.
        depth: one depth, whose file stands alone, or `all`.
        int8: write each depth in whole numbers of eight bits, too, and measure both on the test part.
        beyond: write just what `depth` needs beyond this shallower depth; `stepwell patch` applies it.
        data: a folder or a name, for images to check on; by default the data of the run.
        to: the folder to write to; `export/` beside the network by default.
        out: with --beyond, the file to write.
    """
    from stepwell.export import export_delta, export_folder, export_resolution

    if beyond is not None:
        _check_beyond(depth, out, int8 or data or to or format not in (None, "safetensors"))
        net, _ = network_of(run)
        assert out is not None
        show_delta(depth, beyond, export_delta(net, depth, beyond, out)._asdict(), json=json)
        return
    if out is not None:
        raise ValueError(f"--out {out} is where --beyond writes; an export goes to the folder --to")
    net, config = network_of(run)
    dynamic = resolution_of(run)
    if dynamic is not None and depth in set(dynamic.names) - set(net.depths):
        raise ValueError(
            f"--depth {depth} is a choice of resolution, and such are exported together: leave --depth "
            f"out, or name a depth at full size ({', '.join(net.depths)})"
        )
    chooses = dynamic if depth == "all" and format in (None, "onnx") else None
    if chooses is not None and int8:
        raise ValueError(f"{run} chooses resolutions: --int8 is of one, so name a --depth")
    net.require_ready(*(net.depths if depth == "all" else [depth]))
    folder = to or (run if run.is_dir() else run.parent) / "export"
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--to {folder} is a file: name a folder")
    sample, parts = _sample_of(net, run, config, data, int8)
    if chooses is not None:
        result = export_resolution(chooses, folder, sample, say=say)
        if json:
            print_json(result | {"folder": str(folder)})
        else:
            show_exported(run, folder, result)
        return
    result = export_folder(
        net,
        folder,
        sample,
        format=format or "onnx",
        depth=None if depth == "all" else depth,
        int8=parts,
        say=say,
    )
    if json:
        print_json(result | {"folder": str(folder)})
    else:
        show_export(f"exported {run} to {folder}", result)


def patch(
    base: Positional[Path], delta: Positional[Path], *, out: Path, json: Json = False
) -> None:
    """Turn the plain weights of a depth into those of a deeper one, with a delta.

    Examples:
        stepwell patch 18.safetensors 18-to-34.safetensors --out 34.safetensors

    Args:
        base: a depth, as `stepwell export --format safetensors` wrote it.
        delta: what `stepwell export --beyond` wrote for it.
        out: the file to write: the very one that exporting the deeper depth gives.
    """
    from stepwell.export import apply_delta

    check_place("--out", out)
    apply_delta(base, delta, out)
    if json:
        print_json({"file": str(out), "bytes": out.stat().st_size})
    else:
        say(f"wrote {out}")


def _check_beyond(depth: str, out: Path | None, others: object) -> None:
    if depth == "all":
        raise ValueError("--beyond needs --depth: the deeper depth that the delta leads to")
    if out is None:
        raise ValueError("--beyond needs --out: the file to write")
    check_place("--out", out)
    if others:
        raise ValueError(
            "--beyond writes plain weights: leave --int8, --data, --to and --format out"
        )


def _sample_of(
    net: Any, run: Path, config: Mapping[str, Any], data: str | None, int8: bool
) -> tuple[Any, Any]:
    """Images to check an export on and, for int8, the parts to calibrate and measure on."""
    from stepwell.export import Int8, Sample, check_images, take

    if not (config or data):
        if int8:
            raise ValueError(
                f"--int8 calibrates on training images, and {run} names none: add --data"
            )
        return check_images(net, run), None
    try:
        parts = parts_of(net, run, config, data)
    except ValueError as error:
        if data or int8:
            raise
        say(f"note: checked on what the run kept, because its data cannot be used: {error}")
        return check_images(net, run), None
    part = "test" if parts.validation is None else "validation"
    images = take(parts.validation or parts.test, 64)
    return Sample(images, part), Int8(parts.train, parts.test) if int8 else None
