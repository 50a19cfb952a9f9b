"""Calling a function by its flags, and checks of arguments."""

import functools
import inspect
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from stepwell.ranges import check_numbers

Json = Annotated[bool, tyro.conf.arg(help="print one JSON document instead of a table")]
#: Noted Ctrl-C: an import that it cuts off may end with any error, or swallow it.
INTERRUPTS: list[int] = []


def call(function: Callable[..., Any], prog: str, arguments: Sequence[str], more: str = "") -> Any:
    """Call a function with its flags, once all numbers are in their ranges.

    Args:
        prog: the command, for its help.
        more: a paragraph below the function's own description.
    """

    @functools.wraps(function)
    def checked(**values: Any) -> Any:
        check_numbers(values)
        if INTERRUPTS:
            raise KeyboardInterrupt
        return function(**values)

    # tyro reads the docstring of what is wrapped, and wraps each of its lines by itself
    del checked.__wrapped__
    checked.__signature__ = inspect.signature(function)  # type: ignore[attr-defined]
    checked.__doc__ = re.sub(r"\n {8,}(?=\S)", " ", inspect.cleandoc(function.__doc__ or ""))
    text = "\n\n".join(filter(None, (description(function), more)))
    return tyro.cli(checked, prog=prog, args=arguments, description=text)


def show_help(prog: str, lines: dict[str, str], arguments: Sequence[str], text: str) -> None:
    """Print the help of a group of commands.

    Args:
        lines: by command, what it does.
        arguments: such as --help.
    """

    def stub(line: str) -> Callable[[], None]:
        def command() -> None: ...

        command.__doc__ = line
        return command

    tyro.extras.subcommand_cli_from_dict(
        {name: stub(line) for name, line in lines.items()}, prog=prog, args=arguments or ["--help"],
        description=text,
    )  # fmt: skip


def first_sentence(function: Callable[..., Any]) -> str:
    """Give the first paragraph of a function's docstring."""
    return (function.__doc__ or "").split("\n\n")[0].strip()


def description(function: Callable[..., Any]) -> str:
    """Give a function's docstring without arguments, each example as a paragraph of its own."""
    text, _, _ = inspect.cleandoc(function.__doc__ or "").partition("Args:")
    does, _, examples = text.partition("Examples:")
    lines = [f"Example: {line.strip()}" for line in examples.splitlines() if line.strip()]
    return "\n\n".join([does.strip(), *lines])


def check_place(flag: str, path: Path) -> None:
    """Refuse a file to write that is a folder, or that lies in no folder.

    Raises:
        ValueError: the message begins with `flag`.
    """
    if path.is_dir():
        raise ValueError(f"{flag} {path} is a folder: name a file")
    if not path.parent.is_dir():
        raise ValueError(f"{flag} {path}: there is no folder {path.parent}; make it first")
