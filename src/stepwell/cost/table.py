"""Table of the costs of plain networks.

Memory is the peak of live tensor bytes; the resident size of a process does not show it.
"""

import weakref
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from stepwell.cost.energy import energy
from stepwell.cost.flops import Inputs, count_operations
from stepwell.cost.latency import measure_latencies, synchronised
from stepwell.train_mode import in_eval_mode

#: Number of turns in which networks are timed.
ROUNDS = 5


def cost_of(module: nn.Module, x: Inputs, *, seconds: float = 0.5) -> dict[str, Any]:
    """Costs of one forward pass of `module` on the batch `x`, without gradients.

    Returns:
        "params"; "macs" per example; "weight_bytes" of parameters and buffers; "peak_bytes" of
        activations for the batch, which live beside the weights; "ms" per example (the
        median over calls), "ms_low" and "ms_high", its 10 % and 90 % quantiles; "batch" and "threads".
        A network of adder layers has "additions", "multiplications" and "model_uj", too: microjoules by
        the model of `stepwell.cost.energy`.
    """
    return costs_of({"": module}, x, seconds=seconds)[""]


def costs_of(
    modules: Mapping[str, nn.Module], x: Inputs, *, seconds: float = 0.5
) -> dict[str, dict[str, Any]]:
    """Costs of several networks by name, as in `cost_of`; timed in turns, for `seconds` each."""
    batch = len(x)
    with in_eval_mode(*modules.values()):
        counts = {name: count_operations(module, x) for name, module in modules.items()}
        with torch.inference_mode():
            peak = {name: peak_bytes(partial(m, x)) for name, m in modules.items()}
            calls = {name: partial(_run, module, x) for name, module in modules.items()}
            times = measure_latencies(calls, seconds=seconds, rounds=ROUNDS)
    return {
        name: {
            "params": sum(p.numel() for p in module.parameters()),
            **_operations(counts[name], batch),
            "weight_bytes": _bytes_of(module),
            "peak_bytes": peak[name],
            **times[name].row(batch),
            "batch": batch,
            "threads": torch.get_num_threads(),
        }
        for name, module in modules.items()
    }


def _operations(counts: Mapping[str, int], batch: int) -> dict[str, int | float]:
    """MACs per example, and what a network of adder layers has beside them."""
    each = {name: count // batch for name, count in counts.items()}
    macs = sum(counts.values()) // 2 // batch
    if counts["additions"] == counts["multiplications"]:
        return {"macs": macs}
    return {"macs": macs, **each, "model_uj": energy(each["additions"], each["multiplications"])}


def _bytes_of(module: nn.Module) -> int:
    return sum(t.nbytes for t in (*module.parameters(), *module.buffers()))


def _run(module: nn.Module, x: Inputs) -> None:
    synchronised(module(x))


class _LiveBytes(TorchDispatchMode):
    """Count the bytes of storages that are created while this mode is on, until they are freed."""

    def __init__(self) -> None:
        super().__init__()
        self.live = 0
        self.peak = 0
        # by identity: two storages may hold equal bytes
        self._known = WeakIdKeyDictionary()

    def know(self, value: Any) -> None:
        """Exclude storages that existed before."""
        for tensor in tree_leaves(value):
            if isinstance(tensor, Tensor):
                self._known[tensor.untyped_storage()] = True

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.know((args, kwargs))
        output = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(output):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        return output

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage in self._known:
            return
        self._known[storage] = True
        size = storage.nbytes()
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._free, size)

    def _free(self, size: int) -> None:
        self.live -= size


def peak_bytes(call: Callable[[], object]) -> int:
    """Peak bytes of the tensors that `call` creates, on any device, without weights and inputs.

    Memory inside a kernel, such as a convolution's workspace, is not counted.
    """
    with _LiveBytes() as mode:
        call()
    return mode.peak
