"""Soft targets, attention and hints between a student and a teacher of another family."""

from copy import deepcopy

import pytest
import torch
from torch import nn
from torch.nn.functional import kl_div
from torch.testing import assert_close

from stepwell.methods import Distill
from stepwell.nets import build
from stepwell.teachers import Ensemble, Frozen
from stepwell.teachers.stages import common_stages
from stepwell.types import Batch, Exit

SHAPE = (3, 8, 8)


def net(name="resnet8", classes=5):
    made = build(name, num_classes=classes)
    for module in made.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
    return made


@pytest.fixture
def batch():
    return Batch(torch.randn(6, *SHAPE), torch.randint(5, (6,)))


class Staged(nn.Module):
    """A module of somebody's own, with features that it names."""

    def __init__(self, channels=7, stride=1, stages=("a", "b")):
        super().__init__()
        self.stages = stages
        self.one = nn.Conv2d(3, channels, 3, padding=1)
        self.two = nn.Conv2d(channels, channels, 3, stride=stride, padding=1)
        self.fc = nn.Linear(channels, 5)

    def forward(self, x):
        a = self.one(x)
        b = self.two(a)
        return Exit(self.fc(b.mean((2, 3))), (a, b))


class Tokens(nn.Module):
    """A module whose features are rows of tokens."""

    stages = ("t",)

    def __init__(self, tokens, width):
        super().__init__()
        self.tokens, self.embed, self.fc = tokens, nn.Linear(192, width), nn.Linear(width, 5)

    def forward(self, x):
        t = self.embed(x.flatten(1))[:, None].expand(-1, self.tokens, -1)
        return Exit(self.fc(t[:, 0]), (t,))


def test_without_labels_no_label_is_looked_at(batch):
    student, teacher = net(), Frozen(net("resnet14"))
    step = Distill(student, teacher, ce=0.0, temperature=4.0).training_step(
        Batch(batch.images, torch.full((6,), -1))  # which cross entropy would refuse
    )
    z, target = student.forward_all(batch.images)["8"].logits, teacher(batch.images).logits
    p, q = (target / 4).softmax(1), (z / 4).log_softmax(1)
    assert list(step.logs) == ["kl"]
    assert_close(step.loss, 16 * kl_div(q, p, reduction="batchmean"), rtol=1e-4, atol=1e-5)


def test_a_student_that_equals_its_teacher_stays_there(batch):
    student = net().double().eval()
    objective = Distill(student, Frozen(student), ce=0.0)
    objective.training_step(Batch(batch.images.double(), batch.labels)).loss.backward()
    for p in student.parameters():
        assert p.grad is None or p.grad.abs().max() < 1e-12


@pytest.mark.parametrize("mode", ["at", "gram", "sad"])
def test_attention_compares_the_stages_that_are_named(batch, mode):
    student, teacher = net(), Frozen(net("resnet14"))
    options = {"attention": 2.0, "attention_mode": mode, "input_shape": SHAPE, "ce": 0.0, "kl": 0.0}
    one = Distill(student, teacher, attention_stages=["layer2"], **options)
    ours, theirs = student.forward_all(batch.images)["8"].features, teacher(batch.images).features
    expected = one.attention_of(ours[1], theirs[1])
    assert_close(one.training_step(batch).loss, 2 * expected)
    alone = Distill(student, teacher, attention_stages="layer2", **options)
    assert alone.attended == one.attended
    every = Distill(student, teacher, **options).training_step(batch).loss
    assert_close(every, 2 * sum(one.attention_of(a, b) for a, b in zip(ours, theirs, strict=True)))


def test_a_hint_is_the_mean_square_behind_a_regressor(batch):
    student, teacher = net(), Frozen(Staged(stride=4))
    objective = Distill(
        student, teacher, ce=0.0, kl=0.0, hint=3.0, hint_stages="layer2=b", input_shape=SHAPE
    )
    (regressor,) = objective.hints.regressors
    assert (regressor.in_channels, regressor.out_channels) == (32, 7)
    ours = student.forward_all(batch.images)["8"].features[1]  # 4×4, the teacher's 2×2
    theirs = teacher(batch.images).features[1]
    w, b = regressor.weight[:, :, 0, 0], regressor.bias
    pooled = ours.unflatten(3, (2, 2)).unflatten(2, (2, 2)).mean((3, 5))
    expected = (torch.einsum("oc,nchw->nohw", w, pooled) + b[:, None, None] - theirs).square()
    assert_close(objective.training_step(batch).loss, 3 * expected.mean())


def test_regressors_train_and_are_kept_but_are_no_part_of_the_student(batch):
    student = net()
    names = set(student.tensors())
    objective = Distill(student, Frozen(net("resnet14")), hint=1.0, input_shape=SHAPE).train()
    optimizer = torch.optim.SGD(objective.parameters(), 0.05)
    before = deepcopy(objective.hints.state_dict())
    losses = []
    for _ in range(20):
        step = objective.training_step(batch)
        optimizer.zero_grad()
        step.loss.backward()
        optimizer.step()
        losses.append(float(step.logs["hint"].detach()))
    assert losses[-1] < 0.7 * losses[0]
    assert all((v != before[k]).any() for k, v in objective.hints.state_dict().items())
    assert {k for k in objective.state_dict() if k.startswith("hints.")}
    assert set(student.tensors()) == names
    assert student.training  # as it was, after the stages were looked at
    assert not any(k.startswith("teacher") for k in objective.state_dict())


def test_looking_at_the_stages_changes_no_statistics():
    student = net().train()
    before = deepcopy(student.state_dict())
    Distill(student, Frozen(net()), hint=1.0, attention=1.0, input_shape=SHAPE)
    for name, value in student.state_dict().items():
        assert_close(value, before[name], rtol=0, atol=0)


def test_tokens_have_a_linear_regressor(batch):
    student, teacher = Tokens(3, 4), Frozen(Tokens(3, 6))
    objective = Distill(student, teacher, hint=1.0, attention=1.0, input_shape=SHAPE)
    assert isinstance(objective.hints.regressors[0], nn.Linear)
    assert objective.training_step(batch).loss.isfinite()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ce": 0.0, "kl": 0.0}, "ce, kl, attention and hint are all 0"),
        ({"hint": 1.0, "input_shape": ()}, "attention and hints need input_shape"),
        ({"hint": 1.0}, r"student has 3 stages \(layer1, .*the teacher 2 \(a, b\): name pairs"),
        (
            {"hint": 1.0, "hint_stages": ["layer9=a"]},
            "student has no stage 'layer9'; it has layer1",
        ),
        ({"hint": 1.0, "hint_stages": ["layer1"]}, "teacher has no stage 'layer1'; it has a, b"),
        (
            {"attention": 1.0, "attention_stages": ["layer2=a"]},
            "layer2 of the student and a of the teacher are 4×4 maps and 8×8 maps: attention",
        ),
        ({"hint": 1.0, "teacher": lambda x: Exit(x)}, "but the teacher gives none: ONNX models"),
        (
            {"hint": 1.0, "teacher": Ensemble([Frozen(net())])},
            "the teacher gives none: ONNX models, ensembles and cached logits",
        ),
        (
            {"hint": 1.0, "teacher": Frozen(Staged(stages=("a",))), "hint_stages": ["layer1=a"]},
            "teacher names 1 stages (a) but gives features of 2",
        ),
        (
            {"hint": 1.0, "teacher": Frozen(Tokens(3, 6)), "hint_stages": ["layer1=t"]},
            "are 8×8 maps and 3 tokens: hints cannot compare them",
        ),
    ],
)
def test_stages_that_do_not_fit_are_refused_before_training(options, message):
    import re

    options = {"teacher": Frozen(Staged()), "input_shape": SHAPE} | options
    message = message if "\\" in message or ".*" in message else re.escape(message)
    with pytest.raises(ValueError, match=message):
        Distill(net(), **options)


def test_stages_to_compare_where_nobody_names_them():
    student = net()
    assert common_stages(student, net("resnet14")) == ["layer1", "layer2", "layer3"]
    assert common_stages(student, Staged(stages=("layer3", "b"))) == ["layer3"]
    assert common_stages(student, Staged()) == []
    assert common_stages(Staged(), Staged(stages=("c", "d"))) == ["a=c", "b=d"]
    assert common_stages(student, Ensemble([Frozen(net())])) == []
