"""Pictures of complex networks explained: what needs no picture, and which nodes decide."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from stepwell.data import ImageSet
from stepwell.data.pictures import store
from stepwell.data.pictures.network import Network, edge_list, parse_network, read_network
from stepwell.data.pictures.picture import Picture, draw
from stepwell.nets import NestedNet
from stepwell.nets.predictions import normalised
from stepwell.train_mode import in_eval_mode

Table = NDArray[np.float64]
#: Facts about networks by the name of the baseline that reads them.
BASELINES: Mapping[str, Sequence[str]] = {
    "nodes and edges": ("nodes", "edges"),
    "degrees": ("degree_mean", "degree_std", "degree_max"),
}
#: Share of the nodes that count as salient, and networks of the deletion test.
SALIENT, DELETED = 0.05, 40
#: By what share the edges of other nodes may differ from those of the salient ones.
UNLIKE = 0.1
#: Networks that the page shows, edges that it draws of each, and edges of a network to explain at most.
SHOWN, EDGES, LARGE = 6, 400, 20_000
#: The baseline that reads the sums of the picture's channels alone.
SUMS = "sum of the picture"


def baselines(train: ImageSet, test: ImageSet) -> dict[str, dict[str, float]]:
    """Accuracy and balanced accuracy on `test` of logistic regressions on few numbers, by name."""
    tables: dict[str, tuple[Table, ...]] = {
        name: tuple(np.stack([part.about[f] for f in facts], 1) for part in (train, test))
        for name, facts in BASELINES.items()
    }
    tables[SUMS] = tuple(map(channel_sums, (train, test)))
    labels = train.labels.numpy(), test.labels.numpy()
    return {name: regression(parts[0], parts[1], *labels) for name, parts in tables.items()}


def regression(
    train: Table, test: Table, train_labels: NDArray[np.int64], test_labels: NDArray[np.int64],
    *, balanced: bool = False,
) -> dict[str, float]:  # fmt: skip
    """Accuracies of a logistic regression on standardised numbers and their logarithms.

    balanced: all classes weigh the same in training, however many examples they have.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    weight = "balanced" if balanced else None
    model = make_pipeline(
        StandardScaler(), LogisticRegression(C=10, max_iter=2000, class_weight=weight)
    )
    model.fit(_logarithms(train), train_labels)
    return accuracies(model.predict(_logarithms(test)), test_labels)


def accuracies(predictions: NDArray[np.int64], labels: NDArray[np.int64]) -> dict[str, float]:
    """The share of right answers, and its mean over the classes."""
    right = predictions == labels
    by_class = [right[labels == label].mean() for label in np.unique(labels)]
    return {"accuracy": float(right.mean()), "balanced_accuracy": float(np.mean(by_class))}


def _logarithms(table: Table) -> Table:
    """Logarithms that keep the sign, and 0."""
    table = np.nan_to_num(table)
    return np.hstack([np.sign(table) * np.log1p(abs(table)), table])


def channel_sums(part: ImageSet) -> Table:
    """The sums of each picture's channels, (n, 3)."""
    return _pixels(part).reshape(len(part), 3, -1).sum(2)


def _pixels(part: ImageSet) -> Table:
    return part.pixels[torch.arange(len(part))].numpy().astype(np.float64)


def saliency(net: NestedNet, pixels: NDArray[np.uint8], label: int) -> Table:
    """Gradient times input of each cell (3, size, size): its part in a class's score."""
    x = normalised([pixels], net.card).requires_grad_()
    black = normalised([np.zeros_like(pixels)], net.card)
    with in_eval_mode(net), torch.enable_grad():
        logits = net(x)
        rest = [i for i in range(logits.shape[1]) if i != label]
        (gradient,) = torch.autograd.grad(logits[0, label] - logits[0, rest].mean(), x)
    scores: Table = (gradient * (x.detach() - black))[0].numpy().astype(np.float64)
    return scores


def salient_nodes(shown: Picture, cells: Table) -> NDArray[np.int64]:
    """The nodes in the most salient cells of all channels, the most salient first."""
    met = np.flatnonzero(shown.cells[0, :, 0] >= 0)
    scores = np.zeros(len(met))
    for channel, places in zip(cells, shown.cells, strict=True):
        row, column = places[met].T
        crowd = np.zeros(channel.shape)
        np.add.at(crowd, (row, column), 1)
        scores += channel[row, column] / crowd[row, column]
    return met[np.argsort(-scores, kind="stable")][: max(1, round(SALIENT * len(met)))]


def alike(network: Network, nodes: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
    """As many other nodes of equal degree, or the nearest one, drawn at random."""
    degrees = network.total_degrees
    free = np.setdiff1d(np.arange(len(network.names)), nodes)
    drawn = []
    for node in nodes.tolist():
        if not len(free):
            break
        apart = abs(degrees[free] - degrees[node]) + rng.random(len(free)) / 2
        drawn.append(free[apart.argmin()])
        free = free[free != drawn[-1]]
    return np.array(drawn, np.int64)


def without(network: Network, nodes: NDArray[np.int64], how: Mapping[str, Any]) -> Network:
    """The network without some nodes; ValueError if no edge is left."""
    gone = {str(i) for i in nodes.tolist()}
    numbered = replace(network, names=tuple(map(str, range(len(network.names)))))
    lines = [line for line in edge_list(numbered) if not gone & {*line.rstrip("\n").split("\t")[:2]}]
    return parse_network("".join(lines).encode(), ".tsv", how)


def explain(net: NestedNet, test: ImageSet, classes: Sequence[str], seed: int = 0) -> dict[str, Any]:
    """Find the cells and nodes that decide on some test networks, and delete these nodes as a test.

    Returns:
        "examples" for the page; "deletion": the mean fall of the margin between the predicted class
        and the others without the salient nodes, and without as many others of equal degree, the
        share of networks where the first is larger, and their number "n". Networks where no others
        have nearly as many edges are left out.
    """
    how, size = net.card.drawing, net.card.size
    rng = np.random.default_rng(seed)
    small = np.flatnonzero(test.about["edges"] <= LARGE)
    indices = rng.permutation(small)[:DELETED].tolist()
    examples, falls = list[dict[str, Any]](), list[tuple[float, float]]()
    with store.one_thread(), torch.no_grad():
        for index in store.shown(indices, "explaining networks", quiet=how["embedding"] == "ppmi"):
            network = read_network(str(test.about["path"][index]), how)
            shown = draw(network, how, size)
            logits = net(normalised([shown.pixels], net.card))[0]
            label = int(logits.argmax())
            cells = saliency(net, shown.pixels, label)
            nodes = salient_nodes(shown, cells)
            if len(examples) < SHOWN:
                true = classes[int(test.labels[index])]
                examples.append(_example(network, shown, cells, nodes) | {
                    "file": str(test.about["path"][index]), "class": true, "answer": classes[label],
                })  # fmt: skip
            others = alike(network, nodes, rng)
            degrees = network.total_degrees
            edges = degrees[nodes].sum()
            if abs(degrees[others].sum() - edges) > UNLIKE * edges:
                continue
            try:
                rivals = (nodes, others)
                drawn = [draw(without(network, gone, how), how, size).pixels for gone in rivals]
            except ValueError:  # too small to lose a node
                continue
            margins = [_margin(row, label) for row in (logits, *net(normalised(drawn, net.card)))]
            falls.append((margins[0] - margins[1], margins[0] - margins[2]))
    table = np.array(falls).reshape(-1, 2)
    deletion: dict[str, float] = {"n": len(table)}
    if len(table):
        salient, other = table.mean(0).tolist()
        larger = float((table[:, 0] > table[:, 1]).mean())
        deletion |= {"salient": salient, "equal degree": other, "larger": larger}
    return {"examples": examples, "deletion": deletion}


def _margin(logits: torch.Tensor, label: int) -> float:
    rest = torch.cat([logits[:label], logits[label + 1 :]])
    return float(logits[label] - rest.mean())


def _example(
    network: Network, shown: Picture, cells: Table, nodes: NDArray[np.int64]
) -> dict[str, Any]:
    """A picture, its salient cells, and the salient nodes with their edges, as JSON holds them."""
    sources = np.repeat(np.arange(len(network.names)), network.degrees)
    places, cells = shown.cells[0], cells.sum(0)
    near = np.isin(sources, nodes) & (places[network.neighbours, 0] >= 0)
    ends = np.stack([sources[near], network.neighbours[near]], 1)[:EDGES]
    scale = max(abs(cells).max(), np.finfo(float).tiny)
    return {
        "pixels": shown.pixels.tolist(), "saliency": np.round(cells / scale, 3).tolist(),
        "nodes": [network.names[i] for i in nodes.tolist()], "cells": places[nodes].tolist(),
        "edges": places[ends].tolist(),
    }  # fmt: skip


def class_means(part: ImageSet) -> dict[str, Any]:
    """The mean picture of each class, as JSON holds it."""
    pixels, labels = _pixels(part), part.labels.numpy()
    means = {c: pixels[labels == i].mean(0) for i, c in enumerate(part.classes) if (labels == i).any()}
    return {
        name: np.round(mean).astype(int).transpose(1, 2, 0).tolist() for name, mean in means.items()
    }


def first_filters(net: NestedNet) -> Any:
    """The filters of the first convolution (filters, height, width, channels), as JSON holds them."""
    weights = next((p.detach() for p in net.module.parameters() if p.ndim == 4), None)
    if weights is None:
        return []
    return np.round(weights.permute(0, 2, 3, 1).numpy(), 4).tolist()
