"""Calling a function by its flags, and checks of arguments."""

import contextlib
import difflib
import functools
import inspect
import io
import os
import pkgutil
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import is_dataclass
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import tyro

from stepwell.flags import flag
from stepwell.ranges import check_numbers

Json = Annotated[bool, flag(help="print one JSON document instead of a table")]
Module = Annotated[
    str | None,
    flag(
        "PACKAGE:CLASS",
        help="function or class, importable from here, that makes the module of a network nested by "
        "stepwell.nest again",
    ),
]
#: Words for values in the help: of a command's flag by its name, else by its type.
WORDS_BY_NAME = {
    "run": "RUN", "runs": "RUN ...", "network": "NETWORK|RUN", "files": "FILE|FOLDER|TEXT ...",
    "data": "DATA", "out": "FILE", "csv": "FILE", "coco": "FILE", "draw": "FOLDER", "system": "SYSTEM",
    "depth": "DEPTH", "depths": "DEPTH ...", "beyond": "DEPTH", "size": "PIXELS", "arms": "ARM ...",
    "budget_ms": "MS", "budget_macs": "MACS", "min_accuracy": "SHARE", "target_accuracy": "SHARE",
    "fidelity": "TEACHER ...", "teacher_mean": "R G B", "teacher_std": "R G B", "control": "RUN",
    "head": "ENTITY", "tail": "ENTITY", "near": "ENTITY", "relation": "RELATION", "test": "FILE",
    "add": "FILE", "remove": "FILE", "gone": "FILE", "base": "BASE", "delta": "DELTA",
}  # fmt: skip
WORDS_BY_TYPE = {int: "N", float: "X", str: "NAME"}
NUMBERS = {int: "a whole number", float: "a number"}
#: What begins a hint in tyro's messages about wrong flags.
HINTS = ("Perhaps you meant", "Arguments similar")
REGISTRY = tyro.constructors.ConstructorRegistry()
#: Noted Ctrl-C: an import that it cuts off may end with any error, or swallow it.
INTERRUPTS: list[int] = []


def call(function: Callable[..., Any], prog: str, arguments: Sequence[str], more: str = "") -> Any:
    """Call a function with its flags, once all numbers are in range; `more` ends its description.

    ValueError, in one line, for flags that the function does not take.
    """
    text = "\n\n".join(filter(None, (description(function), more)))
    with _errors_in_one_line(prog):
        run = tyro.cli(
            _prepared(function), prog=prog, args=arguments, description=text, registry=REGISTRY,
            config=(tyro.conf.DisallowNone,),
        )  # fmt: skip
    return run()


@contextlib.contextmanager
def _errors_in_one_line(prog: str) -> Iterator[None]:
    """Raise ValueError, in one line, where tyro would print a box and exit."""
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed):
            yield
    except SystemExit as stop:
        if stop.code != 2:
            raise
        raise ValueError(f"{in_one_line(printed.getvalue())} ({prog} --help)") from None
    sys.stderr.write(printed.getvalue())


def in_one_line(box: str) -> str:
    """Say in one line what tyro prints as a box of several lines about wrong arguments."""
    bordered = "│" in box
    lines = [line[2:].rstrip(" │") for line in box.splitlines() if line[:1] in " │"]
    rules = [i for i, line in enumerate(lines) if line and not line.strip("─-")]
    parts = [lines[a + 1 : b] for a, b in zip([-1, *rules], [*rules, len(lines)], strict=True)]
    parts = [part for part in parts[not bordered :] if part]  # without borders, a title comes first
    near = [part[1].split()[0].rstrip(",") for part in parts if part[0].startswith(HINTS)]
    messages = []
    for part in parts:
        text = " ".join(" ".join(part).split())
        if part[0].startswith("Missing from"):
            flags = [line.strip() for line in part if re.match(r" {4}\S", line)]
            messages.append(f"missing: {', '.join(flags)}")
        elif match := re.match(r"Unrecognized options: ?(.*)", text):
            words = re.split(r",? ", match[1])
            if flags := [word for word in words if word.startswith("-")]:
                hint = f"; did you mean {', '.join(near)}?" if near else ""
                messages.insert(0, f"no flag {', '.join(flags)}{hint}")
            else:
                messages.insert(0, f"too many words: {' '.join(words)}")
        elif match := re.match(r"invalid choice (.*) for argument '(.*)'\. .* one of \((.*)\)", text):
            # of some types tyro lists a set, and None stands for a flag that is left out
            choices = sorted({*re.findall("'(.*?)'", match[3])} - {"None"})
            messages.append(f"{match[2]} {match[1]}: take one of {', '.join(choices)}")
        elif match := re.match(r"Missing value for argument '(.*?)'", text):
            messages.append(f"{match[1]}: the value is missing")
        elif match := re.match(r"Error parsing (\S+?): (?:.*Got errors: .*?: )?(.*)", text):
            unread = r"Could not (?:parse arguments|find valid parse for arguments:) \[(.*?)\].*"
            reason = re.sub(unread, r"cannot read \1", match[2])
            messages.append(f"{match[1]}: {reason}")
    return "; ".join(messages) or " ".join(box.split())


Members = Mapping[str, Callable[..., Any]]


def print_completion(
    prog: str, commands: Members, groups: Mapping[str, Members], arguments: Sequence[str]
) -> None:
    """Print a shell's completion of commands and groups of commands, with their flags."""

    def group(members: Members) -> Callable[..., None]:
        def command(which: Any) -> None: ...

        choices = (
            Annotated[type(name, (), {}), tyro.conf.subcommand(name, constructor=_prepared(member))]
            for name, member in members.items()
        )
        union = Union[tuple(choices)]  # noqa: UP007
        flat = tyro.conf.OmitArgPrefixes[tyro.conf.OmitSubcommandPrefixes[union]]
        command.__annotations__["which"] = flat
        return command

    known = {name: _prepared(function) for name, function in commands.items()}
    known |= {name: group(members) for name, members in groups.items()}
    tyro.extras.subcommand_cli_from_dict(known, prog=prog, args=arguments, registry=REGISTRY)


def _prepared(function: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a function: help in words for tyro; it gives a call that checks the numbers first."""

    @functools.wraps(function)
    def checked(**values: Any) -> Callable[[], Any]:
        def run() -> Any:
            check_numbers(values)
            if INTERRUPTS:
                raise KeyboardInterrupt
            return function(**values)

        return run

    # tyro reads the docstring of what is wrapped, and wraps each of its lines by itself
    del checked.__wrapped__
    checked.__signature__ = inspect.signature(function)  # type: ignore[attr-defined]
    checked.__annotations__ = _in_words(function)
    checked.__doc__ = re.sub(r"\n {8,}(?=\S)", " ", inspect.cleandoc(function.__doc__ or ""))
    return checked


def _in_words(function: Callable[..., Any]) -> dict[str, Any]:
    """Give a function's annotations, with words for its values and titles of its groups of flags."""

    def shown(name: str, hint: Any) -> Any:
        base, *more = get_args(hint) if get_origin(hint) is Annotated else (hint,)
        words = flag(WORDS_BY_NAME.get(name))
        if is_dataclass(base):
            words = tyro.conf.arg(name=getattr(base, "TITLE", name))
        return Annotated[(base, words, *more)]

    hints = get_type_hints(function, include_extras=True)
    return {name: shown(name, hint) for name, hint in hints.items()}


@REGISTRY.primitive_rule
def _number_or_name(
    info: tyro.constructors.PrimitiveTypeInfo,
) -> tyro.constructors.PrimitiveConstructorSpec[Any] | None:
    """Read a value of a plain type as tyro does, under its word."""
    make: Any = info.type
    if make not in WORDS_BY_TYPE:
        return None

    def read(texts: list[str]) -> Any:
        try:
            return make(texts[0])
        except ValueError:
            raise ValueError(f"{texts[0]!r} is not {NUMBERS[make]}") from None

    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1, metavar=WORDS_BY_TYPE[make], instance_from_str=read,
        is_instance=lambda value: isinstance(value, make), str_from_instance=lambda value: [str(value)],
    )  # fmt: skip


@REGISTRY.primitive_rule
def _choice_or_nothing(
    info: tyro.constructors.PrimitiveTypeInfo,
) -> tyro.constructors.PrimitiveConstructorSpec[Any] | None:
    """Read one of several words; tyro would list None among them where that is the default."""
    words = [word for option in get_args(info.type) for word in get_args(option)]
    if type(None) not in get_args(info.type) or not all(isinstance(word, str) for word in words):
        return None
    if not words or len(get_args(info.type)) != 2:
        return None
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1, metavar="{" + ",".join(words) + "}", instance_from_str=lambda texts: texts[0],
        is_instance=lambda value: value is None or value in words,
        str_from_instance=lambda value: [str(value)], choices=tuple(words),
    )  # fmt: skip


def show_help(prog: str, lines: dict[str, str], arguments: Sequence[str], text: str) -> None:
    """Print the help of a group of commands: by command, what it does."""

    def stub(line: str) -> Callable[[], None]:
        def command() -> None: ...

        command.__doc__ = line
        return command

    with _errors_in_one_line(prog):
        tyro.extras.subcommand_cli_from_dict(
            {name: stub(line) for name, line in lines.items()}, prog=prog,
            args=arguments or ["--help"], description=text,
        )  # fmt: skip


def first_sentence(function: Callable[..., Any]) -> str:
    """Give the first paragraph of a function's docstring."""
    return (function.__doc__ or "").split("\n\n")[0].strip()


def description(function: Callable[..., Any]) -> str:
    """Give a function's docstring without arguments, each example on a line of its own."""
    text, _, _ = inspect.cleandoc(function.__doc__ or "").partition("Args:")
    does, _, examples = text.partition("Examples:")
    lines = [f"  {line.strip()}" for line in examples.splitlines() if line.strip()]
    return "\n".join([does.strip(), *(["", "Examples:"] if lines else []), *lines])


def imported(module: str | None) -> Callable[[], Any] | None:
    """Import what --module names, also from the current folder; ValueError if it cannot be used."""
    if module is None:
        return None
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    package, _, name = module.partition(":")
    try:
        made = pkgutil.resolve_name(f"{package}:{name}") if name else None
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"--module {module}: {error}; name PACKAGE:CLASS, importable from here"
        ) from error
    if not callable(made):
        raise ValueError(f"--module {module} is no class or function: name PACKAGE:CLASS")
    return made


def unknown(noun: str, name: str, known: Iterable[str]) -> ValueError:
    """Give the error about a name that does not exist, with the nearest that does."""
    names = list(known)
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {near[0]!r}? There" if near else "there"
    return ValueError(f"no {noun} {name!r}; {hint} are {', '.join(names)}")


def check_place(flag: str, path: Path, *suffixes: str) -> None:
    """Refuse a file to write that is a folder, or that lies in no folder, by the name of its flag.

    Args:
        suffixes: of files that may be replaced, like files without one; others are refused.
    """
    if path.is_dir():
        raise ValueError(f"{flag} {path} is a folder: name a file")
    if not path.parent.is_dir():
        raise ValueError(f"{flag} {path}: there is no folder {path.parent}; make it first")
    if path.is_file() and path.suffix and path.suffix.lower() not in suffixes:
        kinds = " or ".join(suffixes)
        raise ValueError(f"{flag} {path} exists and is no {kinds} file: name another, or remove it")
