"""Networks that glance: accuracy after every glance, and where they look."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from stepwell.data import Batches
from stepwell.evaluation import evaluate, gather_logits
from stepwell.measure.depths import cost_table, results_of, tally_of
from stepwell.nets.decisions.glances import Where, glance_count, places_at
from stepwell.nets.nested.net import NestedNet
from stepwell.types import Labels, Logits

#: Key in the results.
KEY = "glance"
#: Rows and columns of the counts of places.
CELLS = 8

Predict = Callable[[Tensor], dict[str, Logits]]


def glances_at(net: NestedNet, where: Where, seed: int = 0) -> Predict:
    """A function from images to logits by number of glances, at places by `where`.

    Random places are equal for equal images in equal order.
    """
    draw = torch.Generator().manual_seed(seed)

    def logits(images: Tensor) -> dict[str, Logits]:
        images = images.to(next(net.parameters()).device)
        return net.logits_by_depth(images, given=places_at(net.module, where, images, draw))

    return logits


def glances_of_others(net: NestedNet, seed: int = 0) -> Predict:
    """As `glances_at`, at the policy's places of another image of the batch, drawn at random."""
    draw = torch.Generator().manual_seed(seed)

    def logits(images: Tensor) -> dict[str, Logits]:
        images = images.to(next(net.parameters()).device)
        other = torch.randperm(len(images), generator=draw).roll(1)
        places = places_of(net, images)[other.to(images.device)]
        return net.logits_by_depth(images, given={"places": places})

    return logits


@torch.inference_mode()
def places_of(net: NestedNet, images: Tensor) -> Float[Tensor, "batch glances 2"]:
    """The places that the policy chooses for a batch."""
    exit = net.forward_all(images, [net.full], extras=("place",))[net.full]
    return torch.stack(exit.extras["place"], 1)


def measure_glances(
    net: NestedNet, test: Batches, where: Where = "policy"
) -> tuple[dict[str, Any], dict[str, Logits], Labels, Float[Tensor, "n glances 2"]]:
    """Measure every number of glances on test images; the network is on the CPU afterwards.

    Args:
        where: who places the glances of the results.

    Returns:
        Results as a run's results.json has them, the logits by number of glances, the labels, and the
        policy's places. The results have under "glance": "side", pixels of a glance; by control
        ("others": the places of another image; "random", "centre") the accuracies by number of glances;
        "looks", for each glance how many images have its corner in each cell of a grid, rows from the
        top; and "apart", the standard deviation of the places over the images.
    """
    net.eval()
    logits, labels = gather_logits(glances_at(net, where), test)
    others = {"others": glances_of_others(net)}
    others |= {name: glances_at(net, name) for name in ("random", "centre")}
    controls = {name: _accuracies(predict, test) for name, predict in others.items()}
    places = torch.cat([*_places(net, test)])
    looks = [_counts(places[:, i]) for i in range(glance_count(net.module))]
    costs = cost_table(net.cpu(), net.card.size)
    results = results_of(tally_of("classifier").add(logits, labels), net.card.classes, costs)
    side = next(m.side for m in net.module.modules() if hasattr(m, "side"))
    apart = places.std(0).mean().item() if len(places) > 1 else 0.0
    results[KEY] = {"side": side, "where": where, **controls, "looks": looks, "apart": apart}
    return results, logits, labels, places


def _accuracies(predict: Predict, test: Batches) -> dict[str, float]:
    measured = evaluate(predict, test)
    return {n.removesuffix("/accuracy"): v for n, v in measured.items() if n.endswith("/accuracy")}


def _places(net: NestedNet, test: Batches) -> Iterator[Tensor]:
    device = next(net.parameters()).device
    for images, _ in test:
        yield places_of(net, images.to(device)).float().cpu()


def _counts(places: Float[Tensor, "n 2"]) -> list[list[int]]:
    cells = (places.clamp(0, 1) * CELLS).long().clamp(max=CELLS - 1)
    counts = torch.zeros(CELLS, CELLS, dtype=torch.long)
    counts.index_put_((cells[:, 0], cells[:, 1]), torch.ones(len(cells), dtype=torch.long), True)
    found: list[list[int]] = counts.tolist()
    return found
