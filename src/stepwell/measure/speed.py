"""Images per second of a network that decides, beside one that does not."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from stepwell.cost import measure_latencies
from stepwell.cost.latency import marked, synchronised
from stepwell.data import Batches, normalise
from stepwell.types import Images

#: Batch sizes at which speed is measured.
BATCHES = (64, 1)
#: Batches of each size, at most; seconds to time, about.
PARTS, SECONDS = 64, 1.0
#: Images of a test part on which speed is measured, at most.
TIMED = 512


def timed_rows(count: int, most: int = TIMED) -> Tensor:
    """Draw the places of the images, of `count`, on which speed is measured.

    Folders are in the order of classes, and some classes are harder than others.
    """
    return torch.randperm(count, generator=torch.Generator().manual_seed(0))[:most]


def timed_images(test: Batches) -> Images:
    """The images at `timed_rows` of a part, normalised."""
    return normalise(test.images.pixels[timed_rows(len(test.images))], test.mean, test.std)


@torch.inference_mode()
def compare_speed(
    chosen: Callable[[Tensor], Tensor], fixed: Callable[[Tensor], Tensor], images: Images,
    by_macs: Callable[[Sequence[Images]], float], *, seconds: float | None = None,
) -> list[dict[str, float]]:  # fmt: skip
    """Measure images per second with and without the decisions, in batches of equal size.

    The two take turns, for about `seconds` each. Images after the last whole batch are not timed.

    Args:
        by_macs: gives the ratio of the MACs of both on these batches.

    Returns:
        For batches of 64 (fewer if there are fewer images) and of one: "batch"; images per second as
        "chosen" and "fixed"; "speed_up", their ratio; "by_macs"; "unsure" if the machine was too busy
        for certain times.
    """
    rows = []
    for batch in dict.fromkeys(min(b, len(images)) for b in BATCHES):
        timed = images[: min(len(images) // batch, PARTS) * batch]
        parts = [x.contiguous(memory_format=torch.channels_last) for x in timed.split(batch)]
        rows.append(compare_batches(chosen, fixed, parts, by_macs, seconds=seconds))
    return rows


@torch.inference_mode()
def compare_batches(
    chosen: Callable[[Tensor], Tensor], fixed: Callable[[Tensor], Tensor], parts: Sequence[Tensor],
    by_macs: Callable[[Sequence[Tensor]], float], *, seconds: float | None = None,
) -> dict[str, float]:  # fmt: skip
    """Measure inputs per second with and without the decisions, on some batches; as `compare_speed`."""
    runs = {"chosen": chosen, "fixed": fixed}
    calls = {name: partial(run_each, run, parts) for name, run in runs.items()}
    times = measure_latencies(calls, seconds=seconds or SECONDS, warmup=1, least=2, rounds=2)
    count = sum(map(len, parts))
    speed = {name: 1000 * count / time.ms for name, time in times.items()}
    speed["speed_up"] = speed["chosen"] / speed["fixed"]
    unsure = any(time.unsure for time in times.values())
    return {"batch": len(parts[0]), **speed, "by_macs": by_macs(parts)} | marked(unsure)


def run_each(run: Callable[[Tensor], Tensor], parts: Sequence[Tensor]) -> None:
    """Run a call on each batch."""
    for x in parts:
        synchronised(run(x))
