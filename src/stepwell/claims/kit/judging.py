"""Verdicts on claims: paired differences over seeds, their intervals, and the seeds to plan for."""

import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import combinations
from typing import Any, NamedTuple

from stepwell.claims.kit import inference
from stepwell.claims.kit.inference import Spread, summary
from stepwell.claims.kit.study import TRAINED_ON, Absent, Claim, Results, Study, with_needed

#: Entries of a unit's `trained_on`, and the words for units that differ in them.
DIFFERS = {
    "machine": "on another machine", "torch": "with another torch", "code": "by other code",
    "data": "on other data",
}  # fmt: skip


class Observed(NamedTuple):
    """A claim's numbers.

    differences: the judged number of each seed. measured: summaries of the numbers to show.
    compared: the arms of the judged number. unpaired: why their units are no pairs, or "".
    seconds: of all trainings that the claim needs.
    """

    claim: Claim
    differences: list[float]
    measured: dict[str, dict[str, Any]]
    compared: list[str]
    unpaired: str
    seconds: float

    @property
    def finite(self) -> bool:
        """Check that every seed gave a number."""
        return all(map(math.isfinite, self.differences))

    @property
    def contrast(self) -> Mapping[str, float]:
        """Weights of the compared arms, for the spread that pairs share through them."""
        first, *others = self.compared
        others = others or [f"{first}, its counterpart"]
        return {first: 1.0} | dict.fromkeys(others, -1.0 / len(others))


class Pooled(NamedTuple):
    """The spread of claims that pool theirs, and the p-value of the test that they vary alike."""

    spread: Spread
    equal: float | None

    def interval(
        self, difference: Mapping[str, Any], level: float
    ) -> tuple[Spread, tuple[float, float]]:
        """The interval of a claim of the pool, with the spread that gives it.

        Where the claims do not vary alike, it is the wider one by the pooled and by the own spread.
        """
        mean, n = difference["mean"], difference["n"]
        spreads = [self.spread]
        if self.equal is not None and self.equal < inference.UNEQUAL:
            spreads.append(Spread(difference["std"], n - 1))
        intervals = [(spread, inference.interval(mean, n, spread, level)) for spread in spreads]
        return max(intervals, key=lambda pair: pair[1][1] - pair[1][0])


def judge(study: Study, results: Results) -> list[dict[str, Any]]:
    """Judge every claim: its numbers, interval, verdict, and the seeds that would decide it.

    A claim is judged on the seeds that all its arms and their needed arms share. It is left out if an
    arm was not run, if they share only one of a study's seeds, or if the data lacks what it measures.
    It is "not decided" with one seed, if its units are no pairs, and if a seed gave no finite number.
    """
    enough = 1 if len(set().union(*results.values())) == 1 else 2
    observed = [o for claim in study.claims if (o := _observe(study, claim, results, enough))]
    pools: dict[str, list[Observed]] = defaultdict(list)
    for numbers in observed:
        if len(numbers.differences) > 1 and not numbers.unpaired and numbers.finite:
            pools[numbers.claim.pooled_with].append(numbers)
    pooled = {
        name: Pooled(
            inference.pooled_spread([o.differences for o in pool], [o.contrast for o in pool]),
            inference.equal_spreads(o.differences for o in pool),
        )
        for name, pool in pools.items()
    }
    return [_verdict(study, numbers, pooled.get(numbers.claim.pooled_with)) for numbers in observed]


def _observe(study: Study, claim: Claim, results: Results, enough: int) -> Observed | None:
    """A claim's numbers; None where it cannot be judged."""
    with suppress(Absent):
        return _measured(study, claim, results, enough)
    return None


def _measured(study: Study, claim: Claim, results: Results, enough: int) -> Observed | None:
    """A claim's numbers; None for too few seeds. `Absent` if an arm lacks what the claim measures."""
    compared = _arms_of([claim.difference], results)
    arms = with_needed(study, {*compared, *_arms_of([*claim.measured.values()], results)})
    seeds = sorted(set.intersection(*(set(results.get(arm, ())) for arm in arms)))
    if len(seeds) < enough:
        return None
    by_seed = [{arm: results[arm][seed] for arm in arms} for seed in seeds]
    unpaired = {not_a_pair(units[arm] for arm in compared) for units in by_seed}
    return Observed(
        claim,
        [claim.difference(units) for units in by_seed],
        {name: summary([m(units) for units in by_seed]) for name, m in claim.measured.items()},
        compared,
        max(unpaired),
        sum(units[arm]["seconds"] for arm in sorted(arms) for units in by_seed),
    )


def _verdict(study: Study, observed: Observed, pooled: Pooled | None) -> dict[str, Any]:
    """The entry of claims.json of one claim."""
    claim, n = observed.claim, len(observed.differences)
    primary = claim.id in study.primary
    level = inference.simultaneous(len(study.primary)) if primary else inference.CONFIDENCE
    difference = summary(observed.differences) | {"unit": claim.judged_in, "level": level}
    difference |= dict.fromkeys(("low", "high", "pooled_std", "df", "equal_spreads"))
    notes, verdict = [claim.note], "not decided"
    planned: dict[str, Any] = dict.fromkeys(("true_value", "seeds", "power", "to_decide"))
    if observed.unpaired:
        notes.insert(0, f"Not a pair: trained {observed.unpaired}.")
    elif not observed.finite:
        notes.insert(0, "A seed gave no finite number: no interval.")
    elif pooled is None or n < 2:
        notes.insert(0, "One seed: no interval.")
    else:
        spread, (low, high) = pooled.interval(difference, level)
        difference |= {"low": low, "high": high, "equal_spreads": pooled.equal}
        difference |= {"pooled_std": pooled.spread.std, "df": pooled.spread.df}
        verdict = inference.verdict_of(low, high, claim.margin, claim.below)
        planned = _plan(claim, difference["mean"], n, spread, level)
    return {
        "id": claim.id, "text": f"{claim.text}: {claim.rule}.", "paper": claim.paper,
        "primary": primary, "measured": observed.measured, "difference": difference,
        "unit": claim.unit, "margin": claim.margin, "below": claim.below, "verdict": verdict,
        "planned": planned, "seconds": observed.seconds, "note": " ".join(filter(None, notes)),
    }  # fmt: skip


def _plan(claim: Claim, mean: float, n: int, spread: Spread, level: float) -> dict[str, Any]:
    """Seeds for 80 % power, and the power of the present seeds, for the value that the claim expects.

    The measured value is the default. "to_decide" are the seeds for the measured value.
    """
    true = mean if claim.expected is None else claim.expected
    pairs = spread.df / (n - 1)
    return {
        "true_value": true,
        "seeds": inference.seeds_needed(true - claim.margin, spread.std, pairs, level),
        "power": inference.power(true - claim.margin, n, spread, level),
        "to_decide": inference.seeds_needed(mean - claim.margin, spread.std, pairs, level),
    }


class _NotRun(LookupError):
    """A measure read an arm that was not run."""


class _Read(dict[str, Mapping[str, Any]]):
    """Results of any seed by arm; holds the arms that measures have read, in their order."""

    def __init__(self, results: Results) -> None:
        super().__init__()
        self._results = results

    def __missing__(self, arm: str) -> Mapping[str, Any]:
        if not self._results.get(arm):
            raise _NotRun(arm)
        self[arm] = next(iter(self._results[arm].values()))
        return self[arm]


def _arms_of(measures: Sequence[Any], results: Results) -> list[str]:
    """The arms that measures read, in their order; up to the first that was not run."""
    read = _Read(results)
    try:
        for measure in measures:
            measure(read)
    except _NotRun as missing:
        return [*read, str(missing)]
    return [*read]


def not_a_pair(units: Iterable[Mapping[str, Any]]) -> str:
    """The way in which results of several arms at one seed are no pair; "" for a pair."""
    trained = [unit.get(TRAINED_ON, {}) for unit in units]
    different = {key for pair in combinations(trained, 2) for key in _differing(*pair)}
    return ", ".join(words for key, words in DIFFERS.items() if key in different)


def elsewhere(results: Results) -> dict[str, str]:
    """The arms that were trained in another way than most, each with the difference."""
    trained = {
        arm: next(iter(by_seed.values())).get(TRAINED_ON, {}) for arm, by_seed in results.items()
    }
    counts = Counter(json.dumps(_comparable(where), sort_keys=True) for where in trained.values())
    if len(counts) < 2:
        return {}
    usual = json.loads(counts.most_common(1)[0][0])
    different = {arm: _differing(usual, where) for arm, where in trained.items()}
    return {
        arm: "trained " + ", ".join(f"{DIFFERS[key]} ({_said(trained[arm][key])})" for key in keys)
        for arm, keys in different.items()
        if keys
    }


def _comparable(where: Mapping[str, Any]) -> dict[str, Any]:
    """A training without the code of single functions, which differs from arm to arm."""
    code = {name: value for name, value in where.get("code", {}).items() if name == "commit"}
    return {key: value for key, value in where.items() if key != "code"} | {"code": code}


def _said(value: Any) -> str:
    return ", ".join(map(str, value.values())) if isinstance(value, Mapping) else str(value)


def _differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """The entries of both trainings in which they differ; code differs if a function of both does."""
    return [key for key in DIFFERS if key in one and key in other and _differ(one[key], other[key])]


def _differ(one: Any, other: Any) -> bool:
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return any(one[name] != other[name] for name in one.keys() & other.keys())
    return bool(one != other)
