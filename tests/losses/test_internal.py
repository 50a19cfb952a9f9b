"""Losses on attention and [CLS] states."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stepwell.losses import attention_kl, cls_cosine


def test_attention_kl_matches_a_value_worked_by_hand():
    # one head, two tokens: the teacher attends (3/4, 1/4) in each row, the student (1/2, 1/2)
    teacher = torch.tensor([[[[math.log(3), 0.0]] * 2]])
    student = torch.zeros(1, 1, 2, 2)
    expected = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    found = attention_kl(student, teacher, torch.ones(1, 2, dtype=torch.bool))
    torch.testing.assert_close(found, torch.tensor(expected))


def naive(student, teacher, mask):
    """Row by row over real tokens only."""
    rows = []
    for b in range(len(mask)):
        n = int(mask[b].sum())
        for head in range(student.shape[1]):
            for q in range(n):
                p = teacher[b, head, q, :n].softmax(0)
                s = student[b, head, q, :n].softmax(0)
                rows.append((p * (p.log() - s.log())).sum())
    return torch.stack(rows).mean()


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 3), st.integers(1, 3), st.lists(st.integers(1, 6), min_size=1, max_size=4),
       st.integers(0, 10**6))  # fmt: skip
def test_attention_kl_equals_the_sum_over_real_rows(heads, more, lengths, seed):
    draw = torch.Generator().manual_seed(seed)
    width = max(lengths) + more
    shape = (len(lengths), heads, width, width)
    student, teacher = (3 * torch.randn(shape, generator=draw, dtype=torch.double) for _ in range(2))
    student.requires_grad_()
    mask = torch.arange(width)[None] < torch.tensor(lengths)[:, None]
    loss = attention_kl(student, teacher, mask)
    torch.testing.assert_close(loss, naive(student, teacher, mask))
    assert loss >= -1e-12
    (gradient,) = torch.autograd.grad(loss, student)
    (expected,) = torch.autograd.grad(naive(student, teacher, mask), student)
    torch.testing.assert_close(gradient, expected)
    pads = ~(mask[:, None, :, None] & mask[:, None, None, :]).expand(shape)
    assert not gradient[pads].any()


@pytest.mark.parametrize("hidden", [-math.inf, math.inf, math.nan])
def test_scores_of_padding_that_are_not_finite_change_nothing(hidden):
    student, teacher = torch.randn(2, 1, 1, 3, 3, generator=torch.Generator().manual_seed(0))
    for scores in (student, teacher):
        scores[..., 2] = hidden
        scores[..., 2, :] = hidden
    student.requires_grad_()
    short = student.detach()[..., :2, :2].clone().requires_grad_()
    mask = torch.tensor([[True, True, False]])
    loss = attention_kl(student, teacher, mask)
    expected = attention_kl(short, teacher[..., :2, :2], mask[:, :2])
    torch.testing.assert_close(loss, expected)
    assert expected > 1e-3
    loss.backward()
    expected.backward()
    torch.testing.assert_close(student.grad[..., :2, :2], short.grad)
    assert not student.grad[..., 2].any()
    assert not student.grad[..., 2, :].any()


def test_no_gradient_reaches_the_teacher():
    teacher = torch.randn(1, 2, 3, 3, requires_grad=True)
    student = torch.randn(1, 2, 3, 3, requires_grad=True)
    attention_kl(student, teacher, torch.ones(1, 3, dtype=torch.bool)).backward()
    a, b = torch.randn(2, 5, requires_grad=True), torch.randn(2, 5, requires_grad=True)
    cls_cosine(a, b).backward()
    assert teacher.grad is None
    assert b.grad is None
    assert student.grad is not None
    assert a.grad is not None


def test_bfloat16_is_computed_in_full():
    a, b = torch.randn(2, 2, 8, 8).bfloat16(), torch.randn(2, 2, 8, 8).bfloat16()
    mask = torch.ones(2, 8, dtype=torch.bool)
    assert torch.equal(attention_kl(a, b, mask), attention_kl(a.float(), b.float(), mask))


def test_cls_cosine_is_of_the_angle():
    a = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    b = torch.tensor([[0.0, 2.0], [3.0, 3.0]])
    torch.testing.assert_close(cls_cosine(a, b), torch.tensor(0.5))  # right angle: 1, none: 0


def test_unequal_heads_and_widths_are_refused():
    with pytest.raises(ValueError, match="the numbers of heads must agree"):
        attention_kl(torch.zeros(1, 2, 3, 3), torch.zeros(1, 4, 3, 3), torch.ones(1, 3).bool())
    with pytest.raises(ValueError, match="map one to the other's width"):
        cls_cosine(torch.zeros(1, 2), torch.zeros(1, 3))
