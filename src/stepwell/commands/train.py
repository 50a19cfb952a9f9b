"""`stepwell train`: its flags are the signatures of the recipes."""

import difflib
import functools
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from stepwell.commands.arguments import call, show_help, unknown
from stepwell.commands.help_cache import show_cached
from stepwell.console import print_json, say
from stepwell.files import read_json
from stepwell.flags import flags_of, groups_of
from stepwell.kinds import kind_module
from stepwell.recipes import RECIPES


def train(arguments: list[str]) -> None:
    """Train by a recipe, or resume a run."""
    if not arguments or arguments[0] in ("-h", "--help"):
        lines = {name: line for name, (_, line) in RECIPES.items()}
        text = (
            f"{train.__doc__} A run resumes if its directory exists with the same arguments and data."
            "\n\nstepwell train RECIPE --help shows its flags."
        )
        show_help("stepwell train", lines, arguments, text)
        return
    name, *rest = [a for a in arguments if a != "--json"]
    if name not in RECIPES:
        raise unknown("recipe", name, RECIPES)
    find = functools.partial(resolve_name, RECIPES[name][0])
    if rest in (["-h"], ["--help"]) and "torch" not in sys.modules:
        show_cached(f"train-{name}", lambda: _call(name, find(), rest))
        return
    recipe = find()
    rest = with_config(name, recipe, rest)
    refuse_flags_of_others(name, recipe, rest)
    started: dict[str, Any] = {}

    @functools.wraps(recipe)
    def remembering(**values: Any) -> Any:
        out = values["out"]
        started.update(out=out, written=_written(out))
        try:
            return recipe(**values)
        except KeyboardInterrupt as stop:
            if str(stop) or not any(out.glob("phases/*/last.ckpt")):
                raise  # within a phase, which has named its place; or before the first one
            raise KeyboardInterrupt(f"the finished phases are kept in {out}") from None

    results = _call(name, remembering, rest)
    if "--json" in arguments:
        print_json(results)
        return
    out, kind = started["out"], kind_module(results["kind"])
    kind.show_results(results, f"{name}, on the test part", brief=True)
    if started["written"] == _written(out):
        say(f"nothing was trained: {out} holds this run, finished; next, try:")
    else:
        say(f"trained in {results['seconds']:.0f} s; next, try:")
    for command in kind.NEXT:
        say(f"  {command.format(run=shlex.quote(str(out)), results=results)}")


def _call(name: str, recipe: Callable[..., Any], arguments: Sequence[str]) -> Any:
    more = "With --json, results are JSON. --config RUN/config.json takes an earlier run's flags."
    return call(recipe, f"stepwell train {name}", arguments, more)


def with_config(name: str, recipe: Callable[..., Any], given: Sequence[str]) -> list[str]:
    """Put the flags that --config FILE holds before the `given` ones, which win.

    The file is a run's config.json, or a JSON object of flags written by hand. ValueError for a file
    that is neither, of another recipe, or with a flag that the recipe does not take.
    """
    if "--config" not in given:
        return [*given]
    index = given.index("--config")
    if index + 1 == len(given):
        raise ValueError("--config: name a file, such as RUN/config.json")
    file, rest = Path(given[index + 1]), [*given[:index], *given[index + 2 :]]
    content = read_json(file / "config.json" if file.is_dir() else file, "name a run's config.json")
    of_run = {"recipe", "arguments"} <= content.keys()
    if of_run and content["recipe"] != name:
        raise ValueError(f"--config {file} is of train {content['recipe']}, not of train {name}")
    hidden = groups_of(recipe).get("ablation", type(None))
    only_python = vars(hidden()) if is_dataclass(hidden) else {}
    known = flags_of(recipe) - only_python.keys()
    flags: dict[str, Any] = {}
    for key, value in (content["arguments"] if of_run else content).items():
        flags |= value if isinstance(value, dict) else {key.replace("-", "_"): value}
    typed = _flag_names(rest)
    tokens: list[str] = []
    for key, value in flags.items():
        if key in known and not {key, f"no_{key}"} & typed:
            tokens += _tokens(key.replace("_", "-"), value)
        elif key in only_python and value != only_python[key]:
            raise ValueError(
                f"--config {file}: {key} {value} is set in Python only (stepwell.recipes.train)"
            )
        # what a recipe records beside its flags is empty
        elif key not in known | only_python.keys() and (value or not of_run):
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ValueError(f"--config {file}: train {name} has no flag {key}{hint}")
    return [*tokens, *rest]


def refuse_flags_of_others(name: str, recipe: Callable[..., Any], given: Sequence[str]) -> None:
    """Raise ValueError for a flag of images or texts that was given to a recipe that takes none."""
    from stepwell.data.box_files import BoxFiles
    from stepwell.data.image_flags import Images, TrainingImages
    from stepwell.data.text_files import TextFiles

    groups, known = [*groups_of(recipe).values()], flags_of(recipe)
    images = [f.name for f in fields(TrainingImages) if f.name != "balance"] + ["stem"]
    texts = [f.name for f in fields(TextFiles)]
    for noun, of_noun, group in (("images", images, (Images, BoxFiles)), ("texts", texts, TextFiles)):
        wrong = [f for f in of_noun if f in _flag_names(given) - known]
        if wrong and not any(issubclass(taken, group) for taken in groups):
            flag = wrong[0].replace("_", "-")
            raise ValueError(f"--{flag} is for {noun}, and train {name} takes none: leave it out")


def _flag_names(tokens: Sequence[str]) -> set[str]:
    """The names of the flags among the words of a command line."""
    return {t.partition("=")[0].strip("-").replace("-", "_") for t in tokens if t[:2] == "--"}


def _tokens(flag: str, value: Any) -> list[str]:
    """A flag as the command line has it."""
    if value is None:
        return []
    if isinstance(value, bool) and flag != "flip":
        return [f"--{flag}"] if value else []
    values = value if isinstance(value, list) else [value]
    return [f"--{flag}", *map(str, values)] if values else []


def _written(run: Path) -> int | None:
    """Read when a run wrote its results, in nanoseconds; None before that."""
    results = run / "results.json"
    return results.stat().st_mtime_ns if results.exists() else None
