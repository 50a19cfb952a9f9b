"""Training rules: each is an `Objective`, an `nn.Module` whose `training_step` gives a loss."""

from stepwell.methods.distill import Distill
from stepwell.methods.embedded_kd import EmbeddedKD
from stepwell.methods.flow_matching import FlowMatching
from stepwell.methods.objective import Frozen, MovingAverage, Objective, as_exit
from stepwell.methods.private_norms import PrivateNorms
from stepwell.methods.supervised import Supervised

__all__ = [
    "Distill",
    "EmbeddedKD",
    "FlowMatching",
    "Frozen",
    "MovingAverage",
    "Objective",
    "PrivateNorms",
    "Supervised",
    "as_exit",
]
