"""The commands but `train`, whose flags come from the recipes.

Signatures are the flags. Heavy imports stand inside the functions, so that `--help` and `list` import
no torch.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from tyro.conf import Positional

from stepwell.catalog import DATA, NETWORKS
from stepwell.claims import CLAIMS
from stepwell.console import (
    depth_table,
    fail,
    print_json,
    say,
    show,
    show_claims,
    show_classes,
    show_conditions,
    show_delta,
    show_export,
    table,
)
from stepwell.recipes import RECIPES

EVALUATED = ("blocks", "params", "macs", "accuracy", "nll", "ece", "agreement", "ms")
COSTS = ("blocks", "params", "macs", "peak_bytes", "ms", "ms_low", "ms_high")
Json = Annotated[bool, tyro.conf.arg(help="print one JSON document instead of a table")]


def list_(*, json: Json = False) -> None:
    """Name the systems, networks and data sets there are.

    Examples:
        stepwell list
    """
    systems = {name: line for name, (_, line) in RECIPES.items()}
    claims = {name: line for name, (_, line) in CLAIMS.items()}
    kinds = {"recipes": systems, "claims": claims, "networks": NETWORKS, "data": DATA}
    if json:
        print_json(kinds)
        return
    titles = {
        "recipes": "train RECIPE",
        "claims": "verify SYSTEM",
        "networks": "--net NETWORK",
        "data": "--data D",
    }
    for kind, entries in kinds.items():
        show(table(titles[kind], ["name", "what it is"], entries.items(), words=2))


def eval_(run: Positional[Path], *, data: str | None = None, json: Json = False) -> None:
    """Measure every depth of a trained network: accuracy, calibration, MACs, latency.

    Examples:
        stepwell eval runs/digits
        stepwell eval runs/photos --data other-photos/ --json

    Args:
        run: a run directory, or the file of its network.
        data: a folder or a name; its test part is used. By default the data of the run.
    """
    from stepwell.evaluation import evaluate
    from stepwell.recipes.classification import cost_table

    net, config = network_of(run)
    net.require_ready()
    batches = _parts(net, run, config, data).test
    test = evaluate(net.logits_by_depth, batches, net.card.classes)
    costs = cost_table(net, net.card.size)
    if json:
        print_json({"test": test, "examples": len(batches.images), "costs": costs})
        return
    show(depth_table(f"{run} on {len(batches.images)} images", EVALUATED, costs, test))
    show_classes(test)
    show_conditions(costs)


def cost(
    network: Positional[str],
    *,
    depths: tuple[str, ...] = (),
    size: int | None = None,
    num_classes: int = 1000,
    stem: Literal["imagenet", "small"] | None = None,
    batch: int = 1,
    json: Json = False,
) -> None:
    """Measure what every depth of a network costs: params, MACs, memory, ms.

    Examples:
        stepwell cost resnet34 --depths 18 --size 224
        stepwell cost runs/digits

    Args:
        network: a name (`stepwell list`), a run directory, or the file of a network.
        depths: sub-nets of a network given by name, as for `stepwell train ekd`.
        size: height and width of the input; a trained network's own, else its family's.
        num_classes: classes of a network given by name.
        stem: first layers, where there is a choice; the small ones are for about 32 pixels.
        batch: images at once.
    """
    from stepwell.nets import build, builder_of
    from stepwell.recipes.classification import check_size, cost_table, input_arguments

    if batch < 1:
        raise ValueError(f"--batch must be at least 1, not {batch}")
    if Path(network).exists():
        net, _ = network_of(Path(network))
        size = size or net.card.size
    else:
        builder = builder_of(network)
        size = size or (32 if stem == "small" else builder.size)
        arguments = input_arguments(network, size, stem or ("imagenet" if builder.stems else None))
        net = build(network, depths, num_classes=num_classes, **arguments)
    check_size(net, size)
    costs = cost_table(net, size, batch=batch)
    if json:
        print_json(costs)
        return
    show(depth_table(f"{network} at {size}×{size}", COSTS, costs))
    show_conditions(costs)


def predict(
    run: Positional[Path],
    files: Positional[tuple[Path, ...]],
    *,
    depth: str | None = None,
    budget_ms: float | None = None,
    csv: Path | None = None,
    json: Json = False,
) -> None:
    """Classify images.

    Examples:
        stepwell predict runs/digits three.png
        stepwell predict runs/photos holiday/ --depth 18 --csv holiday.csv
        stepwell predict runs/photos holiday/ --budget-ms 5

    Args:
        run: a run directory, or the file of its network.
        files: images, or folders of images.
        depth: which depth predicts; the full net by default.
        budget_ms: take the deepest depth that needs at most so many milliseconds an image here.
        csv: write file, class and probability to this file.
    """
    from stepwell.serve import depth_within, expand, predict_files, to_csv

    if depth is not None and budget_ms is not None:
        raise ValueError("give --depth or --budget-ms, not both")
    if budget_ms is not None and not budget_ms > 0:
        raise ValueError(f"--budget-ms must be a positive number, not {budget_ms}")
    if csv is not None and not csv.parent.is_dir():
        raise ValueError(f"--csv {csv}: there is no folder {csv.parent}; make it first")
    net, _ = network_of(run)
    if budget_ms is not None:
        depth = depth_within(net, budget_ms)
        say(f"depth {depth} needs at most {budget_ms} ms an image here")
    depth = net.full if depth is None else depth
    net.require_ready(depth)
    predictions = list(predict_files(net, depth, expand(files)))
    readable = [p for p in predictions if not p.error]
    if csv is not None:
        to_csv(csv, predictions)
        say(f"wrote {len(readable)} predictions to {csv}")
    if json:
        print_json([p._asdict() | {"file": str(p.file)} for p in predictions])
    elif csv is None:
        rows = [[str(p.file), p.label, f"{100 * p.probability:.1f} %"] for p in readable]
        show(table(f"depth {depth}", ["file", "class", "probability"], rows, words=2))
    if bad := [p for p in predictions if p.error]:
        for p in bad[:10]:
            fail(p.error)
        raise ValueError(f"{len(bad)} of {len(predictions)} images could not be read")


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

    `--depth all` with ONNX writes the weights once: net.safetensors, and a small graph a depth that
    points into it.

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
    from stepwell.export import export_delta, export_folder

    if beyond is not None:
        _check_beyond(depth, out, int8 or data or to or format not in (None, "safetensors"))
        net, _ = network_of(run)
        assert out is not None
        show_delta(depth, beyond, export_delta(net, depth, beyond, out)._asdict(), json=json)
        return
    if out is not None:
        raise ValueError(f"--out {out} is where --beyond writes; an export goes to the folder --to")
    net, config = network_of(run)
    net.require_ready(*(net.depths if depth == "all" else [depth]))
    folder = to or (run if run.is_dir() else run.parent) / "export"
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--to {folder} is a file: name a folder")
    sample, parts = _sample_of(net, run, config, data, int8)
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

    if not out.parent.is_dir():
        raise ValueError(f"--out {out}: there is no folder {out.parent}; make it first")
    apply_delta(base, delta, out)
    if json:
        print_json({"file": str(out), "bytes": out.stat().st_size})
    else:
        say(f"wrote {out}")


def report(
    runs: Positional[tuple[Path, ...]], *, out: Path | None = None, json: Json = False
) -> None:
    """Write one self-contained page about runs: curves, accuracy against latency, pictures.

    Examples:
        stepwell report runs/digits
        stepwell report runs/a runs/b --out compare.html

    Args:
        runs: run directories.
        out: the page to write; `report.html` in the run's directory by default.
    """
    from stepwell.report import write_report

    if not runs:
        raise ValueError("name one run directory or more")
    if out is None and len(runs) > 1:
        raise ValueError("several runs need --out: the page to write")
    page = write_report(runs, out or runs[0] / "report.html")
    if json:
        print_json({"report": str(page)})
    else:
        say(f"wrote {page}")


def verify(
    system: Positional[str],
    *,
    quick: bool = False,
    seeds: int = 3,
    data: str | None = None,
    size: int | None = None,
    epochs: int | None = None,
    precision: Literal["32", "bf16"] = "32",
    arms: tuple[str, ...] = (),
    workers: int = 2,
    out: Path | None = None,
    json: Json = False,
) -> None:
    """Run a system's experiment: paper, measured, holds or not.

    Interrupted, it goes on where it stopped.

    Examples:
        stepwell verify ekd --quick
        stepwell verify ekd --data cifar10/ --size 16 --seeds 3

    Args:
        system: a name (`stepwell list`).
        quick: a tiny version, which shows that everything runs; its numbers mean nothing.
        seeds: how often each arm is trained.
        data: a folder or a name, in place of the system's own.
        size: height and width of the images.
        epochs: passes over the training part, of every arm.
        precision: of every arm's training; `bf16` pays where the processor has it.
        arms: names or patterns ("20*") of the arms to run; claims about others are left out.
        workers: arms side by side, one thread each.
        out: where units and results are kept; `runs/verify-SYSTEM` by default.
    """
    from stepwell.claims.verify import verify_system

    changes = {"data": data, "size": size, "epochs": epochs}
    result, page = verify_system(
        system,
        {name: value for name, value in changes.items() if value is not None},
        quick=quick,
        seeds=seeds,
        workers=workers,
        arms=arms,
        precision=precision,
        folder=out or Path("runs") / f"verify-{system}",
    )
    if json:
        print_json(result)
    else:
        show_claims(result)
        say(f"wrote {page}")


def network_of(path: Path) -> tuple[Any, Mapping[str, Any]]:
    """The network of a run directory or of a file, and the run's configuration, if there is one."""
    import json

    from stepwell.nets.file import load

    if not path.exists():
        raise ValueError(f"no run or file {path}")
    if path.is_dir() and not (path / "net.safetensors").exists():
        raise ValueError(
            f"{path} holds no net.safetensors: it is no finished run. "
            "Start its `stepwell train` command again to finish it"
        )
    net = load(path / "net.safetensors" if path.is_dir() else path)
    if not net.card.classes or not net.card.size:
        raise ValueError(
            f"{path} does not say its classes and input size: set net.card = "
            "stepwell.Card(classes, size, mean, std) and save it again"
        )
    config = path / "config.json"
    return net, json.loads(config.read_text()) if config.exists() else {}


def _data_of(run: Path, config: Mapping[str, Any]) -> str:
    if not config:
        raise ValueError(f"{run} is not in a run directory, so say what to measure on with --data")
    return str(config["arguments"]["data"])


def _check_beyond(depth: str, out: Path | None, others: object) -> None:
    if depth == "all":
        raise ValueError("--beyond needs --depth: the deeper depth that the delta leads to")
    if out is None:
        raise ValueError("--beyond needs --out: the file to write")
    if not out.parent.is_dir():
        raise ValueError(f"--out {out}: there is no folder {out.parent}; make it first")
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
        parts = _parts(net, run, config, data)
    except ValueError as error:
        if data or int8:
            raise
        say(f"note: checked on what the run kept, because its data cannot be used: {error}")
        return check_images(net, run), None
    part = "test" if parts.validation is None else "validation"
    images = take(parts.validation or parts.test, 64)
    return Sample(images, part), Int8(parts.train, parts.test) if int8 else None


def _parts(net: Any, run: Path, config: Mapping[str, Any], data: str | None) -> Any:
    """The parts of `data`, or of the run's own, as the network expects them."""
    from stepwell.recipes.classification import parts_for

    if data is not None and data != config.get("arguments", {}).get("data"):
        return parts_for(net, data)
    name = _data_of(run, config)
    seen = config["data"]["fingerprint"] if data is None else None
    return parts_for(net, name, seen, config["arguments"].get("val_fraction", 0.0))
