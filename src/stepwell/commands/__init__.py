"""The commands but `train`, whose flags come from the recipes.

Signatures are the flags. Heavy imports stand inside the functions, so that `--help` and `list` import
no torch.
"""

from stepwell.commands.kg import KG, show_graph
from stepwell.commands.measuring import calibrate, cost, eval_
from stepwell.commands.resolution import show_choices
from stepwell.commands.telling import list_, report, verify
from stepwell.commands.using import export, patch, predict

__all__ = [
    "KG", "calibrate", "cost", "eval_", "export", "list_", "patch", "predict", "report",
    "show_choices", "show_graph", "verify",
]  # fmt: skip
