"""Random networks whose classes are known: Barabási-Albert, Watts-Strogatz, and nulls of equal degrees.

    classes = {"ba": barabasi_albert(1000, 4), "ws": watts_strogatz(1000, 8, 0.1)}
    write_networks(Path("pair"), classes, train=300, test=200)

`rewired(of)` keeps every degree of a network and nothing else, so what tells it from the original lies
in more than degrees.
"""

import os
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Edges = NDArray[np.int64]
#: Gives the edges (m, 2) of a random network.
Generator = Callable[[np.random.Generator], Edges]
#: Rounds of swaps; in each, every edge may swap an end once.
ROUNDS = 20
#: Rounds of rewiring at most, times the number of nodes; in a dense network an edge may find no place.
TRIES = 100


def barabasi_albert(nodes: int, each: int) -> Generator:
    """Preferential attachment: every new node joins `each` nodes, drawn in proportion to degree.

    ValueError unless `each` is from 1 to `nodes` - 1.
    """
    if not 1 <= each < nodes:
        raise ValueError(f"each new one of {nodes} nodes cannot join {each}: name 1 to {nodes - 1}")

    def draw(rng: np.random.Generator) -> Edges:
        ends = np.empty(2 * each * (nodes - each), np.int64)
        chosen = np.arange(each)
        for number, node in enumerate(range(each, nodes)):
            at = 2 * each * number
            ends[at : at + each], ends[at + each : at + 2 * each] = node, chosen
            chosen = np.unique(ends[rng.integers(0, at + 2 * each, 2 * each)])
            while len(chosen) < each:
                chosen = np.union1d(chosen, ends[rng.integers(0, at + 2 * each, each)])
            chosen = rng.permutation(chosen)[:each]
        return ends.reshape(-1, 2, each).transpose(0, 2, 1).reshape(-1, 2)

    return draw


def watts_strogatz(nodes: int, degree: int, chance: float) -> Generator:
    """A ring in which every node joins its `degree` nearest; ends are rewired with some `chance`.

    ValueError for an odd degree, one without a free place for an edge, or a chance outside 0 to 1.
    """
    _check_share("chance", chance)
    most = (nodes - 1 - (chance > 0)) // 2 * 2  # a rewired edge needs a free place
    if degree % 2 or not 2 <= degree <= most:
        raise ValueError(
            f"on a ring of {nodes} nodes, a degree of {degree} is not possible: name an even one from "
            f"2 to {most}"
        )

    def draw(rng: np.random.Generator) -> Edges:
        near = np.arange(nodes)
        sources = np.tile(near, degree // 2)
        targets = np.concatenate([(near + step) % nodes for step in range(1, degree // 2 + 1)])
        moved = rng.random(len(sources)) < chance
        for _ in range(TRIES * nodes):  # until no edge is a loop or a copy
            if not moved.any():
                return np.stack([sources, targets], 1)
            targets[moved] = rng.integers(0, nodes, int(moved.sum()))
            moved &= _conflicts(sources, targets, nodes)
        raise ValueError(
            f"an edge of {nodes} nodes of degree {degree} has no place left: lower the degree"
        )

    return draw


def rewired(of: Generator) -> Generator:
    """The null of a network: the same degrees, and ends swapped at random (Maslov and Sneppen 2002)."""

    def draw(rng: np.random.Generator) -> Edges:
        edges = of(rng)
        nodes, half = int(edges.max()) + 1, len(edges) // 2
        for _ in range(ROUNDS):
            order = rng.permutation(len(edges))
            first, second = order[:half], order[half : 2 * half]
            flip = rng.random(half) < 0.5
            edges[second[flip]] = edges[second[flip]][:, ::-1]
            new = edges.copy()
            new[first, 1], new[second, 1] = edges[second, 1], edges[first, 1]
            while True:  # take back swaps that make loops or copies
                wrong = _conflicts(new[:, 0], new[:, 1], nodes)
                back = (wrong[first] | wrong[second]) & (new[first, 1] != edges[first, 1])
                if not back.any():
                    break
                for side in (first[back], second[back]):
                    new[side] = edges[side]
            edges = new
        return edges

    return draw


def without_edges(of: Generator, share: float) -> Generator:
    """A network that has lost a share of its edges at random; ValueError for one outside 0 to 1."""
    _check_share("share", share)

    def draw(rng: np.random.Generator) -> Edges:
        edges = of(rng)
        return edges[rng.random(len(edges)) >= share]

    return draw


def write_networks(
    folder: str | os.PathLike[str], classes: Mapping[str, Generator], train: int, test: int,
    seed: int = 0,
) -> None:  # fmt: skip
    """Write `train/CLASS/NUMBER.edges` and `test/...`; every network has random numbers of its own."""
    for index, (name, of) in enumerate(classes.items()):
        for number in range(train + test):
            part = Path(folder) / ("train" if number < train else "test") / name
            part.mkdir(parents=True, exist_ok=True)
            edges = of(np.random.default_rng([seed, index, number]))
            lines = "".join(f"{a} {b}\n" for a, b in edges.tolist())
            (part / f"{number:05d}.edges").write_text(f"# undirected\n{lines}", encoding="utf-8")


def _check_share(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"a {name} of {value:g}: name a number from 0 to 1")


def _conflicts(sources: Edges, targets: Edges, nodes: int) -> NDArray[np.bool_]:
    """Mark loops, and edges that are there more than once."""
    keys = np.minimum(sources, targets) * nodes + np.maximum(sources, targets)
    _, at, counts = np.unique(keys, return_inverse=True, return_counts=True)
    return (counts[at] > 1) | (sources == targets)
