"""Machine, code and data of a unit's training: only units that share them make a pair."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import combinations
from typing import Any

from stepwell.claims.kit.study import TRAINED_ON, Results

#: Entries of a unit's `trained_on`, and the words for units that differ in them.
DIFFERS = {
    "machine": "on another machine", "torch": "with another torch", "code": "by other code",
    "data": "on other data",
}  # fmt: skip


def differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """The entries in which two trainings differ; an entry that either lacks does not count.

    Code is a mapping of names to digests: two functions are compared where both name them.
    """
    return [key for key in DIFFERS if key in one and key in other and _differ(one[key], other[key])]


def _differ(one: Any, other: Any) -> bool:
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return any(one[name] != other[name] for name in one.keys() & other.keys())
    return bool(one != other)


def not_a_pair(units: Iterable[Mapping[str, Any]]) -> str:
    """Say in which way units of one seed are no pair; "" where they are one.

    Args:
        units: results of several arms at one seed.
    """
    trained = [unit.get(TRAINED_ON, {}) for unit in units]
    found = {key for pair in combinations(trained, 2) for key in differing(*pair)}
    return ", ".join(words for key, words in DIFFERS.items() if key in found)


def elsewhere(results: Results) -> dict[str, str]:
    """The arms that were trained otherwise than most, each with the way in which it differs."""
    trained = {
        arm: next(iter(by_seed.values())).get(TRAINED_ON, {}) for arm, by_seed in results.items()
    }
    counts = Counter(json.dumps(_comparable(where), sort_keys=True) for where in trained.values())
    if len(counts) < 2:
        return {}
    usual = json.loads(counts.most_common(1)[0][0])
    found = {arm: differing(usual, where) for arm, where in trained.items()}
    return {
        arm: "trained " + ", ".join(f"{DIFFERS[key]} ({_said(trained[arm][key])})" for key in keys)
        for arm, keys in found.items()
        if keys
    }


def _comparable(where: Mapping[str, Any]) -> dict[str, Any]:
    """A training without the code of single functions, which differs from arm to arm."""
    code = {name: value for name, value in where.get("code", {}).items() if name == "commit"}
    return {key: value for key, value in where.items() if key != "code"} | {"code": code}


def _said(value: Any) -> str:
    return ", ".join(map(str, value.values())) if isinstance(value, Mapping) else str(value)
