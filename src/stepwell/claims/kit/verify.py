"""`stepwell verify`: run a study, judge its claims, write claims.json, a page and a picture."""

import json
import os
import platform
import shlex
import sys
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from stepwell.claims import CLAIMS
from stepwell.claims.kit.figure import draw
from stepwell.claims.kit.inference import summary
from stepwell.claims.kit.judging import elsewhere, judge
from stepwell.claims.kit.page import columns_by_depth, render
from stepwell.claims.kit.study import Column, Results, Study, only, run_study
from stepwell.console import say
from stepwell.device import processor
from stepwell.files import write_whole
from stepwell.measures import duration
from stepwell.ranges import check_numbers
from stepwell.training import Loop
from stepwell.training.loop import Precision
from stepwell.training.run import LIBRARIES, commit


def verify_system(
    system: str, changes: Mapping[str, Any], *, quick: bool, seeds: int, workers: int, folder: Path,
    arms: Sequence[str] = (), precision: Precision = "32",
) -> tuple[dict[str, Any], Path]:  # fmt: skip
    """Run the experiment of `system`; write `claims.json`, a page and its picture into `folder`.

    Args:
        changes: in place of the study's common arguments.
        quick: the tiny version, in this process.
        arms: patterns of the arms to run, with those that they need; all by default.
        precision: of every arm's training, as `Loop` has it.

    Returns:
        The content of claims.json, and the page's path.

    Raises:
        ValueError: no such system; a number out of range.
    """
    if system not in CLAIMS:
        raise ValueError(f"no system {system!r} to verify; there are {', '.join(CLAIMS)}")
    if (folder / "config.json").exists():
        raise ValueError(f"{folder} holds a run: results of an experiment go into another --out")
    check_numbers({"seeds": seeds, "workers": workers, **changes})
    study: Study = resolve_name(CLAIMS[system][0])
    if arms:
        study = only(study, arms)
    small: Mapping[str, Any] = {}
    if quick:
        small = study.quick(folder / "quick") if callable(study.quick) else study.quick
    common = {**study.common, **small, **changes}
    if precision != Loop.precision:
        common["loop"] = Loop(precision=precision)
    _check_taken(study, {*changes, *(["loop"] if "loop" in common else [])})
    if quick:
        workers = 0
    total = len(study.arms) * seeds
    started, finished = time.monotonic(), 0

    def done(arm: str, seed: int, result: Mapping[str, Any], trained: int, ahead: int) -> None:
        nonlocal finished
        finished += 1
        test = result["test"]
        columns: Iterable[Column] = (c for question in study.questions for c in question.columns)
        columns = [c for c in dict.fromkeys(columns) if c.key in test]
        columns = columns or [c for c in columns_by_depth({arm: test}) if c.key in test]
        numbers = ", ".join(f"{c.title}: {format(c.scale * test[c.key], c.form)}" for c in columns)
        remaining = ""
        if trained and ahead:
            remaining = f", about {duration((time.monotonic() - started) / trained * ahead)} left"
        say(f"[{finished}/{total}{remaining}] {arm}, seed {seed}: {numbers}")

    units = folder / "units"
    results = run_study(study, common, range(seeds), units, workers=workers, done=done)
    record = describe_results(study, results, _origin(common, quick=quick, precision=precision))
    page = folder / f"{system}.md"
    write_results(study, record, folder / "claims.json", page)
    return record, page


def _check_taken(study: Study, names: Collection[str]) -> None:
    """Refuse an argument that no arm takes: the record would be wrong."""
    taken = {name for arm in study.arms.values() for name in arm.taken}
    if any(arm.scaled for arm in study.arms.values()):
        taken.add("epochs")
    for name in sorted(set(names) - taken):
        flag = "precision" if name == "loop" else name.replace("_", "-")
        raise ValueError(f"--{flag}: no arm of {study.key} takes it; leave it out")


def _origin(common: Mapping[str, Any], *, quick: bool, precision: Precision) -> dict[str, Any]:
    """The command, versions and machine of this run."""
    threads = "" if quick else ", one thread an arm"
    return {
        "command": shlex.join(["stepwell", *sys.argv[1:]]),
        "quick": quick,
        "arguments": {k: v for k, v in common.items() if k != "loop"} | {"precision": precision},
        "versions": {"python": platform.python_version()} | {name: version(name) for name in LIBRARIES},
        "commit": commit(),
        "hardware": f"{processor()}, {os.cpu_count()} cores{threads}",
        "date": time.strftime("%Y-%m-%d"),
    }


def describe_results(study: Study, results: Results, origin: Mapping[str, Any]) -> dict[str, Any]:
    """The content of claims.json; `origin` has the command, versions and machine of the results."""
    every = [r for by_seed in results.values() for r in by_seed.values()]
    claims = judge(study, results)
    judged = {claim["id"] for claim in claims}
    return {
        "system": study.key,
        "test_examples": max((r["examples"] for r in every if "examples" in r), default=None),
        **origin,
        "seconds": sum(r["seconds"] for r in every),
        "arms": {arm: _arm(by_seed) for arm, by_seed in results.items()},
        "elsewhere": elsewhere(results),
        "note": study.note,
        "claims": claims,
        "not_run": [
            {"id": claim.id, "text": claim.text, "primary": claim.id in study.primary}
            for claim in study.claims
            if claim.id not in judged
        ],
    }


def write_results(study: Study, record: Mapping[str, Any], claims: Path, page: Path) -> None:
    """Write the record as JSON, and as a page with its picture beside it."""
    write_whole(claims, (json.dumps(record, indent=1, ensure_ascii=False) + "\n").encode())
    picture = page.with_suffix(".svg")
    write_whole(page, render(record, study, picture.name).encode())
    write_whole(picture, draw(record, study.plot))


def _arm(by_seed: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    """All measures of an arm over its seeds, and the MACs of its depths."""
    runs = list(by_seed.values())
    measures = {name: summary([r["test"][name] for r in runs]) for name in runs[0]["test"]}
    spent = [name for name in ("seconds", "cpu_seconds") if name in runs[0]]
    measures |= {name: summary([r[name] for r in runs]) for name in spent}
    counts = {
        depth: [r["costs"][depth]["macs"] for r in runs if depth in r.get("costs", {})]
        for depth in runs[0].get("costs", {})
    }
    return measures | {f"{depth}/macs": summary(macs) for depth, macs in counts.items()}
