"""The task of classifying complex networks: images, and what counts and degrees say without them."""

import json
from typing import Any

from stepwell.data import Batches, Splits
from stepwell.files import write_whole
from stepwell.measure.networks import baselines, class_means, explain, first_filters
from stepwell.nets import NestedNet
from stepwell.tasks import measuring
from stepwell.tasks.measuring import Measured
from stepwell.tasks.task import Task
from stepwell.training.progress import tell

#: The file of a run with examples for its page.
EXPLAINED = "explained.json"
#: The key of results that only networks have.
KEY = "cnc"


def check_networks(splits: Splits, data: str, command: str = "train cnc") -> None:
    """Refuse data that are no complex networks; ValueError says which recipe takes them."""
    if not splits.train.drawing:
        raise ValueError(
            f"--data {data} holds images, and {command} takes complex networks: give class folders of "
            "edge lists or GraphML; train supervised takes images"
        )


def finish(task: Task[Batches], net: NestedNet, *more: Any, **options: Any) -> dict[str, Any]:
    """Finish as for images, and add to the results what needs no picture, and which nodes decide.

    The examples for the page stand in explained.json. Args as for `measuring.finish`.
    """

    def measure(net: NestedNet, test: Batches) -> Measured:
        seen = measuring.measured(net, test)
        train, networks = task.train.images, test.images
        explained = explain(net.eval(), networks, networks.classes)
        own = {KEY: {"baselines": baselines(train, networks), "deletion": explained.pop("deletion")}}
        if task.run.writes:
            page = explained | {
                "means": class_means(train), "filters": first_filters(net),
                "channels": list(net.card.drawing["channels"]),
            }  # fmt: skip
            write_whole(task.run.path / EXPLAINED, json.dumps(page).encode())
        return seen._replace(results=seen.results | own)

    results = measuring.finish(task, net, *more, measure=measure, **options)
    if KEY not in results:  # of a finished run, by an earlier version
        return results
    reached = results["test"][f"{net.full}/accuracy"]
    accuracies = {name: one["accuracy"] for name, one in results[KEY]["baselines"].items()}
    lines = ", ".join(f"{name} {100 * accuracy:.1f} %" for name, accuracy in accuracies.items())
    best = max(accuracies, key=accuracies.__getitem__)
    tell(f"without a picture, by logistic regression: {lines}", quiet=not task.run.writes)
    if accuracies[best] >= reached:
        tell(
            f"note: {best}, without a picture: {100 * accuracies[best]:.1f} % accuracy, no less "
            f"than the pictures ({100 * reached:.1f} %): a regression on them is enough here",
            quiet=not task.run.writes,
        )
    return results
