"""The card in a network's file: how to use the network, and what it costs."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, get_args

#: Kinds of input: pictures, token ids, or plain numbers.
Input = Literal["image", "text", "vector"]
#: The largest height and width of an input.
LARGEST = 1 << 14
#: Measurements of a depth that hold on every device, and times on one device.
ANYWHERE = (
    "blocks", "params", "macs", "additions", "multiplications", "model_uj", "weight_bytes",
    "peak_bytes",
)  # fmt: skip
NUMBERS = ("accuracy", *ANYWHERE[1:], "ms", "ms_low", "ms_high")
CLOCK = ("ms", "ms_low", "ms_high", "unsure")


@dataclass(frozen=True)
class Card:
    """Facts that a person needs to use the network on files of their own.

    classes: class names in the order of the logits; a single one names the number that is predicted.
    size: height and width of the input in pixels, or its length in tokens.
    mean, std: per channel, of pixels scaled to [0, 1].
    costs: by depth, the costs that hold on every device: "blocks", "params", "macs" an image,
        "weight_bytes" and "peak_bytes" (activations of an image, at most); and "accuracy", a share,
        with "accuracy_on", the images that it was measured on.
    latency: by device (`stepwell.device.device_name`), then by depth: "ms" for one image (a median),
        "ms_low" and "ms_high" (10 % and 90 % quantiles), and "unsure" if the machine was busy.
    cascade: depths and thresholds that were calibrated on this network (see `nets.nested.cascade`).
    input: kind of input that the network takes.
    break_even: by device, then by gated block, then by batch size: the largest share of a batch at
        which the block is faster on its images alone (see `nets.decisions.executor`).
    gate_budgets: of gates that skip blocks: cost penalty, mean MACs and accuracy, cheapest first.
    drawing: how the images are drawn, if they are no photographs (see `data.formats`).
    group_ms: by device, then by width, then by number of images: milliseconds of a group that runs at
        the width (see `nets.decisions.executor`).
    temperatures: by depth, what its logits are divided by to give probabilities, fitted on validation
        examples (Guo et al. 2017); 1 for depths not named.
    """

    classes: tuple[str, ...] = ()
    size: int = 0
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    licence: str = ""
    costs: dict[str, Any] = field(default_factory=dict)
    latency: dict[str, Any] = field(default_factory=dict)
    cascade: dict[str, Any] = field(default_factory=dict)
    input: Input = "image"
    break_even: dict[str, Any] = field(default_factory=dict)
    group_ms: dict[str, Any] = field(default_factory=dict)
    gate_budgets: Sequence[Sequence[float]] = ()
    drawing: Mapping[str, Any] = field(default_factory=dict)
    temperatures: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        wrong = {
            "classes": not all(map(_is_name, self.classes)),
            "size": type(self.size) is not int or not 0 <= self.size <= LARGEST,
            "mean": not all(map(_is_number, self.mean)),
            "std": len(self.std) != len(self.mean)
            or not all(_is_number(s) and s > 0 for s in self.std),
            "licence": not isinstance(self.licence, str),
            "costs": not _is_table(self.costs),
            "latency": not all(map(_is_table, dict(self.latency).values())),
            "cascade": not isinstance(self.cascade, Mapping),
            "input": self.input not in get_args(Input),
            "break_even": not _by_size(self.break_even, 1.0),
            "group_ms": not _by_size(self.group_ms, math.inf),
            "gate_budgets": not all(
                len(row) == 3 and all(map(_is_number, row)) for row in self.gate_budgets
            ),
            "drawing": not isinstance(self.drawing, Mapping),
            "temperatures": not isinstance(self.temperatures, Mapping)
            or not all(_is_number(t) and 1e-3 <= t <= 1e3 for t in self.temperatures.values()),
        }
        for name in (name for name, is_wrong in wrong.items() if is_wrong):
            raise ValueError(f"a network's card cannot have {name} {getattr(self, name)!r:.60}")

    @property
    def numeric(self) -> bool:
        """True if the network predicts a number."""
        return len(self.classes) == 1

    def as_header(self) -> dict[str, Any]:
        """The card for a file's header; without what says the same as in files that lack it."""
        usual = Card()
        left_out = ("input", "break_even", "group_ms", "gate_budgets", "drawing", "temperatures")
        return {k: v for k, v in asdict(self).items() if k not in left_out or v != getattr(usual, k)}

    def with_costs(self, costs: Mapping[str, Mapping[str, Any]], device: str) -> "Card":
        """This card with the measured costs of every depth (see `cost_of`) on `device`."""
        fixed = {d: self.costs.get(d, {}) | _only(ANYWHERE, cost) for d, cost in costs.items()}
        times = {d: _only(CLOCK, cost) for d, cost in costs.items()}
        return replace(self, costs=self.costs | fixed, latency=self.latency | {device: times})

    def with_accuracy(self, accuracy: Mapping[str, float], images: str) -> "Card":
        """This card with the accuracy of depths, measured on `images` ("500 validation images")."""
        known = {d: {"accuracy": value, "accuracy_on": images} for d, value in accuracy.items()}
        known = {depth: self.costs.get(depth, {}) | row for depth, row in known.items()}
        return replace(self, costs=self.costs | known)


def _is_name(value: object) -> bool:
    """Check for text that can be written: a lone surrogate cannot."""
    return isinstance(value, str) and not any(0xD800 <= ord(c) <= 0xDFFF for c in value)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _is_table(rows: object) -> bool:
    """Check for a measured row by name, whose numbers are finite."""
    if not isinstance(rows, Mapping) or not all(isinstance(row, Mapping) for row in rows.values()):
        return False
    cells = [(name, cell) for row in rows.values() for name, cell in row.items()]
    return all(
        _is_number(cell) and (name not in NUMBERS or cell >= 0)
        for name, cell in cells
        if name in NUMBERS or not isinstance(cell, str | list | tuple)
    )


def _by_size(table: Mapping[str, Any], most: float) -> bool:
    """Check for a number in [0, `most`] by batch size, by part of a network, by device."""
    parts = [part for rows in dict(table).values() for part in dict(rows).values()]
    return all(isinstance(part, Mapping) for part in parts) and all(
        str(size).isdecimal() and int(size) > 0 and _is_number(value) and 0 <= value <= most
        for part in parts
        for size, value in part.items()
    )


def _only(names: tuple[str, ...], values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: values[name] for name in names if name in values}
