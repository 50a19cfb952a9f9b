"""Exits: depths that end early with a head of their own."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from stepwell.nets.nested.example import line_of
from stepwell.nets.nested.steps import Request, Value, feature_of, request, tensors_of

#: The name of an exit's head in the plain network of the exit, and in files.
HEAD = "exit_head"


class PooledHead(nn.Module):
    """Logits of a stage's output: the mean over all positions, then a linear layer.

    Where the stage hands on a mask (batch, tokens) beside its tokens, the mean is over real tokens.
    """

    def __init__(self, channels: int, classes: int, channels_last: bool = False) -> None:
        super().__init__()
        self.channels_last = channels_last
        self.fc = nn.Linear(channels, classes)

    @classmethod
    def like(
        cls,
        feature: Float[Tensor, "batch ..."],
        logits: Float[Tensor, "batch ..."],
        channels_last: bool,
    ) -> "PooledHead":
        """A head from `feature` to logits of the shape of `logits`."""
        maps = feature.dim() == 4 and not channels_last
        return cls(feature.shape[1] if maps else feature.shape[-1], logits.shape[-1], channels_last)

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments to make this head again, with fresh weights."""
        channels, classes = self.fc.in_features, self.fc.out_features
        return {"channels": channels, "classes": classes, "channels_last": self.channels_last}

    def forward(self, x: Value) -> Tensor:
        """Maps, tokens (batch, tokens, channels) or vectors to logits (batch, classes)."""
        masks = [t for t in tensors_of(x) if t.dtype == torch.bool]
        x = feature_of(x)
        if x.dim() == 4:
            x = x.mean((1, 2) if self.channels_last else (2, 3))
        elif x.dim() == 3 and masks:
            real = masks[0][:, :, None].to(x.dtype)
            x = (x * real).sum(1) / real.sum(1).clamp(min=1)
        elif x.dim() == 3:
            x = x.mean(1)
        return self.fc(x)


def conv_norm(width_in: int, width: int, kernel: int, stride: int = 1) -> nn.Sequential:
    """A convolution that keeps the resolution but for its stride, BatchNorm and ReLU."""
    return nn.Sequential(
        nn.Conv2d(width_in, width, kernel, stride, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
    )


class ConvHead(nn.Module):
    """Logits of a stage's output: two strided convolutions, an average, and a linear layer.

    It is the classifier of MSDNet (Huang et al. 2018).
    """

    def __init__(self, channels: int, classes: int, width: int = 128) -> None:
        super().__init__()
        self.first = conv_norm(channels, width, 3, 2)
        self.second = conv_norm(width, width, 3, 2)
        self.fc = nn.Linear(width, classes)

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments to make this head again, with fresh weights."""
        channels, width = self.first[0].in_channels, self.fc.in_features
        return {"channels": channels, "classes": self.fc.out_features, "width": width}

    def forward(self, x: Value) -> Tensor:
        """Maps (batch, channels, height, width) to logits (batch, classes)."""
        logits: Tensor = self.fc(self.second(self.first(feature_of(x))).mean((2, 3)))
        return logits


#: The heads that a file can name.
HEADS: dict[str, type[PooledHead | ConvHead]] = {"pooled": PooledHead, "conv": ConvHead}


def describe_head(head: nn.Module) -> dict[str, Any] | None:
    """The name and arguments of a head for a file's header; None for a custom head."""
    for name, kind in HEADS.items():
        if type(head) is kind:
            assert isinstance(head, PooledHead | ConvHead)
            return {"head": name, "arguments": head.arguments}
    return None


def make_head(described: Mapping[str, Any]) -> nn.Module:
    """The head that `describe_head` described, with fresh weights."""
    return HEADS[described["head"]](**described["arguments"])


class ExitNet(nn.Module):
    """The plain network of an exit: its steps in order, under their names in the full net.

    Args:
        net: the full net without the modules that the exit does not run; its forward is not used.
        steps, keywords: of the exit's `Path`.
    """

    def __init__(
        self, net: nn.Module, steps: Sequence[nn.Module], keywords: Sequence[frozenset[str]]
    ) -> None:
        super().__init__()
        # The very same dicts, so that `.to()` reaches the parameters that the full net itself holds.
        self._parameters, self._buffers = net._parameters, net._buffers
        self._modules = {**net._modules, HEAD: steps[-1]}
        self._steps = tuple(zip(steps, keywords, strict=True))
        self._keywords = frozenset().union(*keywords)  # that some step takes
        self.padding = int(getattr(net, "padding", 0))  # the token's id, of a network of texts

    def train(self, mode: bool = True) -> "ExitNet":
        """Set the mode of every module, and of steps that are code between modules."""
        for step, _ in self._steps:
            step.train(mode)
        return super().train(mode)

    def forward(
        self, x: Shaped[Tensor, "batch ..."], attention_mask: Shaped[Tensor, "..."] | None = None,
        **given: Any,
    ) -> Float[Tensor, "batch ..."]:  # fmt: skip
        """Logits (batch, classes); `given` as for `NestedNet.forward`.

        `attention_mask` is a constant, too, and has a place because a graph's inputs have no names.
        """
        if attention_mask is not None:
            given["attention_mask"] = attention_mask
        value: Value = x
        asked = request(given, (), self._keywords) or Request({}, ())
        for step, keywords in self._steps:
            value, _ = asked.call(step, value, keywords)
        assert isinstance(value, Tensor)
        return value


def check_classes(
    exit: str, head: nn.Module, logits: Float[Tensor, "batch ..."], output: Value
) -> None:
    """Raise ValueError for a head that does not take a block's output to logits like the full net's.

    `logits` and `output` are tensors on torch's meta device, which have a shape and no values.
    """
    try:
        actual = deepcopy(head).to("meta").eval()(output)
    except Exception as error:  # whatever the head's own code raises
        shape = ", ".join(str(tuple(t.shape)) for t in tensors_of(output))
        raise ValueError(
            f"the head of exit {exit!r} does not take the output of its block, of shape {shape}: "
            f"{line_of(error)}"
        ) from error
    if not isinstance(actual, Tensor) or actual.shape != logits.shape:
        given = tuple(actual.shape) if isinstance(actual, Tensor) else type(actual).__name__
        raise ValueError(
            f"the head of exit {exit!r} gives {given} where the network gives logits of shape "
            f"{tuple(logits.shape)}: make it for {logits.shape[-1]} classes"
        )


def check_head(exit: str, head: nn.Module, net: nn.Module) -> None:
    """Raise ValueError for a head that shares weights with `net`: a file could not restore it."""
    if not isinstance(head, nn.Module):
        raise ValueError(
            f"the head of exit {exit!r} is a {type(head).__name__}, not a module of torch's"
        )
    known = {id(value) for value in net.state_dict(keep_vars=True).values()}
    for name, value in head.state_dict(keep_vars=True).items():
        if id(value) in known:
            raise ValueError(
                f"the head of exit {exit!r} shares {name!r} with the network: give it weights of its "
                "own"
            )
