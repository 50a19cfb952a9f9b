"""Training of a detector at all depths on images with boxes; the full depth teaches the others."""

from collections.abc import Mapping

import torch
from torch import Tensor

from stepwell.losses import box_distance, score_distance
from stepwell.methods.objective import Objective
from stepwell.nets.detection.detector import Detector, Outputs
from stepwell.ranges import check_numbers
from stepwell.types import BoxBatch, Exit, Step


class Detection(Objective):
    """The losses of a detector on true boxes, at all depths in one step.

    The full depth teaches the others at every place: class scores, and boxes where it is sure. Heads
    that score classes against each other, or that have two stages, learn from the boxes alone.

    Args:
        detector: the detector; pyramid and head are shared by all depths.
        full_weight: weight of the full depth's own loss.
        teach: weight of the full depth's outputs in the others' losses; 0: labels alone.
        distill_from: share of training after which the full depth teaches.

    Raises:
        ValueError: a weight is negative.
    """

    def __init__(
        self, detector: Detector, *, full_weight: float = 1.0, teach: float = 1.0,
        distill_from: float = 0.3,
    ) -> None:  # fmt: skip
        super().__init__()
        numbers = {"full_weight": full_weight, "teach": teach, "distill_from": distill_from}
        check_numbers(numbers, flags=False)
        self.detector = detector
        self.full_weight, self.teach, self.distill_from = full_weight, teach, distill_from

    def training_step(self, batch: BoxBatch) -> Step:
        """The joint loss of all depths; each common prefix runs once."""
        detector, net = self.detector, self.detector.net
        taught: list[Outputs] = []  # the full depth's outputs, which come first

        def loss_of(
            depth: str, exit: Exit, done: Mapping[str, Exit]
        ) -> tuple[Tensor, Mapping[str, Tensor]]:
            maps = detector.maps(exit.features)
            outputs = detector.outputs(maps)
            terms = detector.losses(maps, outputs, batch, known=batch.known)
            loss = torch.stack([*terms.values()]).sum()
            if depth == net.full:
                if outputs is not None:
                    taught.append({name: value.detach() for name, value in outputs.items()})
                return self.full_weight * loss, terms
            if self.teach and detector.sigmoid and taught and self.progress >= self.distill_from:
                assert outputs is not None
                more = _distances(outputs, taught[0])
                terms = {**terms, **more}
                loss = loss + self.teach * torch.stack([*more.values()]).sum()
            return loss, terms

        joint = net.joint_loss(batch.images, loss_of, keep_features=False, also=detector.shared)
        return Step(*joint)


def _distances(outputs: Outputs, full: Outputs) -> dict[str, Tensor]:
    """The distance of a depth's outputs from the full depth's."""
    logits = full["cls_logits"]
    distances = {
        "scores": score_distance(outputs["cls_logits"], logits),
        "boxes": box_distance(outputs["bbox_regression"], full["bbox_regression"], logits),
    }
    if "bbox_ctrness" in outputs:
        distances["centres"] = box_distance(outputs["bbox_ctrness"], full["bbox_ctrness"], logits)
    return distances
