"""The study of pictures of complex networks: its arms run, and its claims compare what they say."""

import inspect
from itertools import combinations, count
from pkgutil import resolve_name

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stepwell.claims.cnc.arms import TASKS, published_split
from stepwell.claims.cnc.rivals import (
    adjacency,
    colour_kernel,
    colours,
    graphlets,
    isomorphism_network,
    numbers_of,
)
from stepwell.claims.cnc.study import (
    ARMS,
    CBOW,
    DEGREES,
    GIN,
    GRAPHLETS,
    GREY,
    KERNEL,
    PAPER,
    PICTURE,
    PRIMARY,
    STRUCTURE,
    STUDY,
)
from stepwell.claims.kit.judging import judge
from stepwell.claims.kit.verify import verify_system
from stepwell.data.pictures import word2vec
from stepwell.data.pictures.flags import Pictures
from stepwell.data.pictures.network import parse_network


def test_claims_compare_the_arms_that_they_name():
    number = count(1)
    keys = [f"{t}/{r}" for t in (*TASKS, "fields", "mean") for r in ("accuracy", "balanced_accuracy")]
    results = {
        arm: {0: {"test": {key: next(number) / 1000 for key in keys}, "seconds": 1, "cpu_seconds": 1}}
        for arm in ARMS
    }
    judged = {claim["id"]: claim["difference"]["mean"] for claim in judge(STUDY, results)}

    def rate(arm, key):
        return 100 * results[arm][0]["test"][key]

    expected = {
        PRIMARY[0]: rate(PAPER, "ba-ws/accuracy"),
        PRIMARY[1]: rate(PICTURE, "fields/balanced_accuracy")
        - rate(STRUCTURE, "fields/balanced_accuracy"),
        PRIMARY[2]: rate(GREY, "mean/accuracy") - rate(CBOW, "mean/accuracy"),
    }
    assert {name: judged[name] for name in expected} == pytest.approx(expected)


@pytest.mark.parametrize("arm", ARMS)
def test_an_arm_sets_arguments_that_its_function_has(arm):
    known = inspect.signature(resolve_name(ARMS[arm].function)).parameters
    flags = {"net", *Pictures.__dataclass_fields__} if "drawing" in known else set()
    assert {*ARMS[arm].arguments} <= known.keys() | flags


def counted_by_hand(graph):
    """Connected subgraphs of three and four nodes, by looking at every choice of nodes."""
    shapes = (nx.path_graph(3), nx.complete_graph(3), nx.star_graph(3), nx.path_graph(4),
              nx.Graph([(0, 1), (1, 2), (2, 0), (2, 3)]), nx.cycle_graph(4),
              nx.Graph([(0, 1), (1, 2), (2, 3), (3, 0), (0, 2)]), nx.complete_graph(4))  # fmt: skip
    found = []
    for shape in shapes:
        nodes = shape.number_of_nodes()
        each = nx.isomorphism.GraphMatcher(shape, shape).subgraph_monomorphisms_iter()
        same = sum(1 for _ in each)  # ways to lay a shape upon itself
        laid = (
            sum(1 for _ in nx.isomorphism.GraphMatcher(part, shape).subgraph_monomorphisms_iter())
            for part in map(graph.subgraph, combinations(graph, nodes))
        )
        found.append(sum(laid) / same)
    return found


@given(
    st.sets(st.tuples(st.integers(0, 7), st.integers(0, 7)).filter(lambda e: e[0] < e[1]), min_size=1)
)
@settings(max_examples=25, deadline=None)
def test_graphlets_are_those_that_one_counts(edges):
    lines = "".join(f"{a} {b}\n" for a, b in edges).encode()
    table = adjacency(parse_network(lines, "", Pictures().record))
    assert graphlets(table) == pytest.approx(counted_by_hand(nx.Graph([*edges])))


def test_colours_do_not_depend_on_names_and_tell_a_ring_of_six_from_a_path():
    ring, other, path = (
        parse_network(lines, "", Pictures().record)
        for lines in (b"a b\nb c\nc d\nd e\ne f\nf a\n", b"5 3\n3 1\n1 0\n0 2\n2 4\n4 5\n",
                      b"a b\nb c\nc d\nd e\ne f\n")
    )  # fmt: skip
    assert colours(ring) == colours(other)
    assert len(colours(ring)) == 4  # one for each round
    assert len(colours(path, rounds=1)) == 2 + 3
    kinds = [ring, path] * 6, [other, path]
    labels = np.array([0, 1] * 6), np.array([0, 1])
    assert colour_kernel(*kinds, *labels) == {"accuracy": 1.0, "balanced_accuracy": 1.0}


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_a_graph_network_tells_rings_from_stars():
    def ring(n):
        return "".join(f"{i} {(i + 1) % n}\n" for i in range(n))

    def star(n):
        return "".join(f"0 {i}\n" for i in range(1, n))

    parts = [
        [parse_network(of(n).encode(), "", Pictures().record) for n in sizes for of in (ring, star)]
        for sizes in (range(4, 12), (13, 20))
    ]
    labels = [np.arange(len(part)) % 2 for part in parts]
    found = [isomorphism_network(*parts, *labels, epochs=20, seed=seed) for seed in (0, 0)]
    assert found[0] == found[1] == {"accuracy": 1.0, "balanced_accuracy": 1.0}


def test_statistics_are_those_of_a_triangle_with_a_tail():
    network = parse_network(b"a b\nb c\nc a\nc d\n", "", Pictures().record)
    found = numbers_of(network, "structure")
    assert found[:5] == [4, 4, 2, np.sqrt(0.5), 3]
    assert found[5:7] == pytest.approx([6 / 10, -5 / 7])  # networkx 3.6
    assert found[7] < 0 < found[-1] == pytest.approx(1)


@pytest.mark.filterwarnings(
    "ignore:.*the axes of",
    "ignore:.*images are set aside",
    "ignore:.*parts, which",
    "ignore:.*torch.jit",
)
@pytest.mark.usefixtures("quick")
def test_verify_cnc_quick_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("STEPWELL_DATA", str(tmp_path / "cache"))
    monkeypatch.setenv("STEPWELL_ONE_PROCESS", "1")
    monkeypatch.setattr(word2vec, "EPOCHS", 1)
    arms = [PICTURE, PAPER, DEGREES, GRAPHLETS, KERNEL, GIN]
    record, page = verify_system("cnc", {}, quick=True, seeds=1, workers=1, folder=tmp_path, arms=arms)
    assert record["arms"][PICTURE]["copies/same"]["n"] == 1
    assert {"headline", "copies", "robust/size"} <= {claim["id"] for claim in record["claims"]}
    assert page.exists()
    with pytest.raises(ValueError, match="verify cnc needs real networks"):
        verify_system("cnc", {}, quick=False, seeds=1, workers=1, folder=tmp_path, arms=arms)
    with pytest.raises(ValueError, match="--data digits holds images, and verify cnc takes complex"):
        verify_system(
            "cnc", {"data": "digits"}, quick=True, seeds=1, workers=1, folder=tmp_path, arms=arms
        )
    results = published_split(out=tmp_path / "sums", nodes=30, train=4, test=3, epochs=1)
    assert set(results["test"]) >= {"ba-null/accuracy"}
