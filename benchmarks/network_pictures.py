"""The time of a network's picture: each embedding, gensim's where it is installed, larger networks.

`python -m benchmarks.network_pictures [--large]` prints processor seconds of one thread, medians of
rounds in turn, for networks of 1,000 nodes with equal walks and windows; with --large, of networks up
to 100,000 nodes. gensim (extra `studies`) runs DeepWalk and CBOW on the same walks, then scikit-learn's
PCA.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.timing import ratio, side_by_side
from stepwell.data.pictures import store
from stepwell.data.pictures.flags import Pictures
from stepwell.data.pictures.generate import barabasi_albert, watts_strogatz, write_networks
from stepwell.data.pictures.network import Network, parse_network
from stepwell.data.pictures.picture import draw, walks

HOW = Pictures().record
NODES, SIZE = 1000, 48


def network_of(nodes: int, each: int = 4) -> Network:
    """A Barabási-Albert network, as if it had been read from a file."""
    edges = barabasi_albert(nodes, each)(np.random.default_rng(0))
    return parse_network("".join(f"{a} {b}\n" for a, b in edges.tolist()).encode(), "", HOW)


def gensim_embedding(network: Network, *, cbow: bool) -> None:
    """gensim's word2vec on the same walks, and scikit-learn's PCA."""
    from gensim.models import Word2Vec
    from sklearn.decomposition import PCA

    paths = walks(network, HOW["walks"], HOW["walk_length"], np.random.default_rng(0)).T
    model = Word2Vec(
        [[str(node) for node in path] for path in paths.tolist()], vector_size=20,
        window=HOW["window"], min_count=1, sg=int(not cbow), workers=1, seed=0,
    )  # fmt: skip
    PCA(2).fit_transform(model.wv.vectors)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--large", action="store_true", help="also networks up to 100,000 nodes")
    given = parser.parse_args()
    network = network_of(NODES)
    calls: dict[str, Callable[[], object]] = {
        name: lambda name=name: draw(
            network, HOW | {"embedding": name, "dimensions": 8 if name == "ppmi" else 20}, SIZE
        )
        for name in ("ppmi", "cbow", "skipgram")
    }
    try:
        import gensim  # noqa: F401

        calls["gensim CBOW + PCA"] = lambda: gensim_embedding(network, cbow=True)
        calls["gensim skip-gram + PCA"] = lambda: gensim_embedding(network, cbow=False)
    except ImportError:
        print("gensim is not installed: its times are left out")
    with store.one_thread():
        times = side_by_side(calls, rounds=given.rounds, clock=time.process_time)
        for name in calls:
            slower = ratio(times, name, "ppmi")["median"]
            print(f"{name:24} {1000 * float(np.median(times[name])):9.1f} ms  {slower:7.1f} × ppmi")
        for nodes in (10_000, 30_000, 100_000) if given.large else ():
            larger = network_of(nodes)
            since = time.process_time()
            draw(larger, HOW, SIZE)
            print(f"{nodes:,} nodes, {larger.edges:,} edges: {time.process_time() - since:.1f} s")
    with tempfile.TemporaryDirectory() as folder:
        classes = {"ba": barabasi_albert(NODES, 4), "ws": watts_strogatz(NODES, 8, 0.1)}
        write_networks(Path(folder), classes, 5, 0)
        paths = sorted(Path(folder).rglob("*.edges"))
        how = HOW | {"walk_seed": time.time_ns() % 2**62}  # which no cache knows
        spent = []
        for _ in range(2):
            since = time.perf_counter()
            store.pictures(paths, how, SIZE)
            spent.append(time.perf_counter() - since)
    print(f"{len(paths)} files: drawn in {spent[0]:.2f} s, read again in {spent[1]:.3f} s")


if __name__ == "__main__":
    main()
