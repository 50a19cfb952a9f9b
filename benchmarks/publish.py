"""Publish a study's units, or go on with published ones: `python -m benchmarks.publish --help`."""

import json
import sys
from collections import Counter, defaultdict
from collections.abc import Mapping
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
    try:
        if back:
            put_back(folder, out)
            return
        units = read_units(out)
        about = described(out, folder, layout, units)
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")
    folder.mkdir(parents=True, exist_ok=True)
    for name, unit in units.items():
        where = _where(unit.pop(TRAINED_ON, {}))
        if where not in ({}, _where(about["trained_on"])):
            unit[TRAINED_ON] = about["trained_on"] | where
        for earlier in folder.glob(f"{name.rpartition('-')[0]}-*.json"):
            earlier.unlink()
        write_whole(folder / f"{name}.json", (json.dumps(unit, indent=1) + "\n").encode())
    write_whole(folder / ABOUT, (json.dumps(about, indent=1) + "\n").encode())
    judge_folder(folder)


def read_units(out: Path) -> dict[str, dict[str, Any]]:
    """The units of a study by name; ValueError if there is none, or two of one arm and seed."""
    units = {
        file.parent.name: json.loads(file.read_text()) for file in sorted(out.glob(f"units/*/{RESULT}"))
    }
    if not units:
        raise ValueError(f"{out} has no finished unit: name the --out of `stepwell verify`")
    (name, count), *_ = Counter(unit.rpartition("-")[0] for unit in units).most_common(1)
    if count > 1:
        raise ValueError(f"{out}/units has {count} folders {name}-...: remove those of older code")
    return units


def described(
    out: Path, folder: Path, layout: str, units: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """The content of `about.json`, whose `trained_on` is that of most units.

    ValueError if the study has not ended, or nothing describes its data.
    """
    claims, earlier = out / "claims.json", folder / ABOUT
    if not claims.is_file():
        raise ValueError(
            f"there is no {claims}: let `stepwell verify` end, if need be with fewer --seeds"
        )
    record = json.loads(claims.read_text())
    before = json.loads(earlier.read_text()) if earlier.is_file() else {}
    if not layout and not before:
        raise ValueError("describe the data in a sentence, with --layout")
    layout = layout or before["origin"]["data"]["layout"]
    study = resolve_name(CLAIMS[record["system"]][0])
    names = ("command", "quick", "arguments", "versions", "commit", "hardware", "date")
    origin = {name: record[name] for name in names} | {
        "data": {"layout": layout, "fingerprint": study.fingerprint(record["arguments"])},
        "test_examples": record["test_examples"],
    }
    counts = Counter(json.dumps(_where(u[TRAINED_ON])) for u in units.values() if TRAINED_ON in u)
    (where, _), *_ = counts.most_common(1)
    trained_on = json.loads(where) | {
        "code": {"commit": record["commit"]}, "data": record["arguments"].get("data"),
    }  # fmt: skip
    elsewhere = {"elsewhere": before["elsewhere"]} if "elsewhere" in before else {}
    return {
        "system": record["system"], "page": folder.name, "origin": origin, "trained_on": trained_on,
    } | elsewhere  # fmt: skip


def _where(trained_on: Mapping[str, Any]) -> dict[str, Any]:
    return {name: trained_on[name] for name in ("machine", "torch") if name in trained_on}


def put_back(folder: Path, out: Path) -> None:
    """Copy units of whole seeds: an arm that is not trained yet reads weights of others of its seed.

    ValueError if nothing is published under this name.
    """
    units = [file for file in sorted(folder.glob("*.json")) if file.name != ABOUT]
    if not units:
        raise ValueError(f"{folder} has no units: name one of the folders beside it")
    arms: dict[str, set[str]] = defaultdict(set)
    for file in units:
        arm, seed, _ = file.stem.rsplit("-", 2)
        arms[seed].add(arm)
    every = set().union(*arms.values())
    trained_on = json.loads((folder / ABOUT).read_text())["trained_on"]
    for file in units:
        if arms[file.stem.rsplit("-", 2)[1]] == every:
            unit = {TRAINED_ON: trained_on} | json.loads(file.read_text())
            place = out / "units" / file.stem
            place.mkdir(parents=True, exist_ok=True)
            write_whole(place / RESULT, json.dumps(unit).encode())


if __name__ == "__main__":
    tyro.cli(publish)
