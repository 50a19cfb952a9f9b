"""Whether claims hold: paired differences over seeds, and their intervals."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from stepwell.claims.kit.study import Absent, Claim, Results, Study, with_needed


def judge(study: Study, results: Results) -> list[dict[str, Any]]:
    """Every claim with its numbers: mean and spread over seeds, and whether it holds.

    A claim is judged on the seeds that all its arms, and those that they need, were run with. In a
    study of one seed there is no interval, and `holds` is null. Left out are claims about arms that
    were not run, or that share fewer than two of a study's several seeds, and about what the data has
    none of.
    """
    enough = 1 if len(set().union(*results.values())) == 1 else 2
    judged = []
    for claim in study.claims:
        try:
            arms = with_needed(study, _arms_of(claim, results))
        except Absent:
            continue
        seeds = sorted(set.intersection(*(set(results.get(arm, ())) for arm in arms)))
        if len(seeds) < enough:
            continue
        by_seed = [{arm: results[arm][seed] for arm in arms} for seed in seeds]
        measured = {n: summary([m(r) for r in by_seed]) for n, m in claim.measured.items()}
        difference = summary([claim.difference(r) for r in by_seed])
        low, high = interval(difference["values"])
        holds = None
        if low is not None and high is not None:
            holds = high < claim.margin if claim.below else low > claim.margin
        judged.append(
            {
                "id": claim.id,
                "text": claim.text,
                "paper": claim.paper,
                "primary": claim.id in study.primary,
                "measured": measured,
                "difference": difference | {"low": low, "high": high, "unit": claim.judged_in},
                "unit": claim.unit,
                "margin": claim.margin,
                "holds": holds,
                "seconds": sum(r[arm]["seconds"] for arm in sorted(arms) for r in by_seed),
                "note": claim.note if holds is not None else f"one seed: no interval. {claim.note}",
            }
        )
    return judged


class _Asked(dict[str, Mapping[str, Any]]):
    """Results by arm, of any seed; it knows which arms were asked for."""

    def __init__(self, results: Results) -> None:
        super().__init__({arm: next(iter(r.values())) for arm, r in results.items() if r})
        self.arms: set[str] = set()

    def __getitem__(self, arm: str) -> Mapping[str, Any]:
        self.arms.add(arm)
        return super().__getitem__(arm)


def _arms_of(claim: Claim, results: Results) -> set[str]:
    """The arms that a claim's numbers come from; of those that were not run, at least one."""
    asked = _Asked(results)
    for measure in (*claim.measured.values(), claim.difference):
        try:
            measure(asked)
        except KeyError:
            if asked.arms <= asked.keys():
                raise  # a measure that the arm does not have
    return asked.arms


def summary(values: Sequence[float]) -> dict[str, Any]:
    """Values with their mean and sample standard deviation (0 of a single value)."""
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return {
        "values": list(values),
        "mean": statistics.fmean(values),
        "std": spread,
        "n": len(values),
    }


def interval(values: Sequence[float]) -> tuple[float | None, float | None]:
    """The 90 % interval of the mean by Student's t; nothing for a single value."""
    if len(values) < 2:
        return None, None
    from scipy.stats import t

    half = t.ppf(0.95, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
    mean = statistics.fmean(values)
    return float(mean - half), float(mean + half)
