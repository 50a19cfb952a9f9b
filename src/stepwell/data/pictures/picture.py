"""The picture of a complex network: walks, node embedding, projection, raster. Needs numpy and scipy.

A network of n nodes becomes an image in four steps (Xin, Zhang, Shao 2020, sections 3.1 and 3.2):

    W = walks(G)            random walks, some from each node, of L steps
    X = embedding(W)        a vector x_i of d numbers for each node i: CBOW or skip-gram on walks, or
                            X = U |S|^(1/2) of PPMI = max(0, log(#(i, j) #W / (#i #j))) = U S U'
    Y = X V                 the first principal axes V of X, in a canonical orientation
    P[a, b] = number of nodes i whose y_i falls into cell (a, b)

The factorised PPMI matrix is what skip-gram factorises implicitly (Levy and Goldberg 2014), without
its sampling. Up to `EXACT` nodes the counts #(i, j) are the expected ones of all walks.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stepwell.data.pictures.network import Network
from stepwell.data.pictures.word2vec import word2vec

#: Nodes up to which co-occurrences are exact, and up to which matrices are dense.
EXACT = DENSE = 200
#: Walks of a network at least, and steps of all its walks at most (some gigabytes).
FEWEST, MOST_STEPS = 2000, 50_000_000
#: Pairs of nodes within a window on all walks of a network at most (some gigabytes).
MOST_PAIRS = 200_000_000
#: Accuracy of eigenvalues, and digits of a coordinate that decide its cell.
TOLERANCE, DECIMALS = 1e-2, 7
#: Brightness of each doubling, of counts and of degrees.
COUNT_STEP, DEGREE_STEP = 32, 16
#: Names of the channels.
CHANNELS = ("counts", "linear", "degree", "span", "counts13", "counts23")

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


class Picture(NamedTuple):
    """The picture of a network.

    pixels: bytes (size, size, 3).
    cells: row and column of each node in each channel, (3, n, 2); -1 for a node that no walk meets.
    axis_gap: 1 - the larger share of an axis' variance in that of the axis before it, of the first
        three; near 0 two axes can be exchanged.
    skewness: the smaller third moment of the two axes; near 0 an axis can be mirrored.
    """

    pixels: NDArray[np.uint8]
    cells: Integers
    axis_gap: float
    skewness: float


def draw(network: Network, how: Mapping[str, Any], size: int) -> Picture:
    """Draw a network.

    Args:
        how: "embedding" ("ppmi", "cbow" or "skipgram"), "walks" from each node, of "walk_length" nodes,
            "window", "dimensions", "channels" (three of `CHANNELS`) and "walk_seed".
        size: height and width in pixels.
    """
    nodes = len(network.names)
    rng = np.random.Generator(np.random.PCG64(how["walk_seed"]))
    if how["embedding"] == "ppmi":
        pairs = co_occurrences(network, how, rng)
        met = np.asarray(pairs.sum(1)).ravel() > 0
        x = ppmi_embedding(pairs, how["dimensions"])
    else:
        paths = walks(network, how["walks"], how["walk_length"], rng)
        met = np.bincount(paths[paths >= 0], minlength=nodes) > 0
        x = word2vec(paths, nodes, how["window"], how["dimensions"], rng, how["embedding"] == "cbow")
    met &= _linked(network)
    y, axis_gap, skewness = projection(x[met])
    places = np.full((nodes, 3), -1.0)
    places[met] = scaled(y)
    pixels = np.stack(
        [_channel(name, network, places, met, size) for name in _three(how["channels"])], 2
    )
    cells = np.full((3, nodes, 2), -1)
    for channel, name in enumerate(_three(how["channels"])):
        cells[channel, met] = cells_of(places[met][:, _axes(name)], size)
    return Picture(pixels, cells, axis_gap, skewness)


def walks(network: Network, each: int, length: int, rng: np.random.Generator) -> Integers:
    """Random walks (length, walks): `each` from every node that an edge leaves, `FEWEST` at least.

    A step goes along an edge with probability in proportion to its weight. A walk ends, with -1, where
    no edge leaves a node. ValueError for walks that would fill the memory.
    """
    degrees = network.degrees
    starts = np.flatnonzero(degrees)
    each = max(each, -(-FEWEST // len(starts)))
    if each * length * len(starts) > MOST_STEPS:
        raise ValueError(
            f"{each} walks of {length} nodes from each of {len(starts):,} are more than {MOST_STEPS:,} "
            f"steps, so at most {MOST_STEPS // (each * length):,} nodes can be drawn: train with fewer "
            "--walks for larger networks"
        )
    weights = network.relative
    even = bool((weights == weights[0]).all())
    # of each node the sum is 1: a light node beside heavy ones loses no digits
    own = np.add.reduceat(weights, network.start[starts])
    sums = np.append(0.0, np.cumsum(weights / np.repeat(own, degrees[starts])))
    paths = np.empty((length, len(starts) * each), np.int64)
    here = paths[0] = np.tile(starts, each)
    for step in range(1, length):
        chance = rng.random(len(here))
        first, last = network.start[here], network.start[here + 1] - 1
        if even:
            edge = first + (chance * degrees[here]).astype(np.int64)
        else:
            low, high = sums[first], sums[last + 1]
            edge = np.searchsorted(sums, low + chance * (high - low), side="right") - 1
        edge = np.minimum(np.maximum(edge, first), last)
        ended = (here < 0) | (last < first)
        here = np.where(ended, -1, network.neighbours[np.where(ended, 0, edge)])
        paths[step] = here
    return paths


def co_occurrences(network: Network, how: Mapping[str, Any], rng: np.random.Generator) -> Any:
    """A sparse symmetric matrix: how often nodes i and j stand within a window on one walk."""
    from scipy import sparse

    nodes, window, length = len(network.names), how["window"], how["walk_length"]
    if nodes <= EXACT:
        step = np.zeros((nodes, nodes))
        step[np.repeat(np.arange(nodes), network.degrees), network.neighbours] = network.relative
        step /= np.maximum(step.sum(1, keepdims=True), np.finfo(float).tiny)
        reached, here, pairs = np.eye(nodes), np.ones(nodes), np.zeros((nodes, nodes))
        powers = [reached := reached @ step for _ in range(min(window, length - 1))]
        for position in range(length - 1):  # `here`: expected number of walks at each node
            for power in powers[: length - 1 - position]:
                pairs += here[:, None] * power
            here = here @ step
        return sparse.csr_array(pairs + pairs.T)
    paths = walks(network, how["walks"], length, rng)
    small = nodes * nodes < np.iinfo(np.int32).max
    paths = paths.astype(np.int32 if small else np.int64)
    if paths.size * min(window, length - 1) > MOST_PAIRS:
        raise ValueError(
            f"a window of {window} on walks of {paths.size:,} nodes gives more than {MOST_PAIRS:,} "
            "pairs: train with fewer --walks, or a smaller --window"
        )
    steps = [(paths[:-t], paths[t:]) for t in range(1, min(window + 1, length))]
    if network.directed:
        steps = [(a[b >= 0], b[b >= 0]) for a, b in steps]
    keys = np.concatenate([(a * nodes + b).ravel() for a, b in steps])
    keys.sort()
    first = np.flatnonzero(np.diff(keys, prepend=-1))
    counts = np.diff(np.append(first, len(keys))).astype(float)
    rows, columns = np.divmod(keys[first], nodes)
    one_way = sparse.csr_array(
        (counts, columns, np.searchsorted(rows, np.arange(nodes + 1))), (nodes, nodes)
    )
    return one_way + one_way.T


def ppmi_embedding(pairs: Any, dimensions: int) -> Floats:
    """X = U |S|^(1/2) of the largest eigenvalues S of the positive pointwise mutual information."""
    from scipy.sparse.linalg import eigsh

    nodes = pairs.shape[0]
    sums = np.asarray(pairs.sum(1)).ravel()
    rows = np.repeat(np.arange(nodes), np.diff(pairs.indptr))
    with np.errstate(divide="ignore"):
        inverse = np.where(sums > 0, 1 / sums, 0)
    ratio = pairs.data * sums.sum() * inverse[rows] * inverse[pairs.indices]
    ppmi = pairs.copy()
    ppmi.data = np.log(np.maximum(ratio, 1.0))
    if nodes <= DENSE:
        values, vectors = np.linalg.eigh(ppmi.toarray())
        largest = np.argsort(-abs(values), kind="stable")[:dimensions]
        values, vectors = values[largest], vectors[:, largest]
    else:
        ppmi.eliminate_zeros()
        first = np.ones(nodes) + np.arange(nodes) / nodes
        try:
            values, vectors = eigsh(ppmi, k=dimensions, v0=first, tol=TOLERANCE)
        except RuntimeError as error:  # of ARPACK
            raise ValueError(
                f"its nodes cannot be embedded ({error}): train with --embedding cbow"
            ) from error
    return vectors * np.sqrt(abs(values))


def projection(x: Floats) -> tuple[Floats, float, float]:
    """Project vectors to their first three principal axes, the largest variance first.

    The longer tail of each axis points up, so that the picture does not depend on the signs of
    eigenvectors. Returns the coordinates, and `axis_gap` and `skewness` of `Picture`.
    """
    x = x - x.mean(0)
    x = np.pad(x, ((0, 0), (0, max(0, 3 - x.shape[1]))))
    variances, axes = np.linalg.eigh(x.T @ x)
    y = x @ axes[:, ::-1][:, :3]
    # divided first: the third power of an axis of mere rounding errors (1e-70) is 0
    extent = abs(y).max(0)
    relative = y / np.where(extent > 0, extent, 1.0)
    second = (relative**2).sum(0)
    third = (relative**3).sum(0) * np.sqrt(len(y)) / np.where(second > 0, second, 1.0) ** 1.5
    third_axis, second_axis, first_axis = variances[-3:]
    flat = 1e-12 * max(first_axis, np.finfo(float).tiny)  # an axis of rounding errors alone
    gap = 1 - second_axis / first_axis if first_axis > 0 else 0.0
    if second_axis > flat:
        gap = min(gap, 1 - third_axis / second_axis)
    return y * np.where(third < 0, -1, 1), float(gap), float(abs(third[:2]).min())


def scaled(y: Floats) -> Floats:
    """Stretch each axis to [0, 1]; an axis without extent is all 0."""
    low, reach = y.min(0), y.max(0) - y.min(0)
    flat = reach <= 1e-9 * max(float(reach.max()), np.finfo(float).tiny)
    return np.where(flat, 0.0, (y - low) / np.where(flat, 1.0, reach))


def cells_of(places: Floats, size: int) -> Integers:
    """Row and column of places in [0, 1]²; the first coordinate runs right, the second up.

    As in the paper's code, the last row and column hold the largest coordinate alone.
    """
    steps = np.floor(np.round(places * (size - 1), DECIMALS)).astype(np.int64)
    return np.stack([size - 1 - steps[:, 1], steps[:, 0]], 1)


def _three(channels: Any) -> tuple[str, ...]:
    return tuple(channels) * (3 if len(channels) == 1 else 1)


def _axes(channel: str) -> list[int]:
    """The axes along which a channel is drawn, to the right and up."""
    return {"counts13": [0, 2], "counts23": [1, 2]}.get(channel, [0, 1])


def _linked(network: Network) -> NDArray[np.bool_]:
    """Nodes with an edge at all."""
    linked = network.degrees > 0
    linked[network.neighbours] = True
    return linked


def _channel(
    name: str, network: Network, places: Floats, met: NDArray[np.bool_], size: int
) -> NDArray[np.uint8]:
    """Draw one channel as bytes (size, size)."""
    row, column = cells_of(places[met][:, _axes(name)], size).T
    at = row * size + column
    counts = np.bincount(at, minlength=size * size)
    if name == "linear":
        values = counts.astype(float)
    elif name in ("degree", "span"):
        of_nodes = _degrees(network) if name == "degree" else spans(network, places[:, :2])
        sums = np.bincount(at, of_nodes[met], minlength=size * size)
        values = sums / np.maximum(counts, 1)
    else:
        values = COUNT_STEP * np.log2(1 + counts)
    whole = np.round(np.clip(np.round(values, 6), 0, 255))
    return whole.reshape(size, size).astype(np.uint8)


def _degrees(network: Network) -> Floats:
    """The logarithm of each node's degree, in steps of brightness."""
    return DEGREE_STEP * np.log2(1.0 + network.total_degrees)


def spans(network: Network, places: Floats) -> Floats:
    """Mean distance of each node from its neighbours in the picture; 255: its diagonal."""
    sources = np.repeat(np.arange(len(places)), network.degrees)
    apart = np.sqrt(((places[sources] - places[network.neighbours]) ** 2).sum(1)) * 255 / np.sqrt(2)
    sums = np.bincount(sources, apart, minlength=len(places))
    return sums / np.maximum(network.degrees, 1)
