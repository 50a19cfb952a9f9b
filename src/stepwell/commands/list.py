"""`stepwell list`."""

from stepwell.catalog import DATA, NETWORKS
from stepwell.claims import CLAIMS
from stepwell.commands.arguments import Json
from stepwell.console import print_json, show, table
from stepwell.recipes import RECIPES


def list_(*, json: Json = False) -> None:
    """Name the systems, networks and data sets.

    Examples:
        stepwell list
    """
    groups = {
        "recipes": {name: line for name, (_, line) in RECIPES.items()},
        "claims": {name: line for name, (_, line) in CLAIMS.items()},
        "networks": NETWORKS,
        "data": DATA,
    }
    if json:
        print_json(groups)
        return
    titles = {
        "recipes": "train RECIPE",
        "claims": "verify SYSTEM",
        "networks": "--net NETWORK",
        "data": "--data D",
    }
    for group, entries in groups.items():
        show(table(titles[group], ["name", "description"], entries.items(), words=2))
