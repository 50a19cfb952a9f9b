"""Adder layers: minus the L1 distance of patches and filters, in place of their dot product."""

from stepwell.ops.adder.operator import adder_conv2d
from stepwell.ops.adder.reference import Gradient
from stepwell.ops.adder.uint8 import sum_of_absolute_differences

__all__ = ["Gradient", "adder_conv2d", "sum_of_absolute_differences"]
