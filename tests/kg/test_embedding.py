"""Contexts and the encoder, against the formulas written as loops over padded or dense matrices."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from stepwell.kg.contexts import entity_contexts, relation_contexts
from stepwell.kg.embedding import KINDS, ContextEncoder, GraphEmbedding, distance
from stepwell.kg.relation_paths import RelationPaths
from stepwell.kg.triple_index import RELATION_BITS, Neighbours, TripleIndex


def random_rows(seed, n=80, entities=14, relations=4):
    rng = np.random.default_rng(seed)
    columns = [rng.integers(0, k, n) for k in (entities, relations, entities)]
    return np.stack(columns, axis=1).astype(np.int64)


def as_set(rows):
    return {tuple(row) for row in rows.tolist()}


def naive_paths(facts):
    """Relation to {path: count}, by the definition."""
    found = {}
    for h, r, t in facts:
        for a, q, b in facts:
            if (a, b) == (h, t) and q != r:
                found.setdefault(r, {}).setdefault((q, None), []).append(1)
            if a == h:
                for x, p, c in facts:
                    if x == b and c == t:
                        found.setdefault(r, {}).setdefault((q, p), []).append(1)
    return {r: {path: len(ones) for path, ones in paths.items()} for r, paths in found.items()}


def counted(paths):
    mask = (1 << RELATION_BITS) - 1
    found = {}
    for key, count in zip(paths.keys.tolist(), paths.counts.tolist(), strict=True):
        second = key & mask
        path = ((key >> RELATION_BITS) & mask, second - 1 if second else None)
        found.setdefault(key >> 2 * RELATION_BITS, {})[path] = count
    return found


def matrix_of(members, edges, vectors, own):
    """D^-1/2 A D^-1/2 H0 of one subgraph, densely."""
    m = len(members)
    a = np.eye(m + 1)
    a[0, :] = a[:, 0] = 1
    for i, j in edges:
        a[i + 1, j + 1] = a[j + 1, i + 1] = 1
    d = a.sum(1) ** -0.5
    h0 = np.stack([own, *(sum(vectors[k] for k in member) for member in members)])
    return torch.from_numpy((d[:, None] * a * d) @ h0).float()


def naive_joint(encoder, knowledge, aggregated):
    """The formula of the paper for one element."""
    h = torch.relu(aggregated @ encoder.weight)
    s = torch.stack([encoder.attention @ torch.relu(row * knowledge) for row in h])
    alpha = torch.softmax(s, 0) if encoder.attends else torch.full_like(s, 1 / len(s))
    context = sum(a * row for a, row in zip(alpha, h, strict=True))
    mix = torch.sigmoid(encoder.gate) if encoder.gates else 0.5
    return mix * knowledge + (1 - mix) * context


@pytest.mark.parametrize(("attention", "gate"), [(True, True), (False, True), (True, False)])
def test_joint_vectors_of_entities_are_the_papers(attention, gate):
    rows = random_rows(0)
    neighbours = Neighbours(rows, seed=0)
    net = GraphEmbedding(16, 4, 5, attention=attention, gate=gate)  # 14 and 15 are isolated
    every = np.arange(16)
    joint = net.all_joint("entity", entity_contexts(neighbours, every, 4), block=5)
    knowledge, contextual = net.knowledge["entity"], net.contextual["entity"].detach().numpy()
    pairs = {(h, t) for h, _, t in rows.tolist()}
    for e in every:
        members = neighbours.of(np.array([e]), 4).value.tolist()
        edges = [
            (i, j)
            for i, a in enumerate(members)
            for j, b in enumerate(members)
            if i < j and ((a, b) in pairs or (b, a) in pairs)
        ]
        own = knowledge[e].detach().numpy()
        aggregated = matrix_of([(m,) for m in members], edges, contextual, own)
        expected = naive_joint(net.encoders["entity"], knowledge[e], aggregated)
        assert_close(joint[e], expected, atol=1e-5, rtol=1e-5)


def test_joint_vectors_of_relations_are_the_papers():
    rows = random_rows(1, 40, relations=3)
    paths = RelationPaths.of(TripleIndex(rows))
    net = GraphEmbedding(14, 4, 5)
    contexts = relation_contexts(paths, np.arange(4), 50, seed=0)
    joint = net.all_joint("relation", contexts)
    knowledge, contextual = net.knowledge["relation"], net.contextual["relation"].detach().numpy()
    truth = naive_paths(as_set(rows))
    for r in range(4):
        mine = list(truth.get(r, {}))
        edges = [
            (i, j)
            for i, (q, second) in enumerate(mine)
            for j, other in enumerate(mine)
            if i != j and second is None and other in truth.get(q, {})
        ]
        members = [tuple(hop for hop in path if hop is not None) for path in mine]
        own = knowledge[r].detach().numpy()
        aggregated = matrix_of(members, edges, contextual, own)
        expected = naive_joint(net.encoders["relation"], knowledge[r], aggregated)
        assert_close(joint[r], expected, atol=1e-5, rtol=1e-5)


def test_paths_are_counted_by_the_definition_and_follow_a_change():
    rows, added = random_rows(2, 50), random_rows(3, 12)
    before = TripleIndex(rows)
    paths = RelationPaths.of(before)
    assert counted(paths) == naive_paths(as_set(rows))
    removed = before.rows[::5]
    after = before.changed(added, removed)
    gained = after.rows[~before.holds(after.rows)]
    lost = before.rows[~after.holds(before.rows)]
    changed = paths.changed(before, after, gained, lost)
    assert counted(changed) == naive_paths(as_set(after.rows))


def test_a_sampled_context_of_a_relation_is_a_part_of_the_whole_one():
    paths = RelationPaths.of(TripleIndex(random_rows(2, 50)))
    few = relation_contexts(paths, np.arange(4), 3, seed=0)
    assert (few.rows.diff() == 4).all()  # a centre and three paths
    others = relation_contexts(paths, np.arange(4), 3, seed=1)
    assert (few.digest != others.digest).any()


def test_digests_tell_contexts_apart():
    rows = np.array([[0, 0, 1], [0, 0, 2], [3, 0, 4]])
    joined = np.concatenate([rows, [[1, 0, 2]]])
    every = np.arange(5)
    before, after = (entity_contexts(Neighbours(r, 0), every, 4).digest for r in (rows, joined))
    # 0 has the same neighbours, but they are joined now
    assert (before != after).tolist() == [True, True, True, False, False]


def test_selected_contexts_are_the_same_ones():
    contexts = entity_contexts(Neighbours(random_rows(4), 0), np.arange(14), 4)
    which = torch.tensor([9, 0, 9, 13])
    net = GraphEmbedding(14, 1, 6)
    assert_close(
        net.joint("entity", which, contexts.select(which)),
        net.all_joint("entity", contexts)[which],
    )


def test_without_context_it_is_transe():
    net = GraphEmbedding(5, 2, 3, context=False)
    which = torch.tensor([3, 1])
    assert_close(net.joint("entity", which, None), net.knowledge["entity"][which])
    assert [name for name, _ in net.named_parameters()] == [
        "knowledge.entity",
        "knowledge.relation",
    ]


def test_a_net_may_begin_near_a_model_of_translation():
    contexts = entity_contexts(Neighbours(random_rows(4), 0), np.arange(14), 4)
    plain, net = GraphEmbedding(14, 1, 6, context=False), GraphEmbedding(14, 1, 6)
    given = {kind: plain.knowledge[kind].detach() for kind in KINDS}
    apart = (net.all_joint("entity", contexts) - given["entity"]).norm()
    net.start_from(given)
    near = (net.all_joint("entity", contexts) - given["entity"]).norm()
    assert near < 0.5 * given["entity"].norm() < apart
    assert_close(net.knowledge["relation"].detach(), given["relation"], rtol=0, atol=0)


@pytest.mark.parametrize("attention", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_reach_every_part_and_are_right(kind, attention):
    rows, every = random_rows(5, 30, entities=6), np.arange(6)
    contexts = (
        entity_contexts(Neighbours(rows, 0), every, 3)
        if kind == "entity"
        else relation_contexts(RelationPaths.of(TripleIndex(rows)), every, 3, seed=0)
    )
    # two centres twice, one not at all
    which = torch.tensor([5, 0, 3, 0, 1, 3])
    contexts = contexts.select(which)
    contexts = replace(contexts, weight=contexts.weight.double())
    encoder = ContextEncoder(4, attention=attention).double()
    tables = [torch.randn(6, 4, dtype=torch.double, requires_grad=True) for _ in range(2)]
    learned = [p for p in encoder.parameters() if p.requires_grad]
    assert torch.autograd.gradcheck(
        lambda k, c, *_: encoder(k[which], c, contexts), [*tables, *learned]
    )


def test_the_distance_has_a_gradient_at_zero():
    x = torch.zeros(2, 3, requires_grad=True)
    distance(x).sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()
