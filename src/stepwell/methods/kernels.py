"""Conditional kernels: labels, while the temperature of the kernels' attention falls."""

from collections.abc import Mapping

from torch import Tensor

from stepwell.losses import label_loss
from stepwell.methods.objective import Objective
from stepwell.nets.decisions.kernels import kernel_layers
from stepwell.nets.nested.net import NestedNet
from stepwell.ranges import check_numbers
from stepwell.types import Batch, Exit, Step


class ConditionalKernels(Objective):
    """Train a network of mixed convolutions on labels, at every depth.

    The temperature of dynamic convolution falls linearly to 1 (Chen et al. 2020): with nearly even
    weights all kernels learn at first. It is a constant of each batch, so the network itself has none,
    and every file and every validation uses 1. CondConv has no temperature.

    Args:
        net: built with `kernels=K`.
        temperature: at the first step.
        anneal: share of the training in which it falls.
        label_smoothing: share of the target spread evenly over all classes, in [0, 1).

    Raises:
        ValueError: a value is out of range; the network has no mixed convolutions.
    """

    def __init__(
        self, net: NestedNet, *, temperature: float = 30.0, anneal: float = 0.1,
        label_smoothing: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__()
        check_numbers(locals(), flags=False)
        if not kernel_layers(net.module):
            raise ValueError("this network has no mixed convolutions: build a ResNet with kernels=4")
        self.net, self.first, self.anneal = net, temperature, anneal
        self.label_smoothing = label_smoothing

    @property
    def temperature(self) -> float:
        """The temperature at the present progress."""
        return self.first + (1 - self.first) * min(1.0, self.progress / self.anneal)

    def training_step(self, batch: Batch) -> Step:
        """The sum of the losses of all depths."""
        images, labels = batch

        def loss_of(
            depth: str, exit: Exit, done: Mapping[str, Exit]
        ) -> tuple[Tensor, dict[str, Tensor]]:
            name, value = label_loss(exit.logits, labels, label_smoothing=self.label_smoothing)
            return value, {name: value}

        given = {"temperature": self.temperature}
        return Step(*self.net.joint_loss(images, loss_of, given=given))
