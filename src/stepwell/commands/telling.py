"""Commands that tell what there is and what was found: `list`, `report`, `verify`."""

from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from stepwell.catalog import DATA, NETWORKS
from stepwell.claims import CLAIMS
from stepwell.commands.run_files import Json
from stepwell.console import print_json, say, show, show_claims, table
from stepwell.recipes import RECIPES


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
        stepwell verify dkge --data snapshots/ --arms "DKGE*" --workers 1

    Args:
        system: a name (`stepwell list`).
        quick: a tiny version, which shows that everything runs; its numbers mean nothing.
        seeds: how often each arm is trained.
        data: a folder or a name, in place of the system's own: of images, or, for dkge, of snapshots
            (2008/train.tsv, valid.tsv, test.tsv, 2009/...), the last four of which are taken.
        size: height and width of the images.
        epochs: passes over the training part, of every arm.
        precision: of every arm's training; `bf16` pays where the processor has it.
        arms: names or patterns ("20*") of the arms to run; claims about others are left out. A name
            that is none is answered with all of them.
        workers: arms side by side, one thread each.
        out: where units and results are kept; `runs/verify-SYSTEM` by default.
    """
    from stepwell.claims.kit.verify import verify_system

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
