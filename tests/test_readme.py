"""What the documentation shows runs as it stands there."""

import doctest
import os
import re
from pathlib import Path

import pytest

import stepwell
from stepwell import nets

README = Path(__file__).parents[1] / "README.md"


def test_the_lines_of_library_use_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    exec(compile(code, "README.md", "exec"), {})
    assert list(stepwell.load("net.safetensors").depths) == ["18", "34"]


@pytest.mark.parametrize("module", [stepwell, nets])
def test_examples_in_docstrings(module):
    results = doctest.testmod(module)
    assert results.attempted
    assert not results.failed


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)#]+)\)", README.read_text()):
        assert target.startswith("http") or os.path.exists(README.parent / target), target
