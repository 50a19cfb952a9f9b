"""MSDNet: its layers against the paper's, its outputs against a naive forward, and its exits."""

import pytest
import torch
from torch.nn.functional import adaptive_avg_pool2d
from torch.testing import assert_close

import stepwell
from nets.example_nets import lively
from stepwell.nets.families.msdnet import DenseLayer, Transition
from stepwell.nets.nested.exits import ConvHead

X = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("name", "ends"),
    [
        # classifier k of a network for budgets is behind layer 1 + ... + k
        ("msdnet10", [1, 3, 6, 10]),
        ("msdnet15", [1, 3, 6, 10, 15]),
        ("msdnet21", [1, 3, 6, 10, 15, 21]),
        # for anytime prediction, classifier i is behind layer 2 (i + 1)
        ("msdnet24", [2 * (i + 1) for i in range(1, 12)]),
    ],
)
def test_classifiers_are_behind_the_layers_of_the_paper(name, ends):
    net = stepwell.build(name)
    counts = [sum(isinstance(m, DenseLayer) for m in block) for block in net.module.blocks]
    assert torch.tensor(counts).cumsum(0).tolist() == ends
    assert len(net.depths[net.full]) == len(ends)
    layers = [m for block in net.module.blocks for m in block if isinstance(m, DenseLayer)]
    scales = [len(layer.scales) for layer in layers]
    third = -(-len(layers) // 3)
    assert scales == [3 - i // third for i in range(len(layers))]  # a scale less in each third
    assert sum(isinstance(m, Transition) for block in net.module.blocks for m in block) == 2
    with torch.no_grad():
        assert net.eval()(X).shape == (2, 10)


def test_channels_follow_the_growth():
    """Channels of each scale behind each layer, written out for ten layers of growth 6 from 16."""
    net = stepwell.build("msdnet10").eval()
    found, maps = [], net.module.stem(X)
    for block in net.module.blocks:
        for module in block:
            maps = module(maps)
            found.append([tuple(m.shape[1:3]) for m in maps])
    by_hand = [
        [(w, 32), (2 * w, 16), (4 * w, 8)] for w in (22, 28, 34, 40)
    ] + [[(2 * w, 16), (4 * w, 8)] for w in (46, 23, 29, 35, 41)] + [
        [(4 * w, 8)] for w in (47, 23, 29)
    ]  # fmt: skip
    assert found == by_hand


def naive(net, x, blocks):
    """The forward written out, scale by scale, of some blocks; gives the coarsest map."""

    def run(layers, y):
        for layer in layers:
            y = layer(y)
        return y

    maps, y = {}, x
    for scale in range(3):
        y = run(net.stem.scales[scale], y)
        maps[scale] = y
    for block in net.blocks[:blocks]:
        for module in block:
            first, before = 3 - len(module.scales), dict(maps)
            maps = {}
            for scale in range(first, 3):
                part = module.scales[scale - first]
                if isinstance(module, Transition):
                    maps[scale] = run(part, before[scale])
                    continue
                new = [before[scale]]
                if scale - 1 in before:
                    new.append(run(part.down, before[scale - 1]))
                maps[scale] = torch.cat([*new, run(part.same, before[scale])], 1)
    return maps[2]


def test_every_exit_gives_what_a_naive_forward_gives(tmp_path):
    torch.manual_seed(0)
    net = stepwell.build("msdnet10", num_classes=7, channels=4, growth=2)
    for k in (1, 2, 3):
        net.add_exit(f"exit{k}", (1,) * k + (0,) * (4 - k))
    lively(net).eval()
    net.mark("trained")
    x = X[:, :, :16, :16]  # smaller images run, too
    with torch.no_grad():
        exits = net.forward_all(x)
        for k, (depth, exit) in enumerate(exits.items(), start=1):
            feature = naive(net.module, x, k)
            head = net.exits.get(depth, net.module.classifier)
            y = adaptive_avg_pool2d(head.second(head.first(feature)), 1).flatten(1)
            assert_close(exit.logits, head.fc(y), rtol=1e-5, atol=1e-5)
            assert_close(net.subnet(depth)(x), exit.logits, rtol=0, atol=0)
            assert_close(exit.features[-1], feature, rtol=1e-5, atol=1e-6)
        assert isinstance(net.exits["exit1"], ConvHead)
        middle = float(exits["exit1"].logits.softmax(1).amax(1).mean())
        answer = stepwell.Cascade(net, {"exit1": middle, "exit2": 0.9})(x)
        assert 0 in answer.depth
        for row, k in enumerate(answer.depth.tolist()):
            expected = exits[["exit1", "exit2", "10"][k]].logits[row]
            assert_close(answer.logits[row], expected, rtol=1e-4, atol=1e-5)
    back = stepwell.load(stepwell.save(net, tmp_path / "net"))
    assert_close(back(x, "exit2"), net(x, "exit2"), rtol=0, atol=0)


def test_a_joint_loss_of_tuples_has_the_gradients_of_the_naive_sum():
    net = stepwell.build("msdnet10", num_classes=7, channels=4, growth=2).double().train()
    net.add_exit("exit1", (1, 0, 0, 0))
    net.add_exit("exit2", (1, 1, 0, 0))
    x = X[:, :, :16, :16].double()
    parameters = [*net.parameters()]
    exits = net.forward_all(x)
    naive_sum = torch.stack([e.logits.square().mean() for e in exits.values()]).sum()
    expected = torch.autograd.grad(naive_sum, parameters)
    loss, _ = net.joint_loss(x, lambda d, e, done: (e.logits.square().mean(), {}))
    assert_close(loss, naive_sum)
    for a, b in zip(torch.autograd.grad(loss, parameters), expected, strict=True):
        assert_close(a, b, rtol=1e-8, atol=1e-12)


def test_a_block_cannot_be_left_out():
    with pytest.raises(ValueError, match="can keep 1 to 1 blocks"):
        stepwell.build("msdnet10", {"short": (1, 1, 1, 0)})
