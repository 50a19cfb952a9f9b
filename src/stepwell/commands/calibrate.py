"""`stepwell calibrate`."""

import shlex
from pathlib import Path

from tyro.conf import Positional

from stepwell.commands.arguments import Json, check_place
from stepwell.console import print_json, row_table, say, show
from stepwell.kinds import Calibrated, open_network

COLUMNS = ("blocks", "params", "macs", "accuracy", "ms")


def calibrate(
    run: Positional[Path],
    *,
    depths: tuple[str, ...] = (),
    data: str | None = None,
    out: Path | None = None,
    json: Json = False,
) -> None:
    """Add untrained depths to a network.

    Their norms get statistics from the training images, in one pass for all; trained depths do not
    change.

    Examples:
        stepwell calibrate runs/digits --depths middle=4,3,3
        stepwell calibrate runs/digits --depths 14 23=4,4,3 --out more.safetensors

    Args:
        run: a run directory, or the file of its network.
        depths: the depths to add: a family's name (20), or NAME=BLOCKS,BLOCKS,... by stage.
        data: images, a folder or a name; their training part is used. By default the run's data.
        out: the file to write; by default the network's own is replaced.
    """
    if out is not None:
        check_place("--out", out, ".safetensors")
    network = open_network(run, to="calibrate")
    done: Calibrated = network.do("calibrate", depths, data=data, out=out)
    if json:
        print_json({"calibrated": done.new, "file": str(done.file), "depths": done.costs})
        return
    show(row_table(str(done.file), COLUMNS, done.costs))
    if done.validation:
        show(f"accuracy: on {done.validation} validation images", style="dim")
    say(f"calibrated {', '.join(done.new)} on {done.train} training images; wrote {done.file}")
    if out is None and run.is_dir():
        say(f"next: stepwell eval {shlex.quote(str(run))} measures them for the report")
