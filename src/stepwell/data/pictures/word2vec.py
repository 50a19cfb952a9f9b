"""CBOW and skip-gram with negative sampling on walks (Mikolov et al. 2013), batch by batch in numpy."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

#: Settings of gensim in 2017, which the paper's code uses. A node that makes up a share s of `OFTEN` of
#: all walks is kept with the chance (√s + 1) / s. The rate falls after every `JOB` positions.
EPOCHS, NEGATIVES, RATE, LEAST_RATE, POWER, OFTEN, JOB = 5, 5, 0.025, 1e-4, 0.75, 1e-3, 10_000
#: Walks of the smallest batch, and how many walks of a larger one are at the most frequent node.
BATCH = 64


def word2vec(
    walks: NDArray[np.int64], nodes: int, window: int, dimensions: int, rng: np.random.Generator,
    cbow: bool,
) -> NDArray[np.float64]:  # fmt: skip
    """Learn a vector of each node (nodes, dimensions) that predicts the nodes beside it on walks.

    Each position draws a window of 1 to `window` nodes. CBOW predicts a node by the mean of the vectors
    in its window, skip-gram each node of the window by the node. A batch is one position of some walks;
    its gradients are summed, which equals gensim's one by one where a batch holds each node rarely.
    Where one node makes up a large share of the walks, as the hub of a star, it is drawn as a negative
    just as often, so batches have fewer walks there: else its sum would grow without bound. Each epoch
    drops frequent nodes at random from the walks and closes the gaps.

    Args:
        walks: (length, walks); -1 where a walk has ended.
    """
    length, count = walks.shape
    vectors = (rng.random((nodes, dimensions)) - 0.5) / dimensions
    outputs = np.zeros((nodes, dimensions))
    occurrences = np.bincount(walks[walks >= 0], minlength=nodes)
    chances = np.cumsum(occurrences**POWER)
    chances /= chances[-1]
    largest = occurrences.max() / occurrences.sum()
    parts = max(1, count // max(BATCH, min(nodes, int(BATCH / largest))))
    steps, done, positions = EPOCHS * length * parts, 0, EPOCHS * int(occurrences.sum())
    for _ in range(EPOCHS):
        thinned = _thinned(walks, occurrences, rng)
        for part in np.array_split(rng.permutation(count), parts):
            paths = thinned[:, part]
            for at in range(length):
                jobs = done * positions // steps // JOB
                rate = RATE - (RATE - LEAST_RATE) * jobs * JOB / positions
                done += 1
                reach = rng.integers(1, window + 1, len(part))
                offsets = [t for t in range(-window, window + 1) if t and 0 <= at + t < length]
                beside = paths[[at + t for t in offsets]]  # (window, walks)
                inside = (abs(np.array(offsets))[:, None] <= reach) & (beside >= 0) & (paths[at] >= 0)
                _step(vectors, outputs, paths[at], beside, inside, chances, rate, rng, cbow)
    return vectors


def _thinned(
    walks: NDArray[np.int64], occurrences: NDArray[np.int64], rng: np.random.Generator
) -> NDArray[np.int64]:
    """The walks without some positions of frequent nodes, by the chances of gensim."""
    share = np.maximum(occurrences, 1) / occurrences.sum() / OFTEN
    kept = (walks >= 0) & (rng.random(walks.shape) < ((np.sqrt(share) + 1) / share)[walks])
    order = np.argsort(~kept, axis=0, kind="stable")
    return np.take_along_axis(np.where(kept, walks, -1), order, 0)


def _step(
    vectors: NDArray[np.float64], outputs: NDArray[np.float64], centre: NDArray[np.int64],
    beside: NDArray[np.int64], inside: NDArray[np.bool_], chances: NDArray[np.float64], rate: float,
    rng: np.random.Generator, cbow: bool,
) -> None:  # fmt: skip
    """One step of gradient descent, in place."""
    counts, near = inside.sum(0), beside.T[inside.T]  # the nodes of the windows, walk by walk
    if cbow:
        target, sources, counts = centre[counts > 0], near, counts[counts > 0]
    else:
        target, sources, counts = near, np.repeat(centre, counts), np.ones(len(near), np.int64)
    rows, places = _touched(sources, len(vectors))
    members = _table(np.ones(len(near)), places, counts, len(vectors[rows]))
    hidden = members @ vectors[rows] / counts[:, None]
    drawn = np.searchsorted(chances, rng.random((len(target), NEGATIVES)))
    asked = np.concatenate([target[:, None], drawn], 1)  # (batch, 1 + negatives)
    scores = np.einsum("bd,bkd->bk", hidden, outputs[asked])
    error = -1 / (1 + np.exp(-np.clip(scores, -30, 30)))
    error[:, 0] += 1
    error[:, 1:][drawn == target[:, None]] = 0
    asking = np.full(len(asked), asked.shape[1])
    met, places = _touched(asked.ravel(), len(outputs))
    errors = _table(rate * error.ravel(), places, asking, len(outputs[met]))
    slope = errors @ outputs[met]
    outputs[met] += errors.T @ hidden
    vectors[rows] += members.T @ slope  # as in gensim, each gets the whole gradient of the mean


def _touched(nodes: NDArray[np.int64], count: int) -> tuple[Any, NDArray[np.int64]]:
    """The rows of a table of `count` nodes that a batch changes, and the place of each node in them.

    All rows where a batch may change most of them: then it is not worth while to look.
    """
    if nodes.size > count:
        return slice(None), nodes
    return np.unique(nodes, return_inverse=True)


def _table(
    values: NDArray[np.float64], columns: NDArray[np.int64], counts: NDArray[np.int64], width: int
) -> Any:
    """A sparse matrix whose rows hold so many values each, in these columns; repeated ones add up."""
    from scipy import sparse

    start = np.append(0, np.cumsum(counts))
    return sparse.csr_array((values, columns, start), (len(counts), width))
