"""Inputs and outputs of single layers while a network runs."""

from collections.abc import Collection
from typing import Any

from jaxtyping import Float
from torch import Tensor, fx, nn

from stepwell.nets.nested.tracing import Around, Whole
from stepwell.train_mode import keeping_modes


class LayerValues:
    """Run a network and give the input and output of its `layers`, by name.

    The network's code is traced once, in train mode.

    Raises:
        ValueError: the code depends on the input's values or sizes, or does not run one of `layers`.
    """

    def __init__(self, module: nn.Module, layers: Collection[str]) -> None:
        self.layers = frozenset(layers)
        whole = Whole(module)
        parents = {".".join(n.split(".")[:i]) for n in layers for i in range(n.count(".") + 1)}
        around = {id(whole), *(id(module.get_submodule(parent)) for parent in parents or {""})}
        with keeping_modes(module):
            try:
                self.graph = Around(around).trace(whole.train())
            except Exception as error:  # whatever the network's own code raises when it meets a proxy
                raise ValueError(
                    f"{type(module).__name__} cannot be traced, so its layers give no features: {error}"
                ) from error
        run = {node.target for node in self.graph.nodes if node.op == "call_module"}
        if missing := [layer for layer in layers if f"net.{layer}" not in run]:
            raise ValueError(f"{type(module).__name__} does not run a layer {missing[0]!r}")

    def __call__(
        self, module: nn.Module, x: Float[Tensor, "batch ..."]
    ) -> tuple[Float[Tensor, "batch classes"], dict[str, tuple[Tensor, Tensor]]]:
        """The network's output, and by layer its input and output."""
        run = _Recording(Whole(module), self.graph, self.layers)
        return run.run(x), run.values


class _Recording(fx.Interpreter):
    def __init__(self, module: nn.Module, graph: fx.Graph, layers: Collection[str]) -> None:
        super().__init__(module, graph=graph)
        self.layers = layers
        self.values: dict[str, tuple[Tensor, Tensor]] = {}

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        output = super().call_module(target, args, kwargs)
        name = target.removeprefix("net.")
        if name in self.layers:
            self.values[name] = args[0], output
        return output
