"""Measure a run of PKKD: the adder network, its twin, and the gradients of the adder layers."""

from copy import deepcopy
from typing import Any

from stepwell.cost import costs_of, energy
from stepwell.measure.depths import accuracy_on
from stepwell.methods.pkkd import ProgressiveKernelKD
from stepwell.nets import NestedNet
from stepwell.nets.adders.layers import adder_layers
from stepwell.nets.inputs import blank_inputs
from stepwell.tasks.measuring import Measured, measured, settle
from stepwell.tasks.task import Task


def measure_twins(
    net: NestedNet, test: Any, objective: ProgressiveKernelKD, task: Task[Any]
) -> Measured:
    """Measure the trained adder network, and beside it the twin; both are timed in turns.

    Under "pkkd" the results have the "gradients" of the adder layers, and the "twin": its accuracy on
    the test part, and costs as of `cost_of` with additions, multiplications and energy. "ms" is the
    adder network's time beside the twin's.
    """
    objective.to(task.device)  # of a finished training, all parts but `net` are on the CPU
    gradients = filter_gradients(objective, next(iter(task.train)))
    twin = deepcopy(objective.twin).eval()
    twin.mark("trained")
    settle(twin, task.train)
    accuracy, _ = accuracy_on(twin, test, "test")
    seen = measured(net, test)
    both = {"net": net.subnet(net.full), "twin": twin.cpu().subnet(twin.full)}
    costs = costs_of(both, blank_inputs(net, net.card, net.card.size, 1))
    macs = costs["twin"]["macs"]
    operations = {"additions": macs, "multiplications": macs, "model_uj": energy(macs, macs)}
    own = {"accuracy": accuracy[twin.full], **costs["twin"], **operations}
    rows = {**seen.costs, net.full: {**seen.costs[net.full], **costs["net"]}}
    results = seen.results | {
        "costs": rows,
        "pkkd": {"gradients": gradients, "twin": own, "ms": costs["net"]["ms"]},
    }
    return seen._replace(results=results, costs=rows)


def filter_gradients(objective: ProgressiveKernelKD, batch: Any) -> dict[str, float]:
    """Root mean square of each adder layer's filter gradient on one batch; nothing changes.

    It is the gradient before the local learning rate, which makes all of them equal.
    """
    copied = deepcopy(objective).train()
    device = next(copied.parameters()).device
    copied.zero_grad()
    images, labels = batch
    copied.training_step(type(batch)(images.to(device), labels.to(device))).loss.backward()
    sizes = {}
    for name, layer in adder_layers(copied.net.module).items():
        assert layer.weight.grad is not None
        sizes[name] = float(layer.weight.grad.square().mean().sqrt())
    return sizes
