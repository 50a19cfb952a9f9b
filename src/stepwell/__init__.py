"""Train one network, run it at any depth, and teach it by distillation.

>>> import stepwell
>>> net = stepwell.build("resnet32", ["20"], num_classes=10)
>>> net.depths
{'20': (3, 3, 3), '32': (5, 5, 5)}

The names below are imported when they are first used, so that `import stepwell` is quick.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from stepwell import kg as kg
    from stepwell.evaluation import evaluate as evaluate
    from stepwell.evaluation import fidelity as fidelity
    from stepwell.export import apply_delta as apply_delta
    from stepwell.export import open_onnx as open_onnx
    from stepwell.methods import Distill as Distill
    from stepwell.methods import EmbeddedKD as EmbeddedKD
    from stepwell.methods import Ensemble as Ensemble
    from stepwell.methods import Frozen as Frozen
    from stepwell.methods import Graft as Graft
    from stepwell.methods import Grafting as Grafting
    from stepwell.methods import Objective as Objective
    from stepwell.methods import Supervised as Supervised
    from stepwell.methods import open_teacher as open_teacher
    from stepwell.nets import BUILDERS as BUILDERS
    from stepwell.nets import Card as Card
    from stepwell.nets import NestedNet as NestedNet
    from stepwell.nets import build as build
    from stepwell.nets.calibrate import calibrate as calibrate
    from stepwell.nets.cascade import Cascade as Cascade
    from stepwell.nets.dynamic_file import load_dynamic as load_dynamic
    from stepwell.nets.file import load as load
    from stepwell.nets.file import save as save
    from stepwell.nets.nest import nest as nest
    from stepwell.types import Batch as Batch
    from stepwell.types import Exit as Exit
    from stepwell.types import Step as Step

_WHERE = {
    "evaluate": "evaluation",
    "fidelity": "evaluation",
    "apply_delta": "export",
    "open_onnx": "export",
    "Distill": "methods",
    "EmbeddedKD": "methods",
    "Ensemble": "methods",
    "Frozen": "methods",
    "Graft": "methods",
    "Grafting": "methods",
    "Objective": "methods",
    "Supervised": "methods",
    "open_teacher": "methods",
    "BUILDERS": "nets",
    "Card": "nets",
    "NestedNet": "nets",
    "build": "nets",
    "Cascade": "nets.cascade",
    "calibrate": "nets.calibrate",
    "load_dynamic": "nets.dynamic_file",
    "load": "nets.file",
    "save": "nets.file",
    "nest": "nets.nest",
    "Batch": "types",
    "Exit": "types",
    "Step": "types",
}
#: Packages that are themselves public.
_PACKAGES = ("kg",)
__all__ = ["__version__", *_WHERE, *_PACKAGES]


def __getattr__(name: str) -> Any:
    if name in _PACKAGES:
        return importlib.import_module(f"stepwell.{name}")
    if name not in _WHERE:
        raise AttributeError(f"module 'stepwell' has no attribute {name!r}")
    return getattr(importlib.import_module(f"stepwell.{_WHERE[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
