"""Publish a study's units, or go on with published ones: `python -m benchmarks.publish --help`."""

import json
import shutil
from collections import Counter
from pathlib import Path
from pkgutil import resolve_name
from typing import Annotated, Any

import tyro

from benchmarks.judge import ABOUT, PUBLISHED, judge_folder
from stepwell.claims import CLAIMS
from stepwell.claims.kit.study import RESULT, TRAINED_ON
from stepwell.files import write_whole


def publish(
    out: Annotated[Path, tyro.conf.Positional],
    page: Annotated[str, tyro.conf.Positional],
    *,
    layout: str = "",
    back: bool = False,
) -> None:
    """Copy the units of a study to benchmarks/results/claims/units/PAGE, and write the page.

    Run it where the study ran, so that its --data is found.

    Args:
        out: the --out of `stepwell verify`.
        page: name of the page and of the folder of units.
        layout: the data in a sentence; by default that of the units published before.
        back: copy the published seeds that have all arms into `out` instead, so that the same command
            of the same commit goes on with the next seed.
    """
    folder = PUBLISHED / "units" / page
    if back:
        put_back(folder, out)
        return
    folder.mkdir(parents=True, exist_ok=True)
    trained: dict[str, Any] = {}
    for file in sorted(out.glob(f"units/*/{RESULT}")):
        unit = json.loads(file.read_text())
        trained = unit.pop(TRAINED_ON, trained)
        write_whole(folder / f"{file.parent.name}.json", (json.dumps(unit, indent=1) + "\n").encode())
    about = folder / ABOUT
    write_whole(about, (json.dumps(described(out, page, trained, layout), indent=1) + "\n").encode())
    judge_folder(folder)


def put_back(folder: Path, out: Path) -> None:
    """Copy units of whole seeds: an arm that is still to train needs weights of its seed's others."""
    units = [file for file in sorted(folder.glob("*.json")) if file.name != ABOUT]
    seeds = Counter(file.stem.rsplit("-", 2)[1] for file in units)
    for file in units:
        if seeds[file.stem.rsplit("-", 2)[1]] == max(seeds.values()):
            unit = out / "units" / file.stem
            unit.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, unit / RESULT)


def described(out: Path, page: str, trained: dict[str, Any], layout: str) -> dict[str, Any]:
    """The content of `about.json`; `trained`: the machine and torch of the units."""
    record = json.loads((out / "claims.json").read_text())
    about = PUBLISHED / "units" / page / ABOUT
    if not layout:
        layout = json.loads(about.read_text())["origin"]["data"]["layout"]
    study = resolve_name(CLAIMS[record["system"]][0])
    data = {"layout": layout, "fingerprint": study.fingerprint(record["arguments"])}
    names = ("command", "quick", "arguments", "versions", "commit", "hardware", "date")
    where = {"machine": trained["machine"], "torch": trained["torch"]}
    return {
        "system": record["system"],
        "page": page,
        "origin": {name: record[name] for name in names}
        | {"data": data, "test_examples": record["test_examples"]},
        "trained_on": where
        | {"code": {"commit": record["commit"]}, "data": record["arguments"].get("data")},
    }


if __name__ == "__main__":
    tyro.cli(publish)
