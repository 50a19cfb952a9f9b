"""What updates leave in their run directory for the report page: `updates.json`."""

import json
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stepwell.files import read_json, write_whole

#: So many of the last updates are kept, the picture of the last one alone.
KEPT = 100
#: Entities in a picture, at most.
SHOWN = 24


def remember(
    run: Path, report: Mapping[str, Any], picture: Callable[[], Mapping[str, Any]]
) -> None:
    """Append an update. The graph is safe by then, so what goes wrong here is only noted.

    Args:
        report: what the update did, for JSON.
        picture: draws the neighbourhood of what moved most.
    """

    def more(found: dict[str, Any]) -> None:
        before = found["updates"]
        for old in before:
            old.pop("picture", None)
        entry = {**report, "when": time.strftime("%Y-%m-%d %H:%M:%S"), "picture": picture()}
        for key in ("new", "gone"):
            entry[key] = {kind: len(names) for kind, names in report[key].items()}
        found["total"] = found.get("total", len(before)) + 1
        found["updates"] = [*before[1 - KEPT :], entry]

    _change(run / "updates.json", more)


def remember_measures(run: Path, measures: Mapping[str, float]) -> None:
    """Note how the last update ranks triples to test on."""

    def more(found: dict[str, Any]) -> None:
        found["updates"][-1]["measures"] = dict(measures)

    _change(run / "updates.json", more)


def _change(file: Path, change: Callable[[dict[str, Any]], None]) -> None:
    try:
        found = read_json(file, "") if file.exists() else {"updates": []}
        change(found)
        write_whole(file, json.dumps(found, indent=1).encode())
    except Exception as error:  # whatever it is, the update is done
        warnings.warn(f"{file}: the update was not noted for the report ({error})", stacklevel=5)


def picture_of(
    names: Sequence[str], before: Tensor, after: Tensor, was_there: Sequence[bool]
) -> dict[str, Any]:
    """Vectors before and after an update in the plane in which they differ most (PCA of both).

    Args:
        names: of the entities; the first is the centre.
        before, after: (entities, dim). `before` of one that was not there is not looked at.
    """
    seen = torch.cat([before[torch.tensor(list(was_there))], after])
    middle = seen.mean(0)
    _, _, axes = torch.linalg.svd(seen - middle, full_matrices=False)
    plane = axes[:2].T
    places = [((x - middle) @ plane).tolist() for x in (before, after)]
    return {
        "names": list(names),
        "before": [p if was else None for p, was in zip(places[0], was_there, strict=True)],
        "after": places[1],
    }
