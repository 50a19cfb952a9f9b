"""Knowledge graphs (`stepwell.kg.KnowledgeGraph`); `stepwell kg` has their commands."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stepwell.console import say, show, table, written
from stepwell.measures import RANKS

if TYPE_CHECKING:
    from stepwell.kg import KnowledgeGraph

NAME = "a knowledge graph"
ADVICE = dict.fromkeys(("predict", "export", "delta", "cost", "serve"), "stepwell kg query asks it") | {
    "evaluate": "stepwell kg eval ranks test triples",
    "calibrate": "stepwell kg update adds and removes triples",
}
NEXT = (
    "stepwell kg query {run} --near ENTITY",
    "stepwell kg update {run} --add NEW.tsv --remove GONE.tsv",
)
SECTIONS = ("stepwell.report.kg:graph_section",)


def open(path: Path, module: object = None) -> "KnowledgeGraph":
    """Open the graph of a run to ask it; `stepwell.kg.open` opens it for changes."""
    if module is not None:
        raise ValueError(f"{path} holds {NAME}, which has no module of its own: leave --module out")
    from stepwell.kg import open as open_graph

    return open_graph(path, write=False)


def show_results(results: Mapping[str, Any], title: str, *, brief: bool = False) -> None:
    """Print the ranks of test triples, and the size of the graph."""
    if results["test"]:
        show_ranks(f"{title}: {results['examples']:,} triples", results["test"])
    size = results["dkge"]
    say(f"embedded {size['triples']:,} triples of {size['entities']:,} entities")


def show_ranks(title: str, ranks: Mapping[str, float]) -> None:
    """Print how true triples rank, beside removed ones where those were ranked."""
    columns = {"true": ""} | ({"gone": "gone/"} if "gone/mrr" in ranks else {})
    rows = [
        [measure.title, *(written(measure, ranks[start + key]) for start in columns.values())]
        for key, measure in RANKS.items()
    ]
    show(table(title, ["filtered, ties in the middle", *columns], rows))
