"""Knowledge distillation from a separate teacher (Hinton et al. 2015): the offline baseline."""

from torch import nn

from stepwell.losses import label_cross_entropy, soft_target_kl
from stepwell.methods.objective import Objective, Teacher, as_exit
from stepwell.types import Batch, Step


class Distill(Objective):
    """a · CE(student) + b · T² · KL(teacher || student).

    Args:
        student: the network to train; gives logits or an `Exit`.
        teacher: a callable `images -> Exit` without gradients, such as `Frozen(net)`.
        temperature: T, the softening of both sides.
        ce: a, the weight of the labels.
        kl: b, the weight of the teacher.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: Teacher,
        *,
        temperature: float = 3.0,
        ce: float = 1.0,
        kl: float = 1.0,
    ) -> None:
        super().__init__()
        self.student = student
        self.teacher = teacher
        self.temperature = temperature
        self.ce = ce
        self.kl = kl

    def training_step(self, batch: Batch) -> Step:
        """Both terms of one batch; images without a label are taught by the teacher alone."""
        images, labels = batch
        logits = as_exit(self.student(images)).logits
        target = self.teacher(images).logits
        logs = {
            "ce": label_cross_entropy(logits, labels),
            "kl": soft_target_kl(logits, target, self.temperature),
        }
        return Step(self.ce * logs["ce"] + self.kl * logs["kl"], logs)
