"""Blocks in a teacher where code does what modules do not say: shared steps, functions, in place."""

from copy import deepcopy

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.testing import assert_close

from stepwell.losses import logit_direction
from stepwell.methods import Graft
from stepwell.nets import build
from stepwell.nets.grafting.surgery import Grafting
from stepwell.nets.nested.nest import nest
from stepwell.teachers.block_outputs import TeacherOutputs
from stepwell.types import Batch

SHAPE = (3, 16, 16)


class Residual(nn.Module):
    """Adds to its input, which so cannot take a 1×1 convolution in."""

    def __init__(self, width, slope=0.1, in_place=False):
        super().__init__()
        self.conv, self.slope, self.in_place = nn.Conv2d(width, width, 3, 1, 1), slope, in_place

    def forward(self, x):
        x = functional.leaky_relu(x, self.slope, inplace=self.in_place)
        return x + self.conv(x)


class Net(nn.Module):
    """Two stages of residual blocks behind a stem, and one pooling behind both."""

    def __init__(self, width, head="linear", shared=True, **options):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, 1, 1)
        self.a = nn.Sequential(Residual(width, **options))
        self.b = nn.Sequential(Residual(width, **options))
        self.pool = nn.AvgPool2d(2) if head == "average" else nn.MaxPool2d(2)
        self.other = self.pool if shared else nn.MaxPool2d(2)
        self.head = {
            "linear": lambda: nn.Sequential(nn.Flatten(), nn.LazyLinear(5)),
            "convolution": lambda: nn.Sequential(
                nn.AdaptiveAvgPool2d(1), nn.Conv2d(width, 5, 1), nn.Flatten()
            ),
            "tanh": lambda: nn.Sequential(nn.Flatten(), nn.LazyLinear(5), nn.Tanh()),
        }[head]()

    def forward(self, x):
        x = self.pool(self.a(self.stem(x)))
        return self.head(self.other(self.b(x)))


def net(width, **options):
    torch.manual_seed(width)
    module = Net(width, **options)
    module(torch.zeros(2, *SHAPE))
    return nest(module, ["a", "b"], {}, input_size=SHAPE).eval()


@pytest.fixture
def batch():
    return Batch(torch.randn(6, *SHAPE), torch.full((6,), -1))


def chain(grafting, images):
    """The student's logits before it is merged, at the teacher's scale."""
    with torch.no_grad():
        ours = grafting.mixed(0, len(grafting.blocks) - 1)(images)
        theirs = grafting.mixed(0, -1)(images)
    factor = (ours * theirs).sum() / ours.square().sum()
    return ours, ours * (factor if factor > 0 else 1)


@pytest.mark.parametrize("shared", [True, False])
def test_a_convolution_that_stays_stands_where_it_runs_once(batch, shared):
    """Behind a pooling of its own; before the next block where the pooling runs behind both stages."""
    grafting = Grafting(net(4, shared=shared), net(6, shared=shared), input_shape=SHAPE)
    _, expected = chain(grafting, batch.images)
    merged, left = grafting.merged([batch])
    cost = {"channels": 4, "macs": 4 * 4 * 8 * 8}
    assert left == ({"b.0": cost | {"before": 1}} if shared else {"pool": cost})
    with torch.no_grad():
        assert_close(merged(batch.images), expected, rtol=1e-4, atol=1e-4)
        assert_close(merged.subnet()(batch.images), expected, rtol=1e-4, atol=1e-4)


def test_a_cut_where_no_convolution_can_stay_is_refused():
    """What stands before the cut runs twice, and so does what stands behind it."""

    class Twice(Net):
        def __init__(self, width):
            super().__init__(width)
            self.tanh = nn.Tanh()

        def forward(self, x):
            x = self.pool(self.a(self.tanh(self.stem(x))))
            return self.head(self.pool(self.b(self.tanh(x))))

    def twice(width):
        module = Twice(width)
        module(torch.zeros(2, *SHAPE))
        return nest(module, ["a", "b"], {}, input_size=SHAPE).eval()

    with pytest.raises(ValueError, match="behind a of the student a 1×1 convolution must stay"):
        Grafting(twice(4), twice(6), input_shape=SHAPE)
    student = twice(4)
    before = deepcopy(student.state_dict())
    assert Grafting(student, twice(6), input_shape=SHAPE, pairs="b").names == ("b", "head")
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())


def test_a_merged_student_that_is_another_network_is_refused_and_left_as_it_was(batch, monkeypatch):
    grafting = Grafting(net(4), net(6), input_shape=SHAPE)
    ours, expected = chain(grafting, batch.images)
    with monkeypatch.context() as patched:
        patched.setattr("stepwell.nets.grafting.surgery.add_adaptions", lambda net, kept: net)
        with pytest.raises(ValueError, match="merged, the student gives other logits than its blocks"):
            grafting.merged([batch])
    assert_close(chain(grafting, batch.images)[0], ours)
    with torch.no_grad():
        assert_close(grafting.merged([batch])[0](batch.images), expected, rtol=1e-4, atol=1e-4)


def towards_its_teacher(head, batch, times=1.0):
    """A student whose logits point the teacher's way, some times as long."""
    student = net(4, head=head)
    grafting = Grafting(student, net(6, head=head), input_shape=SHAPE)
    with torch.no_grad():
        ours, theirs = chain(grafting, batch.images)[0], grafting.mixed(0, -1)(batch.images)
        for p in student.module.head.parameters():
            p.mul_(times * (ours * theirs).sum().sign())
    return grafting


def test_logits_of_a_convolution_are_brought_to_the_teachers_scale(batch):
    grafting = towards_its_teacher("convolution", batch, 50)
    ours, expected = chain(grafting, batch.images)
    assert float(ours.norm() / expected.norm()) > 5
    with torch.no_grad():
        found = grafting.merged([batch])[0](batch.images)
    assert_close(found, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


def test_logits_that_no_layer_gives_keep_their_scale_and_a_warning_says_so(batch):
    grafting = towards_its_teacher("tanh", batch)
    ours, _ = chain(grafting, batch.images)
    with pytest.warns(UserWarning, match="not brought to the teacher's scale"):
        merged, _ = grafting.merged([batch])
    with torch.no_grad():
        assert_close(merged(batch.images), ours, rtol=1e-4, atol=1e-4)


def test_blocks_that_differ_in_what_no_module_says_are_no_copies():
    teacher = net(4, slope=0.01)
    assert Grafting(net(4, slope=0.9), teacher, input_shape=SHAPE).copied == (False, False, True)
    with pytest.raises(ValueError, match="nothing to learn"):
        Grafting(net(4, slope=0.01), teacher, input_shape=SHAPE)


@pytest.mark.parametrize("cached", [True, False])
def test_blocks_that_work_in_place_get_hints(batch, cached):
    """The same loss and gradients as those of blocks that do not."""

    def trained(in_place):
        torch.manual_seed(0)
        student, teacher = (net(w, in_place=in_place) for w in (4, 6))
        grafting = Grafting(student, teacher, input_shape=SHAPE)
        images = [batch] if cached else None
        objective = Graft(grafting, 1, 1, images=images, loss="features").train()
        loss = objective.training_step(batch).loss
        loss.backward()
        return loss, student.module.b[0].conv.weight.grad

    assert_close(trained(True), trained(False))


def test_measuring_leaves_the_modes_as_they_are(batch):
    student, teacher = build("resnet8", num_classes=5), build("resnet14", num_classes=5).eval()
    grafting = Grafting(student, teacher, input_shape=SHAPE)
    objective = Graft(grafting, 0, 2).train()
    norms = [m for m in objective.modules() if isinstance(m, nn.BatchNorm2d)]
    before = norms[0].running_mean.clone()
    with torch.no_grad():
        whole = grafting.mixed(0, 3)(batch.images)
    assert all(norm.training for norm in norms)
    assert torch.equal(norms[0].running_mean, before)
    with torch.no_grad():
        assert_close(whole, student.eval()(batch.images))


def test_the_teacher_is_frozen_through_every_phase(batch):
    """The copy in which the blocks stand: no gradient, no train mode, no statistics of the images."""
    student, teacher = build("resnet8", num_classes=5), build("resnet14", num_classes=5).eval()
    grafting = Grafting(student, teacher, input_shape=SHAPE)
    inside = nn.ModuleList(grafting._teacher)
    before = deepcopy(inside.state_dict())
    for first, last in ((0, 0), (0, 2)):
        objective = Graft(grafting, first, last)
        optimizer = torch.optim.SGD([p for p in objective.parameters() if p.requires_grad], 0.1)
        grafting.train()
        objective.train()
        objective.training_step(batch).loss.backward()
        optimizer.step()
    assert all(p.grad is None and not p.requires_grad for p in inside.parameters())
    assert not any(m.training for block in inside for m in block.modules())
    assert all(torch.equal(value, before[name]) for name, value in inside.state_dict().items())


def test_a_copy_of_the_objective_is_of_its_blocks_alone(batch):
    grafting = Grafting(net(4), net(6), input_shape=SHAPE)
    objective = Graft(grafting, 0, 1, images=[batch])
    loss = objective.training_step(batch).loss
    copied = deepcopy(objective)
    assert copied._grafting[0] is grafting
    assert copied._known is objective._known
    ours, theirs = (dict(o.named_parameters()) for o in (objective, copied))
    assert ours.keys() == theirs.keys()
    assert all(ours[name] is not theirs[name] for name in ours)
    assert_close(copied.training_step(batch).loss, loss)


def test_what_the_teacher_gave_is_forgotten_when_a_phase_is_over(batch):
    grafting = Grafting(net(4), net(6), input_shape=SHAPE)
    objective = Graft(grafting, 1, 1, images=[batch])
    loss = objective.training_step(batch).loss
    assert objective._known.stored
    objective.forget()
    assert objective._known is None
    assert_close(objective.training_step(batch).loss, loss)


@pytest.mark.parametrize("room", [0, 1])
def test_features_and_logits_count_in_what_is_kept(monkeypatch, room):
    """9 images of 4 · 2 features and 5 logits each, of four bytes; the second batch is the larger."""
    images = [Batch(torch.randn(n, 2), torch.zeros(n)) for n in (3, 6)]
    monkeypatch.setattr("stepwell.teachers.block_outputs.MEMORY", 9 * (8 + 5) * 4 - 1 + room)
    known = TeacherOutputs(
        lambda x: torch.cat([x] * 4, 1), lambda x: x[:, :5], images, torch.device("cpu")
    )
    assert bool(known.stored) == bool(room)
    mixed = torch.cat([images[1].images[4:], images[0].images[:2]])
    features, logits = known(mixed)
    assert_close(features, torch.cat([mixed] * 4, 1))
    assert_close(logits, features[:, :5])
    assert [len(part) for part in known.features()] == [3, 6]


def test_the_direction_of_logits_is_kept_by_merging(batch):
    grafting = Grafting(net(4), net(6), input_shape=SHAPE)
    ours, _ = chain(grafting, batch.images)
    with torch.no_grad():
        merged = grafting.merged([batch])[0](batch.images)
    assert float(logit_direction(merged, ours)) < 1e-6
