"""Checks that every part of the library shares."""

import pytest
import torch

from stepwell.types import not_finite


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_the_first_tensor_that_is_not_finite_is_named(value):
    tensors = {"a": torch.ones(3), "n": torch.tensor([1]), "b": torch.tensor([1.0, value])}
    assert not_finite(tensors) == "b"
    assert not_finite({"both": torch.tensor([torch.inf, -torch.inf])}) == "both"


def test_a_sum_that_overflows_is_no_fault():
    huge = torch.full((4,), torch.finfo(torch.float32).max)
    assert not huge.sum().isfinite()
    assert (
        not_finite(
            {
                "huge": huge,
                "none": torch.empty(0),
                "half": torch.full((4,), torch.finfo(torch.float16).max, dtype=torch.float16),
            }
        )
        is None
    )


def test_tests_check_the_types_of_arguments_and_results():
    from jaxtyping import TypeCheckError

    from stepwell.cost.energy import energy
    from stepwell.losses.soft_target import check_logits

    with pytest.raises(TypeCheckError, match="additions"):
        energy("many", 1)
    with pytest.raises(TypeCheckError, match="teacher"):
        check_logits(torch.zeros(2, 3), torch.zeros(2))
