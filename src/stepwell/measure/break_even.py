"""Tables of times that decisions use, by device: where the compacted form of a part is faster."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Literal

from stepwell.device import device_name
from stepwell.nets import NestedNet
from stepwell.nets.decisions.deciding import use_break_even


def with_break_even(
    net: NestedNet, measure: Callable[[NestedNet, int], Mapping[str, Mapping[str, float]]]
) -> None:
    """Measure break-even shares where the card has none for this device, and use them.

    Args:
        measure: gives them by part, then by batch size as text, for inputs of a size.
    """
    use_break_even(net.module, table_of_device(net, "break_even", lambda size: measure(net, size)))


def table_of_device(
    net: NestedNet, name: Literal["break_even", "group_ms"],
    measure: Callable[[int], Mapping[str, Mapping[str, float]]],
) -> Any:  # fmt: skip
    """The table `name` of the card for this device; measured and kept where the card has none.

    Args:
        measure: gives it for inputs of a size.
    """
    device, tables = device_name(next(net.parameters()).device), getattr(net.card, name)
    if device not in tables:
        tables = tables | {device: measure(net.card.size)}
        net.card = replace(net.card, **{name: tables})
    return tables[device]
