"""Masks of positions: compacted equals masked, masked equals a naive formula, and masks learn."""

import math
from copy import deepcopy
from inspect import unwrap

import pytest
import torch
from torch import nn
from torch.testing import assert_close
from torchvision.models.resnet import BasicBlock

from nets.example_nets import lively
from stepwell.cost import count_macs
from stepwell.data import Batches, ImageSet
from stepwell.losses import sparsity_loss
from stepwell.measure import skipping as measure
from stepwell.measure.data_parts import ENOUGH, images_for_rates
from stepwell.measure.open_rate import at_open_rate, settle_open_rate
from stepwell.measure.skipping import (
    Branch,
    accuracy_at_random,
    gate_budgets,
    with_masks_of_others,
)
from stepwell.methods.pixels import Pixels
from stepwell.methods.skipping import Skipping
from stepwell.nets import Card, build
from stepwell.nets.decisions import executor
from stepwell.nets.decisions.estimators import Draw
from stepwell.nets.decisions.executor import Positions, at_positions
from stepwell.nets.decisions.pixels import Given, Masked, chosen
from stepwell.nets.decisions.skipping import gated_blocks
from stepwell.nets.families.resnet import block_of
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


@pytest.mark.parametrize("size", [1, 3])
def test_some_positions_of_a_convolution_run_under_autocast(size):
    torch.manual_seed(0)
    conv, norm = nn.Conv2d(8, 6, size, padding=size // 2, bias=False), nn.BatchNorm2d(6).eval()
    x, mask = torch.randn(2, 8, 5, 5), torch.rand(2, 5, 5) > 0.5
    with torch.no_grad():
        exact = norm(conv(x)).permute(0, 2, 3, 1)[mask]
        with torch.autocast("cpu", torch.bfloat16):
            found = at_positions(x.bfloat16(), Positions.of(mask), conv, norm)
    assert_close(found.float(), exact, rtol=0.05, atol=0.05)


def test_a_bottleneck_counts_the_positions_that_its_odd_map_has():
    net, _ = masked("resnet26")
    block = next(b for _, b in gated_blocks(net.module) if b.stride == 2)
    maps = torch.randn(2, block.conv1.in_channels, 9, 9)
    with torch.no_grad():
        _, extras = block(maps, extras=("open", "mask", "macs"))
    mask, conv = extras["mask"], [block.conv1, block.conv2, block.conv3]
    first, *others = (c.weight.numel() for c in conv)
    assert extras["macs"] == 81 * first + 25 * sum(others) == count_macs(Branch(block), maps[:1])
    wide = torch.zeros(2, 9, 9)
    for image, row, column in mask.nonzero().tolist():
        wide[image, max(0, 2 * row - 1) : 2 * row + 2, max(0, 2 * column - 1) : 2 * column + 2] = 1
    work = first * wide.sum((1, 2)) + sum(others) * mask.sum((1, 2))
    assert_close(extras["open"], work / extras["macs"])


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


def test_masks_of_several_depths_learn_together():
    net = build("resnet14", ["8"], num_classes=2, gates="pixels")
    step = Pixels(net).train().training_step(Batch(torch.randn(2, 3, 8, 8), torch.arange(2)))
    assert {"8/open", "14/open"} <= step.logs.keys()


def test_few_validation_images_do_not_set_the_work_of_masks():
    def part(count):
        images = ImageSet(
            torch.zeros(count, 3, 2, 2, dtype=torch.uint8), torch.zeros(count).long(), ("a",)
        )
        return Batches(images, 32, mean=(0.0,) * 3, std=(1.0,) * 3)

    train, few, enough = part(40), part(ENOUGH - 1), part(ENOUGH)
    assert images_for_rates(train, few).images is train.images
    assert images_for_rates(train, None).images is train.images
    assert images_for_rates(train, enough).images is enough.images


def test_the_work_of_masks_is_set_to_their_target():
    net, x = masked()
    costs = [1.0, 2.0, 5.0]
    settle_open_rate(net, [Batch(x, torch.zeros(3))], 0.3, costs)
    with torch.no_grad():
        open = torch.stack(net.forward_all(x, extras=("open",))[net.full].extras["open"], 1)
    assert float(open.mean(0) @ torch.tensor(costs)) / 8 == pytest.approx(0.3, abs=0.02)


def test_a_target_between_equal_scores_is_told():
    net, x = masked()
    flat = torch.zeros_like(x)  # all places have equal scores, but those near the edge
    with pytest.warns(UserWarning, match="share of open gates is .* not 0.50: .* set one of them"):
        settle_open_rate(net, [Batch(flat, torch.zeros(3))], 0.5)


def test_the_work_is_at_its_target_within_a_validation_alone():
    net, x = masked()
    trained = deepcopy(net.module.state_dict())

    def work():
        with torch.no_grad():
            return torch.stack(net.forward_all(x, extras=("open",))[net.full].extras["open"], 1).mean()

    before = work()
    with at_open_rate(net, [Batch(x, torch.zeros(3))], 0.8):
        assert float(work()) == pytest.approx(0.8, abs=0.02)
    assert work() == before != pytest.approx(0.8, abs=0.02)
    assert_close(net.module.state_dict(), trained, **EXACT)


def test_a_block_whose_map_is_too_small_to_split_runs_dense():
    net, _ = masked()
    (_, block), *_ = gated_blocks(net.module)
    assert measure.break_even_of(block, torch.randn(2, block.conv1.in_channels, 1, 1), 0.01) == 0


def test_masks_of_another_image_are_those_that_it_has_by_itself():
    net, x = masked()
    blocks = [block for _, block in gated_blocks(net.module)]
    with torch.no_grad():
        own = net.forward_all(x, extras=("mask",))[net.full].extras["mask"]
        seen = []
        hooks = [
            b.register_forward_hook(
                lambda b, inputs, y: seen.append(b.gate(inputs[0]) > 0)) for b in blocks
        ]  # fmt: skip
        swapped = with_masks_of_others(net, x)
        for hook in hooks:
            hook.remove()
        assert not torch.equal(swapped, net(x))
    for mask, other in zip(own, seen[-len(blocks) :], strict=True):
        assert torch.equal(mask.roll(1, 0), other.float())
    assert all(isinstance(b, Masked) and not isinstance(b.gate, Given) for b in blocks)


def test_images_of_one_class_get_masks_of_other_classes_and_one_image_has_no_other():
    net, _ = masked()
    net.card = Card(tuple("abcde"), 15)
    pixels = torch.randint(0, 256, (9, 3, 15, 15), dtype=torch.uint8)
    labels = torch.arange(9) // 3  # in the order of classes, as folders are
    tests = Batches(ImageSet(pixels, labels, net.card.classes), 4, mean=(0.5,) * 3, std=(0.5,) * 3)
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure, "with_masks_of_others", lambda net, x: seen.append(len(x)) or net(x))
        found = accuracy_at_random(net, tests, torch.ones(3))
    assert seen == [4, 4]  # a batch of one image has no other one
    assert found is not None
    one = tests.with_images(tests.images.subset(torch.tensor([0])))
    assert accuracy_at_random(net, one, torch.ones(3)) is None
    budgets = gate_budgets(net, one)  # which moves the scores, and gradients are enabled here
    assert budgets[0].macs <= budgets[-1].macs


def test_masks_pass_gradients_and_are_counted_in_eval_mode():
    net, x = masked()
    assert torch.is_grad_enabled()
    net(x).sum().backward()
    _, block = next(gated_blocks(net.module))
    found = block.conv1.weight.grad.clone()
    net.zero_grad()
    net(x, given={"draw": Draw("threshold")}).sum().backward()
    assert_close(found, block.conv1.weight.grad, rtol=1e-3, atol=1e-3)
    assert count_macs(net, x) > 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: Pixels(build("resnet8", num_classes=2)),
            'has no masks: build a ResNet with gates="pix',
        ),
        (
            lambda: Pixels(build("resnet8", gates="pixels"), target=0.0),
            "target 0.0: must be between 0.01 and 1",
        ),
        (
            lambda: Pixels(build("resnet8", gates="pixels"), estimator="reinforce"),
            "gives no gradient to",
        ),
        (lambda: Skipping(build("resnet8", gates="pixels")), "train it with Pixels"),
        (lambda: unwrap(block_of)(BasicBlock, "pixel"), "gates='pixel': True, False or 'pixels'"),
        (lambda: build("resnet8_ln", gates="pixels"), "masks of positions need BatchNorm"),
        (lambda: build("resnet8", gates="pixels", kernels=2), "a block has gates or mixed kernels"),
    ],
)
def test_what_cannot_have_masks_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
