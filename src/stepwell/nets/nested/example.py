"""Example inputs for a module, and the outputs of its blocks."""

from collections.abc import Iterator, Sequence
from typing import cast

import torch
from jaxtyping import Shaped
from torch import Tensor, nn

from stepwell.nets.nested.plan import Plan
from stepwell.nets.nested.steps import Value


class UnknownShapeError(ValueError):
    """No input was found that a module runs on."""


#: Heights and widths tried, in this order, for images of unknown size.
SIZES = (32, 64, 224, 256, 384)


def example_input(module: nn.Module, size: Sequence[int] | None = None) -> Tensor:
    """Two random examples for a module: normal values, or else token ids for an `nn.Embedding`.

    Args:
        size: shape of one example, such as (3, 224, 224), or (16,) for 16 tokens; by default found by
            trial. ValueError if the module does not run on it, UnknownShapeError if none is found.
    """
    kind = type(module).__name__
    problem = "its first layer is no Conv2d or Linear"
    for shape in _sizes(module) if size is None else [size]:
        for x in _examples(module, (2, *shape)):
            try:
                module(x)
            except Exception as error:  # whatever the module's own code raises
                problem = line_of(error)
            else:
                return x
    if size is not None:
        raise ValueError(f"{kind} does not run on input of shape {(2, *size)}: {problem}")
    raise UnknownShapeError(
        f"the shape of {kind}'s input could not be found ({problem}): give that of one example, "
        "such as input_size=(3, 224, 224)"
    )


def outputs_by_block(
    steps: Sequence[nn.Module], plan: Plan, x: Shaped[Tensor, "batch ..."]
) -> Iterator[list[Value]]:
    """For each stage, the output of each block; `steps` are the full net's."""
    at, value = 0, cast(Value, x)
    for gap, blocks in zip(plan.gaps, plan.blocks, strict=False):
        for step in steps[at : at + len(gap)]:
            value = step(value)
        at += len(gap)
        outputs: list[Value] = []
        for block in blocks:
            for step in steps[at : at + len(block)]:
                value = step(value)
            at += len(block)
            outputs.append(value)
        yield outputs


def line_of(error: Exception) -> str:
    """The first line of an error's text, or its class."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _sizes(module: nn.Module) -> Iterator[tuple[int, ...]]:
    first = next((m for m in module.modules() if isinstance(m, nn.Conv2d | nn.Linear)), None)
    if isinstance(first, nn.Conv2d):
        yield from ((first.in_channels, size, size) for size in SIZES)
    elif first is not None:
        yield (first.in_features,)


def _examples(module: nn.Module, shape: Sequence[int]) -> Iterator[Tensor]:
    """Normal random values, then token ids; torch's own generator stays as it is."""
    like = next(module.parameters())
    generator = torch.Generator().manual_seed(0)
    yield torch.randn(*shape, generator=generator).to(like.device, like.dtype)
    embeddings = [m for m in module.modules() if isinstance(m, nn.Embedding)]
    if embeddings:
        most = min(m.num_embeddings for m in embeddings)
        yield torch.randint(most, (*shape,), generator=generator).to(like.device)
