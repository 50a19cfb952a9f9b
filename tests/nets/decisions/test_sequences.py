"""The recurrent layer that skips tokens: its two forms, its gradient, its graph, and torch's layers."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from stepwell.export.onnx import export_onnx
from stepwell.measure.sequences import EveryToken, sequence_macs
from stepwell.methods.sequences import Sequences
from stepwell.nets import build
from stepwell.nets.card import Card
from stepwell.nets.decisions.estimators import Draw
from stepwell.nets.decisions.sequences import (
    at_random,
    evenly,
    is_due,
    skip_cell,
    tokens_to_next,
)
from stepwell.nets.files.nested import load, save
from stepwell.nets.files.onnx import session
from stepwell.types import Batch

WORDS, LENGTH, TEXTS = 40, 25, 7
EXTRAS = ("read", "used", "length")


def network(cell="gru", bias=-1.5):
    """A network whose gate has something to say; texts of other lengths, the last without a token."""
    torch.manual_seed(0)
    net = build(f"skip-{cell}/12", words=WORDS, inputs=6, num_classes=3)
    layer = skip_cell(net.module)
    nn.init.constant_(layer.gate.bias, bias)
    nn.init.normal_(layer.gate.weight)
    nn.init.normal_(layer.start)
    ids = torch.randint(1, WORDS, (TEXTS, LENGTH))
    for i in range(TEXTS):
        ids[i, LENGTH - 4 * i - (i == TEXTS - 1) :] = 0
    return net.eval(), ids


def naive(net, ids):
    """The paper's equations for each text alone, token by token."""
    module, layer = net.module, skip_cell(net.module)
    logits, reads = [], []
    for row in ids:
        mask, (vectors,) = module.words(row[None])
        state, p, step, read = layer.start[None], torch.ones(1), torch.ones(1), []
        for x, real in zip(vectors, mask[0].tolist(), strict=True):
            u = float(p >= 0.5) if real else 0.0
            new, after = layer.update(x[None], state)
            state = u * new + (1 - u) * state
            step = after if u else step  # the first token always updates
            p = u * step + (1 - u) * (p + torch.minimum(step, 1 - p))
            read.append(u)
        logits.append(module.classifier(state[:, : layer.width]))
        reads.append(read)
    return torch.cat(logits), torch.tensor(reads)


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_both_forms_are_the_papers_equations(cell):
    net, ids = network(cell)
    ids = ids[:-1]  # the equations need a token
    with torch.no_grad():
        expected, read = naive(net, ids)
        compacted = net.forward_all(ids, extras=EXTRAS)["1"]
        masked = net.forward_all(ids, extras=EXTRAS, given={"draw": Draw("threshold")})["1"]
    assert 0.1 < read.sum() / (ids != 0).sum() < 0.9, "the gate neither reads nor skips all"
    for exit in (compacted, masked):
        assert torch.allclose(exit.logits, expected, atol=1e-6)
        assert torch.equal(exit.extras["read"][0], read)
        assert torch.equal(exit.extras["used"][0], read.sum(1))
        assert torch.equal(exit.extras["length"][0], (ids != 0).sum(1).float())


def test_the_gradient_is_that_of_the_equations():
    net, ids = network(bias=-1.0)
    ids = ids[:-1]
    labels = torch.arange(len(ids)) % 3
    objective = Sequences(net, cost_weight=0.05)
    net.eval()  # no dropout; the gradient is that of the masked form all the same
    layer = skip_cell(net.module)

    def straight_through(p):
        return (p >= 0.5).float() + p - p.detach()

    losses = []
    for row, label in zip(ids, labels, strict=True):
        mask, (vectors,) = net.module.words(row[None])
        state, p, step, used = layer.start[None], torch.ones(1), torch.ones(1), torch.zeros(1)
        for t, x in enumerate(vectors[: int(mask.sum())]):
            u = straight_through(p)
            new, after = layer.update(x[None], state)
            state = u[:, None] * new + (1 - u[:, None]) * state
            step = u * after + (1 - u) * step if t else after
            p = u * step + (1 - u) * (p + torch.minimum(step, 1 - p))
            used = used + u
        ce = nn.functional.cross_entropy(net.module.classifier(state), label[None])
        losses.append(ce + 0.05 * used[0])
    wanted = torch.autograd.grad(torch.stack(losses).mean(), [*layer.parameters()])
    given = {"draw": Draw("threshold")}

    def loss_of(depth, exit, done):
        ce = nn.functional.cross_entropy(exit.logits, labels)
        return ce + 0.05 * exit.extras["used"][0].mean(), {}

    loss, _ = net.joint_loss(ids, loss_of, given=given, extras=("used",))
    loss.backward()
    for parameter, value in zip(layer.parameters(), wanted, strict=True):
        assert torch.allclose(parameter.grad, value, atol=1e-6)
    assert layer.gate.weight.grad.abs().sum() > 0
    net.train()
    step = objective.training_step(Batch(ids, labels))
    assert {"1/ce", "1/used", "1/share"} <= set(step.logs)
    net.module.dropout.p = 0.0
    loss = objective.training_step(Batch(ids, labels)).loss
    assert torch.allclose(loss, torch.stack(losses).mean(), atol=1e-6)


def test_without_a_gate_the_gradient_is_that_of_a_plain_loop():
    net, ids = network()
    ids, labels = ids[:-1], torch.arange(TEXTS - 1) % 3
    layer, keep = skip_cell(net.module), evenly(ids != 0, 0.5)
    losses = []
    for row, kept, label in zip(ids, keep, labels, strict=True):
        _, (vectors,) = net.module.words(row[None])
        state = layer.start[None]
        for x in vectors[kept]:
            state, _ = layer.update(x[None], state)
        losses.append(nn.functional.cross_entropy(net.module.classifier(state), label[None]))
    cell = [layer.start, *layer.cell.parameters()]
    wanted = torch.autograd.grad(torch.stack(losses).mean(), cell)
    objective = Sequences(net, cost_weight=0.5, pick="even", rate=0.5)
    step = objective.training_step(Batch(ids, labels))
    step.loss.backward()
    for parameter, value in zip(cell, wanted, strict=True):
        assert torch.allclose(parameter.grad, value, atol=1e-6)
    assert layer.gate.weight.grad is None or not layer.gate.weight.grad.any()


def test_a_padding_token_inside_a_text_is_a_word_in_every_form():
    net, ids = network()
    ids = ids[:-1]
    ids[:, 2] = 0
    with torch.no_grad():
        compacted = net.forward_all(ids, extras=EXTRAS)["1"]
        masked = net.forward_all(ids, extras=EXTRAS, given={"draw": Draw("threshold")})["1"]
        every = net(ids, given={"draw": Draw("always")})
        assert torch.allclose(every, EveryToken(net).eval()(ids), atol=1e-5)
    assert torch.equal(compacted.extras["read"][0], masked.extras["read"][0])
    assert torch.allclose(compacted.logits, masked.logits, atol=1e-6)
    assert compacted.extras["length"][0].tolist() == [LENGTH - 4 * i for i in range(TEXTS - 1)]


def test_texts_padded_in_front_are_refused():
    net, ids = network()
    mask = ids != 0
    with torch.no_grad():
        assert torch.equal(net.module(ids, attention_mask=mask), net.module(ids))
        with pytest.raises(ValueError, match="padded in front: pad them at the end"):
            net.module(ids.flip(1), attention_mask=mask.flip(1))


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_with_every_token_it_is_torchs_layer(cell):
    net, ids = network(cell)
    ids = ids[:-1]
    with torch.no_grad():
        every = net.forward_all(ids, given={"draw": Draw("always")}, extras=("used",))["1"]
        assert torch.allclose(every.logits, EveryToken(net).eval()(ids), atol=1e-5)
    assert torch.equal(every.extras["used"][0], (ids != 0).sum(1).float())
    macs, gates = sequence_macs(net), {"gru": 3, "lstm": 4}[cell]
    assert macs == (gates * 12 * (6 + 12), 12, 36)
    assert macs.every(10) == 36 + 10 * macs.update
    assert macs.at(4) == 36 + 4 * (macs.update + 12)


def test_a_batch_is_its_texts_alone_and_padding_changes_nothing():
    net, ids = network()
    with torch.no_grad():
        whole = net(ids)
        for i, row in enumerate(ids):
            kept = row[: max(1, int((row != 0).sum()))]
            assert torch.allclose(net(kept[None]), whole[i : i + 1], atol=1e-6)


@settings(deadline=None, max_examples=50)
@given(st.floats(2**-20, 1, width=32))
def test_the_next_update_is_the_first_token_that_is_due(step):
    step = torch.tensor([step])
    count = int(tokens_to_next(step, 60))
    due = [bool(is_due(torch.tensor([float(k)]), step)) for k in range(1, 62)]
    first = due.index(True) + 1 if True in due else None
    assert count == first if first is not None and first <= 60 else count > 60


def test_tokens_without_a_gate_are_as_many_as_asked():
    mask = torch.ones(2, 20, dtype=torch.bool)
    mask[1, 10:] = False
    for rate, of_20, of_10 in ((1, 20, 10), (0.5, 10, 5), (0.25, 5, 3), (0.01, 1, 1)):
        chosen = evenly(mask, rate)
        assert chosen.sum(1).tolist() == [of_20, of_10]
        assert chosen[:, 0].all()
    drawn = at_random(mask.repeat(500, 1), 0.3, torch.Generator().manual_seed(0))
    assert drawn[:, 0].all()
    assert not drawn[1::2, 10:].any()
    assert abs(float(drawn[::2, 1:].float().mean()) - 0.3) < 0.02
    net, ids = network()
    ids[0, 0] = 0  # a word of the text, whatever its number
    keep = evenly(net.module.words.mask(ids), 0.5)
    assert keep[0, 0]
    with torch.no_grad():
        exit = net.forward_all(ids, given={"keep": keep}, extras=("read",))["1"]
    assert torch.equal(exit.extras["read"][0].bool(), keep)


def test_one_graph_of_standard_operators_skips_tokens(tmp_path, untyped):
    import onnx

    net, ids = network("lstm")
    net.card, ids = Card(("a", "b", "c"), LENGTH, input="text"), ids[:-1]
    net.mark("trained")
    parity = export_onnx(net, "1", tmp_path / "1.onnx", ids)
    assert parity.same_class == 1
    graph = onnx.load(tmp_path / "1.onnx").graph
    assert "Loop" in {node.op_type for node in graph.node}
    assert {node.domain for node in graph.node} == {""}
    none = np.zeros((0, LENGTH), np.int64)  # the loop ends without a text, too
    (answer,) = session(tmp_path / "1.onnx").run(None, {"input_ids": none, "attention_mask": none})
    assert answer.shape == (0, 3)


def test_a_file_gives_the_network_again(tmp_path):
    net, ids = network()
    net.mark("trained")
    save(net, tmp_path / "net.safetensors")
    with torch.no_grad():
        assert torch.equal(load(tmp_path / "net.safetensors").eval()(ids), net(ids))


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match=r"no network 'skip-gru/0': say its width, 1 to 4096"):
        build("skip-gru/0")
    with pytest.raises(ValueError, match="no network 'skip-rnn/8'"):
        build("skip-rnn/8")
    with pytest.raises(ValueError, match="this network skips no tokens"):
        Sequences(build("resnet8"))
    net, _ = network()
    for mode in (True, False):
        with pytest.raises(ValueError, match="texts of no token: give each one token at least"):
            net.train(mode)(torch.zeros(2, 0, dtype=torch.long))
    with pytest.raises(ValueError, match=r"pick 'odd': take gate, random, even"):
        Sequences(net, pick="odd")
    with pytest.raises(ValueError, match="rate 0: must be above 0, at most 1"):
        Sequences(net, pick="even", rate=0)
