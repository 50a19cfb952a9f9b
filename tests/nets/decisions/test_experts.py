"""Mixtures of experts: sorted equals naive, gradients too; routers, balance, starts, files, exports."""

import math
from copy import deepcopy

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, softplus
from torch.testing import assert_close

import stepwell
from nets.example_nets import lively
from stepwell.cost import count_macs
from stepwell.export import export_onnx
from stepwell.losses import load_balance_loss, switch_balance_loss
from stepwell.methods.experts import MixtureOfExperts
from stepwell.nets import build
from stepwell.nets.decisions.deciding import use_break_even
from stepwell.nets.decisions.executor import mixture
from stepwell.nets.decisions.experts import Experts, expert_layers
from stepwell.nets.files.initial_weights import initialise
from stepwell.types import Batch

EXACT = {"rtol": 0, "atol": 0}
NETS = {
    "vit6": {"image_size": 8},
    "timm/deit_tiny_patch16_224": {"img_size": 8, "patch_size": 4, "depth": 3, "embed_dim": 24},
}


def routed(name="vit6", depths=(), **options):
    """A network whose routers tell tokens apart."""
    torch.manual_seed(0)
    net = build(name, depths, num_classes=5, experts=4, **NETS[name], **options)
    lively(net).eval()
    for _, layer in expert_layers(net.module):
        nn.init.normal_(layer.router.weight, std=0.5)
        if layer.noise is not None:
            nn.init.normal_(layer.noise.weight, std=0.1)
    net.mark("trained")
    return net, torch.randn(9, 3, 8, 8)


def naive(layer, x):
    """All experts of every token, masked."""
    rows = x.flatten(0, -2)
    scores = layer.router(rows)
    best, who = scores.topk(layer.top_k, 1)
    weights = scores.softmax(1).gather(1, who) if layer.top_k == 1 else best.softmax(1)
    y = 0
    for i, expert in enumerate(layer.experts):
        y = y + ((who == i) * weights).sum(1, keepdim=True) * expert(rows)
    return y.view_as(x)


@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_sorted_tokens_equal_all_experts_masked_and_so_do_gradients(top_k):
    torch.manual_seed(0)
    mlp = nn.Sequential(nn.Linear(6, 10), nn.GELU(), nn.Linear(10, 6))
    layer = Experts(mlp, 6, 4, top_k, "switch").double()
    nn.init.normal_(layer.router.weight)
    x = torch.randn(3, 7, 6, dtype=torch.float64)
    grads, values = [], []
    for run in (layer, lambda x: naive(layer, x)):
        own = x.clone().requires_grad_()
        values.append(run(own))
        grads.append(torch.autograd.grad(values[-1].square().sum(), [own, *layer.parameters()]))
    assert_close(values[1], values[0], rtol=1e-9, atol=1e-11)
    for a, b in zip(*grads, strict=True):
        assert_close(b, a, rtol=1e-9, atol=1e-11)
    layer.break_even = {1: 0.0}  # all experts run
    with torch.no_grad():
        assert_close(layer(x), values[0].detach(), rtol=1e-9, atol=1e-11)
    assert float(grads[0][1 + 0].abs().sum()) > 0  # the first expert
    assert float(grads[0][-1].abs().sum()) > 0  # the router learns, for k = 1 too
    assert layer(x[:0]).shape == (0, 7, 6)


def test_each_expert_runs_its_own_rows_once():
    seen = []

    def part(factor):
        def run(x):
            seen.append((factor, x[:, 0].tolist()))
            return factor * x

        return run

    x = torch.arange(4.0)[:, None]
    who, weights = torch.tensor([[2], [0], [2], [0]]), torch.tensor([[1.0], [0.5], [1.0], [1.0]])
    parts = [part(1.0), part(10.0), part(100.0)]
    with torch.no_grad():
        assert mixture(x, who, weights, parts)[:, 0].tolist() == [0.0, 0.5, 200.0, 3.0]
        assert seen == [(1.0, [1.0, 3.0]), (100.0, [0.0, 2.0])]
        seen.clear()
        assert_close(mixture(x, who, weights, parts, {4: 0.3}), mixture(x, who, weights, parts))
    assert [len(rows) for _, rows in seen] == [4, 4, 4, 2, 2]


@pytest.mark.parametrize(("name", "options"), [
    ("vit6", {}), ("vit6", {"top_k": 2, "router": "switch"}),
    ("timm/deit_tiny_patch16_224", {"top_k": 2}),
])  # fmt: skip
def test_a_batch_equals_its_images_alone_and_the_network_its_file_and_graph(name, options, tmp_path):
    net, x = routed(name, ["2"], **options)
    with torch.no_grad():
        found = net(x)
        assert_close(torch.cat([net(image) for image in x.split(1)]), found, rtol=1e-4, atol=1e-5)
        assert net(x[:0]).shape == (0, 5)
        assert_close(net(x), found, **EXACT)  # no noise in use
        shares = net.forward_all(x, extras=("shares",))[net.full].extras["shares"]
        assert all(share.shape == (9, 1, 4) for share in shares)
        assert_close(torch.cat(shares, 1).sum(2), torch.ones(9, len(shares)))
        assert float(torch.stack(shares).mean((0, 1)).std()) > 0
        use_break_even(net.module, {n: {"8": 0.0} for n, _ in expert_layers(net.module)})
        assert_close(net(x), found, rtol=1e-4, atol=1e-5)
        use_break_even(net.module, {})
        back = stepwell.load(stepwell.save(net, tmp_path / "net"))
        assert_close(back(x, "2"), net(x, "2"), **EXACT)
    meta = deepcopy(net.module).to("meta")
    plain = build(name, num_classes=5, **NETS[name])
    more = count_macs(net.module, x[:1]) - count_macs(plain.module, x[:1])
    assert count_macs(meta, x[:1].to("meta")) - count_macs(plain.module, x[:1]) == more
    tokens, (_, first) = 17 if name == "vit6" else 5, expert_layers(net.module)[0]
    width = first.router.in_features
    layers = len(expert_layers(net.module))
    assert more == layers * tokens * width * (4 + (first.top_k - 1) * 2 * 4 * width)


def test_an_exported_graph_equals_the_network_for_any_batch(tmp_path):
    net, x = routed("timm/deit_tiny_patch16_224")  # of three layers
    net.card = stepwell.Card(tuple("abcde"), 8)
    parity = export_onnx(net, net.full, tmp_path / "net.onnx", x)
    assert (parity.same_class, parity.images) == (1.0, 9)
    with torch.no_grad():  # where a measured share could decide
        use_break_even(net.module, {n: {"8": 0.0} for n, _ in expert_layers(net.module)})
        rows = torch.export.Dim("rows", min=1, max=64)
        graph = torch.export.export(net.module, (x,), dynamic_shapes=({0: rows},)).module()
        assert_close(graph(x[:3]), net.module(x[:3]), rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match=r"draws random numbers cannot be exported: call \.eval\(\)"):
        torch.export.export(net.module.train(), (x,), strict=False)


def test_noise_moves_the_routes_in_training_only_and_its_load_is_a_probability():
    net, _ = routed()
    _, layer = expert_layers(net.module)[0]
    x = torch.randn(40, 96)
    layer.train().requires_grad_(False)
    torch.manual_seed(0)
    routes = layer.route(x)
    torch.manual_seed(0)
    clean, spread = layer.router(x), softplus(layer.noise(x))
    scores = clean + torch.randn_like(clean) * spread
    assert_close(routes.who[:, 0], scores.argmax(1))
    for i, j in ((0, 0), (1, 3), (7, 2)):  # P_i(x), by its definition
        others = scores[i][[e for e in range(4) if e != j]]
        z = float((clean[i, j] - others.max()) / spread[i, j])
        assert float(routes.load[i, j]) == pytest.approx(
            0.5 * (1 + math.erf(z / math.sqrt(2))), abs=1e-5
        )
    drawn = torch.stack([layer.route(x).who[:, 0] for _ in range(40)])
    assert (drawn != drawn[0]).any()
    layer.eval()
    assert torch.equal(layer.route(x).who[:, 0], clean.argmax(1))


def test_scores_are_in_32_bits_under_autocast_and_in_half_precision():
    layer = Experts(nn.Linear(8, 8), 8, 4, router="switch").eval()
    nn.init.normal_(layer.router.weight)
    x = torch.randn(64, 8)
    exact = layer.route(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert_close(layer.route(x).scores, exact.scores, **EXACT)
    half = deepcopy(layer).bfloat16().route(x.bfloat16()).scores
    assert half.dtype == torch.float32
    assert not half.bfloat16().float().equal(half)  # no digits are lost again


def test_balance_losses_worked_by_hand():
    gates = torch.tensor([[0.5, 0.0], [0.5, 0.0], [0.0, 1.0]], requires_grad=True)
    load = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 1.0]])
    # importance (1, 1): 0; load (3, 1): variance 1, mean 2
    assert_close(load_balance_loss(gates, load), torch.tensor(0.25))
    even = torch.full((4, 4), 0.25)
    assert_close(switch_balance_loss(even, even), torch.tensor(1.0))
    one = torch.tensor([[1.0, 0.0, 0.0, 0.0]])
    probability = torch.tensor([[0.7, 0.1, 0.1, 0.1]], requires_grad=True)
    loss = switch_balance_loss(one, probability)
    assert_close(loss, torch.tensor(4 * 0.7))
    loss.backward()
    assert probability.grad[0].tolist() == [4.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize("options", [{}, {"top_k": 2}, {"top_k": 4}, {"router": "switch"}])
def test_the_objective_has_the_gradients_of_a_naive_one(options):
    net, x = routed("timm/deit_tiny_patch16_224", ["2"], **options)
    net.train()
    other = deepcopy(net)
    labels = torch.arange(9) % 5
    torch.manual_seed(5)
    step = MixtureOfExperts(net, balance_weight=0.3).training_step(Batch(x, labels))
    step.loss.backward()
    assert {"12/ce", "12/balance", "2/ce"} <= step.logs.keys()
    torch.manual_seed(5)
    total = 0
    for exit in other.forward_all(x, extras=("gates", "load", "shares")).values():
        total = total + cross_entropy(exit.logits, labels)
        for gates, load, shares in zip(*exit.extras.values(), strict=True):
            if options.get("router") == "switch":
                total = total + 0.3 * 4 * (shares.mean((0, 1)).detach() * load.mean(0)).sum()
            else:
                for part in (gates.sum(0), load.sum(0)):
                    total = total + 0.3 * (part.std(correction=0) / part.mean()) ** 2
    total.backward()
    for (name, a), b in zip(net.named_parameters(), other.parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None), name
        if a.grad is not None:
            assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("router", ["noisy", "switch"])
def test_the_balance_loss_keeps_all_experts_in_use(router):
    used = {}
    for weight in (0.0, 1.0):
        torch.manual_seed(0)
        mlp = nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 8))
        layer = Experts(mlp, 8, 4, 1, router).train()
        layer.router.weight.data[0] = 0.2  # the first expert has a lead
        optimizer = torch.optim.Adam(layer.parameters(), 0.01)
        x = torch.randn(256, 8) + 1
        for _ in range(100):
            routes = layer.route(x)
            gates, load, shares = routes.extras(256).values()
            noisy = router == "noisy"
            balance = (
                load_balance_loss(gates, load) if noisy else switch_balance_loss(shares[:, 0], load)
            )
            loss = (layer.run(x, routes) - x.sin()).square().mean() + weight * balance
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        mean = shares.mean((0, 1))
        used[weight] = float((mean.std(correction=0) / mean.mean()).detach())
    assert used[1.0] < 0.3
    assert used[0.0] > 1


#: One expert a token, whose weight is the softmax of small scores.
SWITCH = {"router": "switch"}


@pytest.mark.parametrize("options", [{}, {"top_k": 2}, {"top_k": 3, "router": "switch"}, SWITCH])
def test_a_dense_network_is_a_start_and_answers_the_same_at_first(options, tmp_path):
    dense = lively(build("vit6", num_classes=5, image_size=8)).eval()
    dense.mark("trained")
    stepwell.save(dense, tmp_path / "net")
    torch.manual_seed(1)
    net = build("vit6", num_classes=5, image_size=8, experts=4, **options).eval()
    assert initialise(net, tmp_path / "net").fresh == ()
    x = torch.randn(4, 3, 8, 8)
    with torch.no_grad():
        y = dense(x)
        near = {"rtol": 1e-4, "atol": 1e-4}
        if options == SWITCH:
            near = {"rtol": 0, "atol": 0.03 * y.abs().max().item()}
        assert_close(net(x), y, **near)
    again = build("vit6", num_classes=5, image_size=8, experts=4, **options).eval()
    initialise(again, stepwell.save(net, tmp_path / "experts"))
    with torch.no_grad():
        assert_close(again(x), net(x), **EXACT)
    other = build("vit6", num_classes=5, image_size=8, experts=3)
    with pytest.raises(ValueError, match="does not fit this vit"):
        initialise(other, tmp_path / "experts")


def test_fresh_experts_differ_from_each_other():
    _, layer = expert_layers(build("vit6", image_size=8, experts=3).module)[0]
    first, second, _ = (expert[0].weight.detach() for expert in layer.experts)
    assert not torch.equal(first, second)
    assert float(first.std()) == pytest.approx(float(second.std()), rel=0.05)


def test_what_cannot_be_a_mixture_is_refused():
    for options, message in (
        ({"top_k": 5}, "top_k 5: there are 4 experts, so between 1 and 4"),
        ({"top_k": 0}, "top_k 0: must be 1 or more"),
        ({"top_k": 1.5}, "top_k=1.5: must be a whole number|Type-check"),
        ({"experts": 1}, "experts 1: must be between 2 and 1,024"),
        ({"experts": 10**6}, "experts 1000000: must be between 2 and 1,024"),
        ({"experts": 2.5}, "experts=2.5: must be a whole number|Type-check"),
        ({"experts": 0, "top_k": 2}, "top_k and router are of networks with experts"),
        ({"router": "any"}, "no router 'any'; there are noisy, switch|Type-check"),
    ):
        with pytest.raises(ValueError, match=message):
            build("vit6", image_size=8, **{"experts": 4} | options)
    with pytest.raises(ValueError, match="has no blocks of a vision transformer"):
        build("timm/convnext_atto", experts=4)
    with pytest.raises(ValueError, match="no experts: build a ViT with experts=4"):
        MixtureOfExperts(build("vit6", image_size=8))
    with pytest.raises(ValueError, match="balance_weight -1: must be 0 or more"):
        MixtureOfExperts(build("vit6", image_size=8, experts=2), balance_weight=-1)
