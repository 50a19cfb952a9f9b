"""Imports go one way: a package imports only what stands before it."""

import importlib
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from pkgutil import resolve_name

import pytest

import stepwell
from stepwell.claims import CLAIMS
from stepwell.claims.kit.source_digest import PACKAGE, imported_modules
from stepwell.recipes import RECIPES

GROUND = {
    "types",
    "files",
    "flags",
    "device",
    "memory",
    "train_mode",
    "ranges",
    "moved",
    "results",
    "measures",
    "colours",
    "extras",
}
BASE = GROUND | {"losses", "ops"}
NETS = BASE | {"nets", "teachers", "methods"}
MEASURED = {"data", "evaluation", "cost"}
MAY_IMPORT = {
    **{name: set[str]() for name in sorted(GROUND)},
    "results": {"files"},
    "flags": {"ranges"},
    "catalog": set(),
    "console": {"measures"},
    "losses": GROUND,
    "ops": GROUND,
    "nets": BASE | {"data"},  # predictions on images, which data decodes
    "teachers": BASE | {"nets"},
    "methods": BASE | {"nets", "teachers"},
    "data": GROUND,
    "evaluation": GROUND,
    "cost": GROUND,
    "training": NETS | {"data"},
    "export": GROUND | MEASURED | {"nets"},
    "serve": GROUND | MEASURED | {"nets"},
    "measure": GROUND | MEASURED | {"nets", "teachers"},
    "kg": NETS | {"data", "evaluation"},
    "pseudo_labels": NETS | MEASURED | {"measure"},
    "report": GROUND | {"kinds"},
}
MAY_IMPORT["kinds"] = MAY_IMPORT["measure"] | {"measure", "export", "serve", "kg", "console"}
MAY_IMPORT["tasks"] = NETS | MEASURED | {"training", "measure", "kg", "pseudo_labels"}
MAY_IMPORT["recipes"] = MAY_IMPORT["tasks"] | {"tasks"}
MAY_IMPORT["claims"] = MAY_IMPORT["recipes"] | {"recipes", "console"}
ROOT = Path(stepwell.__file__).parent


def direct_imports(file: Path) -> set[str]:
    import ast

    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    parts = [name.split(".") for name in found]
    return {p[1] for p in parts if p[0] == PACKAGE and len(p) > 1}


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_no_import_goes_back(package):
    files = list((ROOT / package).rglob("*.py")) or [ROOT / f"{package}.py"]
    for file in files:
        if file.exists():
            wrong = direct_imports(file) - MAY_IMPORT[package] - {package}
            assert not wrong, f"{file} imports {wrong}"


def test_every_package_has_its_place():
    packages = {p.parent.name for p in ROOT.glob("*/__init__.py")} | {p.stem for p in ROOT.glob("*.py")}
    assert packages - MAY_IMPORT.keys() == {"__init__", "__main__", "cli", "commands"}


def test_lightning_has_one_door():
    users = [f.name for f in ROOT.rglob("*.py") if "import pytorch_lightning" in f.read_text()]
    assert users == ["fit.py"]


@pytest.mark.parametrize("path", [p for p, _ in [*RECIPES.values(), *CLAIMS.values()]])
def test_every_named_recipe_and_study_is_there(path):
    assert resolve_name(path)


def test_help_and_list_import_no_torch():
    code = "import sys, stepwell.cli as c; c.main(['list']); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def test_a_wrong_path_is_told_before_torch_is_imported(tmp_path):
    (tmp_path / "photos").mkdir()
    code = f"""
import sys, stepwell.cli as c
for command in (["eval"], ["predict", "x.png"], ["export"], ["calibrate"], ["report"], ["cost"]):
    try:
        c.main([command[0], {str(tmp_path / "photos")!r}, *command[1:]])
    except SystemExit as stop:
        assert stop.code == 2
assert 'torch' not in sys.modules"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stderr.count("photos is no run directory") == 6


def test_public_names_are_there():
    for name in stepwell.__all__:
        assert getattr(stepwell, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = stepwell.nothing
    assert (ROOT / "py.typed").exists()


def test_modules_an_arm_depends_on_are_found_however_deep():
    found = imported_modules("stepwell.recipes.ekd")
    assert {
        "stepwell.nets.nested.net",
        "stepwell.losses.attention",
        "stepwell.training.fit",
    } <= found
    assert not any(name.startswith(("stepwell.report", "stepwell.cli")) for name in found)
    for name in found:
        assert importlib.util.find_spec(name) is not None, name


def test_shapes_are_checked_in_every_package_that_states_them():
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())
    options = project["tool"]["pytest"]["ini_options"]
    (checked,) = re.findall(r"--jaxtyping-packages=(\S+)", options["addopts"])
    stated = {
        f"stepwell.{file.relative_to(ROOT).parts[0].removesuffix('.py')}"
        for file in ROOT.rglob("*.py")
        if re.search(r"^from jaxtyping import", file.read_text(), re.MULTILINE)
    }
    assert {*checked.split(",")} >= stated - {
        "stepwell.types",
        "stepwell.claims",
    }  # names alone, and studies
