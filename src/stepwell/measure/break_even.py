"""Tables of where the compacted form of a part that decides is faster, by device."""

from collections.abc import Callable, Mapping
from dataclasses import replace

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
    device = device_name(next(net.parameters()).device)
    if device not in net.card.break_even:
        table = measure(net, net.card.size)
        net.card = replace(net.card, break_even=net.card.break_even | {device: table})
    use_break_even(net.module, net.card.break_even[device])
