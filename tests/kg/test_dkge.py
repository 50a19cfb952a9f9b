"""Learning from scratch and online: who moves, who does not, and what false triples are."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from stepwell.kg.embedding import COLUMNS, KINDS, GraphEmbedding
from stepwell.kg.objective import DKGE, Corruption, joint_vectors, margin_loss
from stepwell.kg.online import Online, learn_change
from stepwell.kg.online_objective import OnlineDKGE, initial_vectors
from stepwell.kg.snapshot import Snapshot, UpdateTriples
from stepwell.kg.triple_index import TripleIndex

NONE = np.zeros(0, np.int64)


def random_rows(seed, n=150, entities=40, relations=4):
    rng = np.random.default_rng(seed)
    columns = [rng.integers(0, k, n) for k in (entities, relations, entities)]
    return np.unique(np.stack(columns, axis=1).astype(np.int64), axis=0)


def test_a_margin_worked_by_hand():
    true, false = torch.tensor([1.0, 5.0]), torch.tensor([[2.0, 9.0], [4.0, 0.0]])
    counts = torch.tensor([[True, True], [True, False]])
    # 4 + 1 - 2, 4 + 1 - 9 < 0, 4 + 5 - 4
    assert_close(margin_loss(true, false, 4.0, counts), torch.tensor((3 + 0 + 5) / 3))


def test_false_triples_are_false_and_differ_in_one_end():
    rows = random_rows(0)
    corrupt = Corruption(TripleIndex(rows), rows, np.arange(40))
    false, counts = corrupt(torch.from_numpy(rows), 3)
    true = np.repeat(rows, 3, axis=0)
    known = {tuple(row) for row in rows.tolist()}
    assert counts.float().mean() > 0.99
    for row, before, counted in zip(false.tolist(), true.tolist(), counts.tolist(), strict=True):
        assert (tuple(row) not in known) == counted
        assert row[1] == before[1]
        assert (row[0] == before[0]) or (row[2] == before[2])


def test_the_side_with_few_answers_is_replaced_by_each_relations_own_measure():
    # relation 0: one head with ten tails; relation 1: ten heads with one tail
    rows = np.array([[0, 0, i] for i in range(1, 11)] + [[i, 1, 0] for i in range(1, 11)])
    corrupt = Corruption(TripleIndex(rows), rows, np.arange(1000))
    false, _ = corrupt(torch.from_numpy(rows), 200)
    head = (false[:, 0] != torch.from_numpy(rows)[:, 0].repeat_interleave(200)).float()
    relation = false[:, 1]
    # tph 10, hpt 1: the head with probability 10 / 11
    assert head[relation == 0].mean().item() == pytest.approx(10 / 11, abs=0.03)
    assert head[relation == 1].mean().item() == pytest.approx(1 / 11, abs=0.03)


def test_a_graph_that_is_full_has_no_false_triples():
    rows = np.array([[a, 0, b] for a in range(3) for b in range(3)])
    corrupt = Corruption(TripleIndex(rows), rows, np.arange(3))
    objective = DKGE(GraphEmbedding(3, 1, 4), Snapshot.of(rows, size=2, seed=0))
    assert not corrupt(torch.from_numpy(rows), 2)[1].any()
    assert objective.training_step(torch.from_numpy(rows)).loss.item() == 0


@pytest.fixture(scope="module", params=[True, False], ids=["dkge", "transe"])
def trained(request):
    torch.manual_seed(0)
    facts = Snapshot.of(random_rows(0), size=4, seed=0)
    net = GraphEmbedding(43, 5, 8, context=request.param)  # 40 to 42 and relation 4 come later
    objective = DKGE(net, facts, margin=2.0, negatives=2)
    batch = torch.from_numpy(facts.index.rows)
    optimizer = torch.optim.Adam([p for p in net.parameters() if p.requires_grad], lr=0.02)
    losses = []
    for _ in range(30):
        loss = objective.training_step(batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return net, facts, losses


def test_the_loss_falls_and_every_vector_of_the_graph_learns(trained):
    net, facts, losses = trained
    assert losses[-1] < 0.8 * losses[0]
    net.zero_grad()
    # (a margin that no triple meets, or some vectors would have nothing to learn)
    objective = DKGE(net, facts, margin=100.0)
    objective.training_step(torch.from_numpy(facts.index.rows)).loss.backward()
    there = facts.present(np.arange(43))
    for name, parameter in net.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad.isfinite().all(), name
            moved = parameter.grad.flatten(1).abs().sum(1) > 0 if parameter.ndim > 1 else None
            if name.endswith("knowledge.entity"):
                assert moved.tolist() == there.tolist()
            else:
                assert (parameter.grad != 0).any(), name
    net.zero_grad()


def change_of(facts):
    removed = facts.index.rows[::30]
    added = np.array([[40, 0, 3], [5, 4, 40], [41, 4, 6], [1, 2, 9], [42, 0, 41]])
    added = added[~facts.index.holds(added)]
    new = {"entity": np.array([40, 41, 42]), "relation": np.array([4])}
    return facts.changed(added, removed), np.concatenate([added, removed]), new


def beginnings(net, new):
    if not net.has_context:
        return {}
    return {kind: net.contextual[kind].detach()[new[kind]].clone() for kind in KINDS}


def learn(net, facts, joint, seed=1, **how):
    after, changes, new = change_of(facts)
    entities = np.unique(after.index.rows[:, [0, 2]])
    return after, learn_change(
        net, joint, facts, after, changes, new, Online(**how),
        entities=entities, relations=np.arange(5), contextual=beginnings(net, new), margin=2.0,
        negatives=2, seed=seed,
    )  # fmt: skip


def test_new_elements_begin_where_their_triples_place_them(trained):
    net, facts, _ = trained
    joint = joint_vectors(net, facts)
    _, learned = learn(net, facts, joint, epochs=0)
    _, changes, new = change_of(facts)
    # as `learn_change` draws; the last triple joins two new entities, so two passes are needed
    with torch.random.fork_rng():
        torch.manual_seed(1)
        start = initial_vectors(joint, changes[~facts.index.holds(changes)], new)
    for kind in KINDS:
        which, rows = learned.joint[kind]
        assert_close(rows[np.searchsorted(which, new[kind])], start[kind], rtol=0, atol=0.02)


@pytest.mark.parametrize("closed", [-1.0, -3.0])
def test_where_gates_are_closed_new_elements_begin_no_farther_than_without_looking(closed):
    torch.manual_seed(0)
    facts = Snapshot.of(random_rows(0), size=4, seed=0)
    net = GraphEmbedding(43, 5, 8)
    with torch.no_grad():
        for kind in KINDS:
            net.encoders[kind].gate.fill_(closed)
            net.encoders[kind].weight.mul_(4)  # a fixed point that leads away
    joint = joint_vectors(net, facts)
    _, learned = learn(net, facts, joint, epochs=0)
    for kind in KINDS:
        assert learned.knowledge[kind][1].norm(dim=1).max() < 20


def test_nothing_but_the_affected_and_the_new_moves(trained):
    net, facts, _ = trained
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    joint = joint_vectors(net, facts)
    kept = {kind: joint[kind].clone() for kind in KINDS}
    torch.manual_seed(5)
    state = torch.get_rng_state()
    after, learned = learn(net, facts, joint)
    assert (torch.get_rng_state() == state).all()
    for name, p in net.named_parameters():
        assert_close(p.detach(), before[name], rtol=0, atol=0)
    for kind in KINDS:
        assert_close(joint[kind], kept[kind], rtol=0, atol=0)
        which, rows = learned.joint[kind]
        assert not rows.requires_grad
        assert which.tolist() == sorted({*learned.affected[kind], *learned.new[kind]})
    assert 0 < len(learned.affected["entity"]) < 40
    # With the learnt rows put in place, all joint vectors are those of the graph as it is now:
    # so no element outside the affected set had to move.
    with torch.no_grad():
        for kind in KINDS:
            which, rows = learned.knowledge[kind]
            net.knowledge[kind][which] = rows
            joint[kind][learned.joint[kind][0]] = learned.joint[kind][1]
            if kind in learned.contextual:
                which, rows = learned.contextual[kind]
                net.contextual[kind][which] = rows
    fresh = joint_vectors(net, after)
    there = torch.from_numpy(after.present(np.arange(43)))
    assert_close(joint["entity"][there], fresh["entity"][there], rtol=1e-5, atol=1e-6)
    assert_close(joint["relation"], fresh["relation"], rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        for name, p in net.named_parameters():
            p.copy_(before[name])


def test_an_update_learns_and_is_the_same_again(trained):
    net, facts, _ = trained
    joint = joint_vectors(net, facts)
    _, still = learn(net, facts, joint, epochs=0)
    after, learned = learn(net, facts, joint)
    _, again = learn(net, facts, joint)
    for kind in KINDS:
        assert_close(learned.joint[kind][1], again.joint[kind][1], rtol=0, atol=0)
    rows = torch.from_numpy(
        UpdateTriples.of(
            after, after.index.rows[:0], {kind: learned.knowledge[kind][0] for kind in KINDS}, 64, 0
        ).draw(0)
    )

    def gap(found):
        vectors = {k: joint[k].index_put((torch.from_numpy(found.joint[k][0]),), found.joint[k][1])
                   for k in KINDS}  # fmt: skip
        corrupt = Corruption(after.index, rows.numpy(), np.arange(40))
        torch.manual_seed(0)
        false, _ = corrupt(rows, 20)
        far = [
            (vectors["entity"][x[:, 0]] + vectors["relation"][x[:, 1]] - vectors["entity"][x[:, 2]])
            .norm(dim=1)
            .mean()
            for x in (rows, false)
        ]
        return far[1] - far[0]

    assert gap(learned) > gap(still)


def test_removed_triples_are_farther_where_they_are_taught_as_false(trained):
    net, facts, _ = trained
    joint = joint_vectors(net, facts)
    removed = torch.from_numpy(facts.index.rows[::30])

    def mean_distance(**how):
        _, learned = learn(net, facts, joint, **how)
        moved = {k: joint[k].clone() for k in KINDS}
        for k in KINDS:
            moved[k][learned.joint[k][0]] = learned.joint[k][1]
        h, r, t = (moved[k][removed[:, i]] for i, k in COLUMNS)
        return float((h + r - t).norm(dim=1).mean())

    assert mean_distance(unlearn=1.0) > mean_distance(unlearn=0.0) + 0.1


def test_the_loss_of_removed_triples_is_that_of_a_loop():
    torch.manual_seed(0)
    facts = Snapshot.of(random_rows(0), size=4, seed=0)
    net = GraphEmbedding(43, 5, 8, context=False)
    joint = joint_vectors(net, facts)

    def far(row):
        h, r, t = (joint[k][row[i]] for i, k in COLUMNS)
        return float((h + r - t).norm())

    rows = torch.stack(sorted(torch.from_numpy(facts.index.rows), key=far))
    removed, batch = rows[:3], rows[-1:]  # a batch of one: which true triple is drawn is known
    every = {kind: np.arange(len(joint[kind])) for kind in KINDS}
    none = {kind: np.arange(0) for kind in KINDS}
    start = {kind: joint[kind][:0] for kind in KINDS}
    corrupt = Corruption(facts.index, facts.index.rows, np.arange(40))

    def loss(unlearn):
        local = OnlineDKGE(net, joint, facts, every, none, start, {}, removed, corrupt,
                      unlearn=unlearn, margin=2.0, negatives=2)  # fmt: skip
        torch.manual_seed(1)
        return local.training_step(batch).loss.item()

    gaps = [max(0.0, far(batch[0]) - far(row)) for row in removed]
    # of removed triples as many as the batch has are drawn
    assert any(loss(1.0) - loss(0.5) == pytest.approx(0.5 * gap, abs=1e-5) for gap in gaps)
    assert min(gaps) > 0.1


def test_a_bound_in_seconds_cuts_an_update_short(trained):
    net, facts, _ = trained
    joint = joint_vectors(net, facts)
    _, learned = learn(net, facts, joint, epochs=10**6, seconds=0.05)
    assert learned.seconds < 5


def test_new_elements_are_placed_by_their_triples():
    joint = {"entity": torch.tensor([[1.0, 0], [3, 3], [0, 0], [0, 0], [0, 0]]),
             "relation": torch.tensor([[1.0, 1], [0, 0]])}  # fmt: skip
    added = np.array([[0, 0, 2], [2, 0, 1], [2, 0, 3], [0, 1, 1]])
    new = {"entity": np.array([2, 3, 4]), "relation": np.array([1])}
    found = initial_vectors(joint, added, new, passes=3)
    two = (torch.tensor([1.0, 0]) + torch.tensor([1.0, 1]) + torch.tensor([3.0, 3]) - 1) / 2
    # in later passes 2 also hears of 3, which was placed from it: it stays where it is
    assert_close(found["entity"][0], two)
    assert_close(found["entity"][1], two + 1)
    assert found["entity"][2].abs().max() > 0  # without triples: at random
    assert_close(found["relation"][0], torch.tensor([2.0, 3.0]))


def test_what_was_added_is_always_learnt():
    hubs = np.array([[h, 0, t] for h in (0, 1) for t in range(2, 302)])
    added = np.array([[0, 1, 1]])
    facts = Snapshot.of(np.concatenate([hubs, added]), size=4, seed=0)
    which = {"entity": np.array([0, 1]), "relation": NONE}
    about = UpdateTriples.of(facts, added, which, 5, seed=0)
    epochs = [{tuple(row) for row in about.draw(epoch).tolist()} for epoch in range(20)]
    assert all((0, 1, 1) in rows and 10 <= len(rows) <= 12 for rows in epochs)
    assert len(set.union(*epochs)) > 100  # the samples of hubs are drawn anew
    # but not where nothing in it is trained
    nobody = {"entity": np.array([5]), "relation": NONE}
    assert [0, 1, 1] not in UpdateTriples.of(facts, added, nobody, 5, seed=0).draw(0).tolist()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"rule": "bogus"}, "bogus"),
        ({"epochs": -1}, "epochs -1: must be"),
        ({"triples": 0}, "triples 0: must be"),
        ({"batch_size": 0}, "batch_size 0: must be"),
        ({"lr": float("nan")}, "lr nan: must be"),
        ({"unlearn": -0.1}, "unlearn -0.1: must be"),
        ({"seconds": float("inf")}, "seconds inf: must be"),
    ],
)
def test_how_an_update_learns_is_checked(wrong, said):
    # where types are checked, what checks them speaks first
    with pytest.raises((ValueError, TypeError), match=said):
        Online(**wrong)


def test_of_hubs_a_sample_of_triples_is_learnt():
    hub = np.array([[0, 0, i] for i in range(1, 101)] + [[i, 1, 0] for i in range(1, 51)])
    facts = Snapshot.of(np.concatenate([hub, [[200, 2, 201]]]), size=4, seed=0)
    which = {"entity": np.array([0]), "relation": NONE}
    rows = UpdateTriples.of(facts, hub[:0], which, 10, seed=0).draw(0)
    assert np.bincount(rows[:, 1]).tolist() == [10, 10]
    assert len(UpdateTriples.of(facts, hub[:0], which, 1000, seed=0).draw(0)) == 150
    others = np.array([[300, 0, i] for i in range(1, 101)])
    two = Snapshot.of(np.concatenate([hub, others]), size=4, seed=0)
    rows = UpdateTriples.of(
        two, hub[:0], {"entity": np.array([0, 300]), "relation": NONE}, 10, seed=0
    ).draw(0)
    tails = [set(rows[(rows[:, 0] == e) & (rows[:, 1] == 0), 2].tolist()) for e in (0, 300)]
    assert [*map(len, tails)] == [10, 10]
    assert len(tails[0] & tails[1]) < 5  # of the same 100: each hub has a sample of its own
    of_relation = {"entity": NONE, "relation": np.array([2])}
    assert UpdateTriples.of(facts, hub[:0], of_relation, 10, seed=0).draw(0).tolist() == [[200, 2, 201]]
