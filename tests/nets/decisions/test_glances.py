"""Glances: crops equal slices, a batch equals its images alone, and each part learns its own."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

import stepwell
from nets.example_nets import lively
from stepwell.cost import count_macs
from stepwell.export.subnet import bytes_alone
from stepwell.losses import class_cross_entropy
from stepwell.measure.glances import at_places_of_others, counts, looked_at
from stepwell.methods.glance import GlancePolicy, Glances, discounted
from stepwell.nets import build
from stepwell.nets.decisions.glances import crops, frames, glance_count, places_at, policy_of
from stepwell.nets.families.glance import frame_side
from stepwell.nets.nested.net import NestedNet
from stepwell.nets.nested.reading import read
from stepwell.types import Batch

CLOSE = {"rtol": 1e-4, "atol": 1e-4}


def looking(glances=3, size=24, side=8):
    """A network whose policy looks at different places of different images."""
    torch.manual_seed(0)
    counts = [str(i) for i in range(1, glances)]
    net = build(f"glance-resnet8/{glances}", counts, num_classes=4, image_size=size, side=side)
    lively(net).eval()
    nn.init.normal_(policy_of(net.module).place.weight, std=0.3)
    net.mark("trained")
    return net, torch.randn(5, 3, size, size)


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_a_crop_is_a_slice(data):
    height, width = (data.draw(st.integers(4, 12)) for _ in range(2))
    side = data.draw(st.integers(1, 4))
    places = torch.tensor(data.draw(st.lists(
        st.tuples(*[st.floats(-0.5, 1.5, width=32)] * 2), min_size=1, max_size=4
    )))  # fmt: skip
    images = torch.rand(len(places), 3, height, width)
    found = crops(images, places, side)
    for image, place, crop in zip(images, places.clamp(0, 1), found, strict=True):
        top, left = int(place[0] * (height - side)), int(place[1] * (width - side))
        assert torch.equal(crop, image[:, top : top + side, left : left + side])


def test_a_crop_of_the_loaders_layout_needs_no_copy():
    images = torch.rand(2, 3, 8, 8).to(memory_format=torch.channels_last)
    assert crops(images, torch.rand(2, 2), 4).is_contiguous(memory_format=torch.channels_last)


def test_every_number_of_glances_is_a_depth_and_a_batch_equals_its_images_alone():
    net, x = looking()
    assert net.depths == {"1": (1,), "2": (2,), "3": (3,)}
    with torch.no_grad():
        exits = net.forward_all(x, extras=("place",))
        for depth, exit in exits.items():
            alone = torch.cat([net(image[None], depth) for image in x])
            assert_close(exit.logits, alone, **CLOSE)
            assert_close(net.subnet(depth)(x), exit.logits, **CLOSE)
        places = torch.stack(exits["3"].extras["place"], 1)
        assert places.std(0).min() > 0.01  # they differ, so that this is worth a test
        assert_close(net.forward_all(x, given={"places": places})["3"].logits, exits["3"].logits)
        macs = [count_macs(net.subnet(d), x[:1]) for d in net.depths]
    assert macs[2] - macs[1] == macs[1] - macs[0] > 0


def test_shared_encoders_are_stored_once_and_loaded(tmp_path):
    net, x = looking()
    assert sum(p.numel() for p in net.parameters()) == sum(
        t.numel() for n, t in net.tensors().items() if not n.endswith(("mean", "var", "tracked"))
    )
    file = stepwell.save(net, tmp_path / "net.safetensors")
    assert bytes_alone(net, "3") == pytest.approx(file.stat().st_size, rel=0.05)
    loaded = stepwell.load(file).eval()
    first, second = loaded.module.glances[1:]
    assert first.encoder is second.encoder
    assert first.policy is second.policy
    assert_close(loaded(x), net(x), rtol=0, atol=0)


def test_joint_gradients_equal_those_of_the_sum_and_none_reaches_the_policy():
    net, x = looking()
    y = torch.tensor([0, 1, 2, 3, 0])
    objective = Glances(net, where="fixed", own_weight=0.5)
    step = objective.training_step(Batch(x, y))
    step.loss.backward()
    found = {name: p.grad for name, p in net.named_parameters()}
    net.zero_grad()
    exits = net.forward_all(x, given=places_at(net.module, "fixed", x), extras=("own",))
    loss = sum(
        class_cross_entropy(e.logits, y) + 0.5 * class_cross_entropy(e.extras["own"][-1], y)
        for e in exits.values()
    )
    (loss / 3).backward()
    for name, p in net.named_parameters():
        if ".policy." in name:
            assert found[name] is None, name
        else:
            assert_close(found[name], p.grad, msg=name, **CLOSE)


def test_the_policys_gradient_is_that_of_a_naive_formula():
    net, x = looking()
    y = torch.tensor([0, 1, 2, 3, 0])
    objective = GlancePolicy(net, discount=0.5, spread=0.2).train()
    torch.manual_seed(3)
    step = objective.training_step(Batch(x, y))
    step.loss.backward()
    policy = policy_of(net.module)
    found = [p.grad.clone() for p in policy.parameters()]
    assert all(p.grad is None for n, p in net.named_parameters() if ".policy." not in n)
    policy.zero_grad()

    torch.manual_seed(3)
    shift = 0.2 * torch.randn(5, 2, 2)
    exits = net.forward_all(x, given={"shift": shift}, extras=("mean", "place"))
    right = [e.logits.softmax(1)[torch.arange(5), y] for e in exits.values()]
    gain = torch.stack([right[1] - right[0], right[2] - right[1]]).detach()
    returns = torch.stack([gain[0] + 0.5 * gain[1], gain[1]])
    returns = returns / returns.std()
    loss = torch.zeros(())
    for t in range(2):
        mean = exits["3"].extras["mean"][t]
        normal = torch.distributions.Normal(mean, 0.2)
        log_p = normal.log_prob((mean + shift[:, t]).detach()).sum(1)
        others = (returns[t].sum() - returns[t]) / 4
        loss = loss - ((returns[t] - others) * log_p).mean()
    loss.backward()
    for p, gradient in zip(policy.parameters(), found, strict=True):
        assert_close(p.grad, gradient, **CLOSE)


class Brightness(nn.Module):
    """In place of a cell: a bright crop is the right class."""

    def forward(self, features, seen):
        return F.pad(8 * features[:, :1], (0, 3))


class Last(nn.Module):
    """In place of a conclusion: logits are what the cell gives."""

    def forward(self, value):
        return value[-1]


def test_a_policy_learns_to_look_where_the_reward_is():
    net, _ = looking(glances=2)
    bright = torch.arange(64) % 2  # the left or the right edge
    x = torch.zeros(64, 3, 24, 24)
    x[bright == 0, :, :, :8] = 1
    x[bright == 1, :, :, 16:] = 1
    policy_of(net.module).place.reset_parameters()  # it begins near the middle
    first, second = net.module.glances
    first.cell = second.cell = Brightness()
    first.own = second.own = nn.Identity()
    second.encoder, net.module.conclusion = nn.AvgPool2d(4), Last()
    net = NestedNet(net.module, read(net.module, ("glances",)), {"1": (1,)}, "2")
    objective = GlancePolicy(net, spread=0.2)
    optimizer = torch.optim.Adam(policy_of(net.module).parameters(), 3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        objective.training_step(Batch(x, torch.zeros(64, dtype=torch.long))).loss.backward()
        optimizer.step()
    with torch.no_grad():
        left = net.forward_all(x, extras=("place",))["2"].extras["place"][0][:, 1]
    assert left[bright == 0].mean() < 0.3
    assert left[bright == 1].mean() > 0.7


def test_the_places_of_others_are_of_another_image(untyped):
    net, x = looking()
    batches = [Batch(x[:3], torch.zeros(3).long()), Batch(x[3:], torch.zeros(2).long())]
    with torch.no_grad():
        logits, _, places = looked_at(net, batches)
        assert_close(logits, net.logits_by_depth(x), **CLOSE)
        alike = at_places_of_others(net, places[:1].expand_as(places).contiguous())
        assert_close(alike(x)["3"][0], logits["3"][0], **CLOSE)  # all have its places
        others = at_places_of_others(net, places)
        found = torch.cat([others(batch[0])["3"] for batch in batches])
    assert ((found - logits["3"]).abs().amax(1) > 1e-4).all()


def test_counts_and_returns():
    table = counts(torch.tensor([[0.0, 0.0], [1.0, 1.0], [0.0, 0.99]]))
    assert (table[0][0], table[7][7], table[0][7]) == (1, 1, 1)
    assert sum(map(sum, table)) == 3
    assert discounted(torch.tensor([[1.0], [2.0], [4.0]]), 0.5).flatten().tolist() == [3.0, 4.0, 4.0]


def test_mixed_labels_teach_the_policy_by_their_shares():
    net, x = looking()
    y = torch.tensor([0, 1, 2, 3, 0])
    losses = []
    for labels in (y, F.one_hot(y, 4).float()):
        torch.manual_seed(3)
        losses.append(GlancePolicy(net).training_step(Batch(x, labels)).loss)
    assert_close(*losses)


@pytest.mark.parametrize(("name", "arguments", "words"), [
    ("glance-resnet8/1", {}, "say how many glances, 2 to 16"),
    ("glance-resnet8/x", {}, "say how many glances, 2 to 16"),
    ("glance-resnet8/17", {}, "say how many glances, 2 to 16"),
    ("glance-resnet9/3", {}, "no network 'resnet9'"),
    ("glance-resnet8/3", {"image_size": 24, "side": 32}, "are larger than images of 24 .*: take 8, 12"),
    ("glance-resnet8/3", {"image_size": 24, "side": 24}, "do not divide images of 24 .*: take 8, 12"),
    ("glance-resnet8/3", {"image_size": 31}, "images of 31 pixels cannot be divided .*: use --size 32"),
])  # fmt: skip
def test_what_cannot_be_is_refused(name, arguments, words):
    with pytest.raises(ValueError, match=words):
        build(name, **arguments)


def test_other_networks_place_no_glances(untyped):
    with pytest.raises(ValueError, match="this network places no glances"):
        Glances(build("resnet8"))
    net, _ = looking()
    with pytest.raises(ValueError, match="where 'x': take policy, random, fixed"):
        Glances(net, where="x")
    with pytest.raises(ValueError, match="spread"):
        GlancePolicy(net, spread=0.0)
    assert glance_count(net.module) == 2


def test_a_frame_is_a_square_of_the_clips_rows():
    clips = torch.arange(2 * 3 * 6 * 6.0).view(2, 3, 6, 6)
    for index in range(9):
        top, left = index // 3 * 2, index % 3 * 2
        expected = clips[:, :, top : top + 2, left : left + 2]
        for place in (index / 9 + 0.001, (index + 1) / 9 - 0.001):
            assert torch.equal(frames(clips, torch.full((2, 1), place), 2), expected)
    assert torch.equal(frames(clips, torch.tensor([[-1.0], [1.0]]), 2)[1], clips[1, :, 4:, 4:])
    with pytest.raises(ValueError, match="frames of 7 pixels are larger than clips of 6 rows"):
        frames(clips, torch.zeros(2, 1), 7)
    with pytest.raises(ValueError, match="crops of 7 pixels are larger than images of 6 × 6"):
        crops(clips, torch.zeros(2, 2), 7)


def test_a_network_of_frames_and_its_fixed_places():
    net = build("frames-resnet8/5", ["3"], num_classes=3, image_size=32, frames=16).eval()
    x = torch.randn(2, 3, 32, 32)
    places = places_at(net.module, "fixed", x)["places"]
    assert places.shape == (2, 4, 1)
    for count in (2, 3, 4):  # spread over the clip, however many
        seen = [0.0, *places[0, :count, 0].sort().values.tolist(), 1.0]
        assert max(b - a for a, b in pairwise(seen)) < 1.7 / (count + 1)
    assert net(x, "3").shape == (2, 3)
    with pytest.raises(ValueError, match="18 glances see 17 frames"):
        frame_side(16, 32, 18)
    with pytest.raises(ValueError, match="have 6 each, and 8 are the least: use --size 32 or more"):
        frame_side(16, 24, 4)
    for count, size in ((5, 32), (1, 32), (9, 32)):
        with pytest.raises(ValueError, match=f"{count} frames do not fill clips of {size} pixels"):
            frame_side(count, size, 2)
