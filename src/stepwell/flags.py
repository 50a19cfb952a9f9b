"""Groups of flags: typed in Python, flat on the command line and in config.json.

A group is a frozen dataclass; its docstring is the help of its flags. A recipe takes several groups.
"""

import contextlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import tyro

from stepwell.ranges import check_numbers

T = TypeVar("T")
#: A group of a recipe: its flags have no prefix, and the help shows them in a box of their own.
Flags = Annotated[T, tyro.conf.OmitArgPrefixes, tyro.conf.arg(help="")]
#: A group for studies, which Python sets and the command line does not.
Hidden = Annotated[T, tyro.conf.Suppress, tyro.conf.Fixed]


class Together:
    """A group that config.json keeps under its parameter's name; all other groups are spread out."""


def flag(metavar: str | None = None, empty: str = "", help: str | None = None) -> Any:
    """Give the annotation that says how the help shows a flag.

    Args:
        metavar: a value of the flag; by default its type in a word.
        empty: the default in words, if it is None or empty; without them the help shows none.
        help: help of a flag that several groups or recipes share.
    """

    def hint(default: str) -> str:
        shown = empty if default in ("", "None", "False", repr("")) else default
        return f"(default: {shown})" if shown else ""

    return tyro.conf.arg(metavar=metavar, help=help, help_behavior_hint=hint)


@contextlib.contextmanager
def naming(flags: str) -> Iterator[None]:
    """Begin the message of a ValueError from inside with the flags that caused it."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{flags}: {error}") from error


def checked(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe's arguments as config.json has them; ValueError for wrong values."""
    check_numbers(arguments)
    flat: dict[str, Any] = {}
    for name, value in arguments.items():
        if check := getattr(value, "check", None):
            check()
        spread = is_dataclass(value) and not isinstance(value, Together)
        flat |= vars(value) if spread else {name: value}
    return flat


def call(function: Callable[..., Any], **flags: Any) -> Any:
    """Call a function that takes groups with flat flags: `call(ekd, data="digits", epochs=3, ...)`."""
    groups = groups_of(function)
    hints = get_type_hints(function)
    arguments = {
        name: _fitted(name, value, hints.get(name))
        for name, value in flags.items()
        if name not in _owners(groups)
    }
    for name, group in groups.items():
        types = get_type_hints(group)
        own = {
            f.name: _fitted(f.name, flags[f.name], types[f.name])
            for f in fields(group)
            if f.name in flags
        }
        default = arguments.get(name, inspect.signature(function).parameters[name].default)
        if own:
            missing = default is inspect.Parameter.empty
            arguments[name] = group(**own) if missing else replace(default, **own)
    return function(**arguments)


def _fitted(name: str, value: Any, hint: Any) -> Any:
    """Give a value as the type of its flag has it; ValueError if it cannot be one."""
    try:
        return _as(hint, value)
    except TypeError:
        words = str(hint).replace("<class '", "").replace("'>", "").replace("typing.", "")
        words = words.replace("pathlib.", "").replace("NoneType", "None")
        raise ValueError(f"{name}={value!r}: must be {words}") from None


def _as(hint: Any, value: Any) -> Any:
    """Give `value` as a type has it: text as a path or a path as text, a list or one value as a tuple.

    TypeError if it cannot be one.
    """
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        for one in inner:
            with contextlib.suppress(TypeError):
                return _as(one, value)
    elif origin is Literal:
        if value in inner:
            return value
    elif origin is tuple:
        values = [*value] if isinstance(value, list | tuple) else [value]
        each = [inner[0]] * len(values) if inner[-1] is Ellipsis else inner
        if len(each) == len(values):
            return tuple(_as(one, v) for one, v in zip(each, values, strict=True))
    elif hint is Path and isinstance(value, str):
        return Path(value)
    elif hint is str and isinstance(value, Path):
        return str(value)
    else:
        types = (int, float) if hint is float else hint
        true = isinstance(value, bool) and hint is not bool  # True is an int to Python
        if not isinstance(hint, type) or (isinstance(value, types) and not true):
            return value
    raise TypeError


def flags_of(function: Callable[..., Any]) -> set[str]:
    """Names of all flags that `call` takes for a function: its parameters and its groups' members."""
    return {*inspect.signature(function).parameters, *_owners(groups_of(function))}


def groups_of(function: Callable[..., Any]) -> dict[str, type]:
    """A function's parameters that are groups, and their types."""
    hints = {n: h for n, h in get_type_hints(function).items() if n != "return"}
    return {n: h for n, h in hints.items() if isinstance(h, type) and is_dataclass(h)}


def recorded(group: type[T], arguments: Mapping[str, Any]) -> T:
    """A group as a run's config.json records it, with defaults for flags that came later."""
    names = (f.name for f in fields(group))  # type: ignore[arg-type]
    return group(**{name: arguments[name] for name in names if name in arguments})


def _owners(groups: Mapping[str, type]) -> dict[str, str]:
    """The group that each flag belongs to."""
    return {f.name: name for name, group in groups.items() for f in fields(group)}
