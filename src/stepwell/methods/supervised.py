"""Plain supervised training: the baseline of everything else."""

import torch
from torch import nn

from stepwell.losses import label_loss, teacher_loss
from stepwell.methods.objective import Objective
from stepwell.teachers.teacher import MovingAverage, as_exit
from stepwell.types import Batch, Step


class Supervised(Objective):
    """The loss of one network's labels: cross entropy, or of numbers the squared error.

    Args:
        net: gives logits or an `Exit`.
        label_smoothing: share of the target spread evenly over all classes, in [0, 1].
        ema_teacher: decay of a moving average of the network that teaches it (0: none). It is the
            control of methods in which such an average teaches nested depths.
        temperature: T of that teacher's soft targets.
        distill_from: share of training after which it teaches.
    """

    def __init__(
        self,
        net: nn.Module,
        *,
        label_smoothing: float = 0.0,
        ema_teacher: float = 0.0,
        temperature: float = 3.0,
        distill_from: float = 0.5,
    ) -> None:
        super().__init__()
        self.net = net
        self.average = MovingAverage(net, ema_teacher) if ema_teacher else None
        self.temperature, self.label_smoothing = temperature, label_smoothing
        self.distill_from = distill_from

    def training_step(self, batch: Batch) -> Step:
        """The loss of the labels, and of the moving average's outputs if there is one."""
        images, labels = batch
        logits = as_exit(self.net(images)).logits
        terms = [label_loss(logits, labels, label_smoothing=self.label_smoothing)]
        if self.average is not None:
            if not self.accumulating:
                self.average.update(self.net)
            if self.progress >= self.distill_from:
                teacher = self.average(images).logits
                terms.append(teacher_loss(logits, teacher, self.temperature))
        return Step(torch.stack([term.value for term in terms]).sum(), dict(terms))
