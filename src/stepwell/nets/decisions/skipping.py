"""Residual blocks that an image may skip, after ConvNet-AIG (Veit and Belongie 2018).

y = relu(shortcut(x) + z(x) · branch(x)),  z in {0, 1}
"""

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import relu
from torchvision.models.resnet import BasicBlock, Bottleneck

from stepwell.nets.decisions.deciding import Deciding
from stepwell.nets.decisions.estimators import Draw, Scores
from stepwell.nets.decisions.executor import BreakEven, with_branch
from stepwell.nets.decisions.gates import Gate

Maps = Float[Tensor, "batch _ _ _"]
#: Further outputs of a gated block: its choices as one-hot rows ("skip", "run"), and their scores.
#: Another is "open", the share of the branch that runs for each image.
EXTRAS = ("choice", "scores")


class Chance(nn.Module):
    """Stands for a gate: the same scores for every image, of two choices with given probabilities."""

    def __init__(self, open: Tensor) -> None:
        super().__init__()
        self.register_buffer("scores", torch.stack([1 - open, open]).log().float())

    def forward(self, x: Maps) -> Scores:
        """Scores of the choices of a batch, by which "reinforce" draws."""
        return self.get_buffer("scores").expand(len(x), -1)


class Gated(Deciding):
    """A residual block behind a gate; the base of the classes below.

    In training, and in eval with a `draw`, the branch runs on every image and is multiplied by the
    choice. In eval without one, the gate's better score decides, and the branch runs on the images that
    take it, or on all where `break_even` says that this is faster.
    """

    gate: nn.Module
    downsample: nn.Module | None
    conv1: nn.Module
    conv2: nn.Module
    bn1: nn.Module
    bn2: nn.Module
    relu: nn.Module
    in_graphs = MappingProxyType({"pt2": "every block: ONNX saves time"})

    def branch(self, x: Maps) -> Maps:
        """The residual branch alone."""
        raise NotImplementedError

    def some(self, x: Maps, share: float) -> Any:
        """A decision to run the branch for about this share of a batch."""
        count = max(1, round(share * len(x)))
        return torch.linspace(0, len(x) - 1, count).long().to(x.device)

    def share_of(self, decision: Any, x: Maps) -> float:
        """The share of the branch's work that a decision runs."""
        return len(decision) / len(x)

    def run(self, base: Maps, x: Maps, decision: Any, break_even: BreakEven | None = None) -> Maps:
        """Add the branch to `base` as decided; above the break-even all of it is computed."""
        return with_branch(base, x, decision, self.branch, break_even)

    def from_plain(self, plain: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The block's own gate, where the plain block has none."""
        return {k: value for k, value in state.items() if k.startswith("gate.")} | dict(plain)

    def forward(
        self, x: Maps, extras: Collection[str] = (), draw: Draw | None = None
    ) -> Maps | tuple[Maps, Mapping[str, Tensor]]:
        """The block's output; with `extras`, also its choices and scores by name."""
        base = x if self.downsample is None else self.downsample(x)
        scores = choice = None
        if draw is not None and draw.estimator == "always":  # the block without its gate
            y, choice = base + self.branch(x), draw(x.new_zeros(len(x), 2))
        else:
            scores = self.gate(x)
            # no branch on values, but a graph of ONNX may hold as many rows as the values say
            static = torch.compiler.is_compiling() or x.is_meta
            static = static and not torch.onnx.is_in_onnx_export()
            if self.training or draw is not None or static:
                default = Draw() if self.training else Draw("threshold")
                choice = (default if draw is None else draw)(scores)
                y = base + choice[:, 1, None, None, None].to(base.dtype) * self.branch(x)
            else:
                rows = (scores[:, 1] > scores[:, 0]).nonzero().flatten()
                y = self.run(base, x, rows, self.break_even)
        y = relu(y)  # not in place: a skipped block may give its input
        if not extras:
            return y
        if choice is None and scores is not None:
            choice = Draw("threshold")(scores)
        assert choice is not None
        decisions = {"choice": choice, "scores": choice if scores is None else scores}
        return y, decisions | {"open": choice[:, 1]}


class GatedBasicBlock(Gated, BasicBlock):
    """torchvision's basic block behind a gate; arguments as there."""

    def __init__(self, inplanes: int, planes: int, *arguments: Any, **options: Any) -> None:
        super().__init__(inplanes, planes, *arguments, **options)
        self.gate = Gate(inplanes)

    def branch(self, x: Maps) -> Maps:
        """Two 3×3 convolutions with norms."""
        return self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))


class GatedBottleneck(Gated, Bottleneck):
    """torchvision's bottleneck behind a gate; arguments as there."""

    conv3: nn.Module
    bn3: nn.Module

    def __init__(self, inplanes: int, planes: int, *arguments: Any, **options: Any) -> None:
        super().__init__(inplanes, planes, *arguments, **options)
        self.gate = Gate(inplanes)

    def branch(self, x: Maps) -> Maps:
        """A 1×1, a 3×3 and a 1×1 convolution with norms."""
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        return self.bn3(self.conv3(y))


@contextmanager
def priced(module: nn.Module, price: float) -> Iterator[None]:
    """Subtract a cost penalty from every gate's score "run", until the end: fewer blocks run."""
    trained = [block.gate.get_parameter("scores.bias") for _, block in gated_blocks(module)]
    before = [bias.detach().clone() for bias in trained]
    try:
        with torch.no_grad():
            for bias in trained:
                bias[-1] -= price
        yield
    finally:
        with torch.no_grad():
            for bias, value in zip(trained, before, strict=True):
                bias.copy_(value)


#: The blocks by the class that they are without a gate.
GATED: Mapping[type[nn.Module], type[Gated]] = {
    BasicBlock: GatedBasicBlock,
    Bottleneck: GatedBottleneck,
}


def gated_blocks(module: nn.Module) -> Iterator[tuple[str, Gated]]:
    """The gated blocks of a network by name, in order."""
    for name, inner in module.named_modules():
        if isinstance(inner, Gated):
            yield name, inner
