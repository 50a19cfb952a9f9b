"""Accuracy of an adder network whose layers compute with bytes."""

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import islice

from torch import Tensor, nn

from stepwell.evaluation import evaluate
from stepwell.measure.data_parts import Parts, in_random_order
from stepwell.nets import NestedNet
from stepwell.nets.adders.quantised import quantise
from stepwell.types import Logits

#: Training images that set the ranges of the layers' inputs.
IMAGES = 1024


def measure_bits(net: NestedNet, parts: Parts, bits: Sequence[int]) -> dict[str, dict[str, float]]:
    """Accuracy on test images of every depth, by the number of bits of its adder layers.

    Returns:
        By depth: "float", the network as it is, and "8" and so on.

    Raises:
        ValueError: as for `quantise`.
    """
    batches = in_random_order(parts.train)
    limit = -(-IMAGES // batches.batch_size)
    images = [inputs for inputs, _ in islice(batches, limit)]
    accuracies = {}
    for depth in net.depths:
        plain = net.subnet(depth).eval()
        by_bits = quantise(plain, images, bits)
        networks = {"float": plain} | {str(number): module for number, module in by_bits.items()}
        measured = evaluate(partial(_logits, networks), parts.test)
        accuracies[depth] = {name: measured[f"{name}/accuracy"] for name in networks}
    return accuracies


def _logits(networks: Mapping[str, nn.Module], images: Tensor) -> dict[str, Logits]:
    return {name: network(images) for name, network in networks.items()}
