"""Depths, cascades and choices of trained networks as rows of a server."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal

from stepwell.files import export_folder
from stepwell.kinds import Network

if TYPE_CHECKING:
    from torch import Tensor

    from stepwell.nets import NestedNet
    from stepwell.nets.decisions.choosing import ChoosingNet
    from stepwell.nets.nested.cascade import Answer
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
    if cascade:
        check_depths(net)
    whole = Cascade.of(net) if cascade else None
    depths = net.answers if engine == "torch" else _exported(network, net, rows, engine)
    if whole is None:
        return rows, net.full, depths
    run: Callable[[Tensor], Answer] = whole
    if engine != "torch":
        from stepwell.export.opening import open_cascade

        run = open_cascade(whole, export_folder(network.path), advice=f"{_advice(network)} --cascade")

    def answers(x: "Tensor", row: str) -> "Answers":
        if row != CASCADE:
            return depths(x, row)
        answer = run(x)
        return answer.logits, [whole.depths[i] for i in answer.depth.tolist()]

    return [*rows, CASCADE], CASCADE, answers


def _exported(network: Network, net: "NestedNet", rows: list[str], engine: Engine) -> RowAnswers:
    """Run depths by onnxruntime, from the export of a run."""
    from stepwell.export.opening import open_depths

    share, advice = engine == "onnx", _advice(network)
    graphs = open_depths(net, export_folder(network.path), rows, share=share, advice=advice)
    return lambda x, row: (graphs[row](x), [row] * len(x))


def _advice(network: Network) -> str:
    return f"stepwell export {network.path}"


def serve_choices(network: Network, engine: Engine) -> "Served":
    """The choices of a network that chooses, and its own choice for each image, to serve."""
    from stepwell.serve.served import serve_images

    net: ChoosingNet = network.net
    net.nested.require_ready()
    held = getattr(net.chooser, "choice", None)
    rows = [*net.names[::-1], *([CHOSEN] if held is None else [])]
    default = CHOSEN if held is None else net.names[held]
    if held is not None and engine != "torch":
        raise ValueError(f"a network without a chooser runs in torch: leave --engine {engine} out")
    answers = _choices_in_torch(net) if engine == "torch" else _exported_choices(network, engine)

    return serve_images(net, answers, rows, default, measured(network), "choice")


def _choices_in_torch(net: "ChoosingNet") -> RowAnswers:
    return lambda x, row: net.answers(x, None if row == CHOSEN else row)


def _exported_choices(network: Network, engine: Engine) -> RowAnswers:
    """Run choices, and the chooser, by onnxruntime, from the export of a run."""
    from stepwell.export.choices import open_choices

    share, advice = engine == "onnx", _advice(network)
    loop = open_choices(network.net, export_folder(network.path), share=share, advice=advice)

    def answers(x: "Tensor", row: str) -> "Answers":
        if row != CHOSEN:
            return loop.at(x, row), [row] * len(x)
        answer = loop(x)
        return answer.logits, [loop.names[i] for i in answer.depth.tolist()]

    return answers


def measured(network: Network) -> Mapping[str, Mapping[str, Any]]:
    """Costs and test accuracy of the rows of a run, by its results.json; empty outside of a run."""
    from stepwell.nets.files.container import folder_of
    from stepwell.results import read_results

    run = folder_of(network.path)
    if not network.config or not (run / "results.json").exists():
        return {}
    results = read_results(run)
    known = {row: dict(cost) for row, cost in results["costs"].items()}
    for row, cost in known.items():
        if f"{row}/accuracy" in results["test"]:
            cost["accuracy"] = results["test"][f"{row}/accuracy"]
            cost["accuracy_on"] = f"{results['examples']} test images"
    return known
