"""The depth that fits a budget, by the measured table in a network's card."""

import math
from collections.abc import Mapping

from stepwell.measures import in_words, share_interval
from stepwell.nets.card import Card

#: Measurements of a depth: "ms", "macs" and "accuracy", where they are known.
Row = dict[str, float]
KNOWN = ("ms", "macs", "accuracy")


def choose_depth(card: Card, status: Mapping[str, str], device: str, **budget: float | None) -> str:
    """The depth that fits a budget; its limits and errors are those of `NestedNet.for_budget`.

    Args:
        status: of every depth, shallow to deep.
        device: the device of the times, a key of `card.latency`.
    """
    limits = _limits(budget)
    ready = [depth for depth, state in status.items() if state != "fresh"]
    if not ready:
        raise ValueError(
            "no depth was trained or calibrated: train the network, or run `stepwell calibrate RUN`"
        )
    if "ms" in limits and device not in card.latency:
        measured = "; ".join(card.latency) or "no device"
        raise ValueError(
            f"no times were measured on this device ({device}), only on {measured}: "
            "measure them with `stepwell cost RUN --save`"
        )
    cost = "ms" if "ms" in limits else "macs"
    times = card.latency.get(device, {})
    known = {d: card.costs.get(d, {}) | times.get(d, {}) for d in ready}
    rows = {d: {n: float(row[n]) for n in KNOWN if n in row} for d, row in known.items()}
    rows = {d: row for d, row in rows.items() if limits.keys() | {cost} <= row.keys()}
    if not rows:
        raise ValueError(
            f"the trained depths have no measured {' and '.join(limits)}: measure them with "
            "`stepwell cost RUN --save`; give --data where the run has no validation part"
        )
    fitting = {d: row for d, row in rows.items() if _fits(row, limits)}
    if not fitting:
        raise ValueError(_nothing_fits(rows, limits, cost, card.input))
    if "accuracy" in limits:
        return min(fitting, key=lambda d: fitting[d][cost])
    images = {d: str(known[d].get("accuracy_on", "")) for d in fitting}
    return _deepest_unbeaten(fitting, {d: count_in(words) for d, words in images.items()})


def _deepest_unbeaten(rows: Mapping[str, Row], images: Mapping[str, int]) -> str:
    """The deepest depth, unless a shallower one is more accurate beyond the deeper one's interval.

    A few images more or less that are right say nothing about two depths, and a deeper one is usually
    better on images that nobody measured. Depths of unknown accuracy neither beat nor are beaten.

    Args:
        rows: of depths, shallow to deep.
        images: the number of images behind each accuracy; 0 if unknown, which means no interval.
    """
    depths = list(rows)
    while len(depths) > 1:
        *shallower, deepest = depths
        accuracy = rows[deepest].get("accuracy", 1.0)
        high = share_interval(accuracy, images[deepest])[1] if images[deepest] else accuracy
        if not any(rows[d].get("accuracy", 0.0) > high for d in shallower):
            break
        depths = shallower
    return depths[-1]


def count_in(words: str) -> int:
    """The number of images in words such as "500 validation images"; 0 if there is none."""
    first = words.partition(" ")[0]
    return int(first) if first.isdecimal() else 0


def _limits(budget: Mapping[str, float | None]) -> Row:
    limits = {name: value for name, value in budget.items() if value is not None}
    if not limits:
        raise ValueError("name a budget: ms, macs or accuracy")
    for name, value in limits.items():
        if name != "accuracy" and not 0 < value < math.inf:
            raise ValueError(f"a budget of {name} must be a positive number, not {value}")
    check_share(budget.get("accuracy"))
    return limits


def check_share(accuracy: float | None) -> None:
    """Raise ValueError for an accuracy that is not between 0 and 1, such as one in percent."""
    if accuracy is not None and not 0 <= accuracy <= 1:
        raise ValueError(f"an accuracy is a share between 0 and 1 (0.95 is 95 %), not {accuracy}")


def _fits(row: Row, limits: Row) -> bool:
    enough = row.get("accuracy", 0.0) >= limits.get("accuracy", 0.0)
    return enough and all(row[n] <= limit for n, limit in limits.items() if n != "accuracy")


def _nothing_fits(rows: Mapping[str, Row], limits: Row, cost: str, noun: str) -> str:
    """The error message; it names the cheapest depth, or the most accurate, by the limits."""
    bounds = [
        f"{'at least' if n == 'accuracy' else 'at most'} {in_words(n, limit, noun)}"
        for n, limit in limits.items()
    ]
    ends = []
    if limits.keys() - {"accuracy"}:
        ends.append(("cheapest", min(rows, key=lambda d: rows[d][cost])))
    if "accuracy" in limits:
        ends.append(("most accurate", max(rows, key=lambda d: rows[d]["accuracy"])))
    parts = [
        f"the {end}, {depth}, has " + ", ".join(in_words(n, rows[depth][n], noun) for n in limits)
        for end, depth in ends
    ]
    return f"no depth has {' and '.join(bounds)}; {'; '.join(parts)}"
