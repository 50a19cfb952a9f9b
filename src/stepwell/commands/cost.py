"""`stepwell cost`."""

from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from stepwell.commands.arguments import Json
from stepwell.console import print_json, row_table, show, show_conditions
from stepwell.files import without_depth
from stepwell.kinds import Costs, open_network

COLUMNS = (
    "blocks", "params", "macs", "additions", "multiplications", "model_uj",
    "weight_bytes", "peak_bytes", "accuracy", "ms", "ms_low", "ms_high",
)  # fmt: skip


def cost(
    network: Positional[str],
    *,
    depths: tuple[str, ...] = (),
    size: int | None = None,
    num_classes: int | None = None,
    stem: Literal["imagenet", "small"] | None = None,
    batch: int = 1,
    save: bool = False,
    accuracy_on: Literal["validation", "test"] | None = None,
    data: str | None = None,
    json: Json = False,
) -> None:
    """Measure params, MACs, memory and milliseconds of every depth or choice.

    Examples:
        stepwell cost resnet34 --depths 18 --size 224
        stepwell cost runs/digits --save

    Args:
        network: a name (`stepwell list`), a run directory, or the file of a network.
        depths: sub-nets of a network given by name, as for `stepwell train ekd`.
        size: height and width of the input, or tokens of a text; by default a trained network's own,
            else its family's.
        num_classes: number of classes of a network given by name; 1,000 by default.
        stem: first layers of a family that has a choice; by default small ones below 64 pixels.
        batch: number of inputs at once.
        save: save the times in the network's file, for this device and number of threads;
            `stepwell predict --budget-ms` reads them there.
        accuracy_on: part of the data to measure every accuracy on again, with --save; by default only
            unknown accuracies are measured, on the validation part.
        data: images (a folder or a name) or texts (a tab-separated file) to measure accuracy on; by
            default the data of the run.
    """
    trained = Path(network).exists()
    if save and batch != 1:
        raise ValueError("--save measures the times of one input: leave out --batch")
    if trained:
        of_names = {"depths": depths, "num-classes": num_classes, "stem": stem}
        if given := [flag for flag, value in of_names.items() if value]:
            raise ValueError(
                f"--{given[0]} is for a network given by name, and {network} has its own: leave it out"
            )
        if not save and (accuracy_on or data):
            raise ValueError("--accuracy-on and --data need --save")
        opened = open_network(network, to="cost")
        more = {"batch": None if batch == 1 else batch, "save": save, "data": data}
        costs: Costs = opened.do("cost", size=size, accuracy_on=accuracy_on, **more)
    else:
        saved = bool(save or accuracy_on or data)
        costs = _by_name(network, depths, size, num_classes, stem, batch, saved=saved)
    if json:
        print_json(costs.rows)
        return
    title = f"{network} at {costs.input}"
    show(row_table(title, COLUMNS, costs.rows, row=costs.row, noun=costs.noun))
    show_conditions(costs.rows)


def _by_name(
    name: str, depths: tuple[str, ...], size: int | None, num_classes: int | None,
    stem: Literal["imagenet", "small"] | None, batch: int, *, saved: bool,
) -> Costs:  # fmt: skip
    """Measure the depths of a network with random weights."""
    from stepwell.measure.depths import cost_table
    from stepwell.nets import build, builder_of
    from stepwell.nets.nested.input_size import check_size
    from stepwell.tasks.classification import input_arguments

    if hint := without_depth(name):
        raise ValueError(f"no network {name}{hint}")
    builder = builder_of(name)
    if saved:
        raise ValueError(
            f"--save, --accuracy-on and --data need a trained network, and {name} is the name of one "
            "with random weights: name a run directory or the file of a network, or leave them out"
        )
    size = size or (32 if stem == "small" else builder.size)
    arguments = input_arguments(name, size, stem)
    net = build(name, depths, num_classes=num_classes or 1000, **arguments)
    check_size(net, size)
    return Costs(cost_table(net, size, batch=batch), f"{size}×{size}")
