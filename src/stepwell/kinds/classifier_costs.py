"""Measure the costs of image classifiers, and calibrate depths after the training."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from stepwell.console import say
from stepwell.kinds import Calibrated, Costs, Network


def cost(
    network: Network, *, size: int | None = None, batch: int = 1, save: bool = False,
    accuracy_on: Literal["validation", "test"] | None = None, data: str | None = None,
) -> Costs:  # fmt: skip
    """Measure the costs of every depth. Flags as for `cost`."""
    from stepwell.measure.data_parts import parts_of

    read = partial(parts_of, network.net, network.path, network.config)
    return measured_costs(network, read, size, batch, save, accuracy_on, data)


def measured_costs(
    network: Network, read: Callable[[str | None], Any], size: int | None, batch: int, save: bool,
    accuracy_on: Literal["validation", "test"] | None, data: str | None,
) -> Costs:  # fmt: skip
    """Measure the costs of every depth, and maybe save them; `read` gives the parts of the data."""
    from stepwell.measure.depths import cost_table
    from stepwell.nets.files.container import network_file
    from stepwell.nets.files.nested import check_writable
    from stepwell.nets.inputs import INPUTS
    from stepwell.nets.nested.input_size import check_size

    net = network.net
    if save and size not in (None, net.card.size):
        raise ValueError(f"--save measures at the network's own size, {net.card.size}")
    size = size or net.card.size
    check_size(net, size)
    if save:
        check_writable(network_file(network.path))
    costs = cost_table(net, size, batch=batch)
    if save:
        costs = _save_costs(network, costs, read, accuracy_on, data)
    kind = INPUTS[net.card.input]
    return Costs(costs, kind.sized(size), noun=kind.noun)


def _save_costs(
    network: Network, costs: Mapping[str, Mapping[str, Any]], read: Callable[[str | None], Any],
    part: Literal["validation", "test"] | None, data: str | None,
) -> dict[str, dict[str, Any]]:  # fmt: skip
    """Write measured costs to the network's file, and give them with the accuracies in the file."""
    from stepwell.device import device_name
    from stepwell.measure.depths import accuracy_on
    from stepwell.nets.files.nested import net_digest, rewrite_card, rewriting
    from stepwell.nets.inputs import INPUTS

    net, config = network.net, network.config
    accuracy: tuple[dict[str, float], str] | None = None
    ready = [depth for depth, status in net.status.items() if status != "fresh"]
    unknown = any("accuracy" not in net.card.costs.get(depth, {}) for depth in ready)
    unknown = unknown and not net.card.numeric
    if part or data or (unknown and config):
        parts = read(data)
        batches = parts.test if part == "test" else parts.validation
        if batches is None:
            say(
                "note: no validation part that the network was surely not trained on: "
                f"{INPUTS[net.card.input].aside}, or --accuracy-on test"
            )
        else:
            accuracy = accuracy_on(net, batches, part or "validation")
    elif unknown:
        say("note: the accuracy of some depths is not known: measure it with --data")
    with rewriting(network.path, net_digest(net)) as (file, card):
        card = _measured(card, costs, accuracy)
        rewrite_card(file, card)
    say(f"saved the costs on {device_name()} in {file}")
    return {depth: {**values} | card.costs[depth] for depth, values in costs.items()}


def _measured(card: Any, costs: Mapping[str, Any], accuracy: tuple[Any, str] | None) -> Any:
    """Give a card these costs on this device, and these accuracies on a part."""
    from stepwell.device import device_name

    card = card.with_costs(costs, device_name())
    return card if accuracy is None else card.with_accuracy(*accuracy)


def calibrate(
    network: Network, depths: Sequence[str], *, data: str | None = None, out: Path | None = None
) -> Calibrated:
    """Add untrained depths, with norm statistics from training images. Flags as for `calibrate`."""
    from stepwell.device import device_name
    from stepwell.files import writing
    from stepwell.measure.data_parts import parts_of
    from stepwell.measure.depths import accuracy_on, cost_table
    from stepwell.nets.build import further_depths
    from stepwell.nets.files.container import network_file
    from stepwell.nets.files.nested import check_writable, net_digest, rewriting, save
    from stepwell.nets.nested.calibrate import calibrate as calibrate_norms

    net = network.net
    digest = net_digest(net)
    for name, blocks in further_depths(net, depths).items():
        net.add_depth(name, blocks)
    new = [depth for depth, status in net.status.items() if status == "fresh"]
    if not new:
        raise ValueError(
            f"{network.path} has no depth to calibrate: add some with --depths NAME=BLOCKS,..."
        )
    file = network_file(network.path) if out is None else out
    check_writable(file)
    parts = parts_of(net, network.path, network.config, data)
    calibrate_norms(net, parts.train)
    measured = cost_table(net, net.card.size)
    accuracy = accuracy_on(net, parts.validation, "validation") if parts.validation else None

    if out is None:
        with rewriting(network.path, digest) as (file, card):
            net.card = _measured(card, measured, accuracy)
            save(net, file)
    else:
        net.card = _measured(net.card, measured, accuracy)
        with writing(file):
            save(net, file)
    times = net.card.latency[device_name()]
    costs = {d: net.card.costs[d] | times[d] | {"status": s} for d, s in net.status.items()}
    validation = len(parts.validation.images) if parts.validation else 0
    return Calibrated(new, file, costs, len(parts.train.images), validation)
