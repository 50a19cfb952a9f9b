"""Training rules: each is an `Objective`, a module whose `training_step` returns a loss."""

from stepwell.methods.detection import Detection
from stepwell.methods.distill import Distill
from stepwell.methods.embedded_kd import EmbeddedKD, ExitHeads, PrivateNorms
from stepwell.methods.flow_matching import FlowMatching
from stepwell.methods.netgraft import Graft
from stepwell.methods.objective import Objective
from stepwell.methods.supervised import Supervised
from stepwell.moved import moved_name

__all__ = [
    "Detection", "Distill", "EmbeddedKD", "ExitHeads", "FlowMatching", "Graft", "Objective",
    "PrivateNorms", "Supervised",
]  # fmt: skip


def __getattr__(name: str) -> object:
    return moved_name(__name__, name)
