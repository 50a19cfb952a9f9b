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
    recipes, claims = ({n: line for n, (_, line) in g.items()} for g in (RECIPES, CLAIMS))
    groups = {"recipes": recipes, "claims": claims, "networks": NETWORKS, "data": DATA}
    if json:
        print_json(groups)
        return
    titles = ("train RECIPE", "verify SYSTEM", "--net NETWORK", "--data D")
    for title, entries in zip(titles, groups.values(), strict=True):
        show(table(title, ["name", "description"], entries.items(), words=2))
