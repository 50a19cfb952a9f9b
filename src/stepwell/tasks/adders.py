"""Runs of adder networks: norm statistics before they are measured, and what is recorded beside."""

import warnings
from collections.abc import Callable
from copy import deepcopy
from itertools import islice
from typing import Any

from stepwell.cost import energy
from stepwell.data import Batches
from stepwell.measure.depths import accuracy_on, cost_table
from stepwell.methods.pkkd import ProgressiveKernelKD
from stepwell.nets.adders.layers import adder_layers
from stepwell.nets.nested.calibrate import estimate_all
from stepwell.nets.nested.net import NestedNet
from stepwell.tasks import classification
from stepwell.tasks.classification import Task

#: Images that give norms their statistics before a validation.
IMAGES = 2048


def settle(net: NestedNet, task: Task[Any], images: int | None = None) -> None:
    """Replace the norms' statistics by those of training images without augmentation.

    The filters of adder layers change fast, and the moving averages of training lag behind: after a
    short training, the same weights are far less accurate with them.

    Args:
        images: most images to take, in whole batches; by default all.
    """
    train = task.train
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the training has told of a last batch of one image
        batches = Batches(  # in random order, because folders are in the order of their classes
            train.images, train.batch_size, mean=train.mean, std=train.std, shuffle=True,
            seed=train.seed,
        )  # fmt: skip
    most = None if images is None else -(-images // train.batch_size)
    estimate_all(net, islice(batches, most))


def validator(net: NestedNet, task: Task[Any]) -> Callable[[], dict[str, float]] | None:
    """As `classification.validator`, with present norm statistics."""
    validate = classification.validator(net, task)
    if validate is None:
        return None

    def settled() -> dict[str, float]:
        settle(net, task, IMAGES)
        return validate()

    return settled


def record(objective: ProgressiveKernelKD, task: Task[Any]) -> dict[str, Any]:
    """The trained twin's accuracy and costs, and the gradients of the adder network's layers."""
    gradients = filter_gradients(objective, next(iter(task.train)))
    twin = deepcopy(objective.twin).eval().to(task.device)
    twin.mark("trained")
    settle(twin, task)
    accuracy, _ = accuracy_on(twin, task.test, "test")
    size = task.train.images.size
    costs = cost_table(twin.cpu(), size)[twin.full]
    macs = costs["macs"]
    operations = {"additions": macs, "multiplications": macs, "model_uj": energy(macs, macs)}
    return {"gradients": gradients, "twin": {"accuracy": accuracy[twin.full], **costs, **operations}}


def filter_gradients(objective: ProgressiveKernelKD, batch: Any) -> dict[str, float]:
    """Root mean square of each adder layer's filter gradient on one batch; nothing changes.

    It is the gradient before the local learning rate, which makes all of them equal.
    """
    copied = deepcopy(objective).train()
    device = next(copied.parameters()).device
    copied.zero_grad()
    images, labels = batch
    copied.training_step(type(batch)(images.to(device), labels.to(device))).loss.backward()
    found = {}
    for name, layer in adder_layers(copied.net.module).items():
        assert layer.weight.grad is not None
        found[name] = float(layer.weight.grad.square().mean().sqrt())
    return found
