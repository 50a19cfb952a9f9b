"""`torch.fx` for a process with several threads.

While it traces, torch.fx replaces `nn.Module.__call__` and `__getattr__` in the whole process, and sets
a flag that makes compiled modules refuse to run. Here one trace runs at a time, calls of other threads
run as ever, and nobody else sees the flag.
"""

import inspect
import threading
from collections.abc import Callable
from types import FunctionType
from typing import Any

from torch import fx, nn

_ONE_AT_A_TIME = threading.RLock()
#: torch's function with globals of its own: its flag `_is_fx_tracing_flag` is a global variable.
_own = inspect.unwrap(fx.Tracer.trace)  # torch's compiler wraps it once it is imported
_trace: Any = FunctionType(
    _own.__code__, dict(vars(fx._symbolic_trace)), "trace", _own.__defaults__, _own.__closure__
)


class Tracer(fx.Tracer):
    """Traces the calls of its own thread alone."""

    def trace(self, *args: Any, **kwargs: Any) -> fx.Graph:
        """The graph of a module, as torch.fx traces it."""
        with _ONE_AT_A_TIME:
            self._thread = threading.get_ident()
            graph: fx.Graph = _trace(self, *args, **kwargs)
            return graph

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Record a call of this thread; run one of another thread."""
        if threading.get_ident() != self._thread:
            return forward(*args, **kwargs)
        return self.record(m, forward, args, kwargs)

    def record(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Record a call of a module."""
        return super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """A proxy for a parameter that this thread reads; the parameter itself for another thread."""
        if threading.get_ident() != self._thread:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)


class Whole(nn.Module):
    """Calls a network with its input alone; other arguments keep their defaults."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Any) -> Any:
        """The network's output."""
        return self.net(x)


class Around(Tracer):
    """Traces through the modules whose ids are in `around`; a call of any other module is one node."""

    def __init__(self, around: set[int]) -> None:
        super().__init__()
        self.around = around

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Check whether a call of `m` is one node."""
        return id(m) not in self.around

    def record(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Record a call of a leaf; trace through another module."""
        if id(m) not in self.around:
            return super().record(m, forward, args, kwargs)
        # without wrappers, such as a type checker that knows no proxies
        plain = inspect.unwrap(m.forward)
        return plain(*args, **kwargs) if hasattr(plain, "__self__") else plain(m, *args, **kwargs)
