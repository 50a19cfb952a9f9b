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
    from stepwell.recipes.classification import cost_table, part_for

    net, config = network_of(run)
    net.require_ready()
    seen = None if data or not config else config["data"]["fingerprint"]
    batches = part_for(net, data or _data_of(run, config), seen)
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
    format: Literal["onnx", "safetensors"] = "onnx",
    depth: str = "all",
    to: Path | None = None,
    json: Json = False,
) -> None:
    """Write depths as files that other programs load, each checked against the network.

    Examples:
        stepwell export runs/digits
        stepwell export runs/photos --format safetensors --depth 18 --to shipping/

    Args:
        run: a run directory, or the file of its network.
        format: `onnx`: a graph for any batch size; `safetensors`: plain weights under torchvision's
            names.
        depth: one depth, or `all`.
        to: the folder to write to; `export/` beside the network by default.
    """
    from stepwell.export import check_images, export_onnx, export_safetensors

    net, _ = network_of(run)
    chosen = list(net.depths) if depth == "all" else [depth]
    net.require_ready(*chosen)
    folder = to or (run if run.is_dir() else run.parent) / "export"
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--to {folder} is a file: name a folder")
    folder.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    images, real = check_images(net, run)
    for name in chosen:
        if format == "onnx":
            parity = export_onnx(net, name, folder / f"{name}.onnx", images)
            checks = {"difference": parity.difference, "same_class": parity.same_class}
            checks |= {"images": parity.images, "real": real}
            path = parity.path
        else:
            path, checks = export_safetensors(net, name, folder / f"{name}.safetensors"), {}
        rows.append({"depth": name, "file": str(path), "bytes": path.stat().st_size} | checks)
    if json:
        print_json(rows)
        return
    columns = ["depth", "file", "size"]
    cells = [[r["depth"], r["file"], f"{r['bytes'] / 2**20:.2f} MiB"] for r in rows]
    if format == "onnx":
        kind = "test images" if real else "random images"
        columns += ["largest difference", f"same class, {len(images)} {kind}"]
        for cell, r in zip(cells, rows, strict=True):
            cell += [f"{r['difference']:.1e}", f"{100 * r['same_class']:.0f} %"]
    show(table(f"exported {run}", columns, cells, words=2))


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
