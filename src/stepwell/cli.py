"""The command line: `stepwell COMMAND ...`.

A command is imported when it is called, so that `--help` is quick.
"""

import os
import re
import signal
import sys
import warnings
from pkgutil import resolve_name
from typing import Any, NoReturn

from stepwell import __version__
from stepwell.commands.arguments import INTERRUPTS, call, print_completion, show_help, unknown
from stepwell.console import fail, say
from stepwell.memory import keep_freed_memory

#: By name: "module:function", and a line of help.
COMMANDS = {
    name: (f"stepwell.commands.{name}:{function}", line)
    for name, (function, line) in {
        "list": ("list_", "Name the systems, networks and data sets."),
        "train": ("train", "Train by a recipe, or resume a run."),
        "eval": ("eval_", "Measure accuracy, calibration, churn, MACs and latency."),
        "cost": ("cost", "Measure params, MACs, memory and milliseconds of every depth or choice."),
        "calibrate": ("calibrate", "Add untrained depths to a network."),
        "predict": ("predict", "Classify images or texts, or find the objects in images."),
        "export": ("export", "Write depths as files for other programs."),
        "patch": ("patch", "Make the weights of a deeper depth with a delta."),
        "kg": ("kg", "Change, update and ask a knowledge graph."),
        "serve": ("serve", "Answer requests over HTTP within a promised time."),
        "report": ("report", "Write a self-contained page about runs, with figures."),
        "verify": ("verify", "Run a system's experiment: paper, measured, verdict."),
    }.items()
}
#: Commands that parse their own arguments.
GROUPS = ("train", "kg")
#: Characters of a message that would break its line.
CONTROLS = re.compile(r"[\x00-\x1f\x7f]+")
#: Errors of bad input, of the machine, or of a missing extra; any other error is a bug.
FORESEEN = (ValueError, OSError, ImportError)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; exits with 2 and one line on bad input.

    Set STEPWELL_DEBUG to see the traceback of an error.
    """
    own_process = arguments is None
    if own_process:
        signal.signal(signal.SIGINT, _interrupt)
        keep_freed_memory()
    arguments = sys.argv[1:] if arguments is None else arguments
    warnings.showwarning = _show_warning
    if arguments[:1] == ["--version"]:
        sys.stdout.write(f"stepwell {__version__}\n")
        return
    try:
        _run(arguments)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (KeyboardInterrupt, Exception) as error:
        if own_process:  # an interrupt while the process ends would show a traceback
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        if isinstance(error, KeyboardInterrupt) or INTERRUPTS:
            _stop(error)
        memory = _asks_memory(error)
        if os.environ.get("STEPWELL_DEBUG") or not (memory or isinstance(error, FORESEEN)):
            raise
        fail(memory or CONTROLS.sub(" ", _message(error)))
        raise SystemExit(2) from None


def _interrupt(signum: int, _: object) -> None:
    INTERRUPTS.append(signum)
    raise KeyboardInterrupt


def _stop(error: BaseException) -> NoReturn:
    where = str(error) if isinstance(error, KeyboardInterrupt) else ""
    say(f"stopped ({where}): the same command goes on from there" if where else "stopped")
    raise SystemExit(128 + getattr(error, "signum", signal.SIGINT)) from None


def _run(arguments: list[str]) -> None:
    name, *rest = arguments or ["--help"]
    if name in COMMANDS:
        command = resolve_name(COMMANDS[name][0])
        if name in GROUPS:
            command(rest)
        else:
            call(command, f"stepwell {name}", rest)
    elif name.startswith("--tyro-"):
        _complete(arguments)
    elif name.startswith("-"):
        lines = {command: line for command, (_, line) in COMMANDS.items()}
        text = (
            "Train one network, run it at any depth, and teach it by distillation.\n\n"
            "Start with:\n"
            "  stepwell train ekd --data digits --out runs/digits\n"
            "  stepwell COMMAND --help    (flags and examples of a command)\n"
            "  stepwell --version"
        )
        show_help("stepwell", lines, arguments, text)
    else:
        raise unknown("command", name, COMMANDS)


def _complete(arguments: list[str]) -> None:
    """Print a shell's completion of every command and recipe, as tyro's own flag asks for it."""
    from stepwell.commands.kg import KG
    from stepwell.recipes import RECIPES

    commands = {n: resolve_name(place) for n, (place, _) in COMMANDS.items() if n not in GROUPS}
    recipes = {name: resolve_name(place) for name, (place, _) in RECIPES.items()}
    print_completion("stepwell", commands, {"train": recipes, "kg": KG}, arguments)


def _asks_memory(error: Exception) -> str:
    """Give the message about too little memory; empty for another error."""
    words = ("not enough memory", "out of memory", "can't allocate memory")
    if isinstance(error, MemoryError) or any(word in str(error) for word in words):
        return "there is too little memory: take a smaller network, batch or size"
    return ""


def _message(error: Exception) -> str:
    if isinstance(error, FileNotFoundError) and error.filename:
        return f"no file {error.filename}"
    if isinstance(error, OSError) and error.strerror:
        where = f": {error.filename}" if error.filename else ""
        return f"{error.strerror}{where}"
    return str(error) or type(error).__name__


def _show_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    if issubclass(category, UserWarning):
        say(f"note: {' '.join(str(message).split())}")


if __name__ == "__main__":
    main()
