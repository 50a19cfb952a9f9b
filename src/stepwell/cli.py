"""The command line: `stepwell COMMAND ...`.

Signatures are the flags. Heavy imports stand inside the functions, so that `--help` and `list` import
no torch.
"""

import functools
import inspect
import os
import signal
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import tyro

from stepwell import __version__, commands
from stepwell.console import depth_table, fail, print_json, say, show, show_classes, show_conditions
from stepwell.ranges import check_numbers
from stepwell.recipes import RECIPES, load_object

#: What bad input, a machine or a missing extra raises; anything else is a mistake of ours.
FORESEEN = (ValueError, OSError, ImportError)
#: Ctrl-C noted: an import that it cuts off may end with any error, or swallow it.
INTERRUPTS: list[int] = []
TRAINED = ("blocks", "params", "macs", "accuracy", "ms")


def train(arguments: list[str]) -> None:
    """Train by a recipe; resumes if the run directory exists with the same arguments and data."""
    json = "--json" in arguments
    arguments = [a for a in arguments if a != "--json"]
    if not arguments or arguments[0] in ("-h", "--help"):
        stubs = {name: _described(line) for name, (_, line) in RECIPES.items()}
        tyro.extras.subcommand_cli_from_dict(
            stubs,
            prog="stepwell train",
            args=arguments or ["--help"],
            description=f"{train.__doc__}\n\nstepwell train RECIPE --help shows its flags.",
        )
        return
    name, *rest = arguments
    if name not in RECIPES:
        raise ValueError(f"no recipe {name!r}; there are {', '.join(RECIPES)}")
    recipe = _checked(load_object(RECIPES[name][0]))
    used: dict[str, Any] = {}

    @functools.wraps(recipe)
    def remembering(**arguments: Any) -> Any:
        out = arguments["out"]
        used.update(arguments, before=_written(out))
        try:
            return recipe(**arguments)
        except KeyboardInterrupt as stop:
            if str(stop) or not any(out.glob("phases/*/last.ckpt")):
                raise  # within a phase, which has said where; or before the first one
            raise KeyboardInterrupt(f"the phases so far are kept in {out}") from None

    results = tyro.cli(
        remembering,
        prog=f"stepwell train {name}",
        args=rest,
        description=f"{_description(recipe)}\n\n--json prints the results as one JSON document.",
    )
    if json:
        print_json(results)
        return
    if results["kind"] == "graph":
        commands.show_graph(results, used["out"])
        return
    title, what = f"{name}, on the test part", results["rows"]
    show(depth_table(title, TRAINED, results["costs"], results["test"], what=what))
    show_classes(results["test"])
    show_conditions(results["costs"])
    if "drnet" in results:
        commands.show_choices(results["drnet"])
    if used["before"] == _written(used["out"]):
        say(f"nothing was trained: {used['out']} holds this run, finished; next, try:")
    else:
        say(f"trained in {results['seconds']:.0f} s; next, try:")
    for command in ("eval", "export", "report"):
        say(f"  stepwell {command} {used['out']}")
    say(f"  stepwell predict {used['out']} IMAGE|FOLDER...")


def kg(arguments: list[str]) -> None:
    """Change, update and ask the graph of a run of `stepwell train dkge`.

    Examples:
        stepwell kg update runs/graph --add new.tsv --remove gone.tsv
        stepwell kg query runs/graph --head Paris --relation capital_of
        stepwell kg eval runs/graph --test test.tsv
    """
    name, *rest = arguments or ["--help"]
    if name in commands.KG:
        command = _checked(commands.KG[name])
        tyro.cli(command, prog=f"stepwell kg {name}", args=rest, description=_description(command))
        return
    if not name.startswith("-"):
        raise ValueError(f"no command kg {name!r}; there are {', '.join(commands.KG)}")
    stubs = {n: _described(_first_part(command)) for n, command in commands.KG.items()}
    tyro.extras.subcommand_cli_from_dict(
        stubs, prog="stepwell kg", args=[name], description=_description(kg)
    )


#: Commands that take their arguments apart themselves.
GROUPS: dict[str, Callable[[list[str]], None]] = {"train": train, "kg": kg}


def _written(run: Path) -> int | None:
    """When a run wrote its results, in nanoseconds; none before it has."""
    results = run / "results.json"
    return results.stat().st_mtime_ns if results.exists() else None


COMMANDS: dict[str, Callable[..., None]] = {
    "list": commands.list_,
    "train": train,
    "eval": commands.eval_,
    "cost": commands.cost,
    "calibrate": commands.calibrate,
    "predict": commands.predict,
    "export": commands.export,
    "patch": commands.patch,
    "kg": kg,
    "report": commands.report,
    "verify": commands.verify,
}


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; exits with 2 and one line on bad input.

    Set STEPWELL_DEBUG to see where an error came from.
    """
    own_process = arguments is None
    if own_process:
        signal.signal(signal.SIGINT, _interrupt)
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
        if os.environ.get("STEPWELL_DEBUG") or not isinstance(error, FORESEEN):
            raise
        fail(_message(error))
        raise SystemExit(2) from None


def _interrupt(signum: int, _: object) -> None:
    INTERRUPTS.append(signum)
    raise KeyboardInterrupt


def _stop(error: BaseException) -> NoReturn:
    where = str(error) if isinstance(error, KeyboardInterrupt) else ""
    say(f"stopped ({where}): the same command goes on from there" if where else "stopped")
    raise SystemExit(128 + getattr(error, "signum", signal.SIGINT)) from None


def _run(arguments: list[str]) -> None:
    if arguments and arguments[0] in GROUPS:
        GROUPS[arguments[0]](arguments[1:])
        return
    if arguments and arguments[0] not in COMMANDS and not arguments[0].startswith("-"):
        raise ValueError(f"no command {arguments[0]!r}; there are {', '.join(COMMANDS)}")
    if arguments and arguments[0] in COMMANDS:
        name, *rest = arguments
        command = _checked(COMMANDS[name])
        tyro.cli(command, prog=f"stepwell {name}", args=rest, description=_description(command))
        return
    stubs = {name: _described(_first_part(command)) for name, command in COMMANDS.items()}
    tyro.extras.subcommand_cli_from_dict(
        stubs,
        prog="stepwell",
        args=arguments or ["--help"],
        description=(
            "Train one network, run it at any depth, and teach it by distillation.\n\n"
            "Start with: stepwell train ekd --data digits --out runs/digits\n"
            "stepwell COMMAND --help shows flags and examples; --version, the version."
        ),
    )


def _checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, called once all numbers are in their ranges and nobody has pressed Ctrl-C."""

    @functools.wraps(function)
    def checked(**arguments: Any) -> Any:
        check_numbers(arguments)
        if INTERRUPTS:
            raise KeyboardInterrupt
        return function(**arguments)

    return checked


def _described(line: str) -> Callable[[], None]:
    """A command without flags, for a page of help."""

    def stub() -> None: ...

    stub.__doc__ = line
    return stub


def _first_part(function: Callable[..., Any]) -> str:
    return (function.__doc__ or "").split("\n\n")[0].strip()


def _description(function: Callable[..., Any]) -> str:
    """What a function does, and its examples as paragraphs of their own, which tyro keeps apart."""
    text, _, _ = inspect.cleandoc(function.__doc__ or "").partition("Args:")
    does, _, examples = text.partition("Examples:")
    lines = [f"Example: {line.strip()}" for line in examples.splitlines() if line.strip()]
    return "\n\n".join([does.strip(), *lines])


def _message(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        where = f": {error.filename}" if error.filename else ""
        return f"{error.strerror}{where}"
    return str(error) or type(error).__name__


def _show_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    if issubclass(category, UserWarning):
        say(f"note: {' '.join(str(message).split())}")


if __name__ == "__main__":
    main()
