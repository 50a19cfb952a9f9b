"""Cost and accuracy of every depth of a trained network."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from stepwell.cost import costs_of
from stepwell.data import Batches
from stepwell.evaluation import evaluate
from stepwell.nets.nested.net import NestedNet


def cost_table(net: NestedNet, size: int, *, batch: int = 1) -> dict[str, dict[str, Any]]:
    """Costs of every depth, measured on the depth as a plain network of its own."""
    x = torch.zeros(batch, 3, size, size, device=next(net.parameters()).device)
    costs = costs_of({depth: net.subnet(depth) for depth in net.depths}, x)
    return {d: {"blocks": list(blocks)} | costs[d] for d, blocks in net.depths.items()}


def accuracy_on(net: NestedNet, batches: Batches, part: str) -> tuple[dict[str, float], str]:
    """The accuracy of every depth that is ready, on one part of the data, as a card takes it."""
    ready = [depth for depth, status in net.status.items() if status != "fresh"]
    measured = evaluate(logits_where_it_is(net, ready), batches)
    accuracy = {depth: measured[f"{depth}/accuracy"] for depth in ready}
    return accuracy, f"{len(batches.images)} {part} images"


def logits_where_it_is(
    net: NestedNet, depths: Sequence[str] | None = None
) -> Callable[[torch.Tensor], dict[str, torch.Tensor]]:
    """Images to logits by depth, on the network's device."""
    device = next(net.parameters()).device
    return lambda images: net.logits_by_depth(images.to(device), depths)
