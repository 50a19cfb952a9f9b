"""The page's part about grafting."""

import json

import pytest

from stepwell.report import write_report
from stepwell.report.grafting import against_shots, grafting_section
from stepwell.report.reading import read_run

FOUND = {
    "images": 50, "teacher": 0.91, "copied": ["layer1"], "untuned": 0.4321,
    "grafted": {"layer2": 0.81, "<head>": 0.87}, "joined": {"<head>": 0.8642},
    "adaptions": {"layer2.1": {"channels": 40, "macs": 102400}},
}  # fmt: skip


@pytest.fixture
def run(tmp_path):
    def write(name="few", shots=5, accuracy=0.8642, recipe="netgraft", **found):
        path = tmp_path / name
        path.mkdir()
        config = {
            "recipe": recipe,
            "arguments": {"shots": shots, "teacher": "runs/t & u"},
            "data": {},
        }
        results = {"test": {"14/accuracy": accuracy}, "costs": {"14": {}}}
        if recipe == "netgraft":
            results["netgraft"] = FOUND | found
        (path / "config.json").write_text(json.dumps(config))
        (path / "results.json").write_text(json.dumps(results))
        return path

    return write


def test_a_run_shows_every_block_and_what_stayed(run):
    section = grafting_section(read_run(run(), "few"))
    for text in ("81.0%", "87.0%", "86.4%", "43.2%", "the teacher has 91.0%", "copied from the"):
        assert text in section
    assert "runs/t &amp; u" in section
    assert "&lt;head&gt;" in section
    assert "<head>" not in section
    assert "40 channels stayed behind layer2.1: 102 k MACs" in section
    assert section.count("<img") == 1
    assert grafting_section(read_run(run("other", recipe="distill"), "other")) == ""
    plain = grafting_section(read_run(run("plain", grafted={}, joined={}, adaptions={}), "plain"))
    assert "<table" not in plain
    assert "50 images" in plain


def test_runs_of_several_shots_are_drawn_against_them(run, tmp_path):
    runs = [run(f"k{k}", k, 0.5 + k / 100) for k in (10, 1)]
    records = [read_run(path, path.name) for path in runs]
    assert against_shots(records) is not None
    assert against_shots(records[:1]) is None
    page = write_report(runs, tmp_path / "report.html").read_text()
    assert page.count("by images a class") == 2  # as text, and of the picture
    other = [run("a", recipe="distill"), run("b", recipe="distill")]
    assert "by images a class" not in write_report(other, tmp_path / "o.html").read_text()
