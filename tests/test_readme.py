"""What the documentation shows runs as it stands there."""

import doctest
import os
import re
from pathlib import Path

import pytest

import stepwell
from stepwell import nets
from stepwell.catalog import NETWORKS

README = Path(__file__).parents[1] / "README.md"
FAMILIES = README.parent / "docs" / "families.md"


def test_the_lines_of_library_use_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    exec(compile(code, "README.md", "exec"), {})
    assert list(stepwell.load("net.safetensors").depths) == ["18", "34"]


def test_the_lines_that_nest_ones_own_module_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", FAMILIES.read_text(), re.DOTALL)
    scope: dict = {}
    exec(compile(code, "families.md", "exec"), scope)
    assert scope["net"].depths == {"half": (2, 2), "full": (4, 4)}
    assert len(scope["small"].late) == 2


def test_the_page_names_every_network():
    blocks = FAMILIES.read_text().split("\n\n")
    (rows,) = [block for block in blocks if block.startswith("| network |")]
    for name in NETWORKS:
        assert f"`{name}`" in rows or re.fullmatch(r"resnet\d+", name), name


@pytest.mark.parametrize("module", [stepwell, nets])
def test_examples_in_docstrings(module):
    results = doctest.testmod(module)
    assert results.attempted
    assert not results.failed


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)#]+)\)", README.read_text()):
        assert target.startswith("http") or os.path.exists(README.parent / target), target
