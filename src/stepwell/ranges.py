"""Ranges of numbers: in a parameter's annotation, or by its name for commands and recipes."""

import math
from collections.abc import Callable, Mapping
from dataclasses import is_dataclass
from typing import Any, NamedTuple, get_type_hints


class Range(NamedTuple):
    """A range in words and as a test; every number must be finite as well."""

    words: str
    holds: Callable[[float], bool]


NUMBER = Range("a number", lambda v: True)
POSITIVE = Range("above 0", lambda v: v > 0)
NOT_NEGATIVE = Range("0 or more", lambda v: v >= 0)
ONE_OR_MORE = Range("1 or more", lambda v: v >= 1)
TWO_OR_MORE = Range("2 or more", lambda v: v >= 2)
SHARE = Range("between 0 and 1 (0.95 is 95 %)", lambda v: 0 <= v <= 1)
SHARE_ABOVE_0 = Range("above 0, at most 1", lambda v: 0 < v <= 1)
INNER_SHARE = Range("above 0 and below 1", lambda v: 0 < v < 1)
BELOW_ONE = Range("0 or more and below 1", lambda v: 0 <= v < 1)
SEED = Range("between 0 and 2^63 - 1", lambda v: 0 <= v < 2**63)

_NAMES = {
    ONE_OR_MORE: (
        "epochs nest_epochs steps keep shots views graft_steps join_steps sizes choose_epochs "
        "synthetic_count generator_steps devices accumulate num_classes batch dim context_size "
        "negatives k seeds workers"
    ),
    TWO_OR_MORE: "batch_size size",  # BatchNorm cannot train on one image
    POSITIVE: "lr temperature teacher_std adaption_lr chooser_rate margin budget_ms budget_macs",
    NOT_NEGATIVE: (
        "weight_decay max_drop ce kl attention hint full_weight cost_weight slack clip "
        "checkpoint_minutes warm_epochs max_seconds unlearn interpolate"
    ),
    BELOW_ONE: "label_smoothing val_fraction distill_from ema_teacher average",
    SEED: "seed",
    SHARE: "start_from_teacher target min_accuracy target_accuracy",
    NUMBER: "teacher_mean",
    SHARE_ABOVE_0: "explore",
    INNER_SHARE: "unlabeled_share synthetic_share",
}
#: By parameter name, which means the same in every command and recipe.
RANGES = {name: within for within, names in _NAMES.items() for name in names.split()}


def check_numbers(
    arguments: Mapping[str, Any], of: Callable[..., Any] | None = None, *, flags: bool = True
) -> None:
    """Refuse numbers out of range before any time is spent.

    The ranges stand in the annotations, `lr: Annotated[float, POSITIVE]`. Where a function or dataclass
    has none, they are those of `RANGES` by name. A tuple is checked number by number, a dataclass field
    by field. None, and a parameter without a range, pass.

    Args:
        arguments: values by parameter name.
        of: the function or dataclass that takes them; its annotations are read.
        flags: name a number by its flag, as recipes and commands do; otherwise by the parameter.
    """
    ranges = (annotated_ranges(of) if of else None) or RANGES
    for name, value in arguments.items():
        if is_dataclass(value) and not isinstance(value, type):
            check_numbers(vars(value), type(value), flags=flags)
        elif name in ranges and value is not None:
            for number in value if isinstance(value, tuple) else (value,):
                label = f"--{name.replace('_', '-')}" if flags else name
                check_number(label, number, ranges[name])


def annotated_ranges(of: Callable[..., Any]) -> dict[str, Range]:
    """The ranges in the annotations of a function's parameters, or of a dataclass's fields."""
    hints = get_type_hints(of, include_extras=True)
    found = {name: getattr(hint, "__metadata__", ()) for name, hint in hints.items()}
    return {n: extra for n, extras in found.items() for extra in extras if isinstance(extra, Range)}


def check_number(name: str, number: float, within: Range) -> None:
    """Raise ValueError for a number out of range or not finite; the message begins with `name`."""
    words, holds = within
    if not (math.isfinite(number) and holds(number)):
        finite = "" if math.isfinite(number) else " and finite"
        raise ValueError(f"{name} {number}: must be {words}{finite}")
