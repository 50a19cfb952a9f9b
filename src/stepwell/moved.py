"""Old import paths, kept for one version: importing one warns and gives the module of today."""

import importlib
import sys
import warnings
from collections.abc import Iterable
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

#: Modules that kept their names, by their old and new package.
_PACKAGES = {
    ("nets", "nets.families"): "builder resnet vgg densenet mobilenet convnext vit unet timm_models",
    ("nets", "nets.files"): "container",
    ("nets", "nets.nested"): "trie plan reading nest budget calibrate cascade input_size",
    ("nets", "kg"): "contexts ragged triple_index",
    ("methods", "teachers"): "adapters stages",
}
#: Modules that moved, without the package's name: old to new.
MODULES = {
    **{
        f"{old}.{name}": f"{new}.{name}"
        for (old, new), names in _PACKAGES.items()
        for name in names.split()
    },
    "modes": "train_mode",
    "nets.pretrained": "nets.files.initial_weights",
    "nets.naming": "nets.nested.depth_names",
    "nets.kept": "nets.nested.truncate",
    "nets.between": "nets.nested.interpolation",
    "nets.cuts": "nets.grafting.split_points",
    "methods.grafting": "nets.grafting.surgery",
    "nets.dynamic": "nets.resolution.chooser",
    "nets.dynamic_file": "nets.files.resolution",
    "nets.sized": "nets.resolution.position_embeddings",
    "nets.file": "nets.files.nested",
    "nets.onnx_file": "nets.files.onnx",
    "nets.facts": "kg.snapshot",
    "nets.graph": "kg.embedding",
    "methods.dkge": "kg.objective",
    "methods.dkge_online": "kg.online",
    "methods.translation": "kg.objective",
    "kg.asking": "kg.queries",
    "kg.history": "kg.update_report",
    "kg.live": "kg.graph",
    "kg.outcome": "kg.update_report",
    "methods.teachers": "teachers.opening",
    "methods.cache": "teachers.logit_cache",
    "methods.teacher_outputs": "teachers.block_outputs",
    "methods.drnet": "methods.resolution",
    "methods.private_norms": "methods.embedded_kd",
    "losses.logit_direction": "losses.soft_target",
    "recipes.grafting": "recipes.graft_phases",
    "recipes.full_net": "recipes.full_net_watch",
    "recipes.parts": "measure.data_parts",
    "recipes.dynamic": "measure.choices",
    "measure.resolution": "measure.choices",
    "tasks.resolution": "tasks.choices",
    "export.dynamic": "export.resolution",
    "evaluation.price": "evaluation.cost_penalty",
    "nets.merging": "nets.grafting.merging",
    "recipes.classification": "tasks.classification",
    "serve.cascade": "measure.cascade",
    "recipes.distill_data": "data.distill_data",
}

#: Names that moved from a package or a module that is still there: old to new.
NAMES = {
    "load_dynamic": "nets.files.resolution.load_resolution",
    "nets.nested.NestedNet": "nets.nested.net.NestedNet",
    "nets.resolution.Resolutions": "nets.resolution.resolutions.Resolutions",
    "export.OpenDynamic": "export.OpenChoices",
    "export.OpenResolution": "export.OpenChoices",
    "export.export_dynamic": "export.export_resolution",
    **{
        f"methods.{name}": f"teachers.{name}"
        for name in (
            "CachedLogits", "Ensemble", "Frozen", "LogitCache", "MovingAverage", "OpenTeacher",
            "as_exit", "open_teacher",
        )
    },
    "methods.Grafting": "nets.grafting.surgery.Grafting",
    **{
        f"serve.{name}": f"measure.cascade.{name}"
        for name in ("calibrate_cascade", "cascade_macs", "check_depths", "measure_cascade")
    },
}  # fmt: skip


def moved_name(package: str, name: str) -> object:
    """Give the object that once stood at `package`.`name`, with a warning, or AttributeError."""
    key = f"{package}.{name}".removeprefix("stepwell.")
    if key not in NAMES:
        raise AttributeError(f"module {package!r} has no attribute {name!r}")
    module, _, new = NAMES[key].rpartition(".")
    _warn(f"{package}.{name}", f"stepwell.{NAMES[key]}", 3)
    return getattr(importlib.import_module(f"stepwell.{module}"), new)


class _Finder(MetaPathFinder, Loader):
    """Finds a module under its old name. It is asked only where no module has that name."""

    def find_spec(
        self, fullname: str, path: Iterable[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname.removeprefix("stepwell.") in MODULES:
            return ModuleSpec(fullname, self)
        return None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        new = f"stepwell.{MODULES[spec.name.removeprefix('stepwell.')]}"
        _warn(spec.name, new, 2)
        module = importlib.import_module(new)
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Give the module its own specification back; it ran under its new name."""
        assert module.__spec__ is not None
        module.__spec__ = module.__spec__.loader_state


def _warn(old: str, new: str, level: int) -> None:
    warnings.warn(
        f"{old} is now {new}; the old name goes away in the next version",
        DeprecationWarning,
        stacklevel=level,
    )


def install() -> None:
    """Make the old paths importable."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.append(_Finder())
