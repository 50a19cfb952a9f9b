"""The time of a network's picture: each embedding, gensim's where it is installed, larger networks.

Times are those of the processor, of one thread, for networks of equal walks and windows. gensim (extra
`studies`) runs DeepWalk and CBOW on the same walks, then scikit-learn's PCA. Memory is the peak of what
Python and numpy allocate while a network is drawn.
"""

import math
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.timing import ratio, side_by_side
from stepwell.data.pictures import store
from stepwell.data.pictures.flags import Pictures
from stepwell.data.pictures.generate import barabasi_albert, watts_strogatz, write_networks
from stepwell.data.pictures.network import Network, parse_network
from stepwell.data.pictures.picture import draw, walks

HOW = Pictures().record
#: Nodes of the networks; the larger ones show how time and memory grow.
NODES, LARGER, PIXELS, ROUNDS = 1000, (1_000, 10_000, 30_000, 100_000), 48, 7
#: Networks of each of two classes that are drawn as files.
FILES = 200


def network_of(nodes: int, links: int = 4) -> Network:
    """A Barabási-Albert network, as if it had been read from a file."""
    edges = barabasi_albert(nodes, links)(np.random.default_rng(0))
    return parse_network("".join(f"{a} {b}\n" for a, b in edges.tolist()).encode(), "", HOW)


def gensim_vectors(
    walks: NDArray[np.int64], window: int, dimensions: int, seed: int, cbow: bool, first: float = 1.0
) -> Any:
    """gensim's vectors by the numbers of nodes as text, learned on walks (length, walks).

    first: factor on gensim's own first vectors.
    """
    from gensim.models import Word2Vec

    sentences = [[str(node) for node in path if node >= 0] for path in walks.T.tolist()]
    model = Word2Vec(
        vector_size=dimensions, window=window, min_count=1, sg=int(not cbow), workers=1, seed=seed
    )
    model.build_vocab(sentences)
    model.wv.vectors *= first
    model.train(sentences, total_examples=len(sentences), epochs=model.epochs)
    return model.wv


def gensim_embedding(network: Network, *, cbow: bool) -> None:
    """gensim's word2vec on the same walks, and scikit-learn's PCA."""
    from sklearn.decomposition import PCA

    paths = walks(network, HOW["walks"], HOW["walk_length"], np.random.default_rng(0))
    PCA(2).fit_transform(gensim_vectors(paths, HOW["window"], 20, 0, cbow).vectors)


def embeddings() -> dict[str, Any]:
    """Milliseconds of one network by embedding, and how many times that of the default it is."""
    network = network_of(NODES)
    calls: dict[str, Callable[[], object]] = {
        name: lambda name=name: draw(
            network, HOW | {"embedding": name, "dimensions": 8 if name == "ppmi" else 20}, PIXELS
        )
        for name in ("ppmi", "cbow", "skipgram")
    }
    if find_spec("gensim"):
        calls["gensim CBOW + PCA"] = lambda: gensim_embedding(network, cbow=True)
        calls["gensim skip-gram + PCA"] = lambda: gensim_embedding(network, cbow=False)
    times = side_by_side(calls, rounds=ROUNDS, clock=time.process_time)
    return {
        name: {"ms": 1000 * float(np.median(times[name])), "over ppmi": ratio(times, name, "ppmi")}
        for name in calls
    }


def growth() -> dict[str, Any]:
    """Seconds and peak bytes by number of nodes, also over those of the smallest by edges · log."""
    rows: dict[str, Any] = {}
    first: tuple[float, float] | None = None
    for nodes in LARGER:
        network = network_of(nodes)
        work = network.edges * math.log(nodes)
        start = time.process_time()
        draw(network, HOW, PIXELS)
        seconds = time.process_time() - start
        tracemalloc.start()
        draw(network, HOW, PIXELS)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        first = first or (seconds / work, peak / work)
        rows[f"{nodes:,} nodes"] = {
            "edges": network.edges, "seconds": seconds, "peak_bytes": peak,
            "seconds over edges · log": seconds / work / first[0],
            "bytes over edges · log": peak / work / first[1],
        }  # fmt: skip
    return rows


def files() -> dict[str, float]:
    """Seconds by the clock to draw a folder of networks by all processes, and to read it again."""
    with tempfile.TemporaryDirectory() as folder:
        classes = {"ba": barabasi_albert(NODES, 4), "ws": watts_strogatz(NODES, 8, 0.1)}
        write_networks(Path(folder), classes, FILES, 0)
        paths = sorted(Path(folder).rglob("*.edges"))
        how = HOW | {"walk_seed": time.time_ns() % 2**62}  # which no cache knows
        spent = []
        for _ in range(2):
            start = time.perf_counter()
            store.pictures(paths, how, PIXELS)
            spent.append(time.perf_counter() - start)
    return {
        "files": len(paths), "drawn": spent[0], "read again": spent[1], "times": spent[0] / spent[1],
        "minutes for 5,600 networks": 5600 / 60 * spent[0] / len(paths),
    }  # fmt: skip


def measure() -> dict[str, Any]:
    """Embeddings of 1,000 nodes, growth with the nodes, and files that are drawn once."""
    with store.one_thread():
        results: dict[str, Any] = {"embeddings": embeddings(), "growth": growth()}
    return results | {"files": files()}
