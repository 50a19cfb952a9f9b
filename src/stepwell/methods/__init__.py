"""Training rules: each is an `Objective`, an `nn.Module` whose `training_step` gives a loss."""

from stepwell.methods.adapters import Ensemble
from stepwell.methods.cache import CachedLogits, LogitCache
from stepwell.methods.distill import Distill
from stepwell.methods.embedded_kd import EmbeddedKD
from stepwell.methods.flow_matching import FlowMatching
from stepwell.methods.grafting import Grafting
from stepwell.methods.netgraft import Graft
from stepwell.methods.objective import Frozen, MovingAverage, Objective, as_exit
from stepwell.methods.private_norms import PrivateNorms
from stepwell.methods.supervised import Supervised
from stepwell.methods.teachers import OpenTeacher, open_teacher

__all__ = [
    "CachedLogits",
    "Distill",
    "EmbeddedKD",
    "Ensemble",
    "FlowMatching",
    "Frozen",
    "Graft",
    "Grafting",
    "LogitCache",
    "MovingAverage",
    "Objective",
    "OpenTeacher",
    "PrivateNorms",
    "Supervised",
    "as_exit",
    "open_teacher",
]
