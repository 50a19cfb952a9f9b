"""Published weights of torchvision and timm as the start of a nested net."""

from typing import Any

import torchvision
from torch import Tensor

from stepwell.nets.files.initial_weights import Start, differ, fill
from stepwell.nets.nested.net import Card, NestedNet


def start_pretrained(net: NestedNet, classes: tuple[str, ...] = ()) -> Start:
    """Fill `net` with the published weights of its library, which are downloaded once.

    A classifier of another size, or of other `classes`, keeps its initial weights. Each private norm
    starts as the full net's.

    Returns:
        The names that keep their initial weights, and a card with the mean and std of the weights.

    Raises:
        ValueError: there are no published weights for this network, they do not fit it (another stem),
            or the download fails.
    """
    name = net.builder[0] if net.builder is not None else "this network"
    try:
        state, card = _timm(name) if name.startswith("timm/") else _torchvision(name)
    except OSError as error:
        raise ValueError(
            f"the weights of {name} could not be downloaded ({error}): give a file of weights instead"
        ) from error
    source = f"the published weights of {name}"
    return Start(card, fill(net, state, source, relabelled=differ(card.classes, classes)))


def _torchvision(name: str) -> tuple[dict[str, Tensor], Card]:
    if name not in torchvision.models.list_models():
        raise ValueError(f"torchvision publishes no weights for {name}: give a file of weights instead")
    weights: Any = torchvision.models.get_model_weights(name).DEFAULT
    preset = weights.transforms()
    state = weights.get_state_dict(progress=False, check_hash=True)
    classes = tuple(weights.meta["categories"])
    return dict(state), Card(classes, mean=tuple(preset.mean), std=tuple(preset.std))


def _timm(name: str) -> tuple[dict[str, Tensor], Card]:
    import timm

    name = name.removeprefix("timm/")
    if not timm.is_model_pretrained(name):
        raise ValueError(f"timm publishes no weights for {name}: give a file of weights instead")
    model: Any = timm.create_model(name, pretrained=True)
    about = model.pretrained_cfg
    return model.state_dict(), Card(mean=tuple(about["mean"]), std=tuple(about["std"]))
