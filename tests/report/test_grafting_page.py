"""The page's part about grafting."""

import json

import pytest

from stepwell.report import write_report
from stepwell.report.grafting import against_shots, grafting_section
from stepwell.report.run_record import read_run
from stepwell.report.sections import run_section

FOUND = {
    "images": 50, "teacher": 0.91, "copied": ["layer1"], "untuned": 0.4321,
    "grafted": {"layer2": 0.81, "<head>": 0.87}, "joined": {"<head>": 0.8642},
    "adaptions": {
        "layer2.1": {"channels": 40, "macs": 102400},
        "layer3.0": {"channels": 20, "macs": 400, "before": 1},
    },
}  # fmt: skip


@pytest.fixture
def run(tmp_path):
    def write(name="few", shots=5, accuracy=0.8642, recipe="netgraft", own=None, **found):
        path = tmp_path / name
        path.mkdir()
        config = {
            "recipe": recipe,
            "arguments": {"shots": shots, "teacher": "runs/t & u"} | (own or {}),
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
    assert "20 channels stayed before layer3.0: 400 MACs" in section
    assert section.count("<img") == 1
    assert grafting_section(read_run(run("other", recipe="distill"), "other")) == ""
    plain = grafting_section(read_run(run("plain", grafted={}, joined={}, adaptions={}), "plain"))
    assert "<table" not in plain
    assert "50 images" in plain


def test_runs_of_several_shots_are_drawn_against_them(run, tmp_path):
    runs = [run(f"k{k}", k, 0.5 + k / 100) for k in (10, 1)]
    records = [read_run(path, path.name) for path in runs]
    assert len(against_shots(records)) == 1
    assert against_shots(records[:1]) == []
    page = write_report(runs, tmp_path / "report.html").read_text()
    assert page.count("by images a class") == 2  # as text, and of the picture
    other = [run("a", recipe="distill"), run("b", recipe="distill")]
    assert "by images a class" not in write_report(other, tmp_path / "o.html").read_text()


@pytest.fixture
def drawn(monkeypatch):
    """What is drawn of some runs: of each figure, by its name, the points of every line."""
    from matplotlib.figure import Figure

    def draw(paths):
        paints = []
        monkeypatch.setattr(
            "stepwell.report.grafting.svg", lambda width, height, paint: paints.append(paint) or ""
        )
        against_shots([read_run(path, path.name) for path in paths])
        found = []
        for paint in paints:
            figure = Figure(layout="constrained")
            paint(figure)
            lines = {
                line.get_label(): list(zip(*(map(float, d) for d in line.get_data()), strict=True))
                for line in figure.axes[0].lines
            }
            found.append(lines)
        return found

    return draw


def test_seeds_are_one_line_and_what_else_differs_is_several(run, drawn):
    own = {"student": "slim", "schedule": "both"}
    runs = [run(f"s{i}", k, v, own=own | {"seed": i}) for i, (k, v) in enumerate(((1, 0.5), (1, 0.7)))]
    runs.append(run("more", 10, 0.9, own=own))
    (lines,) = drawn(runs)
    assert lines["student"] == [(1, pytest.approx(60)), (10, pytest.approx(90))]
    assert lines["layer2 grafted"] == [(1, pytest.approx(81)), (10, pytest.approx(81))]
    assert [y for _, y in lines["teacher"]] == [pytest.approx(91)] * 2
    other = {"student": "slimmer", "schedule": "direct", "loss": "features", "keep": []}
    runs += [run(f"o{k}", k, 0.2, own=other, grafted={}) for k in (1, 10)]
    (lines,) = drawn(runs)
    assert lines["slim both student"] == [(1, pytest.approx(60)), (10, pytest.approx(90))]
    few = [(1, pytest.approx(20)), (10, pytest.approx(20))]
    assert lines["slimmer direct features student"] == few


def test_each_data_set_and_teacher_has_a_figure_that_names_them_whole(run, drawn, tmp_path):
    far = "/somewhere/far/below/another/folder/of/mine"
    own = [{"data": "digits"}, {"data": f"{far}/data"}, {"data": "digits", "teacher": f"{far}/t"}]
    runs = [
        run(f"{i}-{k}", k, 0.1 * i, own=each, grafted={}, teacher=0.5 + 0.1 * i)
        for i, each in enumerate(own)
        for k in (1, 10)
    ]
    single = run("single", 5, own={"data": "one number of images alone"})
    found = drawn([*runs, single])
    assert [list(lines) for lines in found] == [["teacher", "student"]] * 3
    for i, lines in enumerate(found):
        assert [y for _, y in lines["student"]] == [pytest.approx(10 * i)] * 2
        assert [y for _, y in lines["teacher"]] == [pytest.approx(50 + 10 * i)] * 2
    page = write_report([*runs, single], tmp_path / "report.html").read_text()
    for told in ("runs/t &amp; u, tested on digits.", f"{far}/t, tested on digits."):
        assert f"images a class; teacher {told}</figcaption>" in page
    assert f"teacher runs/t &amp; u, tested on {far}/data." in page


def test_a_long_name_of_a_line_is_wrapped_and_not_cut(run, drawn):
    names = ["timm/a_student_of_which_the_name_is_long", "timm/another_student_of_which_that_is"]
    runs = [run(f"{n[5:7]}{k}", k, own={"student": n}) for n in names for k in (1, 10)]
    (lines,) = drawn(runs)
    for name in names:
        assert {" ".join(label.split()) for label in lines} >= {
            f"{name} student", f"{name} layer2 grafted"
        }  # fmt: skip
    assert max(len(row) for label in lines for row in label.splitlines()) <= 44


def test_a_run_on_images_of_a_folder_says_so(run):
    """And does not give them as the training part of the data that it was tested on."""
    path = run(own={"unlabeled": "photos", "data": "digits"})
    config = json.loads((path / "config.json").read_text())
    config["data"] = {"name": "digits", "train": 50, "test": 359}
    (path / "config.json").write_text(json.dumps(config))
    page = run_section(read_run(path, "few"), "run-1", {"14": "#000000"})
    assert "on 50 images of photos without labels (5 a class)" in page
    assert "<dt>trained on</dt><dd>50 images of photos</dd>" in page
    assert "<dt>examples</dt><dd>359 test</dd>" in page
    assert "netgraft, tested on digits: " in page


def test_runs_without_a_trace_are_drawn_without_a_teacher(run, drawn):
    """Nor is there a line of numbers that are not finite."""
    bare = {"grafted": {}, "joined": {}, "teacher": None}
    (lines,) = drawn([run(f"k{k}", k, 0.5, **bare) for k in (1, 10)])
    assert lines == {"student": [(1, pytest.approx(50)), (10, pytest.approx(50))]}
    assert drawn([run(f"n{k}", k, float("nan"), **bare) for k in (1, 10)]) == []
