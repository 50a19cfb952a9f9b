"""Graphs of networkx and igraph as complex networks (extra `networks`)."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from stepwell.data.formats import Graph
from stepwell.data.pictures.network import Network, numbered
from stepwell.data.pictures.reading import Lines, weight_of


def network_of(graph: Graph, how: Mapping[str, Any]) -> Network:
    """The network that a file of this graph would hold; "weight" is the weight of an edge.

    Args:
        how: as for `parse_network`.

    Raises:
        ValueError: it has no edge, or more than `how` allows; two nodes have one name as text; a
            weight is negative or no finite number; or `how` refuses it.
    """
    read = _read_igraph if hasattr(graph, "get_edgelist") else _read_networkx
    nodes, edges, weights = read(graph)
    if len(edges) > how["max_edges"]:
        raise ValueError(f"more than {how['max_edges']:,} edges: train with a higher --max-edges")
    names = [*map(str, nodes)]
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise ValueError(f"two nodes of the graph are named {twice[0]!r}: rename one")
    sources, targets = ([str(edge[i]) for edge in edges] for i in (0, 1))
    numbers = None
    if any(weight is not None for weight in weights):
        numbers = [
            1.0 if weight is None else weight_of(str(weight), f"the edge from {a!r} to {b!r}")
            for a, b, weight in zip(sources, targets, weights, strict=True)
        ]
    return numbered(Lines(sources, targets, numbers, names, graph.is_directed()), how)


def _read_networkx(graph: Any) -> tuple[list[Any], list[tuple[Any, Any]], list[Any]]:
    """Nodes, edges and their weights; None for an edge without one."""
    edges = [*graph.edges(data="weight")]
    return [*graph.nodes], [edge[:2] for edge in edges], [edge[2] for edge in edges]


def _read_igraph(graph: Any) -> tuple[list[Any], list[tuple[Any, Any]], list[Any]]:
    """Nodes by "name", or by number; edges and their weights."""
    nodes = graph.vs["name"] if "name" in graph.vs.attributes() else [*range(graph.vcount())]
    edges = [(nodes[a], nodes[b]) for a, b in graph.get_edgelist()]
    weighted = "weight" in graph.es.attributes()
    return nodes, edges, graph.es["weight"] if weighted else [None] * len(edges)
