"""What the documentation shows runs as it stands there."""

import doctest
import importlib
import re
from pathlib import Path

import pytest
from benchmarks import readme_figure

import stepwell
from stepwell.catalog import NETWORKS

README = Path(__file__).parents[1] / "README.md"
FAMILIES = README.parent / "docs" / "families.md"
PAGES = [README, *sorted(README.parent.glob("C*.md")), *sorted(FAMILIES.parent.glob("*.md"))]
PAGES.append(README.parent / "examples" / "README.md")


def test_the_lines_of_library_use_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    exec(compile(code, "README.md", "exec"), {})
    assert list(stepwell.load("net.safetensors").depths) == ["18", "34"]


def test_the_table_has_the_numbers_of_the_published_units():
    for row in readme_figure.table().splitlines()[2:]:
        for cell in row.strip("| ").split(" | ")[1:]:
            assert cell == "–" or f"| {cell}" in README.read_text(), row


def test_the_lines_on_families_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scope: dict = {}
    depths = []
    for code in re.findall(r"```python\n(.*?)```", FAMILIES.read_text(), re.DOTALL):
        exec(compile(code, "families.md", "exec"), scope)
        depths.append(scope["net"].depths)
    assert depths == [
        {"late": (4, 4), "12": (8, 4)},
        {"14": (2, 2, 2), "exit1": (3, 3, 0), "20": (3, 3, 3)},
        {"half": (2, 2), "full": (4, 4)},
    ]
    assert len(scope["small"].late) == 2


def test_the_page_names_every_network():
    rows = next(t for t in FAMILIES.read_text().split("\n\n") if t.startswith("| network"))
    for name in NETWORKS:
        assert f"`{name}`" in rows or re.fullmatch(r"resnet\d+", name), name


@pytest.mark.parametrize("module", ["stepwell", "stepwell.nets.build"])
def test_examples_in_docstrings(module):
    results = doctest.testmod(importlib.import_module(module))
    assert results.attempted
    assert not results.failed


def anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if target.startswith("http"):
            continue
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target
