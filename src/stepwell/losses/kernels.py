"""Kernels of inputs and filters: features of an adder layer and of a convolution that compare.

Two layers of one shape, one of each kind, give a feature for each patch x and filter f (PKKD, Xu et al.
2020). Its text was not reachable; the equations are a *reconstruction*:

    adder:        exp( -|x - f| / 2s² )       a Laplace kernel; the layer's output is -|x - f|
    convolution:  exp( -||x - f||² / 2s² )    a Gaussian kernel

With s = 1 both are zero in float32 at real layer sizes: |x - f| is some hundreds. So the exponents are
standardised over the batch, exp((e - mean) / std): 2s² is their standard deviation, and the mean is a
factor common to all features. Mean and deviation carry gradients, as in BatchNorm. If they were
constants, a step could lower the loss by moving all filters of a layer away from their inputs, or
towards them, which changes nothing behind the layer's norm; and where the local rate fixes the size of
the filters' gradient, that direction leaves little for the task.
"""

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import avg_pool2d, layer_norm, pad

from stepwell.losses.precision import in_full_precision

#: Standardised exponents end here, so that a single outlier is not the loss.
LARGEST = 5.0
Maps = Float[Tensor, "batch filters height width"]


@in_full_precision
def gaussian_exponent(
    inputs: Float[Tensor, "batch _ _ _"], outputs: Maps, weight: Float[Tensor, "filters _ _ _"],
    stride: tuple[int, int], padding: tuple[int, int],
) -> Maps:  # fmt: skip
    """Minus the squared distance of patches and filters: 2 x·f - ||x||² - ||f||².

    Args:
        inputs, outputs, weight: of a convolution without bias, groups and dilation.
    """
    kernel, (high, wide) = (weight.shape[2], weight.shape[3]), padding
    patches = avg_pool2d(
        pad(inputs.square().sum(1, keepdim=True), (wide, wide, high, high)), kernel, stride,
        divisor_override=1,
    )  # fmt: skip
    return 2 * outputs - patches - weight.square().sum((1, 2, 3))[:, None, None]


@in_full_precision
def standardised(maps: Maps) -> Maps:
    """(m - mean) / std over all maps of the batch; zeros where all are equal."""
    rows = maps.permute(0, 2, 3, 1)  # as they lie in memory
    return layer_norm(rows, rows.shape, eps=1e-24).permute(0, 3, 1, 2)


@in_full_precision
def kernel_features(exponent: Maps) -> Maps:
    """exp((e - mean) / std), see `standardised`.

    Exponents above `LARGEST` deviations are cut there. Equal exponents give ones.
    """
    return standardised(exponent).clamp(max=LARGEST).exp()
