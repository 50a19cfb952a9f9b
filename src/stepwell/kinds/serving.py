"""Depths, cascades and choices of trained networks as rows of a server."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from stepwell.kinds import Network

if TYPE_CHECKING:
    from torch import Tensor

    from stepwell.nets import NestedNet
    from stepwell.nets.decisions.choosing import ChoosingNet
    from stepwell.nets.predictions import Answers
    from stepwell.serve.served import Served

#: What runs a network. "onnx" keeps the weights in memory once, "onnx-copies" for each depth.
Engine = Literal["torch", "onnx", "onnx-copies"]
#: Rows that decide for each input.
CASCADE, CHOSEN = "cascade", "chosen"
#: Logits of a batch at a row.
RowAnswers = Callable[["Tensor", str], "Answers"]


def serve_depths(network: Network, engine: Engine, cascade: bool) -> "Served":
    """The depths of an image classifier, and its saved cascade, to serve."""
    from stepwell.serve.served import serve_images

    rows, default, answers = depth_rows(network, network.net, engine, cascade)
    return serve_images(network.net, answers, rows, default, network.net.card.costs)


def depth_rows(
    network: Network, net: "NestedNet", engine: Engine, cascade: bool
) -> tuple[list[str], str, RowAnswers]:
    """The rows of a nested network, the default one, and how to run them.

    Depths that were never trained are left out; ValueError if the full net is one of them.
    """
    from stepwell.measure.cascade import check_depths
    from stepwell.nets.nested.cascade import Cascade

    net.require_ready(net.full)
    rows = [depth for depth, status in net.status.items() if status != "fresh"]
    if engine != "torch":
        if cascade:
            raise ValueError(f"--cascade runs in torch: leave --engine {engine} out")
        return rows, net.full, _exported(network, net, rows, engine)
    if not cascade:
        return rows, net.full, net.answers
    check_depths(net)
    whole = Cascade.of(net)

    def answers(x: "Tensor", row: str) -> "Answers":
        if row != CASCADE:
            return net.answers(x, row)
        answer = whole(x)
        return answer.logits, [whole.depths[i] for i in answer.depth.tolist()]

    return [*rows, CASCADE], CASCADE, answers


def _exported(network: Network, net: "NestedNet", rows: list[str], engine: Engine) -> RowAnswers:
    """Run depths by onnxruntime, from the export of a run."""
    from stepwell.export.folder import open_depths
    from stepwell.nets.files.container import network_file

    folder, advice = network_file(network.path).parent / "export", f"stepwell export {network.path}"
    graphs = open_depths(net, folder, rows, share=engine == "onnx", advice=advice)
    return lambda x, row: (graphs[row](x), [row] * len(x))


def serve_choices(network: Network, engine: Engine) -> "Served":
    """The choices of a network that chooses, and its own choice for each image, to serve."""
    from stepwell.serve.served import serve_images

    net: ChoosingNet = network.net
    if engine != "torch":
        raise ValueError(f"a network that chooses runs in torch: leave --engine {engine} out")
    net.nested.require_ready()
    held = getattr(net.chooser, "choice", None)
    rows = [*net.names[::-1], *([CHOSEN] if held is None else [])]
    default = CHOSEN if held is None else net.names[held]

    def answers(x: "Tensor", row: str) -> "Answers":
        return net.answers(x, None if row == CHOSEN else row)

    return serve_images(net, answers, rows, default, measured(network), "choice")


def measured(network: Network) -> Mapping[str, Mapping[str, Any]]:
    """Costs and test accuracy of the rows of a run, by its results.json; empty outside of a run."""
    from stepwell.nets.files.container import network_file
    from stepwell.results import read_results

    run: Path = network_file(network.path).parent
    if not network.config or not (run / "results.json").exists():
        return {}
    results = read_results(run)
    known = {row: dict(cost) for row, cost in results["costs"].items()}
    for row, cost in known.items():
        if f"{row}/accuracy" in results["test"]:
            cost["accuracy"] = results["test"][f"{row}/accuracy"]
            cost["accuracy_on"] = f"{results['examples']} test images"
    return known
