"""Networks that choose widths: the times of groups, and where a wider group is the faster one."""

from functools import partial

import torch

from stepwell.cost import measure_latencies
from stepwell.measure import speed
from stepwell.measure.break_even import table_of_device
from stepwell.measure.speed import run_each
from stepwell.nets.decisions.widths import WidthNet
from stepwell.nets.files.widths import use_group_times
from stepwell.nets.inputs import blank_image
from stepwell.train_mode import in_eval_mode

#: Numbers of images in a group that is timed.
GROUPS = (1, 4, 16, 32, 48, 64)


@torch.inference_mode()
def measure_groups(
    net: WidthNet, size: int, *, seconds: float | None = None
) -> dict[str, dict[str, float]]:
    """Measure the milliseconds of groups of images of `size` pixels at each width.

    Returns:
        By width, then by number of images as text, for `Card.group_ms`.
    """
    seconds = (speed.SECONDS if seconds is None else seconds) / 10
    group_ms: dict[str, dict[str, float]] = {name: {} for name in net.names}
    with in_eval_mode(net):
        for images in GROUPS:
            x = blank_image(net, size, images).contiguous(memory_format=torch.channels_last)
            calls = {
                name: partial(run_each, partial(net.at, choice=i), [x])
                for i, name in enumerate(net.names)
            }
            times = measure_latencies(calls, seconds=seconds, warmup=2, least=5, rounds=2)
            for name, time in times.items():
                group_ms[name][str(images)] = time.ms
    return group_ms


def with_group_times(net: WidthNet) -> None:
    """Measure the times of groups where the card has none for this device, and use them."""
    table_of_device(net.nested, "group_ms", partial(measure_groups, net))
    use_group_times(net)
