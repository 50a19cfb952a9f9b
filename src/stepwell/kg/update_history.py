"""The updates of a graph, recorded for the report page in `updates.json` of its run directory."""

import json
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from stepwell.files import read_json, write_whole

#: The last updates that are recorded; only the last one has a picture.
MAX_UPDATES = 100
#: The most entities in a picture.
MAX_PICTURED = 24


def record_update(
    run: Path, report: Mapping[str, Any], picture: Callable[[], Mapping[str, Any]]
) -> None:
    """Append an update. The graph is already safe, so a failure here only warns.

    Args:
        report: the update's report, for JSON.
        picture: draws the neighbourhood of an entity that moved much.
    """

    def append(history: dict[str, Any]) -> None:
        before = history["updates"]
        for old in before:
            old.pop("picture", None)
        entry = {**report, "when": time.strftime("%Y-%m-%d %H:%M:%S"), "picture": picture()}
        for key in ("new", "gone"):
            entry[key] = {kind: len(names) for kind, names in report[key].items()}
        history["total"] = history.get("total", len(before)) + 1
        history["updates"] = [*before[1 - MAX_UPDATES :], entry]

    _rewrite(run / "updates.json", append)


def record_measures(run: Path, measures: Mapping[str, float]) -> None:
    """Add measures of test triples to the last update."""
    _rewrite(run / "updates.json", lambda h: h["updates"][-1].update(measures=dict(measures)))


def _rewrite(file: Path, change: Callable[[dict[str, Any]], None]) -> None:
    try:
        history = read_json(file, "") if file.exists() else {"updates": []}
        change(history)
        write_whole(file, json.dumps(history, indent=1).encode())
    except Exception as error:  # whatever it is, the update is done
        warnings.warn(f"{file}: the update was not recorded for the report ({error})", stacklevel=5)


def picture_of(
    names: Sequence[str],
    before: Float[Tensor, "entities dim"],
    after: Float[Tensor, "entities dim"],
    existed: Sequence[bool],
) -> dict[str, Any]:
    """Project vectors before and after an update to the plane of their largest variance (PCA of both).

    Args:
        names: of the entities; the first is the centre.
        existed: marks the entities that were in the graph before; other rows of `before` are not used.
    """
    both = torch.cat([before[torch.tensor(list(existed))], after])
    middle = both.mean(0)
    _, _, axes = torch.linalg.svd(both - middle, full_matrices=False)
    plane = axes[:2].T
    places = [((x - middle) @ plane).tolist() for x in (before, after)]
    return {
        "names": list(names),
        "before": [p if old else None for p, old in zip(places[0], existed, strict=True)],
        "after": places[1],
    }
