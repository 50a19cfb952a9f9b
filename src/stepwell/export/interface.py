"""The inputs of exported graphs, by the kind of input in a network's card."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class Interface(NamedTuple):
    """The inputs of a graph.

    names: of the inputs.
    dims: for each input, names of its first dimensions, which may have any size.
    inputs: gives the graph's inputs for a plain network and a batch of its inputs.
    """

    names: tuple[str, ...]
    dims: tuple[tuple[str, ...], ...]
    inputs: Callable[[nn.Module, Tensor], tuple[Tensor, ...]]

    def dynamic_shapes(self, limit: int) -> tuple[dict[int, Any], ...]:
        """The dimensions of any size for torch's exporter; all but the batch's end at `limit`."""
        ends = {name: {} if name == "batch" else {"max": limit} for dims in self.dims for name in dims}
        known = {name: torch.export.Dim(name, **end) for name, end in ends.items()}
        return tuple({i: known[name] for i, name in enumerate(dims)} for dims in self.dims)


def _ids_and_mask(plain: nn.Module, ids: Tensor) -> tuple[Tensor, ...]:
    return ids, ids.ne(plain.padding).long()  # type: ignore[arg-type]


#: By the kind of input. A text's graph takes what tokenizers give: ids and the mask of real tokens.
INTERFACES = {
    "image": Interface(("images",), (("batch",),), lambda plain, x: (x,)),
    "text": Interface(
        ("input_ids", "attention_mask"), (("batch", "tokens"), ("batch", "tokens")), _ids_and_mask
    ),
}
