"""`stepwell list`."""

from typing import Literal

from tyro.conf import Positional

from stepwell.catalog import DATA, DYNAMIC, NETWORKS, PUBLISHED
from stepwell.claims import CLAIMS
from stepwell.commands.arguments import Json
from stepwell.console import print_json, show, table, tree
from stepwell.recipes import RECIPES


def list_(what: Positional[Literal["all", "dynamic"]] = "all", *, json: Json = False) -> None:
    """Name the systems, networks and data sets.

    Examples:
        stepwell list
        stepwell list dynamic

    Args:
        what: all, or dynamic: the ways to spend less on easy inputs, as a tree.
    """
    if what == "dynamic":
        _list_dynamic(json=json)
        return
    recipes, claims = ({name: line for name, (_, line) in group.items()} for group in (RECIPES, CLAIMS))
    groups = {"recipes": recipes, "claims": claims, "networks": NETWORKS, "data": DATA}
    if json:
        print_json(groups)
        return
    titles = ("train RECIPE", "verify SYSTEM", "--net NETWORK", "--data D")
    for title, entries in zip(titles, groups.values(), strict=True):
        show(table(title, ["name", "description"], entries.items(), words=2))


def _list_dynamic(*, json: bool) -> None:
    """Print the leaves of dynamic inference: recipe, paper, and the study of its claims."""
    if json:
        keys = ("recipe", "paper", "study")
        print_json({
            section: {
                leaf: dict(zip(keys, entry, strict=True)) | {"verified": entry[2] in PUBLISHED}
                for leaf, entry in leaves.items()
            }
            for section, leaves in DYNAMIC.items()
        })  # fmt: skip
        return
    branches = {
        section: [
            f"{leaf}: train {recipe} · {paper} · verify {system}"
            + " (no results yet)" * (system not in PUBLISHED)
            for leaf, (recipe, paper, system) in leaves.items()
        ]
        for section, leaves in DYNAMIC.items()
    }
    show(tree("dynamic inference: leaf, recipe, paper, study of its claims", branches))
