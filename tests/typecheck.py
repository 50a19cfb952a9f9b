"""Types of arguments and results are checked in tests, by beartype.

jaxtyping binds the shapes of tensors in every call of a function, which takes time. Functions whose
signature has no shapes, nine of ten, need beartype alone.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any, get_args

import jaxtyping
from beartype import BeartypeConf, beartype

#: A whole number is a number, as for PEP 484.
check = beartype(conf=BeartypeConf(is_pep484_tower=True, violation_type=jaxtyping.TypeCheckError))
_with_shapes = jaxtyping.jaxtyped


def jaxtyped(*, typechecker: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A decorator that checks a function's types, and the shapes that it names."""
    return functools.partial(_checked, typechecker)


def _checked(typechecker: Callable[[Any], Any], fn: Any) -> Any:
    if isinstance(fn, (classmethod, staticmethod)):
        return type(fn)(_checked(typechecker, fn.__func__))
    if isinstance(fn, property):
        parts = (fn.fget, fn.fset, fn.fdel)
        return property(*(part and _checked(typechecker, part) for part in parts))
    if not inspect.isfunction(fn) or any(map(_has_shapes, fn.__annotations__.values())):
        return _with_shapes(fn, typechecker=typechecker)
    plain = typechecker(fn)

    @functools.wraps(fn)
    def switched(*args: Any, **kwargs: Any) -> Any:
        call = fn if jaxtyping.config.jaxtyping_disable else plain
        return call(*args, **kwargs)

    return switched


def _has_shapes(annotation: Any) -> bool:
    """Check whether an annotation holds shapes, or may, as a text does."""
    if isinstance(annotation, str):
        return True
    if inspect.isclass(annotation) and issubclass(annotation, jaxtyping.AbstractArray):
        return True
    return any(_has_shapes(part) for part in get_args(annotation))
