"""Train one network, run it at any depth, and teach it by distillation.

>>> import stepwell
>>> net = stepwell.build("resnet32", ["20"], num_classes=10)
>>> net.depths
{'20': (3, 3, 3), '32': (5, 5, 5)}

The names below are imported when they are first used, so that `import stepwell` is quick.
"""

import importlib
from typing import TYPE_CHECKING, Any

from stepwell.moved import install, moved_name

__version__ = "0.1.0"
install()

if TYPE_CHECKING:
    from stepwell import kg as kg
    from stepwell import measure as measure
    from stepwell.evaluation import evaluate as evaluate
    from stepwell.evaluation import fidelity as fidelity
    from stepwell.export import apply_delta as apply_delta
    from stepwell.export import open_onnx as open_onnx
    from stepwell.kinds import open_network as open_network
    from stepwell.methods import Distill as Distill
    from stepwell.methods import EmbeddedKD as EmbeddedKD
    from stepwell.methods import Graft as Graft
    from stepwell.methods import Objective as Objective
    from stepwell.methods import Supervised as Supervised
    from stepwell.nets import BUILDERS as BUILDERS
    from stepwell.nets import Card as Card
    from stepwell.nets import NestedNet as NestedNet
    from stepwell.nets import build as build
    from stepwell.nets.adders.converting import to_adder as to_adder
    from stepwell.nets.files.nested import load as load
    from stepwell.nets.files.nested import save as save
    from stepwell.nets.files.resolution import load_resolution as load_resolution
    from stepwell.nets.grafting.surgery import Grafting as Grafting
    from stepwell.nets.nested.calibrate import calibrate as calibrate
    from stepwell.nets.nested.cascade import Cascade as Cascade
    from stepwell.nets.nested.nest import nest as nest
    from stepwell.serve.budget_runner import BudgetRunner as BudgetRunner
    from stepwell.serve.client import Client as Client
    from stepwell.teachers import Ensemble as Ensemble
    from stepwell.teachers import Frozen as Frozen
    from stepwell.teachers import open_teacher as open_teacher
    from stepwell.types import Batch as Batch
    from stepwell.types import Exit as Exit
    from stepwell.types import Step as Step

_WHERE = {
    "evaluate": "evaluation",
    "fidelity": "evaluation",
    "apply_delta": "export",
    "open_onnx": "export",
    "open_network": "kinds",
    "Distill": "methods",
    "EmbeddedKD": "methods",
    "Ensemble": "teachers",
    "Frozen": "teachers",
    "Graft": "methods",
    "Grafting": "nets.grafting.surgery",
    "Objective": "methods",
    "Supervised": "methods",
    "open_teacher": "teachers",
    "BUILDERS": "nets",
    "Card": "nets",
    "NestedNet": "nets",
    "build": "nets",
    "BudgetRunner": "serve.budget_runner",
    "Cascade": "nets.nested.cascade",
    "Client": "serve.client",
    "calibrate": "nets.nested.calibrate",
    "load_resolution": "nets.files.resolution",
    "load": "nets.files.nested",
    "save": "nets.files.nested",
    "nest": "nets.nested.nest",
    "to_adder": "nets.adders.converting",
    "Batch": "types",
    "Exit": "types",
    "Step": "types",
}
#: Packages that are themselves public.
_PACKAGES = ("kg", "measure")
__all__ = ["__version__", *_WHERE, *_PACKAGES]


def __getattr__(name: str) -> Any:
    if name in _PACKAGES:
        return importlib.import_module(f"stepwell.{name}")
    if name not in _WHERE:
        return moved_name(__name__, name)
    return getattr(importlib.import_module(f"stepwell.{_WHERE[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
