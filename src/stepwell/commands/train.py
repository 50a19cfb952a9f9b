"""`stepwell train`: its flags are the signatures of the recipes."""

import functools
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from stepwell.commands.arguments import call, show_help
from stepwell.console import print_json, say
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
        raise ValueError(f"no recipe {name!r}; there are {', '.join(RECIPES)}")
    recipe = resolve_name(RECIPES[name][0])
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

    more = "With --json, the results are printed as one JSON document."
    results = call(remembering, f"stepwell train {name}", rest, more)
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
        say(f"  {command.format(run=out, results=results)}")


def _written(run: Path) -> int | None:
    """Read when a run wrote its results, in nanoseconds; None before that."""
    results = run / "results.json"
    return results.stat().st_mtime_ns if results.exists() else None
