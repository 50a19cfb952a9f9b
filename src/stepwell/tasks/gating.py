"""Validate and finish a training whose gates or masks let only a share of a network run."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from stepwell.data import Batches
from stepwell.measure.data_parts import images_for_rates
from stepwell.measure.open_rate import at_open_rate, settle_open_rate
from stepwell.measure.skipping import keep_budgets, measure_skipping, skipping_macs
from stepwell.nets.files.nested import save
from stepwell.nets.nested.net import NestedNet
from stepwell.tasks import classification, measuring
from stepwell.tasks.measuring import Measured
from stepwell.tasks.task import Task

#: Images that set the open rate before a validation.
FEW = 256


class Target(NamedTuple):
    """The mean share of the blocks that runs; with `by_macs`, each counts by its MACs."""

    share: float
    by_macs: bool = False

    def costs(self, net: NestedNet, size: int) -> tuple[int, ...] | None:
        """The MACs of each block for images of `size` pixels; None if all blocks count alike."""
        return skipping_macs(net, size).branches if self.by_macs else None


def validator(
    net: NestedNet, task: Task[Batches], target: Target | None
) -> Callable[[], dict[str, float]] | None:
    """As `measuring.validator`, but at the target: the trained network will run that share, too.

    Else the best epoch would often be one in which more blocks run than in the others.
    """
    validate = measuring.validator(net, task)
    if validate is None or target is None:
        return validate

    costs = target.costs(net, task.train.images.size)

    def at_target() -> dict[str, float]:
        images = images_for_rates(task.train, task.validation)
        with at_open_rate(net, images, target.share, costs, most=FEW):
            return validate()

    return at_target


def finish(task: Task[Batches], net: NestedNet, target: Target | None, *, kind: str) -> dict[str, Any]:
    """Set the open rate and the budgets, measure the network, write the run's results, return them."""

    def decide(net: NestedNet) -> None:
        if target is not None:
            images = images_for_rates(task.train, task.validation)
            costs = target.costs(net, task.train.images.size)
            settle_open_rate(net, images, target.share, costs)
        if task.validation is not None:  # accuracies of training images would mislead
            keep_budgets(net, task.validation)

    def measure(net: NestedNet, test: Batches) -> Measured:
        results, seen = measure_skipping(net.cpu(), test, kind)
        if target is not None:
            results[kind] |= {"target": target.share}
        return Measured(results, seen.logits, seen.labels, {net.full: results["costs"]["chosen"]})

    return classification.finish(
        task, net, kind=kind, write=partial(save, kind=kind), measure=measure, decide=decide
    )
