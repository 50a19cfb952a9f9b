"""Ranges of numbers by the name of the parameter."""

import math
from collections.abc import Callable, Mapping
from dataclasses import is_dataclass
from numbers import Real
from typing import Any, NamedTuple, get_args


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
#: Height and width of an image.
PIXELS = Range("between 2 and 16,384", lambda v: 2 <= v <= 16384)
#: Least score of a predicted box that a person is shown.
SURE = 0.3
#: Bits of an adder layer.
BITS = Range("between 2 and 8", lambda v: 2 <= v <= 8)
#: Frames of a clip, which stand in rows.
SQUARE = Range("a square, 4, 9, 16, ... up to 64", lambda v: 4 <= v <= 64 and math.sqrt(v) % 1 == 0)
PORT = Range("between 0 and 65,535", lambda v: 0 <= v <= 65535)
SEED = Range("between 0 and 2^63 - 1", lambda v: 0 <= v < 2**63)

#: The largest number that a flag takes: whole, or with a fraction.
LARGEST, LARGEST_FLOAT = 10**9, 1e37
_NAMES = {
    ONE_OR_MORE: (
        "epochs nest_epochs steps keep shots views graft_steps join_steps sizes choose_epochs "
        "synthetic_count generator_steps devices accumulate num_classes batch dim context_size "
        "gate_epochs negatives k top_k seeds workers top patience max_tokens student_layers "
        "teacher_epochs width convs threads max_batch max_queue max_bytes max_pixels replicas "
        "walks window dimensions max_edges policy_epochs tune_epochs"
    ),
    # BatchNorm cannot train on one image
    Range("between 2 and 16", lambda v: 2 <= v <= 16): "glances",
    TWO_OR_MORE: "batch_size walk_length",
    Range("between 2 and 1,024", lambda v: 2 <= v <= 1024): "experts kernels",
    PIXELS: "size teacher_size glance_size",
    POSITIVE: (
        "lr temperature teacher_std adaption_lr chooser_rate margin budget_ms budget_macs threshold "
        "slo_ms spread"
    ),
    NOT_NEGATIVE: (
        "weight_decay max_drop ce kl attention cls layers hint full_weight cost_weight slack clip "
        "checkpoint_minutes warm_epochs max_seconds unlearn interpolate "
        "own_weight rate_weight reward policy_weight balance_weight sparsity_weight teach beta "
        "local_rate gradient_factor"
    ),
    BELOW_ONE: "hysteresis label_smoothing val_fraction distill_from ema_teacher average gate_fraction",
    SEED: "seed walk_seed",
    PORT: "port",
    BITS: "bits",
    SQUARE: "frames",
    SHARE: (
        "alpha start_from_teacher target_cost min_accuracy target_accuracy min_score ignore_from "
        "discount"
    ),
    NUMBER: "teacher_mean",
    Range("between 0.01 and 1", lambda v: 0.01 <= v <= 1): "target",
    SHARE_ABOVE_0: "explore anneal widths zoom label_fraction label_rate",
    INNER_SHARE: "unlabeled_share synthetic_share label_share",
}
#: By parameter name, which means the same in every command, recipe and objective.
RANGES = {name: within for within, names in _NAMES.items() for name in names.split()}


def check_numbers(arguments: Mapping[str, Any], *, flags: bool = True) -> None:
    """Refuse numbers outside their ranges in `RANGES`, before any time is spent.

    A tuple is checked number by number, a dataclass field by field. None, and a parameter without a
    range, pass.

    Args:
        arguments: values by parameter name.
        flags: name a number by its flag, as recipes and commands do; otherwise by the parameter.
    """
    for name, value in arguments.items():
        if is_dataclass(value) and not isinstance(value, type):
            check_numbers(vars(value), flags=flags)
        elif name in RANGES and value is not None:
            for number in value if isinstance(value, tuple) else (value,):
                label = f"--{name.replace('_', '-')}" if flags else name
                check_number(label, number, RANGES[name])


def check_choice(what: str, value: object, choices: object) -> None:
    """Raise ValueError for a value that is none of the words of a Literal."""
    if value not in (words := get_args(choices)):
        raise ValueError(f"no {what} {value!r}; there are {', '.join(words)}")


def check_number(name: str, number: float, within: Range) -> None:
    """Raise ValueError for a number out of range or not finite; the message begins with `name`."""
    words, holds = within
    if not isinstance(number, Real):
        raise ValueError(f"{name} {number!r}: must be a number, {words}")
    most = LARGEST if isinstance(number, int) else LARGEST_FLOAT
    if math.isfinite(number) and abs(number) > most and within is not SEED:
        raise ValueError(f"{name} {number:g}: must be at most {most:,g}")
    if not (math.isfinite(number) and holds(number)):
        finite = "" if math.isfinite(number) else " and finite"
        raise ValueError(f"{name} {number}: must be {words}{finite}")
