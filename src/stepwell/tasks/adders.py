"""The record of a run of PKKD: the twin, and the gradients of the adder network's layers."""

from copy import deepcopy
from typing import Any

from stepwell.cost import energy
from stepwell.measure.depths import accuracy_on, cost_table
from stepwell.methods.pkkd import ProgressiveKernelKD
from stepwell.nets.adders.layers import adder_layers
from stepwell.tasks.measuring import settle
from stepwell.tasks.task import Task


def record(objective: ProgressiveKernelKD, task: Task[Any]) -> dict[str, Any]:
    """The trained twin's accuracy and costs, and the gradients of the adder network's layers."""
    gradients = filter_gradients(objective, next(iter(task.train)))
    twin = deepcopy(objective.twin).eval().to(task.device)
    twin.mark("trained")
    settle(twin, task.train)
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
