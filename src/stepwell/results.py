"""A run's results.json, written by any version, and its evaluations.json, what was measured later.

{"kind", "rows": "depth" | "choice" | None, "test": {"ROW/measure": number}, "examples",
"confusion": {ROW: {TRUE CLASS: {PREDICTED CLASS: examples}}}, "costs": {ROW: {...}},
"seconds", "cpu_seconds", SYSTEM: {...what only this system measured...}}
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stepwell.files import damaged, read_json, write_whole, writing

#: Later evaluations of a run, beside its results.json.
EVALUATIONS = "evaluations.json"
#: Attention maps of a text encoder and its teacher, in a run.
MAPS = "attention.npz"
#: Test images with boxes, and curves of precision, in a run of a detector.
BOXES = "boxes.json"
#: Measures of a graph that older versions wrote at the top.
_OF_GRAPHS = ("entities", "relations", "triples", "loss", "test_seconds")


def read_results(run: Path) -> dict[str, Any]:
    """Read the results of a finished run, with present names; errors as for `read_json`."""
    return upgrade(read_json(run / "results.json", "start its `stepwell train` command again"))


def read_evaluations(run: Path) -> list[dict[str, Any]]:
    """Read what `stepwell eval` measured on this training's network, oldest first.

    Each has the form of results.json, with "date", "device" and "data": {"name", "fingerprint", "own"};
    "at" says the budget in words, if there was one. ValueError if the file is damaged.
    """
    file = run / EVALUATIONS
    if not file.is_file():
        return []
    remedy = "delete it, and measure again with stepwell eval"
    evaluations = read_json(file, remedy).get("evaluations")
    if not isinstance(evaluations, list) or not all(isinstance(entry, dict) for entry in evaluations):
        raise damaged(file, "it lists no evaluations", remedy)
    trained = read_results(run).get("finished")
    return [entry for entry in evaluations if entry.get("trained") == trained]


def keep_evaluation(run: Path, results: Mapping[str, Any], *, date: str, device: str) -> None:
    """Add an evaluation to a run's evaluations.json, in place of the last one of the same.

    The same are those on equal data, of equal rows, within equal budgets. A cascade and temperatures
    that this one did not measure stay. ValueError for a damaged file, OSError if it cannot be written.
    """
    measured = {name: value for name, value in results.items() if name != "fidelity"}
    new: dict[str, Any] = {"date": date, "device": device}
    new |= {"trained": read_results(run).get("finished")} | measured

    def same(entry: Mapping[str, Any]) -> bool:
        data = entry.get("data", {}).get("fingerprint") == new["data"]["fingerprint"]
        return data and all(entry.get(key) == new.get(key) for key in ("rows", "at"))

    with writing(run / "net.safetensors"):
        earlier = read_evaluations(run)
        if before := [
            entry for entry in earlier if same(entry) and entry["costs"].keys() == new["costs"].keys()
        ]:
            new = {key: before[-1][key] for key in ("cascade", "tempered") if key in before[-1]} | new
        evaluations = [*(entry for entry in earlier if not same(entry)), new]
        write_whole(run / EVALUATIONS, json.dumps({"evaluations": evaluations}, indent=1).encode())


def upgrade(results: Mapping[str, Any]) -> dict[str, Any]:
    """Give results of any version the present names."""
    if "kind" in results:
        return dict(results)
    upgraded = dict(results)
    if "drnet" in upgraded:
        for name in ("test", "costs", "churn"):
            if isinstance(upgraded.get(name), Mapping):
                upgraded[name] = {row_name(key): value for key, value in upgraded[name].items()}
        speed = upgraded["drnet"].get("speed", [])
        rows = [{row_name(key): value for key, value in row.items()} for row in speed]
        upgraded["drnet"] = upgraded["drnet"] | {"speed": rows}
        return {"kind": "resolution", "rows": "choice"} | upgraded
    if "triples" in upgraded:
        of_graph = {name: upgraded.pop(name) for name in _OF_GRAPHS if name in upgraded}
        return {"kind": "graph", "rows": None, "costs": {}} | upgraded | {"dkge": of_graph}
    for name, system in (("full_net", "ekd"), ("cache", "distill")):
        if name in upgraded:
            upgraded[system] = {name: upgraded.pop(name)}
    return {"kind": "classifier", "rows": "depth"} | upgraded


def row_name(key: str) -> str:
    """Give a key of a resolution network its present name: the row "chosen" once was "dynamic"."""
    start = "val/" if key.startswith("val/") else ""  # of metrics.jsonl
    row, slash, measure = key.removeprefix(start).partition("/")
    return f"{start}{'chosen' if row == 'dynamic' else row}{slash}{measure}"


def never_right(
    confusion: Mapping[str, Mapping[str, Mapping[str, int]]],
) -> dict[tuple[str, ...], list[str]]:
    """Group the rows by their classes without one right example; only rows that have such classes."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for row, counts in confusion.items():
        if names := tuple(name for name, answers in counts.items() if not answers.get(name)):
            groups.setdefault(names, []).append(row)
    return {tuple(rows): list(names) for names, rows in groups.items()}


def never_in_words(
    rows: Sequence[str], names: Sequence[str], row: str = "depth", *, most: int = 4
) -> str:
    """Say it in a sentence without its full stop: "depth 8 gets no test example of class cat right"."""
    plural = "s" if len(rows) > 1 else ""
    rest = f" and {len(names) - most} more" if len(names) > most + 1 else ""
    listed = ", ".join(names[:most] if rest else names)
    verb = "get" if plural else "gets"
    classes = "classes" if len(names) > 1 else "class"
    return f"{row}{plural} {', '.join(rows)} {verb} no test example of {classes} {listed}{rest} right"
