from math import log

import pytest
import torch
from torch.autograd import gradcheck
from torch.testing import assert_close

from stepwell.losses import (
    ATTENTION,
    attention_at,
    attention_gram,
    attention_sad,
    class_cross_entropy,
    cost_above_target,
    ensemble_logits,
    feature_mse,
    feature_nmse,
    label_cross_entropy,
    label_loss,
    logit_direction,
    soft_target_kl,
    squared_error,
    teacher_loss,
)


def test_kl_matches_a_value_worked_by_hand():
    student, teacher = torch.zeros(1, 2), torch.tensor([[log(3), 0.0]])  # (1/2, 1/2), (3/4, 1/4)
    expected = torch.tensor(0.75 * log(1.5) + 0.25 * log(0.5))
    assert_close(soft_target_kl(student, teacher, temperature=1.0), expected)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_kl_equals_the_sum_over_classes_written_out(temperature):
    student, teacher = torch.randn(2, 5, 7, dtype=torch.float64)
    p, q = (teacher / temperature).softmax(1), (student / temperature).softmax(1)
    expected = temperature**2 * (p * (p / q).log()).sum() / 5
    assert_close(soft_target_kl(student, teacher, temperature), expected)


def test_the_type_of_a_target_chooses_its_loss():
    logits, labels, shares = torch.randn(4, 3), torch.randint(3, (4,)), torch.rand(4, 3)
    for target in (labels, shares):
        name, value = label_loss(logits, target, label_smoothing=0.1)
        assert name == "ce"
        assert torch.equal(value, class_cross_entropy(logits, target, label_smoothing=0.1))
    name, value = teacher_loss(logits, logits.flip(0), 2.0)
    assert (name, value) == ("kl", soft_target_kl(logits, logits.flip(0), 2.0))
    numbers = torch.randn(4, 1, requires_grad=True)
    truth = torch.randn(4)
    name, value = label_loss(numbers, truth)
    assert name == "mse"
    assert_close(value, (numbers[:, 0] - truth).square().sum() / 4)
    teacher = torch.randn(4, 1, requires_grad=True)
    name, value = teacher_loss(numbers, teacher, 2.0)
    value.backward()
    assert name == "teacher_mse"
    assert_close(numbers.grad, 2 * (numbers - teacher).detach() / 4)
    assert teacher.grad is None
    half = [x.detach().bfloat16() for x in (numbers, teacher)]
    assert squared_error(*half).dtype == torch.float32
    with pytest.raises(ValueError, match=r"outputs \(4, 3\) and numbers \(4, 1\) .*num_classes=1"):
        label_loss(logits, truth)


def test_kl_is_zero_for_the_teacher_itself_and_positive_otherwise():
    logits = torch.randn(4, 6)
    assert_close(soft_target_kl(logits, logits + 3, 2.0), torch.tensor(0.0), atol=1e-6, rtol=0)
    assert soft_target_kl(logits, torch.randn(4, 6), 2.0) > 0


def test_kl_gradient_does_not_vanish_with_temperature_and_spares_the_teacher():
    teacher = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    student = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda s: soft_target_kl(s, teacher, 3.0), student)
    soft_target_kl(student, teacher, 3.0).backward()
    assert teacher.grad is None
    # For large T the gradient tends to the difference of centred logits (Hinton et al., eq. 4).
    student.grad = None
    soft_target_kl(student, teacher, 1e4).backward()
    centred = (student - student.mean(1, True)) - (teacher - teacher.mean(1, True))
    assert_close(student.grad, (centred / 6 / 4).detach(), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_kl_refuses_a_temperature_that_is_not_positive(temperature):
    with pytest.raises(ValueError, match=f"temperature must be positive, not {temperature}"):
        soft_target_kl(torch.zeros(1, 2), torch.zeros(1, 2), temperature)


def test_at_matches_a_value_worked_by_hand():
    student = torch.tensor([[[[1.0, 0.0]], [[1.0, 0.0]]]])  # Q = (1, 0)
    teacher = torch.tensor([[[[0.0, 2.0]]]])  # Q = (0, 1)
    assert_close(attention_at(student, teacher), torch.tensor(2.0))
    half = torch.tensor([[[[1.0, 1.0]]]])  # Q = (1, 1) / sqrt 2
    assert_close(attention_at(student, half), torch.tensor(2 - 2**0.5))


def by_loops(mode, student, teacher):
    """The three losses, position by position."""

    def columns(f):  # (positions, channels) of one example
        return f.flatten(1).T

    total = 0.0
    for s, t in zip(student, teacher, strict=True):
        if mode == "at":
            qs, qt = (columns(f).square().mean(1) for f in (s, t))
            total += (qs / qs.norm() - qt / qt.norm()).square().sum()
        elif mode == "gram":
            gs, gt = (columns(f) @ columns(f).T for f in (s, t))
            total += (gs / gs.norm() - gt / gt.norm()).square().sum()
        else:
            rows = []
            for i in range(s[0].numel()):
                ps, pt = (
                    torch.stack([torch.cosine_similarity(c[i], c[j], 0) for j in range(len(c))])
                    for c in (columns(s), columns(t))
                )
                ps, pt = ps.softmax(0), pt.softmax(0)
                rows.append((pt * (pt / ps).log()).sum())
            total += torch.stack(rows).mean()
    return total / len(student)


@pytest.mark.parametrize("mode", ATTENTION)
def test_attention_equals_plain_loops(mode):
    student = torch.randn(3, 4, 2, 3, dtype=torch.float64)
    teacher = torch.randn(3, 6, 2, 3, dtype=torch.float64)
    assert_close(ATTENTION[mode](student, teacher), by_loops(mode, student, teacher))


@pytest.mark.parametrize("loss", [attention_at, attention_sad, attention_gram])
def test_attention_gradients(loss):
    student = torch.randn(2, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(2, 5, 2, 2, dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda s: loss(s, teacher), student)
    loss(student, teacher).backward()
    assert teacher.grad is None
    assert_close(loss(teacher, teacher), torch.zeros((), dtype=torch.float64))


@pytest.mark.parametrize("loss", [attention_at, attention_gram])
def test_attention_does_not_depend_on_scale_or_grow_with_resolution(loss):
    student, teacher = torch.rand(2, 4, 8, 4, 4)
    assert_close(loss(student * 7, teacher), loss(student, teacher))
    big = [f.repeat_interleave(2, 2).repeat_interleave(2, 3) for f in (student, teacher)]
    assert_close(loss(*big), loss(student, teacher))


@pytest.mark.parametrize("loss", [attention_at, attention_sad, attention_gram])
def test_attention_names_both_shapes_when_resolutions_differ(loss):
    with pytest.raises(ValueError, match=r"\(1, 2, 4, 4\).*\(1, 2, 2, 2\)"):
        loss(torch.zeros(1, 2, 4, 4), torch.zeros(1, 2, 2, 2))


@pytest.mark.parametrize("loss", ATTENTION.values())
def test_attention_takes_tokens_as_a_map_without_rows(loss):
    student, teacher = torch.randn(2, 6, 2, 3), torch.randn(2, 4, 2, 3)
    expected = loss(student, teacher)
    tokens = [f.flatten(2).transpose(1, 2) for f in (student, teacher)]
    assert_close(loss(*tokens), expected)
    with pytest.raises(ValueError, match="differ in batch or resolution"):
        loss(tokens[0][:, 1:], tokens[1])
    with pytest.raises(ValueError, match="differ in batch or resolution"):
        loss(tokens[0], teacher)


# hints


def test_a_hint_in_shares_worked_by_hand():
    student = torch.tensor([[1.0, 2.0]], dtype=torch.float64, requires_grad=True)
    teacher = torch.tensor([[3.0, 1.0]], dtype=torch.float64, requires_grad=True)
    loss = feature_nmse(student, teacher)  # ((1 - 3)² + (2 - 1)²) / (3² + 1²)
    assert_close(loss, torch.tensor(0.5, dtype=torch.float64))
    assert_close(feature_nmse(7 * student, 7 * teacher), loss)
    assert gradcheck(lambda s: feature_nmse(s, teacher), student)
    loss.backward()
    assert teacher.grad is None
    with pytest.raises(ValueError, match=r"\(1, 2\) of the student and \(1, 3\) of the teacher"):
        feature_nmse(student, torch.zeros(1, 3))


# labels that may be missing


def test_the_label_loss_is_the_mean_over_the_labels_that_there_are():
    logits = torch.tensor([[log(3), 0.0], [0.0, 0.0], [5.0, 0.0]])
    expected = torch.tensor((log(4 / 3) + log(2)) / 2)
    assert_close(label_cross_entropy(logits, torch.tensor([0, 1, -1])), expected)
    shares = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    assert_close(label_cross_entropy(logits, shares), expected)
    assert_close(
        label_cross_entropy(logits[:2], torch.tensor([[0.25, 0.75], [0.5, 0.0]])),
        torch.tensor((0.25 * log(4 / 3) + 0.75 * log(4) + 0.5 * log(2)) / 1.5),
    )


@pytest.mark.parametrize(("labels", "span"), [([0, 3], "0 to 3"), ([-2, 1], "-2 to 1")])
@pytest.mark.parametrize("loss", [class_cross_entropy, label_cross_entropy])
def test_labels_out_of_range_are_named_with_the_range(loss, labels, span):
    with pytest.raises(ValueError, match=rf"labels run from {span}, .* 3 classes .0 to 2.:"):
        loss(torch.zeros(2, 3), torch.tensor(labels))


@pytest.mark.parametrize("labels", [torch.full((4,), -1), torch.zeros(4, 3)])
def test_no_label_at_all_is_no_loss_and_no_gradient(labels):
    logits = torch.randn(4, 3, requires_grad=True)
    loss = label_cross_entropy(logits, labels)
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert_close(logits.grad, torch.zeros(4, 3))


# half precision

HALF = {
    "kl": lambda s, t: soft_target_kl(s.flatten(1), t.flatten(1), temperature=3.0),
    "labels": lambda s, t: label_cross_entropy(s.flatten(1), t.flatten(1).float().softmax(1)),
    "hint": feature_mse,
    "hint in shares": feature_nmse,
    "direction": lambda s, t: logit_direction(s.flatten(1), t.flatten(1)),
    "ensemble": lambda s, t: ensemble_logits(torch.stack([s.flatten(1), t.flatten(1)])),
    **ATTENTION,
}


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("loss", HALF.values(), ids=HALF)
def test_losses_of_bfloat16_are_the_32_bit_formula_on_the_same_values(loss, autocast):
    student = torch.randn(4, 6, 5, 5).bfloat16().requires_grad_()
    teacher = (student.detach() + 0.1 * torch.randn(4, 6, 5, 5)).bfloat16()
    twin = student.detach().float().requires_grad_()
    expected = loss(twin, teacher.float())
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        got = loss(student, teacher)
    assert got.dtype == torch.float32
    assert torch.equal(got, expected)
    got.sum().backward()
    expected.sum().backward()
    assert_close(student.grad, twin.grad.bfloat16())


def test_cost_above_target_matches_a_value_worked_by_hand():
    choice = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.5, 0.5]])
    costs = torch.tensor([10.0, 6.0, 2.0])  # a mean of (10 + 4) / 2
    assert_close(cost_above_target(choice, costs, 5.0), torch.tensor(2 / 8))


def test_cost_above_target_has_a_gradient_above_it_alone():
    choice = torch.rand(4, 3, dtype=torch.float64, requires_grad=True)
    costs = torch.tensor([4.0, 2.0, 1.0], dtype=torch.float64)
    mean = float((choice @ costs).mean().detach())
    assert gradcheck(lambda c: cost_above_target(c, costs, mean - 0.5), choice)
    cost_above_target(choice, costs, mean - 0.5).backward()
    assert_close(choice.grad, costs.expand(4, 3) / 4 / 3)
    choice.grad = None
    below = cost_above_target(choice, costs, mean + 0.5)
    below.backward()
    assert float(below.detach()) == 0
    assert_close(choice.grad, torch.zeros(4, 3, dtype=torch.float64))


def test_choices_that_cost_the_same_have_no_target():
    with pytest.raises(ValueError, match=r"all choices cost the same, \[2.0, 2.0\]"):
        cost_above_target(torch.eye(2), torch.tensor([2.0, 2.0]), 1.0)
