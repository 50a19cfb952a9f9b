"""Gated blocks: compacted equals masked, masked equals a naive formula, and gates learn."""

from copy import deepcopy

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import stepwell
from nets.example_nets import lively
from stepwell.methods.skipping import Skipping
from stepwell.nets import build
from stepwell.nets.decisions.estimators import Draw
from stepwell.nets.decisions.executor import with_branch
from stepwell.nets.decisions.gates import Gate
from stepwell.nets.decisions.skipping import gated_blocks
from stepwell.types import Batch

EXACT = {"rtol": 0, "atol": 0}
NETS = {"resnet14": {}, "resnet26": {"stem": "small"}}


def gated(name="resnet14", depths=(), **options):
    """A network whose gates are open for about half of the images each."""
    torch.manual_seed(0)
    net = build(name, depths, num_classes=5, gates=True, zero_init_residual=False,
                **NETS.get(name, {}), **options)  # fmt: skip
    lively(net).eval()
    x = torch.randn(32, 3, 8, 8)
    for _ in range(len([*gated_blocks(net.module)])):  # one more block is right after each pass
        with torch.no_grad():
            exits = net.forward_all(x, [net.full], extras=("scores",))
        scores = exits[net.full].extras["scores"]
        for (_, block), values in zip(gated_blocks(net.module), scores, strict=True):
            block.gate.scores.weight.data.normal_(generator=torch.Generator().manual_seed(1))
            block.gate.scores.bias.data[1] -= (values[:, 1] - values[:, 0]).median() + 0.01
    net.mark("trained")
    return net, x


@pytest.mark.parametrize("name", NETS)
def test_compacted_equals_masked_and_a_batch_equals_its_images_alone(name):
    net, x = gated(name)
    with torch.no_grad():
        found = net(x)
        masked = net.forward_all(x, given={"draw": Draw("threshold")}, extras=("choice",))[net.full]
        kept = torch.stack(masked.extras["choice"])[:, :, 1]
        assert 0.1 < float(kept.mean()) < 0.9
        assert_close(found, masked.logits, rtol=1e-4, atol=1e-4)
        alone = torch.cat([net(image) for image in x.split(1)])
        assert_close(alone, found, rtol=1e-3, atol=1e-4)  # other sums in another order
        again = net.forward_all(x, extras=("choice",))[net.full]
        assert_close(torch.stack(again.extras["choice"])[:, :, 1], kept, **EXACT)
        assert_close(again.logits, found, **EXACT)
        for _, block in gated_blocks(net.module):
            block.break_even = {32: 0.0}  # dense wherever it is not all or nothing
        assert_close(net(x), found, rtol=1e-4, atol=1e-4)
        assert net(x[:0]).shape == (0, 5)


def test_masked_is_the_formula_and_always_is_the_network_without_gates():
    net, x = gated()
    blocks = [block for _, block in gated_blocks(net.module)]
    with torch.no_grad():
        exit = net.forward_all(x, given={"draw": Draw("threshold")}, extras=("choice",))[net.full]
        y = net.module.relu(net.module.bn1(net.module.conv1(x)))
        for block, choice in zip(blocks, exit.extras["choice"], strict=True):
            branch = block.bn2(block.conv2(torch.relu(block.bn1(block.conv1(y)))))
            base = y if block.downsample is None else block.downsample(y)
            y = torch.relu(base + choice[:, 1, None, None, None] * branch)
        assert_close(net.module.fc(y.mean((2, 3))), exit.logits, rtol=1e-5, atol=1e-5)
        plain = build("resnet14", num_classes=5).eval()
        state = {k: v for k, v in net.module.state_dict().items() if ".gate." not in k}
        plain.load_full(state)
        always = net(x, given={"draw": Draw("always")})
        assert_close(always, plain(x), **EXACT)


def test_rows_that_skip_are_not_computed():
    seen = []

    def branch(x):
        seen.append(len(x))
        return 2 * x

    x, base = torch.arange(4.0)[:, None], torch.ones(4, 1)
    rows = torch.tensor([1, 3])
    expected = torch.tensor([[1.0], [3.0], [1.0], [7.0]])
    assert_close(with_branch(base, x, rows, branch), expected)
    assert_close(with_branch(base, x, rows, branch, {64: 0.9}), expected)
    assert_close(with_branch(base, x, rows, branch, {64: 0.9, 4: 0.4}), expected)
    assert with_branch(base, x, rows[:0], branch) is base
    assert_close(with_branch(base, x, torch.arange(4), branch), base + 2 * x)
    assert seen == [2, 2, 4, 4]
    assert_close(base, torch.ones(4, 1))
    maps = torch.randn(4, 3, 5, 2).contiguous(memory_format=torch.channels_last)
    found = with_branch(maps, maps, rows, branch)
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert_close(found, maps + torch.tensor([0, 2, 0, 2])[:, None, None, None] * maps)


def test_the_input_of_a_skipped_block_stays_as_it_is():
    net, _ = gated()
    block = net.module.layer1[0]
    block.gate.scores.bias.data[:] = torch.tensor([50.0, -50.0])
    x = torch.randn(3, 16, 4, 4)
    before = x.clone()
    y = block(x)
    assert_close(y, torch.relu(before))
    assert_close(x, before, **EXACT)


@pytest.mark.parametrize("estimator", ["gumbel", "straight-through", "reinforce"])
def test_gates_of_every_depth_learn(estimator):
    net, _ = gated("resnet14", ["8"])
    net.train()
    method = Skipping(net, estimator=estimator)
    step = method.training_step(Batch(torch.randn(16, 3, 8, 8), torch.arange(16) % 5))
    step.loss.backward()
    term = "policy" if estimator == "reinforce" else "rate"
    assert {"14/ce", "14/open", f"14/{term}", f"8/{term}"} <= step.logs.keys()
    for _, block in gated_blocks(net.module):
        assert block.gate.scores.weight.grad.abs().sum() > 0
        assert block.conv1.weight.grad.abs().sum() > 0


def test_the_joint_loss_of_gates_has_the_gradients_of_a_naive_one():
    net, _ = gated()
    net.double().train()
    other = deepcopy(net)
    x, labels = torch.randn(16, 3, 8, 8).double(), torch.arange(16) % 5
    torch.manual_seed(5)
    Skipping(net, target=0.4).training_step(Batch(x, labels)).loss.backward()
    torch.manual_seed(5)
    kept = []
    y = other.module.relu(other.module.bn1(other.module.conv1(x)))
    for _, block in gated_blocks(other.module):
        z = Draw()(block.gate(y))[:, 1]
        kept.append(z)
        base = y if block.downsample is None else block.downsample(y)
        y = torch.relu(base + z[:, None, None, None].double() * block.branch(y))
    ce = nn.functional.cross_entropy(other.module.fc(y.mean((2, 3))), labels)
    (ce + 2 * torch.stack([(0.4 - z.mean()) ** 2 for z in kept]).mean()).backward()
    for (name, a), b in zip(net.named_parameters(), other.parameters(), strict=True):
        assert_close(a.grad, b.grad, rtol=1e-6, atol=1e-8, msg=lambda m, n=name: f"{n}: {m}")


def test_open_rates_come_near_their_target_and_draws_in_eval_are_by_request():
    torch.manual_seed(0)
    net = build("resnet8", num_classes=3, gates=True).train()
    method = Skipping(net, target=0.5, rate_weight=20.0)
    optimizer = torch.optim.Adam(net.parameters(), 0.02)
    x = torch.randn(32, 3, 8, 8)
    for _ in range(40):
        optimizer.zero_grad()
        step = method.training_step(Batch(x, torch.arange(32) % 3))
        step.loss.backward()
        optimizer.step()
    assert float(step.logs["8/open"]) == pytest.approx(0.5, abs=0.15)
    net.eval()
    with torch.no_grad():
        assert torch.equal(net(x), net(x))
        draws = [net(x, given={"draw": Draw("gumbel")}) for _ in range(2)]
    assert not torch.equal(*draws)


def test_gates_are_in_the_file_and_a_plain_network_is_a_start(tmp_path):
    net, x = gated()
    back = stepwell.load(stepwell.save(net, tmp_path / "net"))
    with torch.no_grad():
        assert_close(back(x), net(x), **EXACT)


def test_what_cannot_skip_is_refused():
    with pytest.raises(ValueError, match="no gates: build a ResNet with gates=True"):
        Skipping(build("resnet8", num_classes=3))
    with pytest.raises(ValueError, match="estimator 'threshold' teaches a decision nothing"):
        Skipping(build("resnet8", num_classes=3, gates=True), estimator="threshold")
    with pytest.raises(ValueError, match="chooses between two paths or more, not 1"):
        Gate(8, 1)
    with pytest.raises(ValueError, match="target 1.5: must be between 0.01 and 1"):
        Skipping(build("resnet8", num_classes=3, gates=True), target=1.5)
