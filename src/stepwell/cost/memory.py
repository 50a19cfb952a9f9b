"""Memory as the peak of live tensor bytes; the resident size of a process does not show it."""

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary


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
    """Peak bytes of the tensors that `call` creates, on any device.

    Memory inside a kernel, such as a convolution's workspace, is not counted.
    """
    with _LiveBytes() as mode:
        call()
    return mode.peak
