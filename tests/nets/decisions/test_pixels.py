"""Masks of positions: compacted equals masked, masked equals a naive formula, and masks learn."""

import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from nets.example_nets import lively
from stepwell.losses import sparsity_loss
from stepwell.methods.pixels import Pixels
from stepwell.nets import build
from stepwell.nets.decisions import executor
from stepwell.nets.decisions.estimators import Draw
from stepwell.nets.decisions.pixels import MaskUnit, OfAnother, chosen
from stepwell.nets.decisions.skipping import gated_blocks
from stepwell.types import Batch

EXACT = {"rtol": 0, "atol": 0}
CLOSE = {"rtol": 1e-4, "atol": 1e-4}
#: Odd sizes: the stride leaves a position out.
NETS = {"resnet8": ({}, 15), "resnet26": ({"stem": "small"}, 9)}


def masked(name="resnet8"):
    """A network whose blocks run at about half of the positions."""
    torch.manual_seed(0)
    options, size = NETS[name]
    net = build(name, num_classes=5, gates="pixels", zero_init_residual=False, **options)
    lively(net).eval()
    for _, block in gated_blocks(net.module):
        nn.init.normal_(block.gate.place.weight)
        nn.init.zeros_(block.gate.scores.bias)
    net.mark("trained")
    return net, torch.randn(3, 3, size, size)


@pytest.mark.parametrize("name", NETS)
def test_compacted_equals_masked_and_a_batch_equals_its_images_alone(name, monkeypatch):
    monkeypatch.setattr(executor, "PIECE", 100)
    net, x = masked(name)
    net, x = net.double(), x.double()  # logits are large: their rounding is, too
    with torch.no_grad():
        found = net(x)
        exits = net.forward_all(x, given={"draw": Draw("threshold")}, extras=("open", "mask"))
        shares = torch.stack(exits[net.full].extras["open"])
        assert 0.1 < float(shares.mean()) < 0.9
        assert_close(found, exits[net.full].logits, **CLOSE)
        assert_close(torch.cat([net(image) for image in x.split(1)]), found, **CLOSE)
        lying = x.contiguous(memory_format=torch.channels_last)
        assert_close(net(lying), found, **CLOSE)
        again = net.forward_all(x, extras=("open",))[net.full]
        assert_close(torch.stack(again.extras["open"]), shares, **EXACT)
        for _, block in gated_blocks(net.module):
            block.break_even = {3: 0.0}  # dense wherever it is not all or nothing
        assert_close(net(x), found, **CLOSE)
        assert net(x[:0]).shape == (0, 5)


def test_masked_is_the_formula_and_always_is_the_network_without_masks():
    net, x = masked()
    with torch.no_grad():
        given = {"draw": Draw("threshold")}
        exit = net.forward_all(x, given=given, extras=("mask", "open"))[net.full]
        y = net.module.relu(net.module.bn1(net.module.conv1(x)))
        for (_, block), mask, open in zip(
            gated_blocks(net.module), exit.extras["mask"], exit.extras["open"], strict=True
        ):
            scores = nn.functional.conv2d(y, block.gate.place.weight, None, block.stride, 1)[:, 0]
            scores = scores + block.gate.scores(y.mean((2, 3)))[:, :, None]
            assert_close(mask, (scores > 0).float())
            base = y if block.downsample is None else block.downsample(y)
            inner = torch.relu(block.bn1(block.conv1(y)))
            wide = torch.zeros_like(mask)
            for i, j in (
                (i, j) for i in (-1, 0, 1) for j in (-1, 0, 1)
            ):  # neighbours, without wrapping
                moved = nn.functional.pad(mask, (1, 1, 1, 1)).roll((i, j), (1, 2))[:, 1:-1, 1:-1]
                wide = torch.maximum(wide, moved)
            first, second = block.conv1.weight.numel(), block.conv2.weight.numel()
            work = first * wide.mean((1, 2)) + second * mask.mean((1, 2))
            assert_close(open, work / (first + second))
            # what lies outside of the dilated mask is never read
            y = torch.relu(base + mask[:, None] * block.bn2(block.conv2(inner * wide[:, None])))
        assert_close(net.module.fc(y.mean((2, 3))), exit.logits, rtol=1e-5, atol=1e-5)
        plain = build("resnet8", num_classes=5).eval()
        plain.load_full({k: v for k, v in net.module.state_dict().items() if ".gate." not in k})
        assert_close(net(x, given={"draw": Draw("always")}), plain(x), **EXACT)


def test_positions_outside_of_the_mask_are_not_computed(monkeypatch):
    rows = []
    addmm = torch.addmm

    def counted(shift, x, *rest, **more):
        rows.append(len(x))
        return addmm(shift, x, *rest, **more)

    net, x = masked()
    _, block = next(gated_blocks(net.module))
    x = torch.randn(2, 16, 8, 8)
    mask = torch.zeros(2, 8, 8, dtype=torch.bool)
    monkeypatch.setattr(torch, "addmm", counted)
    with torch.no_grad():
        assert block.run(x, x, mask) is x  # a mask that no position passes
        assert not rows
        mask[0, 0, 0] = mask[1, 4, 4] = True
        block.run(x, x, mask)
    assert rows == [4 + 9, 2]  # a corner has three neighbours


def test_the_estimator_of_masks_is_the_gumbel_sigmoid():
    scores = torch.tensor([[[0.3, -1.2], [2.0, 0.1]]], requires_grad=True)
    torch.manual_seed(3)
    noise = -torch.empty(4, 2).exponential_().log()  # as torch draws it
    torch.manual_seed(3)
    mask = chosen(scores, Draw("gumbel", 0.7))
    soft = torch.sigmoid((scores.flatten() + noise[:, 1] - noise[:, 0]) / 0.7)
    assert_close(mask.flatten(), (soft > 0.5).float())
    weights = torch.tensor([1.0, 2.0, 3.0, 4.0])
    (mask.flatten() * weights).sum().backward()
    assert_close(scores.grad.flatten(), (weights * soft * (1 - soft) / 0.7).detach())


def test_sparsity_loss_worked_by_hand():
    shares, costs = torch.tensor([0.2, 0.8]), torch.tensor([1.0, 3.0])
    network = (0.65 - 0.5) ** 2
    assert_close(float(sparsity_loss(shares, costs, 0.5, 0.0)), network + (0.3**2 + 0.3**2) / 2)
    assert_close(float(sparsity_loss(shares, costs, 0.5, 0.5)), network)  # bounds are [0, 1]
    tight = math.cos(math.pi / 4) ** 2
    apart = (0.5 * tight - 0.2) ** 2 + (0.8 - (1 - 0.5 * tight)) ** 2
    assert_close(float(sparsity_loss(shares, costs, 0.5, 1 / 6)), network + apart / 2)


def test_masks_learn_and_meet_their_target():
    torch.manual_seed(0)
    net = build("resnet8", num_classes=2, gates="pixels")
    method = Pixels(net, target=0.3).train()
    optim = torch.optim.Adam(net.parameters(), 0.02)
    x = torch.zeros(16, 3, 8, 8)
    labels = torch.arange(16) % 2
    x[:, :, 2:5, 2:5] = torch.where(labels == 0, -1.0, 1.0)[:, None, None, None]
    for step in range(40):
        method.progress = step / 40
        found = method.training_step(Batch(x + 0.1 * torch.randn_like(x), labels))
        optim.zero_grad()
        found.loss.backward()
        optim.step()
    assert found.logs["8/ce"] < 0.2
    assert float(found.logs["8/open"]) == pytest.approx(0.3, abs=0.1)
    logs = [method.training_step(Batch(x, labels)).logs for _ in range(2)]
    assert logs[0]["8/open"] == logs[1]["8/open"]  # without noise at the end


def test_a_mask_of_another_image_is_that_of_the_one_before():
    unit = MaskUnit(4)
    nn.init.normal_(unit.place.weight)
    nn.init.zeros_(unit.scores.bias)
    x = torch.randn(5, 4, 6, 6)
    scores = OfAnother(unit)(x)
    assert torch.equal(scores > 0, (unit(x) > 0).roll(1, 0))
    assert torch.equal(chosen(scores, Draw("reinforce")), (scores > 0).float())  # a certain draw


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: Pixels(build("resnet8", num_classes=2)),
            'has no masks: build a ResNet with gates="pix',
        ),
        (
            lambda: Pixels(build("resnet8", gates="pixels"), target=0.0),
            "target=0.0.*above 0, at most 1",
        ),
        (
            lambda: Pixels(build("resnet8", gates="pixels"), estimator="reinforce"),
            "gives no gradient to",
        ),
        (lambda: build("resnet8_ln", gates="pixels"), "masks of positions need BatchNorm"),
        (lambda: build("resnet8", gates="pixels", kernels=2), "a block has gates or mixed kernels"),
    ],
)
def test_what_cannot_have_masks_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
