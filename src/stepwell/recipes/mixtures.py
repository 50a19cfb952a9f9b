"""The body of the recipes that train one network with parts mixed by example."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch

from stepwell.data.image_flags import TrainingImages
from stepwell.methods.objective import Objective
from stepwell.nets.nested.net import NestedNet
from stepwell.tasks import classification
from stepwell.training import Loop, fit
from stepwell.training.optimisation import Smoothed


def train_mixture(
    recipe: str, arguments: Mapping[str, Any], *, data: str, out: Path, net: str,
    stem: Literal["auto", "imagenet", "small"],
    init: Literal["pretrained"] | Path | None, images: TrainingImages, training: Smoothed, loop: Loop,
    parts: Mapping[str, Any], objective_of: Callable[[NestedNet], Objective],
) -> dict[str, Any]:  # fmt: skip
    """Train `net`, built with the options `parts`, by an objective, and measure it.

    `arguments` are those of the recipe for config.json.
    """
    torch.manual_seed(training.seed)
    splits = classification.read_splits(data, out, images, net)
    nested, start = classification.start_network(splits, net, stem=stem, init=init, **parts)
    inputs = classification.prepare(splits, images, training, start=start, init=init)
    objective = objective_of(nested)
    with classification.open_task(recipe, out, loop, arguments, inputs, nested) as task:
        fit(
            objective, task.train, training.optim(), task.run, phase="train", loop=loop,
            epochs=training.epochs, validate=classification.validator(nested, task),
            patience=training.patience,
        )  # fmt: skip
        return classification.finish(task, nested)
