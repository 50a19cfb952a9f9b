"""Old import paths give the modules and names of today, with a warning."""

import importlib
import sys
from pathlib import Path

import pytest

import stepwell
from stepwell.moved import MODULES, NAMES


@pytest.mark.parametrize("old", MODULES)
def test_a_module_that_moved_is_found_under_its_old_name(old, monkeypatch):
    new = importlib.import_module(f"stepwell.{MODULES[old]}")
    monkeypatch.delitem(sys.modules, f"stepwell.{old}", raising=False)
    with pytest.warns(DeprecationWarning, match=rf"stepwell\.{old} is now stepwell\."):
        assert importlib.import_module(f"stepwell.{old}") is new
    assert new.__spec__.name == f"stepwell.{MODULES[old]}"
    monkeypatch.delitem(sys.modules, f"stepwell.{old}")


@pytest.mark.parametrize("old", NAMES)
def test_a_name_that_moved_is_found_where_it_was(old):
    package, _, name = f"stepwell.{old}".rpartition(".")
    module, _, new = NAMES[old].rpartition(".")
    with pytest.warns(DeprecationWarning, match=f"{name} is now"):
        found = getattr(importlib.import_module(package), name)
    assert found is getattr(importlib.import_module(f"stepwell.{module}"), new)


def test_no_old_name_hides_a_module_of_today():
    root = Path(stepwell.__file__).parent
    for old in MODULES:
        path = root.joinpath(*old.split("."))
        assert not path.with_suffix(".py").exists()
        assert not (path / "__init__.py").exists()
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = stepwell.nothing
    with pytest.raises(ImportError):
        importlib.import_module("stepwell.nets.nothing")
