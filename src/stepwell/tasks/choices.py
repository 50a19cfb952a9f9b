"""The task of choosing for each image: validation, cost penalty and results of a run."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from stepwell.data import Batches
from stepwell.device import device_name
from stepwell.evaluation import evaluate, gather_logits
from stepwell.evaluation.cost_penalty import Priced, best_within, front, outcomes
from stepwell.measure import choices as measuring
from stepwell.measure.depths import cost_table
from stepwell.measure.speed import timed_images
from stepwell.nets import Card
from stepwell.nets.decisions.budgets import Budget
from stepwell.nets.decisions.choosing import ChoosingNet
from stepwell.tasks.advice import advise
from stepwell.tasks.finishing import finished, spent
from stepwell.tasks.measuring import tell_measuring, write_predictions
from stepwell.tasks.task import Task
from stepwell.train_mode import in_eval_mode

Net = TypeVar("Net", bound=ChoosingNet)
#: Largest number of pictures of each choice in the report.
PICTURES = 12
#: Largest number of cost penalties in the file.
BUDGETS = 32


def validate_choices(
    net: ChoosingNet, batches: Batches | None
) -> Callable[[], dict[str, float]] | None:
    """A call that measures every choice on the validation part; none without such a part."""
    if batches is None:
        return None

    def validate() -> dict[str, float]:
        device = next(net.parameters()).device
        with in_eval_mode(net):
            return evaluate(lambda images: net.logits_by_choice(images.to(device)), batches)

    return validate


def validate_chosen(
    net: ChoosingNet, batches: Batches | None, target: float
) -> Callable[[], dict[str, float]] | None:
    """A call that measures the chooser on the validation part, at the best cost penalty."""
    if batches is None:
        return None

    def validate() -> dict[str, float]:
        results = _priced(net, batches)
        best = best_within(results, target, len(batches.images))
        costs = {"mean_cost": best.cost, "unpriced_cost": results[0].cost}
        return {f"{measuring.CHOSEN}/accuracy": best.accuracy} | costs

    return validate


def parts_for_chooser(train: Batches, fraction: float, init: object = None) -> tuple[Batches, Batches]:
    """The batches of the network, and those that only the chooser learns on: a share of the images.

    With a share of 0 it learns on those of the network. Weights of `init` may have learned all images:
    a warning says so.
    """
    if not fraction:
        return train, train.reseeded("gate")
    if isinstance(init, Path):
        warnings.warn(
            f"the network of {init} may have learned the images that only the chooser should learn on, "
            "and be too sure there: leave --init out, or set --gate-fraction 0 knowingly",
            stacklevel=3,
        )
    network, chooser = train.images.split(fraction)
    return train.of(network), train.of(chooser).reseeded("gate")


def set_price(net: ChoosingNet, task: Task, target: float, most: float) -> None:
    """Set the cost penalty that spends the target share of `most` MACs, and record other penalties."""
    part = task.validation
    if part is None:
        warnings.warn(
            "there is no validation part: the cost penalty is set on training images, so it is "
            "too optimistic: set --val-fraction above 0",
            stacklevel=3,
        )
        part = task.train.with_images(task.train.images)
    results = _priced(net, part)
    net.price.fill_(best_within(results, target, len(part.images)).price)
    best = front(results, BUDGETS)
    net.budgets = tuple(Budget(o.price, o.cost * most, o.accuracy, o.shares) for o in best)


def _priced(net: ChoosingNet, batches: Batches) -> list[Priced]:
    """Cost and accuracy of the choices on these images, without a penalty and at every penalty."""
    device = next(net.parameters()).device

    def predict(images: Tensor) -> dict[str, Tensor]:
        images = images.to(device)
        return {"scores": net.chooser(images)} | net.logits_by_choice(images)

    with in_eval_mode(net):
        logits, labels = gather_logits(predict, batches)
    scores = logits.pop("scores")
    right = torch.stack([values.argmax(1) == labels for values in logits.values()], 1)
    return outcomes(scores, right, net.costs.cpu())


def finish_choices(
    task: Task, net: Net, target: float | None, *, load: Callable[[Path], Net],
    save: Callable[[Net, Path], object], system: measuring.System,
    complete: Callable[[Net], object] = lambda net: None,
) -> dict[str, Any]:  # fmt: skip
    """Measure the trained `net` once, write the run's results, and return them; files as for `finish`.

    Args:
        target: mean cost that the chooser was trained for; none if it never chooses.
        load, save: read and write the network's file.
        complete: adds what else the file keeps, when the card is written.
    """
    run = task.run
    file = run.path / "net.safetensors"
    finished_net, results = finished(run, load)
    if results is not None:
        return results
    if finished_net is None:
        net.cpu().eval()
        net.mark_trained()
        images = task.train.images
        card = Card(images.classes, images.size, task.train.mean, task.train.std)
        net.nested.card = card
        net.nested.card = card.with_costs(cost_table(net.nested, card.size), device_name())
        complete(net)
        if run.writes:
            save(net, file)
    else:
        net = finished_net
    tell_measuring(task)
    costs = measuring.choice_table(net, net.card.size)
    results, observed = measuring.measure_choices(net, task.test, costs, system)
    own = results[system.key]
    own["speed"] = measuring.measure_speed(net, timed_images(task.test))
    if target is not None:
        own["target"] = target
    results |= spent(run)
    if run.writes:
        results["file_bytes"] = file.stat().st_size
        write_predictions(
            run.path / "predictions.npz", observed.logits, observed.labels, task.test,
            _pictures(task.test, observed),
        )  # fmt: skip
        run.write_json("results.json", results)
        chosen = observed.logits.get(measuring.CHOSEN, next(iter(observed.logits.values())))
        advise(run, net.nested, task.train.images, chosen, observed.labels)
    return results


def _pictures(test: Batches, observed: measuring.Observed) -> dict[str, np.ndarray]:
    """Each test image's choice, and for the report some images of every choice."""
    # spread over all images of a choice: images often stand in the order of their classes
    indices = [(observed.who == i).nonzero().flatten() for i in observed.who.unique().tolist()]
    spread = [torch.linspace(0, len(i) - 1, min(len(i), PICTURES)).round().long() for i in indices]
    chosen = torch.cat([i[few] for i, few in zip(indices, spread, strict=True)])
    return {
        "choice": observed.who.numpy(),
        "choice_index": chosen.numpy(),
        "choice_images": test.images.pixels[chosen].permute(0, 2, 3, 1).numpy(),
    }
