"""Baselines of the study of complex networks: statistics, graphlets, a kernel, a graph network."""

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from stepwell.data.pictures.network import Network
from stepwell.measure.networks import accuracies

#: Sets of statistics of a network. Degrees hold the counts, and structure the degrees; graphlets are
#: the counts and small subgraphs.
Features = Literal["counts", "degrees", "structure", "graphlets"]
#: Eigenvalues of the normalised adjacency matrix, and nodes up to which they are computed.
SPECTRUM, DENSE = 8, 1000
#: Layers of the graph isomorphism network, and numbers of a node's state.
LAYERS, WIDTH = 4, 32
#: Rounds of the Weisfeiler-Lehman kernel, and weights of the machine's errors to choose from.
ROUNDS, COSTS = 3, (0.1, 1.0, 10.0, 100.0)


def numbers_of(network: Network, features: Features) -> list[float]:
    """Statistics of a network: counts; degrees; transitivity, assortativity and spectrum; graphlets."""
    nodes = len(network.names)
    numbers = [float(nodes), float(network.edges)]
    if features == "counts":
        return numbers
    table = adjacency(network)
    if features == "graphlets":
        return [*numbers, *graphlets(table)]
    degrees = np.diff(table.indptr).astype(float)
    numbers += [degrees.mean(), degrees.std(), degrees.max()]
    if features == "degrees":
        return numbers
    wedges = float((degrees * (degrees - 1)).sum())
    closed = float((table @ table).multiply(table).sum())
    sources = np.repeat(degrees, np.diff(table.indptr))
    targets = degrees[table.indices]
    spread = sources.std() * targets.std()
    mixing = ((sources * targets).mean() - sources.mean() * targets.mean()) / spread if spread else 0
    scale = 1 / np.sqrt(np.maximum(degrees, 1))
    spectrum = np.zeros(SPECTRUM)
    if nodes <= DENSE:
        values = np.linalg.eigvalsh(table.toarray() * scale[:, None] * scale)
        spectrum = np.quantile(values, np.linspace(0, 1, SPECTRUM))
    return [*numbers, closed / wedges if wedges else 0.0, float(mixing), *spectrum.tolist()]


def adjacency(network: Network) -> Any:
    """The sparse adjacency matrix of a network without directions, weights and self-loops."""
    from scipy import sparse

    nodes = len(network.names)
    table = sparse.csr_array(
        (np.ones(len(network.neighbours)), network.neighbours, network.start), (nodes, nodes)
    )
    if network.directed:
        table = table.maximum(table.T).tocsr()
    if network.loops:
        table.setdiag(0)
        table.eliminate_zeros()
    return table


def graphlets(table: Any) -> list[float]:
    """Numbers of connected subgraphs of three and four nodes, whether or not more edges join them.

    Paths of two edges, triangles; stars of three edges, paths of three, triangles with a tail, cycles
    of four, cycles with a chord, and complete subgraphs of four.

    Args:
        table: a symmetric adjacency matrix without self-loops.
    """
    degrees = np.diff(table.indptr).astype(float)
    twice = (table @ table).tocsr()
    common = twice.multiply(table).tocsr()  # of every edge, the neighbours that its ends share
    at_edge = common.data
    triangles = np.asarray(common.sum(1)).ravel() / 2  # at each node
    count = triangles.sum() / 3
    sources, targets = table.nonzero()
    upper = sources < targets
    pairs = twice.copy()
    pairs.setdiag(0)
    return [
        float((degrees * (degrees - 1)).sum() / 2),
        float(count),
        float((degrees * (degrees - 1) * (degrees - 2)).sum() / 6),
        float(((degrees[sources] - 1) * (degrees[targets] - 1))[upper].sum() - 3 * count),
        float((triangles * (degrees - 2)).sum()),
        float((pairs.data * (pairs.data - 1)).sum() / 8),
        float((at_edge * (at_edge - 1)).sum() / 4),
        _complete(table, sources[upper], targets[upper]),
    ]


def _complete(table: Any, sources: NDArray[Any], targets: NDArray[Any]) -> float:
    """The number of complete subgraphs of four nodes."""
    neighbours = [set(row) for row in _neighbours(table)]
    total = 0
    for a, b in zip(sources.tolist(), targets.tolist(), strict=True):
        common = neighbours[a] & neighbours[b]
        total += sum(len(neighbours[c] & common) for c in common)
    return total / 12  # each is found at six edges, and each of its edges across twice


def _neighbours(table: Any) -> list[list[int]]:
    """The neighbours of each node."""
    return [row.tolist() for row in np.split(table.indices, table.indptr[1:-1])]


def colours(network: Network, rounds: int = ROUNDS) -> Counter[int]:
    """Count the nodes of each colour, over all rounds of the Weisfeiler-Lehman refinement.

    A node's first colour is its degree. In each round it gets a new one, a hash of its own colour and
    of its neighbours'. So equal colours have equal numbers in every network.
    """
    near = _neighbours(adjacency(network))
    now = [hash((0, len(neighbours))) for neighbours in near]
    counts = Counter(now)
    for number in range(1, rounds + 1):
        now = [
            hash((number, colour, *sorted(now[i] for i in neighbours)))
            for colour, neighbours in zip(now, near, strict=True)
        ]
        counts.update(now)
    return counts


def colour_kernel(
    train: Sequence[Network], test: Sequence[Network], train_labels: NDArray[np.int64],
    test_labels: NDArray[np.int64],
) -> dict[str, float]:  # fmt: skip
    """Accuracies of a support vector machine on the Weisfeiler-Lehman subtree kernel.

    The kernel of two networks is the product of their counts of colours, over the root of each one's
    product with itself. Cross-validation on the training part chooses the weight of errors. All
    classes weigh the same.
    """
    from sklearn.feature_extraction import DictVectorizer
    from sklearn.model_selection import GridSearchCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import Normalizer
    from sklearn.svm import SVC

    counted: list[list[Mapping[str, int]]] = [
        [{str(colour): count for colour, count in colours(network).items()} for network in part]
        for part in (train, test)
    ]
    machine = make_pipeline(
        DictVectorizer(), Normalizer(), SVC(kernel="linear", class_weight="balanced")
    )
    folds = max(2, min(5, int(np.bincount(train_labels).min())))
    model = GridSearchCV(machine, {"svc__C": COSTS}, cv=folds)
    model.fit(counted[0], train_labels)
    return accuracies(model.predict(counted[1]), test_labels)


def isomorphism_network(
    train: Sequence[Network], test: Sequence[Network], train_labels: NDArray[np.int64],
    test_labels: NDArray[np.int64], *, epochs: int, seed: int,
) -> dict[str, float]:  # fmt: skip
    """Accuracies of a graph isomorphism network (GIN, Xu et al. 2019) of torch-geometric's layers.

    A node's input is 1 and the logarithm of its degree. The sums of the nodes' states after each layer
    are classified together. All classes weigh the same. Nothing was tuned.
    """
    import torch
    from torch_geometric.data import Data
    from torch_geometric.loader import DataLoader
    from torch_geometric.nn import MLP, GINConv, global_add_pool

    class Gin(torch.nn.Module):
        def __init__(self, classes: int) -> None:
            super().__init__()
            sizes = [2] + [WIDTH] * LAYERS
            self.layers = torch.nn.ModuleList(
                GINConv(MLP([a, b, b], norm="batch_norm"), train_eps=True) for a, b in pairwise(sizes)
            )
            self.norms = torch.nn.ModuleList(torch.nn.BatchNorm1d(WIDTH) for _ in self.layers)
            self.head = torch.nn.Linear(LAYERS * WIDTH, classes)

        def forward(self, batch: Any) -> torch.Tensor:
            x, sums = batch.x, []
            for layer, norm in zip(self.layers, self.norms, strict=True):
                x = norm(layer(x, batch.edge_index)).relu()
                sums.append(global_add_pool(x, batch.batch).log1p())  # networks differ in size
            logits: torch.Tensor = self.head(torch.cat(sums, 1))
            return logits

    def graph(network: Network, label: int) -> Any:
        table = adjacency(network).tocoo()
        degrees = np.bincount(table.row, minlength=table.shape[0])
        x = torch.tensor(np.stack([np.ones(len(degrees)), np.log1p(degrees)], 1), dtype=torch.float32)
        edges = torch.tensor(np.stack([table.row, table.col]), dtype=torch.int64)
        return Data(x=x, edge_index=edges, y=int(label))

    training, tests = (
        [graph(network, label) for network, label in zip(part, labels, strict=True)]
        for part, labels in ((train, train_labels), (test, test_labels))
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Gin(int(train_labels.max()) + 1)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
        counts = torch.from_numpy(np.bincount(train_labels))
        weight = counts.sum() / (len(counts) * counts.float())
        for _ in range(epochs):
            for batch in DataLoader(training, batch_size=32, shuffle=True):
                optimizer.zero_grad()
                torch.nn.functional.cross_entropy(model(batch), batch.y, weight).backward()
                optimizer.step()
            schedule.step()
    model.eval()
    with torch.no_grad():
        predictions = torch.cat([model(batch).argmax(1) for batch in DataLoader(tests, batch_size=64)])
    return accuracies(predictions.numpy(), test_labels)
