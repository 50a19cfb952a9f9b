"""Inputs and outputs of single layers while a network runs."""

from collections.abc import Collection
from typing import Any

from jaxtyping import Float
from torch import Tensor, fx, nn

from stepwell.nets.adders.layers import AdderConv2d, NormedLinear
from stepwell.nets.nested.tracing import Tracer
from stepwell.train_mode import keeping_modes


class _Layers(Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        own = isinstance(m, AdderConv2d | NormedLinear)
        return own or super().is_leaf_module(m, module_qualified_name)


class LayerValues:
    """Run a network and give the input and output of its `layers`, by name.

    The network's code is traced once, in train mode.

    Raises:
        ValueError: the code depends on the input's values or sizes, or does not run one of `layers`.
    """

    def __init__(self, module: nn.Module, layers: Collection[str]) -> None:
        self.layers = frozenset(layers)
        with keeping_modes(module):
            try:
                self.graph = _Layers().trace(module.train())
            except Exception as error:
                raise ValueError(
                    f"{type(module).__name__} cannot be traced, so its layers give no features: {error}"
                ) from error
        run = {node.target for node in self.graph.nodes if node.op == "call_module"}
        if missing := self.layers - run:
            raise ValueError(f"{type(module).__name__} does not run a layer {min(missing)!r}")

    def __call__(
        self, module: nn.Module, x: Float[Tensor, "batch ..."]
    ) -> tuple[Float[Tensor, "batch classes"], dict[str, tuple[Tensor, Tensor]]]:
        """The network's output, and by layer its input and output."""
        run = _Recording(module, self.graph, self.layers)
        return run.run(x), run.values


class _Recording(fx.Interpreter):
    def __init__(self, module: nn.Module, graph: fx.Graph, layers: Collection[str]) -> None:
        super().__init__(module, graph=graph)
        self.layers = layers
        self.values: dict[str, tuple[Tensor, Tensor]] = {}

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        output = super().call_module(target, args, kwargs)
        if target in self.layers:
            self.values[target] = args[0], output
        return output
