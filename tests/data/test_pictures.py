"""Complex networks as images: reading, drawing, orientation, cache, groups, and bad files."""

import io
import os
import re
import sys
import time
from pathlib import Path

import igraph
import networkx as nx
import numpy as np
import pytest
from PIL import Image
from scipy.spatial.distance import pdist
from threadpoolctl import threadpool_limits

import stepwell
from forking import Forked
from stepwell.data import load_images
from stepwell.data.formats import PHOTOGRAPHS, format_of
from stepwell.data.groups import set_aside
from stepwell.data.pictures import picture, store
from stepwell.data.pictures import word2vec as word2vec_module
from stepwell.data.pictures.flags import Pictures
from stepwell.data.pictures.generate import (
    barabasi_albert,
    rewired,
    watts_strogatz,
    without_edges,
    write_networks,
)
from stepwell.data.pictures.network import edge_list, parse_network, read_network
from stepwell.data.pictures.picture import draw, walks
from stepwell.data.pictures.word2vec import word2vec

HOW = Pictures().record
RING = b"0 1\n1 2\n2 3\n3 0\n0 4\n"


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("STEPWELL_DATA", str(tmp_path / "cache"))


def lines_of(edges) -> list[str]:
    return [f"{a} {b}\n" for a, b in edges.tolist()]


def text_of(edges) -> bytes:
    return "".join(lines_of(edges)).encode()


def test_the_order_of_lines_does_not_matter_to_the_byte():
    rng = np.random.default_rng(0)
    for nodes in (60, 240):  # exact and sampled co-occurrences
        edges = watts_strogatz(nodes, 6, 0.2)(rng)
        shuffled = rng.permutation(edges)
        shuffled[::2] = shuffled[::2, ::-1]
        one, other = (
            picture.draw(parse_network(text_of(e), ".edges", HOW), HOW, 48) for e in (edges, shuffled)
        )
        assert (one.pixels == other.pixels).all()
        assert (one.cells == other.cells).all()


def test_other_names_of_the_nodes_give_the_same_picture():
    rng = np.random.default_rng(1)
    edges = barabasi_albert(240, 3)(rng)
    shown = picture.draw(parse_network(text_of(edges), ".edges", HOW), HOW, 48).pixels
    for _ in range(3):
        renamed = rng.permutation(240)[edges]
        assert (picture.draw(parse_network(text_of(renamed), "", HOW), HOW, 48).pixels == shown).all()


def test_axes_of_mere_rounding_errors_are_projected_without_a_warning():
    x = np.random.default_rng(0).normal(size=(10, 3)) * [1, 1e-120, 1e-120]
    y, _, skewness = picture.projection(x)
    assert np.isfinite(y).all()
    assert np.isfinite(skewness)


def test_isolated_nodes_are_left_out_of_sampled_walks_and_walks_have_a_limit():
    text = text_of(barabasi_albert(260, 3)(np.random.default_rng(0)))
    network = parse_network(b"# undirected nodes=270\n" + text, ".edges", HOW)
    apart = picture.draw(network, HOW, 48).cells[0, :, 0] < 0
    assert (apart == (network.degrees == 0)).all()
    assert apart.sum() == 10
    few = parse_network(b"# undirected nodes=200000\n0 1\n", ".edges", HOW)
    assert picture.draw(few, HOW, 48).pixels.any()  # walks begin at two nodes alone
    rng = np.random.default_rng(0)
    network = parse_network(text, ".edges", HOW)
    with pytest.raises(
        ValueError, match=r"30000 walks of 10 nodes from each of 260 are more than 50,000"
    ):
        picture.walks(network, 30_000, 10, rng)


def test_every_embedding_draws_every_node_once_and_is_repeatable():
    edges = barabasi_albert(70, 2)(np.random.default_rng(2))
    network = parse_network(text_of(edges), ".edges", HOW)
    for embedding in ("ppmi", "cbow", "skipgram"):
        how = HOW | {"embedding": embedding, "channels": ["linear"], "walk_length": 3, "window": 2}
        one = picture.draw(network, how, 16)
        assert one.pixels[:, :, 0].sum() == 70
        assert one.pixels.shape == (16, 16, 3)
        assert (one.pixels == picture.draw(network, how, 16).pixels).all()


def test_the_raster_is_the_papers():
    places = np.array([[0.0, 0.0], [1.0, 1.0], [0.5, 0.49]])
    assert picture.cells_of(places, 48).tolist() == [[47, 0], [0, 47], [24, 23]]


def test_the_longer_tail_points_up_whatever_the_sign():
    x = np.random.default_rng(0).exponential(size=(50, 4)) * [4, 2, 1, 0.5]
    y, gap, skewness = picture.projection(x)
    mirrored, *_ = picture.projection(-x)
    np.testing.assert_allclose(picture.projection(x[:, ::-1])[0], y, atol=1e-9)
    assert ((y**3).sum(0) >= 0).all()
    assert ((mirrored**3).sum(0) >= 0).all()
    assert 0 < gap < 1
    assert skewness > 0


def test_sampled_co_occurrences_approach_the_exact_ones(monkeypatch):
    network = parse_network(text_of(watts_strogatz(20, 4, 0.3)(np.random.default_rng(3))), "", HOW)
    how = HOW | {"walk_length": 6, "window": 2, "walks": 4000}
    exact = picture.co_occurrences(network, how, np.random.default_rng(0)).toarray() * 4000
    monkeypatch.setattr(picture, "EXACT", 0)
    sampled = picture.co_occurrences(network, how, np.random.default_rng(0)).toarray()
    assert abs(sampled - exact).max() < 0.05 * exact.max()
    assert (sampled == sampled.T).all()


def test_walks_follow_weights_and_arrows():
    network = parse_network(b"# directed weighted\na b 3\na c 1\nb d 1\n", "", HOW)
    at = {name: i for i, name in enumerate(network.names)}
    paths = picture.walks(network, 4000, 3, np.random.default_rng(0))
    first = paths[:, paths[0] == at["a"]]
    assert (first[1] == at["b"]).mean() == pytest.approx(0.75, abs=0.03)
    assert (paths[1:, paths[0] == at["d"]] == -1).all()  # no edge leaves d


def one_by_one(vectors, outputs, centre, beside, inside, drawn, rate, cbow):
    """The step of word2vec by loops, from the tables as they were before it."""
    old, old_outputs = vectors.copy(), outputs.copy()
    drawn = iter(drawn)
    for walk, node in enumerate(centre):
        near = beside[inside[:, walk], walk]
        pairs = [(node, near)] if cbow and len(near) else [] if cbow else [(a, [node]) for a in near]
        for target, sources in pairs:
            hidden = old[sources].mean(0)
            slope = np.zeros_like(hidden)
            for asked, label in [(target, 1), *((a, 0) for a in next(drawn) if a != target)]:
                error = rate * (label - 1 / (1 + np.exp(-hidden @ old_outputs[asked])))
                slope += error * old_outputs[asked]
                outputs[asked] += error * hidden
            for source in sources:
                vectors[source] += slope


@pytest.mark.parametrize("cbow", [True, False])
def test_a_step_of_word2vec_is_that_of_loops(cbow):
    rng = np.random.default_rng(0)
    nodes, count, window = 9, 7, 4
    vectors, outputs = rng.normal(size=(nodes, 3)), rng.normal(size=(nodes, 3))
    centre, beside = rng.integers(0, nodes, count), rng.integers(0, nodes, (window, count))
    inside = rng.random((window, count)) < 0.6
    inside[:, 2] = False  # a walk that has ended
    chances = np.linspace(1 / nodes, 1, nodes)
    pairs = inside.any(0).sum() if cbow else inside.sum()
    chance = np.random.default_rng(1).random((pairs, word2vec_module.NEGATIVES))
    drawn = np.searchsorted(chances, chance)
    slow = vectors.copy(), outputs.copy()
    one_by_one(*slow, centre, beside, inside, drawn, 0.1, cbow)
    word2vec_module._step(
        vectors, outputs, centre, beside, inside, chances, 0.1, np.random.default_rng(1), cbow
    )
    assert np.allclose(vectors, slow[0], atol=1e-12)
    assert np.allclose(outputs, slow[1], atol=1e-12)


def test_frequent_nodes_are_dropped_by_the_chances_of_gensim():
    rng = np.random.default_rng(0)
    paths = np.where(rng.random((10, 20_000)) < 0.5, 0, rng.integers(1, 2000, (10, 20_000)))
    paths[7:, ::4] = -1  # walks that end
    times = np.bincount(paths[paths >= 0])
    thinned = word2vec_module._thinned(paths, times, rng)
    gone = thinned == -1
    assert (gone[:-1] <= gone[1:]).all()  # the rest of a walk moves up
    share = times[0] / times.sum() / 1e-3
    kept = (thinned == 0).sum() / times[0]
    assert kept == pytest.approx((share**0.5 + 1) / share, rel=0.05)
    assert (thinned > 0).sum() == (paths > 0).sum()  # rare nodes stay
    for before, after in zip(paths.T[:200], thinned.T[:200], strict=True):
        assert [n for n in after.tolist() if n > 0] == [n for n in before.tolist() if n > 0]


def test_vectors_of_a_large_star_stay_short():
    # a batch of all its walks would draw the hub as a negative some thousand times
    network = parse_network("".join(f"hub {i}\n" for i in range(1500)).encode(), ".edges", HOW)
    paths = walks(network, 2, 10, np.random.default_rng(0))
    vectors = word2vec(paths, len(network.names), 5, 20, np.random.default_rng(1), False)
    assert abs(vectors).max() < 5


def test_the_rate_of_word2vec_falls_by_jobs_of_gensim(monkeypatch):
    rates = []
    monkeypatch.setattr(word2vec_module, "_step", lambda *step: rates.append(step[6]))
    paths = np.random.default_rng(0).integers(0, 50, (10, 1000))
    word2vec(paths, 50, 3, 4, np.random.default_rng(1), True)
    # five epochs of 10,000 nodes are five jobs, whose rates fall in a line
    first, last = word2vec_module.RATE, word2vec_module.LEAST_RATE
    falls = first - (first - last) * np.arange(5) / 5
    assert np.allclose(rates, np.repeat(falls, len(rates) // 5))
    ended = np.vstack([paths, np.full((10, 1000), -1)])  # what has ended is no part of a job
    rates.clear()
    word2vec(ended, 50, 3, 4, np.random.default_rng(1), True)
    assert np.allclose(np.unique(rates), falls[::-1])


def test_word2vec_brings_nodes_of_one_part_together():
    rng = np.random.default_rng(0)
    walks = np.concatenate([rng.integers(0, 5, (8, 2000)), 5 + rng.integers(0, 5, (8, 2000))], 1)
    for cbow in (True, False):
        x = word2vec(walks, 10, 3, 6, np.random.default_rng(1), cbow)
        x /= np.linalg.norm(x, axis=1, keepdims=True)
        near = x @ x.T
        assert near[:5, :5].mean() > near[:5, 5:].mean() + 0.2


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: barabasi_albert(3, 4), "each new one of 3 nodes cannot join 4: name 1 to 2"),
        (lambda: barabasi_albert(4, 4), "cannot join 4"),
        (lambda: barabasi_albert(10, 0), "cannot join 0"),
        (
            lambda: watts_strogatz(8, 8, 0.5),
            "a degree of 8 is not possible: name an even one from 2 to 6",
        ),
        (lambda: watts_strogatz(3, 8, 0.0), "a degree of 8 is not possible"),
        (lambda: watts_strogatz(100, 7, 0.1), "a degree of 7 is not possible"),
        (lambda: watts_strogatz(100, 8, 2), "a chance of 2: name a number from 0 to 1"),
        (lambda: without_edges(barabasi_albert(9, 2), -1), "a share of -1"),
        (
            lambda: [watts_strogatz(5, 2, 1)(np.random.default_rng(i)) for i in range(99)],
            "no place left",
        ),
    ],
)
def test_generators_refuse_what_they_cannot_draw(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_generators_keep_their_promises():
    ba = barabasi_albert(90, 4)
    one, null = (of(np.random.default_rng(5)) for of in (ba, rewired(ba)))
    assert len(one) == 4 * 86
    assert (np.bincount(one.ravel()) == np.bincount(null.ravel())).all()
    for edges in (one, null, watts_strogatz(90, 8, 0.3)(np.random.default_rng(5))):
        pairs = {frozenset(pair) for pair in edges.tolist()}
        assert len(pairs) == len(edges)
        assert min(map(len, pairs)) == 2
    assert 0 < len(without_edges(barabasi_albert(90, 4), 0.5)(np.random.default_rng(5))) < len(one)


GRAPHML = """<graphml xmlns="http://graphml.graphdrawing.org/xmlns">
<key id="w" for="edge" attr.name="weight" attr.type="double"/>
<graph edgedefault="{kind}"><node id="a"/><node id="b"/><node id="c"/><node id="lone"/>
<edge source="a" target="b"><data key="w">2.5</data></edge><edge source="b" target="c"/>
</graph></graphml>"""


def test_graphml_and_edge_lists_say_the_same():
    one = parse_network(GRAPHML.format(kind="undirected").encode(), ".graphml", HOW)
    listed = "".join(edge_list(one)).encode()
    other = parse_network(listed, ".tsv", HOW)
    assert set(one.names) == {"a", "b", "c", "lone"}
    assert sorted(one.weights) == sorted(other.weights) == [1, 1, 2.5, 2.5]
    assert parse_network(GRAPHML.format(kind="directed").encode(), "", HOW).directed
    with_head = parse_network(b"source,target,weight\na,b,2.5\nb,c,1\n", ".csv", HOW)
    assert sorted(with_head.names) == ["a", "b", "c"]
    assert len(parse_network(b"# undirected nodes=9\n0 1\n", ".edges", HOW).names) == 9


GRAPH = (
    '<graphml><key id="w" for="{where}" attr.name="weight" attr.type="double">{usual}</key>'
    '<key id="n" for="node" attr.name="weight" attr.type="double"/><graph edgedefault="undirected">'
    '<node id="a"/><edge source="a" target="b"><data key="w">3</data></edge>'
    '<node id="b"><data key="n">9</data></node><edge source="b" target="c"/><node id="c"/></graph>'
    "</graphml>"
)


def test_weights_of_graphml_are_those_of_edges():
    def weights(**how):
        return sorted(parse_network(GRAPH.format(**how).encode(), ".graphml", HOW).weights.tolist())

    assert weights(where="edge", usual="<default>2</default>") == [2, 2, 3, 3]
    assert weights(where="all", usual="") == [1, 1, 3, 3]
    assert weights(where="node", usual="") == [1, 1, 1, 1]


@pytest.mark.parametrize(
    ("key", "weight"),
    [
        ('<key id="weight" for="edge" attr.name="strength"/>', 1),
        ('<key id="weight" for="edge"/>', 3),
        ('<key id="weight" for="edge" attr.name="weight"/>', 3),
        ("", 3),
    ],
)
def test_the_declared_name_says_which_attribute_is_the_weight(key, weight):
    graph = '<graph><edge source="a" target="b"><data key="weight">3</data></edge></graph>'
    content = f"<graphml>{key}{graph}</graphml>".encode()
    assert parse_network(content, ".graphml", HOW).weights.max() == weight


def test_a_header_is_no_edge_and_nodes_may_be_called_like_one():
    assert parse_network(b"u,v\n0,1\n", ".csv", HOW).names == ("0", "1")
    assert set(parse_network(b"u v\nv u2\nu v\n", ".edges", HOW).names) == {"u", "v", "u2"}
    for lines in (b"u v\nv w\nw x\n", b"v w\nw x\nu v\n"):
        assert set(parse_network(lines, ".edges", HOW).names) == {*"uvwx"}


@pytest.mark.parametrize(
    ("content", "guessed", "nodes"),
    [
        (b"node_1,node_2\n1,2\n2,3\n", False, 3),
        (b"ID_REF,ID_INTERACTOR\n1,2\n2,3\n", True, 3),
        (b"id,id2,w\n1,2,0.5\n", True, 2),
        (b"person,friend,closeness\nanna,ben,3\nben,eve,1\n", True, 3),
        (b"anna,ben\nben,eve\n", False, 3),
        (b"anna,1\n1,2\n", False, 3),  # a number stands in the first line
        (b"anna,ben\n1,2\n2,ben\n", False, 4),  # a node of another line does
        (b"anna,ben\n1,eve\n", False, 4),
    ],
)
def test_words_above_numbers_are_a_header(content, guessed, nodes):
    network = parse_network(content, ".csv", HOW)
    assert (network.guessed, len(network.names)) == (guessed, nodes)


@pytest.mark.parametrize(
    ("write", "suffix"),
    [({}, ".edgelist"), ({"delimiter": "\t"}, ".tsv"), ({"delimiter": ","}, ".csv")],
)
def test_networkx_reads_its_own_edge_lists_here(tmp_path, write, suffix):
    networkx = pytest.importorskip("networkx")
    graph = networkx.path_graph(4)
    graph.add_edge(2, 3, weight=2.5, colour="red")
    file = tmp_path / f"path{suffix}"
    networkx.write_edgelist(graph, file, **write)
    network = read_network(file, HOW)
    assert (network.edges, sorted(network.weights)) == (3, [1, 1, 1, 1, 2.5, 2.5])


def test_nodes_that_only_names_tell_apart_are_counted():
    def tied(lines):
        return parse_network(lines, ".edges", HOW).tied

    assert tied(b"h a\nh b\nh c\n") == 0  # leaves of one hub
    assert tied(b"a b\nb c\nc a\n") == 0
    assert tied(b"a b 1\nc d 1\na c 2\nb d 2\na d 3\nb c 3\n") == 4
    assert tied(b"a b\nb c\nc d\n") == 4
    assert tied(b"# directed\na b\nb c\nc d\n") == 0


@pytest.mark.parametrize(
    ("content", "suffix", "names"),
    [
        (b'"Smith, J","Doe, A"\n"Doe, A",Eve,"3"\n'.replace(b",Eve", b',"Eve"'), ".csv", None),
        (b'"New York" Boston\nBoston Rome\n', ".edges", {"New York", "Boston", "Rome"}),
        (b"1 2 {}\n2 3 {}\n", ".edgelist", {"1", "2", "3"}),
        (b"1 2 {'weight': 2.5, 'x': 1}\n2 3 {'weight': 1}\n", ".edgelist", {"1", "2", "3"}),
        (b"% sym unweighted\n1 2\n  # prose\n2 3\n", ".edges", {"1", "2", "3"}),
    ],
)
def test_edge_lists_of_other_programs(content, suffix, names):
    if names is None:
        with pytest.raises(
            ValueError, match="line 2 has 3 columns, and the lines above have 2: commas"
        ):
            parse_network(content, suffix, HOW)
        content, names = content.replace(b',"3"', b""), {"Smith, J", "Doe, A", "Eve"}
    network = parse_network(content, suffix, HOW)
    assert set(network.names) == names
    assert network.weights.max() == (2.5 if b"2.5" in content else 1)


@pytest.mark.parametrize(
    ("head", "directed"),
    [
        ("# directed, weighted", True), ("# directed=true", True), ("# Directed graph: x", True),
        ("# not directed", False), ("# undirected directed graph", None), ("# nodes=2", None),
        ("# nodes=-5", None), ("%%MatrixMarket matrix", None), ("# a directed graph", False),
    ],
)  # fmt: skip
def test_a_head_says_what_its_first_words_say(head, directed):
    content = f"{head}\n0 1\n1 2\n".encode()
    if directed is None:
        with pytest.raises(ValueError, match="the head|in the head|MatrixMarket"):
            parse_network(content, ".edges", HOW)
    else:
        assert parse_network(content, ".edges", HOW).directed == directed


@pytest.mark.parametrize("nodes", [5, 300])
def test_the_unit_of_weights_does_not_matter_and_no_sum_overflows(nodes):
    rng = np.random.default_rng(0)
    weights = rng.uniform(1, 3, nodes)
    pictures = []
    for unit in (1.0, 10.0, 5e307, 1e-300):
        lines = "".join(
            f"{i} {(i * i + 1) % nodes} {float(w * unit)!r}\n" for i, w in enumerate(weights)
        )
        network = parse_network(lines.encode(), ".edges", HOW | {"loops": "drop"})
        pictures.append(draw(network, HOW, 16).pixels)
    assert all((one == pictures[0]).all() for one in pictures)
    ring = "".join(f"r{i} r{(i + 1) % 300} 1\n" for i in range(300))
    star = "".join(f"hub z{i} 1e-18\n" for i in range(4))
    network = parse_network((ring + star).encode(), ".edges", HOW)
    paths = walks(network, 100, 2, np.random.default_rng(0))
    hub = network.names.index("hub")
    reached = paths[1][paths[0] == hub]
    assert np.bincount(reached)[np.unique(reached)].min() > 10
    assert len(np.unique(reached)) == 4


def test_files_of_the_test_part_in_the_training_part_are_told(tmp_path):
    root = folder_of_networks(tmp_path)
    twin = next((root / "train" / "ba").iterdir())
    (root / "test" / "ws" / twin.name).write_bytes(twin.read_bytes())
    (note,) = [note for note in load_images(str(root)).notes if "are in train/, too" in note]
    assert note.startswith(f"1 files of test/ are in train/, too, such as {root / 'test' / 'ws'}")
    (root / "groups.tsv").write_text("\n")
    with pytest.raises(ValueError, match="groups.tsv is empty: name the group of every file"):
        load_images(str(root))


def test_a_picture_on_one_line_counts_as_uncertain():
    with np.errstate(all="raise"):
        assert draw(parse_network(b"a b\n", ".edges", HOW), HOW, 16).skewness == 0
        assert draw(parse_network(b"a b\nb c\n", ".edges", HOW), HOW, 16).skewness >= 0


def test_networkx_reads_its_own_graphml_here(tmp_path):
    networkx = pytest.importorskip("networkx")
    graph = networkx.les_miserables_graph()
    networkx.write_graphml(graph, tmp_path / "miserables.graphml")
    network = read_network(tmp_path / "miserables.graphml", HOW)
    assert (len(network.names), network.edges) == (77, 254)
    assert network.weights.sum() == 2 * sum(w for *_, w in graph.edges(data="weight"))


BOMB = b"""<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;">]>
<graphml>&b;</graphml>"""
BAD = {
    "empty.edges": (b"", "no edge between two nodes"),
    "alone.edges": (b"# undirected nodes=1\n", "1 node and no edge"),
    "loop.edges": (b"a a\n", "1 node and no edge"),
    "words.tsv": (b"a\tb\theavy\n", "line 1: the weight 'heavy' is no number"),
    "minus.csv": (b"a,b,1\nb,c,-2\n", "line 2: the weight -2 is negative"),
    "nan.csv": (b"a,b,nan\n", "negative or not finite"),
    "short.edges": (b"a b\n\nc\n", "line 3 has 1 column, and the lines above have 2"),
    "wide.edges": (
        b"a b 1 2\n",
        "line 1 has 4 columns: write source, target and maybe a weight, with blanks",
    ),
    "blank.csv": (b"a,\n", "line 1 lacks a source or a target"),
    "zero.edges": (b"a b 0\nb b 1\n", "beside 1 edge of weight 0, 1 edge from a node to itself"),
    "grouped.edges": (b"a b 1_000\n", "the weight '1_000' is no number"),
    "bytes.edges": (b"\xff\xfe\x00", "no UTF-8 text"),
    "bomb.graphml": (BOMB, "a document type or an entity"),
    "deep.graphml": (b"<graphml>" + b"<a>" * 99, "nested more than 64 deep"),
    "cut.graphml": (b"<graphml><graph>", "no XML"),
    "encoding.graphml": (b'<?xml version="1.0" encoding="foo"?><graphml><graph/></graphml>', "no XML"),
    "undeclared.graphml": (
        b"<graphml><graph><node id='a'/><edge source='a' target='b'/></graph></graphml>",
        "an edge to 'b', which is no node of the file",
    ),
    "twice.graphml": (
        b"<graphml><graph><node id='a'/><node id='a'/></graph></graphml>",
        "two nodes have the id 'a'",
    ),
    "nameless.graphml": (b"<graphml><graph><node/></graph></graphml>", "a node without an id"),
    "outside.graphml": (b"<graphml><edge source='a' target='b'/></graphml>", "outside the <graph>"),
    "default.graphml": (b"<graphml><graph edgedefault='both'/></graphml>", "edgedefault 'both'"),
    "long.csv": (b'a,"' + b"b" * 140_000 + b'"\n', "line 1: field larger than field limit"),
    "quote.csv": (b'a,b\n"c,d\n', "line 2: a double quote is not closed"),
    "between.csv": (b'a,b\n"c"x,d\n', "line 2: ',' expected after '\"'"),
    "quote.edges": (b'a b\n"c d\n', "line 2: a double quote is not closed"),
    "commas.edges": (b"a, b\nb, c\n", "line 1: commas between columns: name the file .csv"),
    "other.graphml": (b"<svg/>", "instead of <graphml>"),
    "hyper.graphml": (b"<graphml><graph><hyperedge/></graph></graphml>", "hyperedges"),
    "end.graphml": (
        b"<graphml><graph><edge source='a'/></graph></graphml>",
        "without source and target",
    ),
    "picture.png": (b"", "is no network file"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_named_in_one_line(name, tmp_path):
    content, message = BAD[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=name) as error:
        read_network(tmp_path / name, HOW)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_loops_copies_and_size_obey_the_flags():
    twice = b"a b 2\nb a 3\nb b 1\nb c 1\n"
    assert parse_network(twice, "", HOW).weights.max() == 3
    assert parse_network(twice, "", HOW | {"multi_edges": "keep"}).weights.max() == 5
    assert parse_network(twice, "", HOW | {"loops": "keep"}).loops == 1
    for flag in ("loops", "multi_edges"):
        with pytest.raises(ValueError, match=f"--{flag.replace('_', '-')}"):
            parse_network(twice, "", HOW | {flag: "refuse"})
    for content in (twice, GRAPHML.format(kind="directed").encode()):
        with pytest.raises(ValueError, match="train with a higher --max-edges"):
            parse_network(content, "", HOW | {"max_edges": 1})
    with pytest.raises(ValueError, match="name one for a grey picture, or three"):
        Pictures(channels=("counts", "span")).check()
    with pytest.raises(ValueError, match="--window 0: must be 1 or more"):
        Pictures(window=0).check()
    with pytest.raises(ValueError, match="--dimensions 1: these channels show 2 axes, so 2 or more"):
        Pictures(dimensions=1).check()
    with pytest.raises(ValueError, match="--dimensions 2: these channels show 3 axes, so 3 or more"):
        Pictures(dimensions=2, channels=("counts", "counts13", "counts23")).check()
    with pytest.raises(ValueError, match="at most 100,000 nodes"):
        Pictures(walks=10**6).check()
    with pytest.raises(ValueError, match="--window 900 on walks of .* at most 100,000 pairs"):
        Pictures(window=900, walk_length=900, walks=1).check()


def test_pairs_beyond_the_memory_are_refused(monkeypatch):
    monkeypatch.setattr(picture, "MOST_PAIRS", 1000)
    network = parse_network(text_of(watts_strogatz(240, 4, 0.1)(np.random.default_rng(0))), "", HOW)
    with pytest.raises(ValueError, match="gives more than 1,000 pairs: train with fewer --walks, or a"):
        picture.draw(network, HOW, 48)


def test_a_header_with_the_weight_before_an_end_is_refused():
    for head in ("source,weight,target", "weight,source,target"):
        with pytest.raises(ValueError, match="line 1: a column 'weight' before both ends of the edges"):
            parse_network(f"{head}\n1,0.5,2\n".encode(), ".csv", HOW)


def test_a_node_is_found_in_the_cells_of_each_channels_own_axes():
    how = HOW | {"channels": ["counts", "counts13", "counts23"]}
    edges = watts_strogatz(60, 6, 0.1)(np.random.default_rng(1))
    drawn = picture.draw(parse_network(text_of(edges), ".edges", how), how, 48)
    for channel, cells in enumerate(drawn.cells):
        lit = np.zeros((48, 48), bool)
        lit[tuple(cells.T)] = True
        assert (lit == (drawn.pixels[..., channel] > 0)).all()


def folder_of_networks(root, count=4, nodes=30):
    classes = {"ba": barabasi_albert(nodes, 3), "ws": watts_strogatz(nodes, 6, 0.1)}
    write_networks(root, classes, count, 2)
    return root


def test_a_folder_of_networks_is_a_folder_of_images_and_drawn_once(tmp_path, monkeypatch):
    splits = load_images(str(folder_of_networks(tmp_path / "d")))
    assert splits.train.pixels.shape == (8, 3, 48, 48)
    assert splits.train.drawing == HOW
    assert splits.train.NOUN == "networks"
    again = store.pictures.__globals__
    monkeypatch.setitem(again, "draw", lambda *_: pytest.fail("drawn twice"))
    other = load_images(str(tmp_path / "d"))
    assert (other.train.pixels == splits.train.pixels).all()
    assert other.train.fingerprint == splits.train.fingerprint
    kept = [p for p in (tmp_path / "cache").rglob("*") if p.is_file()]
    kept[0].write_bytes(kept[0].read_bytes()[:-1] + b"?")  # a damaged picture is drawn again
    monkeypatch.undo()
    monkeypatch.setenv("STEPWELL_DATA", str(tmp_path / "cache"))
    assert (load_images(str(tmp_path / "d")).test.pixels == splits.test.pixels).all()
    smaller = load_images(str(tmp_path / "d"), size=16, drawing=HOW | {"channels": ["linear"]})
    assert smaller.train.pixels[:, 0].sum() == 8 * 30
    assert smaller.train.fingerprint != splits.train.fingerprint


def test_threads_and_helpers_draw_the_same_bytes(tmp_path, monkeypatch):
    folder = folder_of_networks(tmp_path / "d", nodes=210)
    paths = sorted((folder / "train").rglob("*.edges"))[::4]
    alone, _ = store.pictures(paths, HOW, 24)
    jobs = []

    class Helper:  # as the other process does it, in this one
        def __init__(self, command, **_):
            assert command[-1] == "from stepwell.data.pictures.store import work; work()"
            self.stdin = io.StringIO()
            self.stdin.close = lambda: jobs.append(self.stdin.getvalue())

        def wait(self):
            monkeypatch.setattr(sys, "stdin", io.StringIO(jobs.pop()))
            store.work()

        def kill(self):
            pass

    monkeypatch.setenv("STEPWELL_DATA", str(tmp_path / "other"))
    monkeypatch.setattr(store, "MANY", 1)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setattr(store.subprocess, "Popen", Helper)
    with threadpool_limits(3):
        helped, bad = store.pictures(paths, HOW, 24)
    assert not bad
    assert not jobs
    for one, other in zip(alone, helped, strict=True):
        assert (one.pixels == other.pixels).all()
        assert (one.facts == other.facts).all()


def test_a_kill_while_drawing_leaves_whole_pictures_and_the_next_process_goes_on(tmp_path):
    write_networks(tmp_path / "data", {"a": barabasi_albert(400, 4)}, 40, 0)
    source = tmp_path / "data" / "train" / "a"
    files = sorted(source.iterdir())
    code = (
        "from pathlib import Path; from stepwell.data.pictures import store; "
        "from stepwell.data.pictures.flags import Pictures; "
        f"store.pictures(sorted(Path({str(source)!r}).iterdir()), Pictures().record, 28)"
    )

    def kept(folder: str) -> dict[str, bytes]:
        whole = (p for p in (tmp_path / folder).rglob("*") if p.is_file())
        return {p.name: p.read_bytes() for p in whole if re.fullmatch("[0-9a-f]{32}", p.name)}

    def start(folder: str) -> Forked:
        return Forked("-c", code, env={**os.environ, "STEPWELL_DATA": str(tmp_path / folder)})

    with start("killed") as process:
        while len(kept("killed")) < 5 and process.poll() is None:
            time.sleep(0.005)
        process.kill()
        assert process.wait(20) == -9
    first = kept("killed")
    assert 5 <= len(first) < len(files)
    for folder in ("killed", "whole"):
        with start(folder) as process:
            _, err = process.communicate()
            assert process.returncode == 0, err
    assert kept("killed") == kept("whole")
    assert len(kept("whole")) == len(files)
    assert first.items() <= kept("whole").items()


def test_bad_folders_are_told_in_one_line(tmp_path):
    root = folder_of_networks(tmp_path / "d")
    bad = root / "train" / "ba" / "00000.edges"
    good = bad.read_bytes()
    bad.write_bytes(b"a\n")
    with pytest.raises(ValueError, match=r"00000.edges \(line 1 has 1 column"):
        load_images(str(root))
    bad.write_bytes(good)
    (root / "train" / "ba" / "more.csv").write_bytes(b"a,b\n")
    with pytest.raises(ValueError, match="mixes .csv and .edges files"):
        load_images(str(root))
    (root / "train" / "ba" / "more.csv").unlink()
    for part in ("train", "test"):
        (root / part / "photos").mkdir()
        Image.new("RGB", (8, 8)).save(root / part / "photos" / "a.png")
    with pytest.raises(ValueError, match="is an image and .* is a network"):
        load_images(str(root))
    ring = tmp_path / "rings"
    for name in ("a/1", "a/2", "b/1", "b/2"):
        (ring / name).parent.mkdir(parents=True, exist_ok=True)
        (ring / f"{name}.edges").write_bytes(RING)
    with pytest.raises(ValueError, match="pictures of all 4 networks of .*rings are alike"):
        load_images(str(ring))
    (ring / "b" / "2.edges").rename(ring / "a" / "3.edges")
    (ring / "b" / "1.edges").write_bytes(RING + b"4 5\n")
    with pytest.raises(ValueError, match="rings has no test part: class 'b' has one network only"):
        load_images(str(ring))


def test_class_folders_without_a_network_are_told_so(tmp_path):
    for name in ("a", "b"):
        (tmp_path / "d" / name).mkdir(parents=True)
        (tmp_path / "d" / name / "1.txt").write_bytes(RING)
    for drawn, words in ((True, r"no network \(\.csv, "), (False, r"no image \(\.bmp, ")):
        with pytest.raises(ValueError, match=f"2 class folders hold {words}"):
            load_images(str(tmp_path / "d"), drawn=drawn)
    with pytest.raises(ValueError, match="needs at least two class folders with networks in them"):
        load_images(str(tmp_path / "d" / "a"), drawn=True)
    with pytest.raises(
        ValueError, match="1.txt is a file: networks stand in a folder of class folders$"
    ):
        load_images(str(tmp_path / "d" / "a" / "1.txt"), drawn=True)


def test_notes_tell_of_parts_axes_sizes_and_what_is_not_read(tmp_path):
    for name, count in (("small", 5), ("large", 9)):
        (tmp_path / "d" / "train" / name).mkdir(parents=True)
        for i in range(4):
            lines = "".join(f"{a} {a + 1}\n" for a in range(count + i % 2)) + "x y\n"
            (tmp_path / "d" / "train" / name / f"{i}.edges").write_text(lines)
            test = tmp_path / "d" / "test" / name
            test.mkdir(parents=True, exist_ok=True)
            (test / f"{i}.edges").write_text("a b\nb c\nb d\nx y\n" if i else lines + "x z\nz w\n")
    train = tmp_path / "d" / "train"
    (train / "small" / "0.edges").write_text("# directed\n1 2\n2 3\n3 4\n4 5\n")
    (train / "small" / "more.txt").write_text("a b\n")
    (train / "small" / "header.edges").write_text("person friend\n1 2\n1 3\n")
    (tmp_path / "d" / "groups.tsv").write_text(
        "".join(f"{file.relative_to(tmp_path / 'd')}\tg{i}\n" for i, file in enumerate(
            [*sorted((tmp_path / "d").rglob("*.edges")), tmp_path / "d" / "gone.edges"]
        ))
    )  # fmt: skip
    notes = " ".join(load_images(str(tmp_path / "d")).notes)
    for words in (
        f"{train}: 7 of 9 networks have several parts",
        "the axes of",
        f"{tmp_path / 'd' / 'test'}: 8 of 8 networks have several parts",
        "the number of nodes alone tells 'large' and 'small' apart",
        f"{train}: 1 of 9 networks are directed, so their direction alone may tell classes apart",
        f"the first line of 1 of 9 files is taken for a header, such as that of {train / 'small'}",
        f"files in class folders that are not read: 1, such as {train / 'small' / 'more.txt'}",
        f"groups.tsv names files that do not exist: 1, {tmp_path / 'd' / 'gone.edges'}",
    ):
        assert words in notes, words


def test_a_picture_from_walks_is_noted_where_only_names_tell_nodes_apart(tmp_path):
    ring = "".join(f"{i} {(i + 1) % 210}\n" for i in range(210))
    (tmp_path / "ring.edges").write_text(ring)
    note = format_of(HOW).noted(tmp_path / "ring.edges", 16)[1]
    assert "depends on the names of nodes" in note
    (tmp_path / "hubs.edges").write_bytes(text_of(barabasi_albert(210, 3)(np.random.default_rng(0))))
    assert "names" not in format_of(HOW).noted(tmp_path / "hubs.edges", 16)[1]


def test_groups_stay_whole(tmp_path):
    root = tmp_path / "d"
    lines = []
    for name in ("a", "b"):
        (root / name).mkdir(parents=True)
        for i in range(10):
            (root / name / f"{i}.edges").write_bytes(RING + f"{i % 3} z\nz {name}\n".encode())
            lines.append(f"{name}/{i}.edges\tg{i // 2}\n")
    (root / "groups.tsv").write_text("".join(lines))
    splits = load_images(str(root))
    assert not set(splits.train.about["group"]) & set(splits.test.about["group"])
    assert "whole groups," in splits.notes[-1]
    assert splits.test.labels.unique().tolist() == [0, 1]
    train, validation = splits.train.split(0.2)
    assert not set(train.about["group"]) & set(validation.about["group"])
    (root / "groups.tsv").write_text("".join(lines[1:]))
    with pytest.raises(ValueError, match="names no group of"):
        load_images(str(root))
    (root / "groups.tsv").write_text("a\n")
    with pytest.raises(ValueError, match=r"groups.tsv, line 1: two columns with a tab"):
        load_images(str(root))
    with pytest.raises(ValueError, match="class 'b' has one group only"):
        set_aside(np.array(["x", "y", "y"]), np.array([0, 0, 1]), ("a", "b"), 0.2)


def test_a_group_of_half_a_class_stays_in_training_and_seeds_choose_others():
    groups = np.repeat([f"g{i}" for i in range(21)], [100, *[5] * 20])
    labels = np.zeros(len(groups), np.int64)
    chosen = [{*groups[set_aside(groups, labels, ("a",), 0.25, seed)]} for seed in range(4)]
    assert all(len(names) == 10 and "g0" not in names for names in chosen)
    assert len({frozenset(names) for names in chosen}) == 4


def test_every_class_keeps_a_group_on_both_sides():
    # the smallest group of b is the last one of a that stays
    groups = np.repeat(["g1", "g2", "g2", "g3"], [10, 10, 10, 30])
    labels = np.repeat([0, 0, 1, 1], [10, 10, 10, 30])
    aside = set_aside(groups, labels, ("a", "b"), 0.2)
    assert {*labels[aside]} == {*labels[~aside]} == {0, 1}
    assert not {*groups[aside]} & {*groups[~aside]}
    every, both = np.array(["x", "y", "x", "y", "y"]), np.array([0, 0, 1, 1, 1])
    aside = set_aside(every, both, ("a", "b"), 0.2)
    assert {*both[aside]} == {*both[~aside]} == {0, 1}
    three = np.array(["x", "y", "y", "z", "z", "x"])  # each class in two of three groups
    with pytest.raises(ValueError, match="each of its groups is the last one of a class that stays"):
        set_aside(three, np.array([0, 0, 1, 1, 2, 2]), ("a", "b", "c"), 0.2)


def test_a_card_records_the_format_and_refuses_nonsense():
    assert format_of({}) is PHOTOGRAPHS
    assert format_of({"format": "network"}).record == HOW
    for record in (
        {"format": "x"},
        HOW | {"walks": "many"},
        HOW | {"other": 1},
        HOW | {"channels": ["x"]},
    ):
        with pytest.raises(ValueError, match="pictures|format|channels"):
            format_of(record)
    pixels = format_of(HOW).decoded(RING, 16)
    assert pixels.shape == (16, 16, 3)
    with pytest.raises(ValueError, match="an int is no network"):
        format_of(HOW).squared(3, 16)
    assert pixels.max() > 0


def of_networkx(rows, directed):
    graph = nx.DiGraph() if directed else nx.Graph()
    graph.add_weighted_edges_from(rows)
    return graph


def of_igraph(rows, directed):
    return igraph.Graph.TupleList(rows, directed=directed, weights=True)


@pytest.mark.parametrize("made", [of_networkx, of_igraph])
@pytest.mark.parametrize("directed", [False, True])
def test_a_graph_in_python_has_the_picture_of_its_file(made, directed, tmp_path):
    rng = np.random.default_rng(0)
    pairs = {(f"n{a}", f"n{b}") for a, b in rng.integers(0, 40, (150, 2)).tolist() if a < b}
    rows = [(a, b, float(rng.integers(1, 9))) for a, b in sorted(pairs)]
    head = f"# {'directed' if directed else 'undirected'} weighted\n"
    file = tmp_path / "it.edges"
    file.write_text(head + "".join(f"{a} {b} {weight}\n" for a, b, weight in rows))
    form = format_of(HOW)
    graph = made(rows, directed)
    assert (form.squared(graph, 24) == form.squared(file, 24)).all()
    assert form.noted(graph, 24)[1] == form.noted(file, 24)[1]
    net = stepwell.build("cnc", num_classes=2, image_size=24).eval()
    net.mark("trained")
    net.card = stepwell.Card(("a", "b"), 24, drawing=HOW)
    assert net.predict([graph, file])[0].top == net.predict(file).top
    assert net.predict(graph).top == net.predict(file).top


def test_graphs_in_python_that_are_refused():
    form = format_of(HOW)
    numbers = nx.Graph([(1, "1"), (1, 2)])
    for graph, said in (
        (nx.Graph(), "no edge"),
        (igraph.Graph(3), "no edge"),
        (numbers, "two nodes of the graph are named '1'"),
        (of_networkx([("a", "b", -1)], False), "from 'a' to 'b': the weight -1 is negative"),
        (of_networkx([("a", "b", "x")], False), "from 'a' to 'b': the weight 'x' is no number"),
    ):
        with pytest.raises(ValueError, match=said):
            form.squared(graph, 16)
    with pytest.raises(ValueError, match="more than 2 edges: train with a higher --max-edges"):
        format_of(HOW | {"max_edges": 2}).squared(nx.path_graph(9), 16)
    with pytest.raises(ValueError, match="a graph is no image"):
        PHOTOGRAPHS.squared(nx.path_graph(9), 16)
    graph = nx.path_graph(9)
    graph.edges[0, 1]["weight"] = 2.0  # others weigh 1
    whole = of_networkx([(i, i + 1, 2.0 if i == 0 else 1.0) for i in range(8)], False)
    assert (form.squared(graph, 16) == form.squared(whole, 16)).all()


def test_the_lines_of_the_page_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = Path(__file__).parents[2] / "docs" / "network-pictures.md"
    (code,) = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    exec(compile(code.replace("train=20", "train=2"), "network-pictures.md", "exec"), {})
    assert len(load_images("networks").train) == 4


WEIGHT_KEY = '<key id="{0}" for="edge" attr.name="weight" attr.type="{1}"/>'
ONE_GRAPH = '<graph edgedefault="undirected">{0}</graph>'


def test_weights_of_several_types_and_elements_of_other_namespaces(tmp_path):
    graph = nx.path_graph(5)
    graph[0][1]["weight"], graph[1][2]["weight"] = 1, 2.5  # networkx writes a key for each type
    nx.write_graphml(graph, tmp_path / "mixed.graphml")
    form = format_of(HOW)
    assert (form.squared(tmp_path / "mixed.graphml", 16) == form.squared(graph, 16)).all()
    foreign = (
        '<graphml xmlns="http://graphml.graphdrawing.org/xmlns" xmlns:y="http://other">'
        + WEIGHT_KEY.format("w", "double")
        + ONE_GRAPH.format(
            '<edge source="a" target="b"><data><y:edge source="b" target="d"/></data>'
            '<data key="w">7</data></edge><edge source="b" target="c"/>'
        )
        + "</graphml>"
    )
    read = parse_network(foreign.encode(), ".graphml", HOW)
    assert sorted(read.names) == ["a", "b", "c"]
    assert sorted(set(read.weights.tolist())) == [1, 7]
    edge = '<edge source="a" target="b">{0}</edge>'
    twice = edge.format('<data key="w">1</data><data key="w">9</data>')
    for text, said in (
        (
            ONE_GRAPH.format(edge.format("")) + WEIGHT_KEY.format("w", "int"),
            "the weights stands behind the <graph>",
        ),
        (
            WEIGHT_KEY.format("w", "int") + ONE_GRAPH.format(twice),
            "a second weight of one edge",
        ),
    ):
        with pytest.raises(ValueError, match=said):
            parse_network(f"<graphml>{text}</graphml>".encode(), ".graphml", HOW)


def test_nodes_without_an_edge_are_no_parts():
    graph = nx.path_graph(9)
    graph.add_node("alone")
    assert "several parts" not in format_of(HOW).noted(graph, 16)[1]
    graph.add_edge("other", "pair")
    assert "several parts" in format_of(HOW).noted(graph, 16)[1]


def test_a_pipe_is_no_network(tmp_path):
    os.mkfifo(tmp_path / "x.edges")
    _, bad = store.pictures([tmp_path / "x.edges"], HOW, 16)
    assert "no regular file" in str(bad.popitem()[1])


@pytest.mark.parametrize("cbow", [True, False])
def test_word2vec_learns_the_vectors_of_gensim(cbow):
    gensim = pytest.importorskip("gensim.models")
    edges = watts_strogatz(300, 8, 0.1)(np.random.default_rng(0))
    network = parse_network("".join(f"{a} {b}\n" for a, b in edges.tolist()).encode(), "", HOW)
    paths = walks(network, 10, 10, np.random.default_rng(0))
    ours = word2vec(paths, 300, 5, 20, np.random.default_rng(0), cbow)
    model = gensim.Word2Vec(vector_size=20, window=5, min_count=1, sg=int(not cbow), workers=1, seed=0)
    model.build_vocab(paths.T.tolist())
    model.wv.vectors *= 0.5  # as long as in 2017
    model.train(paths.T.tolist(), total_examples=paths.shape[1], epochs=5)
    theirs = np.stack([model.wv[node] for node in range(300)])
    one, other = (pdist(x) for x in (ours, theirs))
    assert np.corrcoef(one, other)[0, 1] > 0.8  # two seeds of gensim: 0.85 and 0.93
    assert one.mean() == pytest.approx(other.mean(), rel=0.05)


def test_a_quote_inside_of_a_name_is_a_character():
    for suffix, line in ((".edges", b'a 5"\n'), (".tsv", b'a\t5"\n'), (".edges", b'"a b" "5"\n')):
        assert parse_network(line, suffix, HOW).edges == 1


@pytest.mark.parametrize("head", ["", "source,target\n"])
def test_as_many_edges_as_max_edges_are_read_and_no_more(head):
    lines = "".join(f"{i},{i + 1}\n" for i in range(5))
    assert parse_network((head + lines).encode(), ".csv", HOW | {"max_edges": 5}).edges == 5
    with pytest.raises(ValueError, match="more than 4 edges: train with a higher --max-edges"):
        parse_network((head + lines).encode(), ".csv", HOW | {"max_edges": 4})
