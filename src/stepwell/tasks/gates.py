"""What recipes of gates and of masks share: validation at the target, and the results of a run."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from stepwell.data import Batches
from stepwell.measure.data_parts import images_for_rates
from stepwell.measure.skipping import (
    at_open_rate,
    keep_budgets,
    measure_skipping,
    settle_open_rate,
    skipping_macs,
)
from stepwell.nets.files.nested import save
from stepwell.nets.nested.net import NestedNet
from stepwell.tasks import classification, measuring
from stepwell.tasks.measuring import Measured
from stepwell.tasks.task import Task

#: Images that set the open rate before a validation.
FEW = 256


class Target(NamedTuple):
    """The mean share that runs: of the gates, or with `by_macs` of the MACs of their blocks."""

    share: float
    by_macs: bool = False

    def costs(self, net: NestedNet, size: int) -> tuple[int, ...] | None:
        """Weights of the gates in the mean, for images of `size` pixels; None if they are equal."""
        return skipping_macs(net, size).branches if self.by_macs else None


def validator(
    net: NestedNet, task: Task[Batches], target: Target | None
) -> Callable[[], dict[str, float]] | None:
    """As `measuring.validator`; with a target, the open rate is there, as that of the trained network.

    Else the best epoch would often be one in which more blocks run than in the others.
    """
    validate = measuring.validator(net, task)
    if validate is None or target is None:
        return validate

    def at_target() -> dict[str, float]:
        images = images_for_rates(task.train, task.validation)
        costs = target.costs(net, task.train.images.size)
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
