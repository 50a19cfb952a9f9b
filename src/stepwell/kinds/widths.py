"""Networks that choose the width of each image (`WidthNet`).

The slimmable network inside is an image classifier whose depths are its widths. It does what a choice
has no part in: cascades of widths, fidelity, one width within a budget.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from stepwell.console import say
from stepwell.kinds import Costs, Network, Predicted, classifier, resolution
from stepwell.kinds.resolution import serve as serve
from stepwell.measures import WIDTHS_SPEED

if TYPE_CHECKING:
    from stepwell.nets.decisions.widths import WidthNet

NAME = "a network that chooses widths"
#: Rows of the slimmable network inside.
WIDTH = "width"
ADVICE = {
    "calibrate": "a new width has no norms: name it with --widths when you train",
    "delta": "a width is a part of the weights, not an addition to another: export each by --depth",
}
NEXT = classifier.NEXT
SECTIONS = resolution.SECTIONS


def open(path: Path, module: Callable[[], Any] | None = None) -> "WidthNet":
    """Read the network of a run or a file; errors as for `load_widths` and `check_card`."""
    from stepwell.nets.files.widths import load_widths

    net = load_widths(path, module)
    classifier.check_card(path, net.nested)
    return net


def slimmable(network: Network) -> Network:
    """Give the slimmable network inside, an image classifier."""
    return network._replace(kind="classifier", net=network.net.nested)


def evaluate(
    network: Network, *, data: str | None = None, budget_macs: float | None = None, **of_widths: Any
) -> dict[str, Any]:
    """Measure the network as a whole, and each width for all images. Flags as for `eval`.

    With a cascade or a teacher, the widths alone are measured instead.
    """
    from stepwell.measure.choices import WIDTHS
    from stepwell.measure.widths import with_group_times

    if of_widths:
        inside = slimmable(network)
        results = classifier.evaluate(inside, data=data, budget_macs=budget_macs, **of_widths)
        return results | {"rows": WIDTH}
    with_group_times(network.net)
    return resolution.measured(network, data, budget_macs, WIDTHS)


def show_results(results: Mapping[str, Any], title: str, *, brief: bool = False) -> None:
    """Print results as tables; `brief`: as after a training."""
    resolution.show_rows(results, "widths", title, brief=brief, speed=WIDTHS_SPEED)


def predict(
    network: Network, paths: Sequence[Path], *, depth: str | None = None, cascade: bool = False,
    top: int = 1, **limits: Any,
) -> Predicted:  # fmt: skip
    """Classify images as the gate decides, or at one width. Flags as for `predict`."""
    if cascade or depth is not None:
        inside = slimmable(network)
        predicted = classifier.predict(inside, paths, depth=depth, cascade=cascade, top=top, **limits)
        title = predicted.title if depth is None else f"{WIDTH} {depth}"
        return predicted._replace(title=title, row=WIDTH)
    return resolution.predict(network, paths, top=top, **limits)._replace(row=WIDTH)


def export(
    network: Network, folder: Path, *, format: Literal["onnx", "pt2", "safetensors"] = "onnx",
    depth: str | None = None, int8: bool = False, data: str | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Write a graph for each width and the gate; or widths as networks. Flags as for `export`."""
    from stepwell.export import export_widths

    inside = slimmable(network)
    if depth is not None or format != "onnx":
        return classifier.export(inside, folder, format=format, depth=depth, int8=int8, data=data)
    if int8:
        raise ValueError(f"{network.path} holds {NAME}, and --int8 writes one width: name a --depth")
    sample, _ = classifier.sample_of(inside, data)
    own = classifier.is_own(network, folder)
    return export_widths(network.net, folder, sample, own=own, say=say)


def cost(network: Network, **flags: Any) -> Costs:
    """Measure the costs of every width. Flags as for `cost`."""
    return classifier.cost(slimmable(network), **flags)._replace(row=WIDTH)


def show_export(title: str, result: Mapping[str, Any]) -> None:
    """Print exported files: a graph a width and one for the gate, or widths as networks."""
    readers = "the widest graph reads its weights, and all widths their norms,"
    resolution.show_export(title, result, readers)
