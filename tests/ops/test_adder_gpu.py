"""The Triton kernels of adder layers, in Triton's interpreter: it needs no GPU. Skipped without Triton.

`TRITON_INTERPRET=1 python -m pytest tests/ops/test_adder_gpu.py` runs them; with a GPU,
`tests/test_gpu.py` runs what Triton compiles.
"""

import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from ops.test_adder import layers
from stepwell.ops.adder import gpu, reference

pytestmark = pytest.mark.skipif(
    gpu.kernels() is None or os.environ.get("TRITON_INTERPRET") != "1",
    reason="Triton is not installed, or TRITON_INTERPRET is not 1",
)


@settings(max_examples=25, deadline=None)
@given(layers(), st.integers(0, 99))
def test_kernels_equal_plain_torch(layer, seed):
    shape, kernel, stride, padding, mode = layer
    torch.manual_seed(seed)
    x, weight = 2 * torch.randn(shape), torch.randn(kernel)
    found = gpu.Kernels().forward(x, weight, stride, padding)
    assert_close(found, reference.forward(x, weight, stride, padding), rtol=1e-5, atol=1e-4)
    options = (torch.randn(found.shape), x, weight, stride, padding, mode)
    own = gpu.Kernels().input_gradient(*options)
    assert_close(own, reference.input_gradient(*options), rtol=1e-5, atol=1e-4)


def test_nan_and_infinity_stay():
    x, weight = torch.randn(1, 2, 4, 4), torch.randn(3, 2, 3, 3)
    x[0, 0, 1, 1], x[0, 1, 3, 3] = float("nan"), float("inf")
    options = (x, weight, (1, 1), (1, 1))
    assert_close(gpu.Kernels().forward(*options), reference.forward(*options), equal_nan=True)
    grad = torch.randn(1, 3, 4, 4)
    for mode in ("clipped", "sign"):
        found = gpu.Kernels().input_gradient(grad, *options, mode)
        assert_close(found, reference.input_gradient(grad, *options, mode), equal_nan=True)
