"""Sums over ragged rows and their gradients, against loops."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from stepwell.kg.ragged import attention_sums, weighted_sums


def starts_of(lengths):
    return torch.tensor(np.concatenate([[0], np.cumsum(lengths)]))


def drawn(count, lengths, dim=3):
    torch.manual_seed(0)
    total = sum(lengths)
    table = torch.randn(count, dim, dtype=torch.double, requires_grad=True)
    weight = torch.randn(total, dtype=torch.double)
    return table, torch.randint(count, (total,)), starts_of(lengths), weight


def check(found, expected, *pairs):
    """Values are the same, and so are the gradients of each pair of inputs."""
    assert_close(found, expected)
    pull = torch.randn_like(found)
    found.backward(pull)
    expected.backward(pull)
    for x, plain in pairs:
        assert_close(x.grad, plain.grad)


# tables around the bound of 16 bits, sums of nothing, rows that no sum has
@pytest.mark.parametrize("count", [5, (1 << 15) - 1, 1 << 15])
def test_sums_and_their_gradients_are_those_of_a_loop(count):
    table, element, start, weight = drawn(count, [4, 0, 1, 7, 0])
    found = weighted_sums(table, element, start, weight)
    plain = table.detach().clone().requires_grad_()
    expected = torch.stack([
        sum((weight[k] * plain[element[k]] for k in range(start[i], start[i + 1])), 0 * plain[0])
        for i in range(5)
    ])  # fmt: skip
    check(found, expected, (table, plain))


def test_attention_and_its_gradients_are_those_of_a_loop():
    lengths = [3, 1, 6]
    torch.manual_seed(0)
    rows = torch.randn(10, 4, dtype=torch.double, requires_grad=True)
    query = (10 * torch.randn(3, 4, dtype=torch.double)).requires_grad_()  # near one-hot
    start, owner = starts_of(lengths), torch.repeat_interleave(torch.tensor(lengths))
    found = attention_sums(rows, query, start, owner)
    plain_rows, plain_query = (x.detach().clone().requires_grad_() for x in (rows, query))
    expected = torch.stack([
        torch.softmax(part @ q, 0) @ part
        for part, q in zip(plain_rows.split(lengths), plain_query, strict=True)
    ])  # fmt: skip
    check(found, expected, (rows, plain_rows), (query, plain_query))


def test_the_weights_of_sums_are_constants():
    table, element, start, weight = drawn(5, [2, 3])
    with pytest.raises(ValueError, match="constants"):
        weighted_sums(table, element, start, weight.requires_grad_())
