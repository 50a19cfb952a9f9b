"""The joint step: gradients of the naive sum, one suffix in memory at a time, clear refusals."""

from collections import OrderedDict
from copy import deepcopy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

from stepwell import Cascade
from stepwell.cost import peak_bytes
from stepwell.losses import soft_target_kl
from stepwell.nets import NestedNet, build
from stepwell.nets.families.densenet import DenseNet
from stepwell.nets.nested.nest import nest
from stepwell.nets.nested.reading import read


def net_of(depths, **arguments):
    torch.manual_seed(0)
    return build("resnet20", depths, num_classes=5, zero_init_residual=False, **arguments).train()


def distilling(labels):
    """A loss that looks at logits, at every stage's features and at what was done before."""

    def loss_of(depth, exit, done):
        parts = {"ce": cross_entropy(exit.logits, labels)}
        parts["size"] = 0.1 * torch.stack([f.square().mean() for f in exit.features]).sum()
        if done:  # the full net comes first; the others in the order of the trie
            parts["kl"] = soft_target_kl(exit.logits, done["20"].logits, 2.0)
        return torch.stack(list(parts.values())).sum(), parts

    return loss_of


def naive(net, x, loss_of):
    """The sum of all losses in one graph."""
    done, total = {}, 0
    exits = net.forward_all(x)
    for depth in reversed(net.depths):
        loss, _ = loss_of(depth, exits[depth], done)
        done[depth] = exits[depth].detach()
        total = total + loss
    return total


def gradients(net):
    return {n: None if p.grad is None else p.grad.clone() for n, p in net.named_parameters()}


blocks = st.tuples(*[st.integers(1, 3)] * 3).filter(lambda b: b != (3, 3, 3))


def test_gradients_of_a_dense_net_are_those_of_the_naive_sum():
    """Its blocks hand on their inputs, too, and what stands behind them reads parts of weights."""
    torch.manual_seed(0)
    module = DenseNet((3, 2), num_classes=5, stem="small", growth=4)
    stages = ("features.denseblock1", "features.denseblock2")
    one = NestedNet(module, read(module, stages), {"a": (1, 1), "b": (2, 2)}, "20").double().train()
    other = deepcopy(one)
    x, loss_of = torch.randn(4, 3, 8, 8).double(), distilling(torch.tensor([0, 1, 2, 3]))
    one.joint_loss(x, loss_of)[0].backward()
    naive(other, x, loss_of).backward()
    assert_close(gradients(one), gradients(other), rtol=1e-9, atol=1e-12)
    assert_close(dict(one.named_buffers()), dict(other.named_buffers()), rtol=0, atol=0)


@settings(max_examples=8, deadline=None)
@given(st.lists(blocks, unique=True, min_size=1, max_size=4), st.sampled_from([1.0, 0.25]))
def test_gradients_and_statistics_are_those_of_the_naive_sum(shapes, scale):
    one = net_of({f"d{i}": b for i, b in enumerate(shapes)}).double()
    other = deepcopy(one)
    x = torch.randn(4, 3, 8, 8, dtype=torch.float64, requires_grad=True)
    twin = x.detach().clone().requires_grad_()
    loss_of = distilling(torch.tensor([0, 1, 2, 3]))
    loss, logs = one.joint_loss(x, loss_of)
    (scale * loss).backward()
    expected = naive(other, twin, loss_of)
    (scale * expected).backward()
    assert_close(loss, expected)
    assert_close(gradients(one), gradients(other), rtol=1e-9, atol=1e-12)
    assert_close(x.grad, twin.grad, rtol=1e-9, atol=1e-12)
    assert_close(dict(one.named_buffers()), dict(other.named_buffers()), rtol=0, atol=0)
    assert {name.split("/")[0] for name in logs} == set(one.depths)


def test_two_calls_accumulate_and_other_losses_add_up():
    one, other = net_of(["8"]), net_of(["8"])
    x, y = torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 3])
    for net, loss in ((one, lambda: one.joint_loss(x, distilling(y))[0]),
                      (other, lambda: naive(other, x, distilling(y)))):  # fmt: skip
        for _ in range(2):
            (loss() + net.module.fc.weight.square().sum()).backward()
    assert_close(gradients(one), gradients(other), rtol=1e-4, atol=1e-6)


def test_frozen_parts_stay_out():
    one, other = net_of(["8", "14"]), net_of(["8", "14"])
    x, y = torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 3])
    for net in (one, other):
        net.module.requires_grad_(False)
        net.module.layer2.requires_grad_(True)
    one.joint_loss(x, distilling(y))[0].backward()
    naive(other, x, distilling(y)).backward()
    assert one.module.layer3[0].conv1.weight.grad is None
    assert_close(gradients(one), gradients(other), rtol=1e-4, atol=1e-6)


def test_bf16_gradients_are_those_of_the_naive_sum():
    one, other = net_of(["8", "14"]), net_of(["8", "14"])
    x, y = torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 3])
    with torch.autocast("cpu", torch.bfloat16):
        loss = one.joint_loss(x, distilling(y))[0]
    loss.backward()
    with torch.autocast("cpu", torch.bfloat16):
        expected = naive(other, x, distilling(y))
    expected.backward()
    assert_close(loss, expected, rtol=1e-2, atol=1e-2)
    for mine, naive_one in zip(one.parameters(), other.parameters(), strict=True):
        assert_close(mine.grad, naive_one.grad, rtol=0, atol=0.02 * float(naive_one.grad.abs().max()))


def headless(depths):
    """No step stands behind the last stage: a shallow path is the beginning of a deeper one."""
    torch.manual_seed(0)
    module = nn.Sequential(OrderedDict(body=nn.Sequential(*(nn.Linear(5, 5) for _ in range(4)))))
    return nest(module, ["body"], {str(d): (d,) for d in depths}, full="20").double().train()


@pytest.mark.parametrize("depths", [(1,), (1, 2), (2, 3)])
def test_a_path_may_be_the_beginning_of_another(depths):
    one, other = headless(depths), headless(depths)
    x = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    twin = x.detach().clone().requires_grad_()
    loss_of = distilling(torch.tensor([0, 1, 2, 3]))
    exits = one.forward_all(x)
    assert list(exits) == list(one.depths)
    for depth, exit in exits.items():
        assert_close(exit.logits, one(x, depth), rtol=0, atol=0)
    loss, logs = one.joint_loss(x, loss_of)
    loss.backward()
    expected = naive(other, twin, loss_of)
    expected.backward()
    assert_close(loss, expected)
    assert_close(gradients(one), gradients(other))
    assert_close(x.grad, twin.grad)
    assert {name.split("/")[0] for name in logs} == set(one.depths)


class Rectifies(nn.Module):
    """Works on its input in place, and does not say so."""

    def forward(self, x):
        return x.relu_()


def in_place(first):
    """Each block begins with steps that may work in place, behind every fork, too."""
    torch.manual_seed(0)
    body = nn.Sequential(*(nn.Sequential(*first(), nn.Conv2d(5, 5, 1)) for _ in range(3)))
    parts = OrderedDict(stem=nn.Conv2d(3, 5, 1), body=body, pool=nn.AdaptiveAvgPool2d(1))
    module = nn.Sequential(parts | {"flat": nn.Flatten(), "fc": nn.Linear(5, 5)})
    return nest(module, ["body"], {"a": (1,), "b": (2,)}, full="20").double()


@pytest.mark.parametrize("first", [
    lambda: (nn.ReLU(inplace=True),),
    lambda: (nn.Identity(), nn.Dropout(0.0), nn.ELU(inplace=True)),
])  # fmt: skip
def test_a_step_in_place_behind_the_fork_leaves_the_others_their_input(first):
    one, other = in_place(first), in_place(first)
    x, labels = torch.randn(4, 3, 2, 2, dtype=torch.float64), torch.tensor([0, 1, 2, 3])
    for training in (False, True):
        one.train(training)
        for depth, exit in one.forward_all(x).items():
            assert_close(exit.logits, one(x, depth), rtol=0, atol=0)

    def loss_of(depth, exit, done):
        return cross_entropy(exit.logits, labels), {}

    one.joint_loss(x, loss_of)[0].backward()
    sum(cross_entropy(other(x, d), labels) for d in other.depths).backward()
    assert_close(gradients(one), gradients(other))
    one.eval().mark("trained")
    for depth, answer in enumerate(one.depths):
        thresholds = {d: 1.0 if i < depth else 0.0 for i, d in enumerate(one.depths)}
        del thresholds["20"]
        assert_close(Cascade(one, thresholds)(x).logits, one(x, answer).detach())


def test_a_step_in_place_behind_a_stage_leaves_its_output_as_a_feature():
    torch.manual_seed(0)
    stage = lambda: nn.Sequential(*(nn.Conv2d(3, 3, 1) for _ in range(2)))  # noqa: E731
    parts = OrderedDict(one=stage(), act=nn.ReLU(inplace=True), two=stage(), flat=nn.Flatten())
    net = nest(nn.Sequential(parts), ["one", "two"], {"a": (1, 2)}, input_size=(3, 2, 2))
    x = torch.randn(4, 3, 2, 2)
    for depth, exit in net.forward_all(x).items():
        steps = net.path(depth)[: net.depths[depth][0]]
        assert_close(exit.features[0], nn.Sequential(*steps)(x), rtol=0, atol=0)


def test_a_step_that_overwrites_without_saying_so_is_refused():
    with pytest.raises(ValueError, match="the Sequential behind the fork of .* overwrites its in"):
        in_place(lambda: (Rectifies(),))


def test_one_suffix_is_in_memory_at_a_time():
    net = build("resnet20", ["8", "14"], num_classes=5).train()
    x, y = torch.randn(64, 3, 16, 16), torch.randint(5, (64,))

    def loss_of(depth, exit, done):
        return cross_entropy(exit.logits, y), {}

    alone = peak_bytes(lambda: cross_entropy(net(x), y).backward())
    net.zero_grad()
    joint = peak_bytes(lambda: net.joint_loss(x, loss_of)[0].backward())
    net.zero_grad()
    together = peak_bytes(lambda: naive(net, x, loss_of).backward())
    assert joint < 1.1 * alone
    assert together > 1.4 * alone  # what the joint step avoids


def test_gradients_that_wait_take_little_where_weights_are_many():
    """Shapes without arithmetic: what is in memory depends on nothing else."""
    with torch.device("meta"):
        net = build("vgg19_bn", ["13", "16"], num_classes=10, stem="small").train()
        x, y = torch.empty(128, 3, 32, 32), torch.empty(128, dtype=torch.int64)
    held = {True: [], False: []}

    def joint(keep):
        def loss_of(depth, exit, done):
            held[keep].append({d: len(e.features) for d, e in done.items()})
            return cross_entropy(exit.logits, y), {}

        net.zero_grad()
        return peak_bytes(lambda: net.joint_loss(x, loss_of, keep_features=keep)[0].backward())

    alone = peak_bytes(lambda: cross_entropy(net(x), y).backward())
    assert joint(False) < 1.1 * alone
    assert joint(True) > 1.1 * alone
    assert held[False] == [{}, {"19": 0}, {"19": 0, "16": 0}]
    assert held[True] == [{}, {"19": 5}, {"19": 5, "16": 5}]


def test_a_gradient_hook_fires_once():
    net = net_of(["8", "14"])
    fired = []
    net.module.fc.weight.register_post_accumulate_grad_hook(fired.append)
    net.joint_loss(torch.randn(4, 3, 8, 8), distilling(torch.tensor([0, 1, 2, 3])))[0].backward()
    assert len(fired) == 1


@pytest.mark.parametrize("depths", [["8"], ["8", "14"]])
def test_a_hook_on_a_weight_applies_once_to_its_whole_gradient(depths):
    one, other = net_of(depths), net_of(depths)
    x, loss_of = torch.randn(4, 3, 8, 8), distilling(torch.tensor([0, 1, 2, 3]))
    seen = []
    for net in (one, other):
        for name in ("conv1", "layer1.1.conv1", "layer3.0.conv2", "fc"):  # before, behind the forks
            weight = net.module.get_submodule(name).weight
            weight.register_hook(lambda g: g.sign() * g.square())  # not linear: sums must be whole
            handle = weight.register_hook(seen.append)
    one.joint_loss(x, loss_of)[0].backward()
    assert len(seen) == 4
    naive(other, x, loss_of).backward()
    assert_close(gradients(one), gradients(other), rtol=1e-4, atol=1e-6)
    handle.remove()  # still the hook's own
    before = len(seen)
    other.joint_loss(x, loss_of)[0].backward()
    assert len(seen) == before + 3


def test_without_gradients_it_is_the_plain_sum():
    net = net_of(["8"]).eval()
    x, loss_of = torch.randn(4, 3, 8, 8), distilling(torch.tensor([0, 1, 2, 3]))
    with torch.no_grad():
        loss, logs = net.joint_loss(x, loss_of)
        assert_close(loss, naive(net, x, loss_of))
    assert not loss.requires_grad
    assert {"8/ce", "20/ce"} <= logs.keys()


def test_it_runs_backward_once():
    net = net_of(["8"])
    loss, _ = net.joint_loss(torch.randn(4, 3, 8, 8), distilling(torch.tensor([0, 1, 2, 3])))
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="runs backward once"):
        loss.backward()


def test_a_loss_with_parameters_of_its_own_is_refused():
    net, own = net_of(["8"]), nn.Linear(5, 5)

    def loss_of(depth, exit, done):
        loss = own(exit.logits).square().mean()
        return loss, {"own": loss}

    with pytest.raises(ValueError, match=r"parameter of shape .* would get no gradient"):
        net.joint_loss(torch.randn(4, 3, 8, 8), loss_of)


def test_a_loss_on_weights_before_the_fork_is_refused_by_what_it_is():
    net = net_of(["8"])

    def loss_of(depth, exit, done):
        return exit.logits.square().mean() + net.module.conv1.weight.square().sum(), {}

    with pytest.raises(ValueError, match=r"\(16, 3, 3, 3\) .* not run behind the fork"):
        net.joint_loss(torch.randn(4, 3, 8, 8), loss_of)


def test_float16_is_refused():
    """Gradients behind a fork vanish there before anybody could scale them."""
    net = net_of(["8", "14"])
    x, loss_of = torch.randn(4, 3, 8, 8), distilling(torch.tensor([0, 1, 2, 3]))
    with torch.autocast("cpu", torch.float16), pytest.raises(ValueError, match="use bfloat16"):
        net.joint_loss(x, loss_of)
