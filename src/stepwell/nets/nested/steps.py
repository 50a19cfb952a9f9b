"""One step of a path: what it hands on, and the keywords of its call."""

import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Int64, Shaped
from torch import Tensor, nn

#: The value that one step hands to the next.
Value = Tensor | tuple[Tensor, ...] | list[Tensor]
#: Steps that may hand on their very input, or a view of it.
_PASSING = (nn.Identity, nn.Flatten, nn.Unflatten, nn.modules.dropout._DropoutNd)


def tensors_of(value: Value) -> Sequence[Tensor]:
    """The tensors of a value in order."""
    return (value,) if isinstance(value, Tensor) else value


def each(change: Callable[[Tensor], Tensor], value: Any) -> Any:
    """A value like `value`, whose tensors, also inside tuples, lists and dicts, are changed."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, tuple | list):
        items = [each(change, item) for item in value]
        return type(value)._make(items) if hasattr(value, "_make") else type(value)(items)
    if isinstance(value, Mapping):
        return {name: each(change, item) for name, item in value.items()}
    return value


def same_memory(a: Shaped[Tensor, "..."], b: Shaped[Tensor, "..."]) -> bool:
    """Check whether two tensors are views of one memory."""
    if torch.compiler.is_compiling():
        return a is b
    return a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()


def feature_of(value: Value) -> Tensor:
    """The tensor that stands for a stage's output; of several the last one."""
    return tensors_of(value)[-1]


def versions(value: Value) -> tuple[int, ...]:
    """Number of in-place changes of each tensor; zeros where torch does not count them."""
    if torch.compiler.is_compiling():
        return ()
    return tuple(0 if t.is_inference() else t._version for t in tensors_of(value))


def overwrites(steps: Sequence[nn.Module]) -> bool:
    """Check whether the first of `steps` has an attribute `inplace` that is true, as ReLU may.

    A block that overwrites its input without this attribute is refused when it runs, see `Fork.exits`.
    """
    for step in steps:
        if getattr(step, "inplace", False):
            return True
        if isinstance(step, nn.Sequential) and overwrites([*step]):
            return True
        if not isinstance(step, _PASSING):
            return False
    return False


def keywords_of(step: nn.Module) -> frozenset[str]:
    """The names of the arguments of a step's forward, without its input."""
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    try:
        parameters = [*inspect.signature(step.forward).parameters.values()]
    except ValueError:  # compiled code without a signature
        return frozenset()
    return frozenset(p.name for p in parameters[1:] if p.kind in named)


class Request(NamedTuple):
    """Further inputs and outputs of the steps.

    given: constants of the batch, such as a text's mask, for the steps whose forward names them.
    extras: names of further outputs. A step whose forward names `extras` gets these names, and returns
        a pair: its output, and a dict of tensors by name.
    """

    given: Mapping[str, Any]
    extras: tuple[str, ...]

    def of_rows(self, chosen: Int64[Tensor, " chosen"], images: int | torch.SymInt) -> "Request":
        """The request for the `chosen` images of a batch; constants without a row per image stay."""

        def cut(tensor: Tensor) -> Tensor:
            return tensor[chosen] if tensor.shape[:1] == (images,) else tensor

        return self._replace(given=each(cut, self.given))

    def call(self, step: Callable[..., Any], x: Value, keywords: frozenset[str]) -> tuple[Value, Any]:
        """The output of a step whose forward takes `keywords`, and its further outputs by name."""
        named = {name: self.given[name] for name in keywords if name in self.given}
        if self.extras and "extras" in keywords:
            return step(x, extras=self.extras, **named)
        return step(x, **named), {}


def request(
    given: Mapping[str, Any] | None, extras: Sequence[str], known: Collection[str]
) -> Request | None:
    """A checked request; None if it is empty. No gradient flows to the constants.

    `known` are the names that the steps' forwards take. ValueError for a constant or extras that no
    step names, or extras that are no list.
    """
    if isinstance(extras, str):
        raise ValueError(f"extras {extras!r}: give a list of names, such as [{extras!r}]")
    if not given and not extras:
        return None
    constants = [name for name in known if name != "extras"]
    if unknown := [name for name in given or {} if name not in constants]:
        names = ", ".join(sorted(constants)) or "no constant"
        raise ValueError(
            f"given {unknown[0]!r}: no step's forward names it; the steps of this network take {names}"
        )
    if extras and "extras" not in known:
        raise ValueError(
            f"extras {', '.join(extras)}: no step gives any; a step that does names `extras` in its "
            "forward and returns its output and a dict of tensors"
        )
    return Request(each(Tensor.detach, given or {}), (*extras,))
