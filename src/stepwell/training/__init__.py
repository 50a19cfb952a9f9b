"""The training loop, its optimizers, and the directory of a run."""

from stepwell.training.fit import fit
from stepwell.training.loop import Loop
from stepwell.training.optim import Optim, optimizer_of, sgd
from stepwell.training.run import Run, check_resumes

__all__ = ["Loop", "Optim", "Run", "check_resumes", "fit", "optimizer_of", "sgd"]
