"""Networks that glance: accuracy after every glance, and where they look."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from stepwell.data import Batches
from stepwell.evaluation import evaluate, gather_logits
from stepwell.measure.depths import cost_table, results_of, tally_of
from stepwell.nets.decisions.glances import Where, places_at, side_of
from stepwell.nets.nested.net import NestedNet
from stepwell.types import Labels, Logits

#: Key in the results.
KEY = "glance"
#: Of every glance that is placed, at every image.
Places = Float[Tensor, "n glances axes"]
#: Logits of images by number of glances.
Predict = Callable[[Tensor], dict[str, Logits]]
#: Rows and columns of the counts of places.
CELLS = 8


def glances_at(net: NestedNet, where: Where, seed: int = 0) -> Predict:
    """A function from images to logits by number of glances, at places by `where`.

    Random places are equal for equal images in equal order.
    """
    draw = torch.Generator().manual_seed(seed)
    return _looking(net, lambda images: places_at(net.module, where, images, draw))


def _looking(net: NestedNet, given_of: Callable[[Tensor], dict[str, Tensor]]) -> Predict:
    """A function from images to logits by number of glances, with the constants of each batch."""
    device = next(net.parameters()).device

    def logits(images: Tensor) -> dict[str, Logits]:
        images = images.to(device)
        return net.logits_by_depth(images, given=given_of(images))

    return logits


def measure_glances(
    net: NestedNet, test: Batches, where: Where = "policy"
) -> tuple[dict[str, Any], dict[str, Logits], Labels, Places | None]:
    """Measure every number of glances on test images; the network is on the CPU afterwards.

    Args:
        where: who places the glances of the results.

    Returns:
        Results as a run's results.json has them, the logits by number of glances, the labels, and the
        policy's places. The results have under "glance": "side", pixels of a glance, and "oracle", the
        accuracy if every image stopped at its first right glance. If the policy places the glances:
        by control ("others": the places of another image, drawn at random; "random", "fixed") the
        accuracies by number of glances; "looks", for each glance how many images have its corner in
        each cell of a grid, rows from the top, or its frame in each part of the clip; and "apart", the
        standard deviation of the places over the images.
    """
    net.eval()
    glance: dict[str, Any] = {"where": where, "side": side_of(net.module)}
    places: Places | None = None
    if where == "policy":
        logits, labels, places = looked_at(net, test)
        glance["others"] = _accuracies(at_places_of_others(net, places), test)
        controls: tuple[Where, ...] = ("random", "fixed")
        glance |= {name: _accuracies(glances_at(net, name), test) for name in controls}
        glance["looks"] = [counts(places[:, i]) for i in range(places.shape[1])]
        glance["apart"] = places.std(0).mean().item() if len(places) > 1 else 0.0
    else:
        logits, labels = gather_logits(glances_at(net, where), test)
    right = torch.stack([values.argmax(1) == labels for values in logits.values()])
    glance["oracle"] = right.any(0).double().mean().item()
    costs = cost_table(net.cpu(), net.card.size)
    results = results_of(tally_of("classifier").add(logits, labels), net.card.classes, costs)
    return results | {KEY: glance}, logits, labels, places


def looked_at(net: NestedNet, test: Batches) -> tuple[dict[str, Logits], Labels, Places]:
    """The logits by number of glances, the labels, and where the policy looked."""
    places: list[Tensor] = []

    def logits(images: Tensor) -> dict[str, Logits]:
        exits = net.forward_all(images.to(next(net.parameters()).device), extras=("place",))
        places.append(torch.stack(exits[net.full].extras["place"], 1).float().cpu())
        return {count: exit.logits for count, exit in exits.items()}

    return *gather_logits(logits, test), torch.cat(places)


def at_places_of_others(net: NestedNet, places: Places, seed: int = 0) -> Predict:
    """A function as of `glances_at`, for images in the order of `places`: each has another one's.

    The images stand in a random circle, and each has the places of the one before it.
    """
    order = torch.randperm(len(places), generator=torch.Generator().manual_seed(seed))
    others = torch.empty_like(places)
    others[order] = places[order.roll(1)]
    done = 0

    def next_places(images: Tensor) -> dict[str, Tensor]:
        nonlocal done
        done += len(images)
        return {"places": others[done - len(images) : done].to(images)}

    return _looking(net, next_places)


def _accuracies(predict: Predict, test: Batches) -> dict[str, float]:
    measured = evaluate(predict, test)
    return {
        name.removesuffix("/accuracy"): value
        for name, value in measured.items()
        if name.endswith("/accuracy")
    }


def counts(places: Float[Tensor, "n axes"]) -> list[list[int]]:
    """Count the places in each cell of a grid of `CELLS` rows and columns, or of one row for frames."""
    axes = places.shape[1]
    cells = (places.clamp(0, 1) * CELLS).long().clamp(max=CELLS - 1)
    index = (cells * CELLS ** torch.arange(axes - 1, -1, -1)).sum(1)
    rows: list[list[int]] = torch.bincount(index, minlength=CELLS**axes).view(-1, CELLS).tolist()
    return rows
