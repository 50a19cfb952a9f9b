"""The page about finished runs: what it shows, that it stands alone, and what it refuses."""

import base64
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stepwell.evaluation import churn
from stepwell.report import write_report
from stepwell.report.classes import classes_section
from stepwell.report.fidelity import fidelity_section
from stepwell.report.figures import accuracy_cost
from stepwell.report.full_net import full_net_note
from stepwell.report.run_record import read_run
from stepwell.report.sections import lead
from stepwell.results import keep_evaluation
from stepwell.tasks.measuring import in_turn

DEPTHS = ("20", "26", "32")
CLASSES = ["<b>&", *"123456789"]
EXAMPLES = 360
CLASSES_OF_FIRST_FOUR = {"20": (0, 1, 2, 9), "26": (0, 1, 3, 9), "32": (0, 2, 3, 9)}
"""What each depth answers where the labels are 0, 1, 2, 3: they disagree on the second and third."""


def fabricate(
    path: Path, *, depths: tuple[str, ...] = DEPTHS, seed: int = 0, predictions: bool = True
) -> Path:
    """A run directory as a recipe leaves it: two phases, every optional part."""
    path.mkdir(parents=True)
    config = {
        "recipe": "ekd",
        "arguments": {"data": "digits", "note": "<i>a & b</i>", "loop": {"epochs": 12, "seed": seed}},
        "versions": {"stepwell": "0.1.0", "torch": "2.13.0", "python": "3.13.5"},
        "commit": None,
        "device": "cpu",
        "threads": 2,
        "data": {
            "name": "digits", "fingerprint": "ab12cd34", "classes": CLASSES,
            "train": 1200, "validation": 130, "test": EXAMPLES, "size": 8,
        },
    }  # fmt: skip
    write_json(path / "config.json", config)
    (path / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in metrics(depths)))
    test: dict[str, float] = {}
    costs: dict[str, Any] = {}
    for i, depth in enumerate(depths):
        test |= {
            f"{depth}/accuracy": 0.95 + 0.011 * i + 0.002 * seed, f"{depth}/nll": 0.17 - 0.03 * i,
            f"{depth}/ece": 0.021 - 0.004 * i, f"{depth}/agreement": 0.971 + 0.0145 * i,
            f"{depth}/accuracy/<b>&": 0.9, f"{depth}/accuracy/1": 0.99,
        }  # fmt: skip
        costs[depth] = {
            "blocks": [3 + i] * 3, "params": 270_000 + 95_000 * i, "macs": 2_500_000 + 880_000 * i,
            "ms": 1.31 + 0.45 * i, "ms_low": 1.25 + 0.44 * i, "ms_high": 1.44 + 0.47 * i,
            "batch": 1, "threads": 2,
        }  # fmt: skip
    found = {name.removeprefix("logits/"): a for name, a in arrays(depths).items()}
    labels = torch.from_numpy(found["labels"])
    flips = churn({depth: torch.from_numpy(found[depth]) for depth in depths}, labels)
    results = {"test": test, "churn": flips, "examples": EXAMPLES, "costs": costs, "seconds": 155.1}
    write_json(path / "results.json", results)
    if predictions:
        np.savez(path / "predictions.npz", **arrays(depths))
    return path


def metrics(depths: tuple[str, ...]) -> list[dict[str, Any]]:
    """A first phase that trains the full net, and a second in which it teaches the others."""
    lines: list[dict[str, Any]] = []
    for phase, epochs in (("full net", 5), ("ekd", 12)):
        for epoch in range(1, epochs + 1):
            line: dict[str, Any] = {"phase": phase, "epoch": epoch, "step": 79 * epoch, "lr": 0.08}
            late = epoch + (5 if phase == "ekd" else 0)
            line |= {"seconds": 3.1 * late, "loss": 2.6 / late, f"{depths[-1]}/ce": 1.4 / late}
            for i, depth in enumerate(depths):
                if phase == "ekd" and depth != depths[-1]:
                    line[f"{depth}/ce"] = (2.1 - 0.3 * i) / epoch
                    line[f"{depth}/kl"] = (0.7 - 0.1 * i) / epoch
                    line[f"{depth}/attention"] = 0.02 / epoch
                if phase == "ekd" or depth == depths[-1]:
                    line[f"val/{depth}/accuracy"] = 0.955 + 0.01 * i - 0.5 / (late + i)
            lines.append(line)
    return lines


def arrays(depths: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Predictions that are right but where `CLASSES_OF_FIRST_FOUR` says otherwise."""
    draw = np.random.default_rng(0)
    labels = np.arange(EXAMPLES) % 10
    found: dict[str, np.ndarray] = {"labels": labels.astype(np.int64)}
    for depth in depths:
        answers = labels.copy()
        answers[:4] = CLASSES_OF_FIRST_FOUR[depth]
        sure = draw.uniform(0.5, 6, (EXAMPLES, 1))
        logits = draw.uniform(0, 0.4, (EXAMPLES, 10)) + sure * np.eye(10)[answers]
        found[f"logits/{depth}"] = logits.astype(np.float32)
    index = np.array([1, 2, 3, 0, *range(10, 18)])
    ramp = np.linspace(0, 255, 8)
    pictures = [np.roll(np.outer(ramp, ramp[::-1]) / 255, int(labels[i]), axis=1) for i in index]
    found["images"] = np.repeat(np.stack(pictures)[..., None], 3, axis=3).astype(np.uint8)
    found["image_index"] = index
    return found


def write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content))


def page_of(*runs: Path) -> str:
    out = runs[0].parent / "page" / "report.html"
    assert write_report(runs, out) == out
    assert [file.name for file in out.parent.iterdir()] == ["report.html"]
    return out.read_text(encoding="utf-8")


def assert_stands_alone(page: str) -> None:
    addresses = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert addresses
    assert all(address.startswith(("data:", "#")) for address in addresses)
    assert "http://" not in page
    assert "https://" not in page
    assert "<script" not in page
    assert "url(" not in page


def figures_in(page: str) -> list[str]:
    """The SVG figures, as text."""
    found = re.findall(r'src="data:image/svg\+xml;base64,([^"]+)"', page)
    return [base64.b64decode(figure).decode() for figure in found]


def test_page_stands_alone_and_shows_every_part(tmp_path):
    page = page_of(fabricate(tmp_path / "run"))
    assert_stands_alone(page)
    assert len(figures_in(page)) == 5 + len(DEPTHS)
    assert page.count("data:image/png") == 12
    for text in ("26 (full)", "NaN", "None"):
        assert text not in page
    for text in ("32 (full)", "3-3-3", "270 k", "2.5 M", "95.0%", "1.31 (1.25–1.44)", "3 min"):
        assert text in page
    assert "<dt>seed</dt><dd>0</dd>" in page
    assert '<td class="word">loop.epochs</td><td class="word">12</td>' in page
    assert "97.2% of 360 test examples right at the full depth 32" in page
    assert "depth 20 takes 1.7× fewer MACs, is 1.7× faster and is 2.2 points less accurate" in page


def test_curves_name_the_phases_and_every_term(tmp_path):
    loss, accuracy = figures_in(page_of(fabricate(tmp_path / "run")))[3:5]
    for text in ("full net", "ekd", "total loss", "ce", "kl", "attention"):
        assert loss.count(f">{text}</text>") == 1  # however many depths have the term
    for depth in DEPTHS:
        assert f">depth {depth}</text>" in loss
        assert f">depth {depth}</text>" in accuracy


def ticks_of(picture: str | None) -> list[float]:
    """The numbers that a figure shows."""
    assert picture is not None
    drawn = base64.b64decode(picture.partition(",")[2]).decode()
    return [float(n) for n in re.findall(r">(\d+(?:\.\d+)?)</text>", drawn)]


def test_depths_that_are_equally_accurate_are_shown_below_100_percent(tmp_path):
    run = fabricate(tmp_path / "run")
    results = json.loads((run / "results.json").read_text())
    results["test"] |= {f"{depth}/accuracy": 0.995 for depth in DEPTHS}
    write_json(run / "results.json", results)
    picture = accuracy_cost([read_run(run, "run")], dict.fromkeys(DEPTHS, "#000000"), "ms")
    percents = [n for n in ticks_of(picture) if n > 50]
    # 360 examples, 99.5 % right: the interval is 98.0 to 99.9 %
    assert min(percents) >= 97.5
    assert 99.5 <= max(percents) <= 100.5


@pytest.mark.parametrize("slow", [4.0, 500.0])
def test_no_whisker_is_cut(tmp_path, monkeypatch, slow):
    drawn = []

    def paint_alone(width, height, paint):
        import matplotlib.figure

        drawn.append(matplotlib.figure.Figure((width, height)))
        paint(drawn[0])

    monkeypatch.setattr("stepwell.report.figures.svg", paint_alone)
    run = fabricate(tmp_path / "run")
    results = json.loads((run / "results.json").read_text())
    results["costs"]["26"]["ms_high"] = slow
    write_json(run / "results.json", results)
    accuracy_cost([read_run(run, "run")], dict.fromkeys(DEPTHS, "#000000"), "ms")
    (axes,) = drawn[0].axes
    low, high = axes.get_xlim()
    assert high > slow
    assert low < 1.25
    # a far end would push the points of a linear axis into a corner
    assert axes.get_xscale() == ("log" if slow > 100 else "linear")
    if slow > 100:
        assert axes.xaxis.get_major_formatter()(20.0) == "20"  # the page reads no TeX
        assert axes.xaxis.get_minor_formatter()(3.0) == ""


def test_names_from_outside_are_escaped(tmp_path):
    page = page_of(fabricate(tmp_path / "a <b> & $x$ _run"), fabricate(tmp_path / "_plain"))
    assert "<b>&<" not in page
    assert "&lt;b&gt;&amp;" in page
    assert "&lt;i&gt;a &amp; b&lt;/i&gt;" in page
    assert "a &lt;b&gt; &amp; $x$ _run" in page
    joint = figures_in(page)[0]
    assert "a &lt;b&gt; &amp; $x$ _run" in joint
    assert "_plain" in joint


@pytest.fixture
def undrawn(monkeypatch):
    """Leave the figures empty, for a test that reads words and tables alone."""
    monkeypatch.setattr("stepwell.report.figures.svg", lambda *_: "data:image/svg+xml;base64,")


@pytest.mark.usefixtures("undrawn")
def test_disagreements_are_counted_and_come_first(tmp_path):
    page = page_of(fabricate(tmp_path / "run"))
    assert "The depths disagree on 2 of 360 test examples." in page
    first, others = page.split("Where the depths disagree")[1].split("Other examples")
    assert re.findall('alt="test example ([0-9]+)"', first) == ["1", "2"]
    # example 1: depth 32 alone is wrong; example 2: depth 20 alone is right
    assert (first.count("✓"), first.count("✗")) == (3, 3)
    # example 3: every depth gives 9 for 3, which is no disagreement
    assert others.count("✗") == 3
    assert 'aria-label="wrong"' in others


@pytest.mark.usefixtures("undrawn")
def test_churn_is_shown_for_each_pair_of_depths(tmp_path):
    page = page_of(fabricate(tmp_path / "run"))
    part = page.split("Predictions that flip between depths")[1].split("</table>")[0]
    cells = [re.findall("<td[^>]*>([^<]*)</td>", row) for row in part.split("<tr>")[2:]]
    # of 360 examples, 20 and 26 differ in one, 26 and 32 in one, and the full net 32 is wrong in both
    assert cells == [
        ["20", "–", "0.3%", "0.6%", "0.0%", "0.6%"],
        ["26", "0.3%", "–", "0.3%", "0.0%", "0.3%"],
        ["32", "0.6%", "0.3%", "–", "–", "–"],
    ]
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    write_json(tmp_path / "run" / "results.json", results | {"churn": {"20/churn/26": 0.125}})
    part = page_of(tmp_path / "run").split("Predictions that flip between depths")[1]
    assert part.split("</table>")[0].count("12.5%") == 2  # what the run says, not counted again
    alone = page_of(fabricate(tmp_path / "alone", depths=("20",)))
    assert "Predictions that flip" not in alone


@pytest.mark.usefixtures("undrawn")
def test_reliability_and_examples_use_the_stored_logits(tmp_path):
    run = fabricate(tmp_path / "run")
    found = arrays(DEPTHS)
    found["logits/20"][1] = np.where(np.arange(10) == 7, np.log(9 * 3), 0)  # 27 / (27 + 9)
    np.savez(run / "predictions.npz", **found)
    card = page_of(run).split('alt="test example 1"')[1]
    assert re.search(r'>20</th><td class="guess">7</td><td>75%</td><td><span[^>]*>✗', card)


@pytest.mark.parametrize(
    ("after", "rolled_back", "shown"),
    [
        (
            0.98,
            False,
            'class="note">Validation accuracy of the full net: 97.0% before its sub-nets',
        ),
        (0.95, False, "lost more than 0.5 points of validation accuracy: 97.0% before"),
        (0.97, True, "It was rolled back to its state before (97.0%)"),
    ],
)
def test_what_became_of_the_full_net_is_told(tmp_path, after, rolled_back, shown):
    run = fabricate(tmp_path / "run")
    assert full_net_note(read_run(run, "run")) == ""
    config, results = (json.loads((run / f"{n}.json").read_text()) for n in ("config", "results"))
    config["arguments"]["max_drop"] = 0.5
    results["full_net"] = {"before": 0.97, "after": after, "rolled_back": rolled_back}
    write_json(run / "config.json", config)
    write_json(run / "results.json", results)
    note = full_net_note(read_run(run, "run"))
    assert shown in note
    assert note.count('class="warning"') == (after < 0.97 or rolled_back)


def test_several_runs_are_compared_first(tmp_path):
    runs = [
        fabricate(tmp_path / name, depths=("20", "26"), seed=i) for i, name in enumerate(("one", "two"))
    ]
    page = page_of(*runs)
    assert_stands_alone(page)
    assert page.index("Comparison") < page.index('id="run-1"') < page.index('id="run-2"')
    assert '<a href="#run-2">two</a>' in page
    assert "do not compare" not in page
    assert len(figures_in(page)) == 2 + 2 * (5 + 2)


@pytest.mark.usefixtures("undrawn")
def test_runs_on_other_data_are_called_incomparable(tmp_path):
    runs = [fabricate(tmp_path / "one"), fabricate(tmp_path / "two")]
    config = json.loads((runs[1] / "config.json").read_text())
    config["data"]["fingerprint"] = "ff00"
    write_json(runs[1] / "config.json", config)
    assert "their accuracies do not compare" in page_of(*runs)


@pytest.mark.usefixtures("undrawn")
def test_runs_of_one_folder_name_are_told_apart_by_path(tmp_path):
    page = page_of(fabricate(tmp_path / "a" / "run"), fabricate(tmp_path / "b" / "run"))
    assert f"<h2>{tmp_path / 'a' / 'run'}</h2>" in page


def test_single_depth_without_predictions_is_enough(tmp_path):
    page = page_of(fabricate(tmp_path / "plain", depths=("20",), predictions=False))
    assert_stands_alone(page)
    assert "ekd on digits: 95.0% of 360 test examples right." in page
    assert "disagree" not in page
    assert "(full)" not in page
    assert len(figures_in(page)) == 4


def test_absent_and_nan_values_are_tolerated(tmp_path):
    run = fabricate(tmp_path / "run")
    broken = metrics(DEPTHS)
    broken[3]["loss"] = float("nan")
    broken[4]["loss"] = None
    broken[8]["20/kl"] = float("inf")
    text = "".join(json.dumps(line) + "\n" for line in broken)
    (run / "metrics.jsonl").write_text(text + '{"phase": "ekd", "epo')  # killed while it wrote
    results = json.loads((run / "results.json").read_text())
    results["test"]["20/nll"] = float("nan")
    del results["test"]["26/accuracy"], results["costs"]["32"]["ms_low"], results["examples"]
    write_json(run / "results.json", results)
    page = page_of(run)
    assert_stands_alone(page)
    assert "<td>NaN</td>" in page
    assert len(figures_in(page)) == 5 + len(DEPTHS)


def test_bare_run_still_has_a_page(tmp_path):
    run = tmp_path / "bare"
    run.mkdir()
    write_json(run / "config.json", {"recipe": "ekd"})
    write_json(run / "results.json", {"test": {"20/accuracy": 0.5}})
    page = page_of(run)
    assert "50.0% of the test examples right" in page
    assert not figures_in(page)


def test_epoch_logged_twice_by_a_resumed_run_counts_once(tmp_path):
    lines = metrics(DEPTHS)
    once, resumed = (fabricate(tmp_path / name, predictions=False) for name in ("once", "resumed"))
    twice = [*lines[:9], *lines[7:]]
    (resumed / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in twice))
    assert figures_in(page_of(once)) == figures_in(page_of(resumed))


def test_unfinished_run_is_refused(tmp_path):
    run = fabricate(tmp_path / "run")
    (run / "results.json").unlink()
    with pytest.raises(ValueError, match=r"holds no results\.json.*stepwell train` command") as refusal:
        write_report([run], tmp_path / "report.html")
    assert str(refusal.value).startswith(f"{run} ")
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize("make", [False, True])
def test_what_is_no_run_directory_is_refused(tmp_path, make):
    folder = tmp_path / "other"
    if make:
        folder.mkdir()
    with pytest.raises(
        (ValueError, OSError), match=r"other is no run directory.*train|no file or run dir.*other"
    ):
        write_report([folder], tmp_path / "report.html")


def test_no_run_and_a_folder_as_out_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no run to report on"):
        write_report([], tmp_path / "report.html")
    with pytest.raises(ValueError, match=r"is a folder.*report\.html"):
        write_report([fabricate(tmp_path / "run")], tmp_path)


def fabricate_fidelity(run: Path, depths: tuple[str, ...], *, control: bool, line: bool) -> None:
    """What `eval --fidelity` leaves in a run directory."""
    classes, draw = ["<b>&", "1", "2"], np.random.default_rng(0)
    numbers: dict[str, float] = {"teacher/accuracy": 0.93, "teacher/nll": 0.2, "teacher/ece": 0.03}
    found: dict[str, np.ndarray] = {}
    for depth in depths:
        for key, value in {
            "agreement": 0.913, "control/agreement": 0.888, "transfer": 0.025, "kl": 0.1234,
            "gain": -0.004,
            "cka/layer1": 0.87, "class/1/agreement": 0.777,
        }.items():  # fmt: skip
            if control or not key.startswith(("control", "transfer")):
                numbers |= {
                    f"{depth}/{key}": value,
                    f"{depth}/{key}/low": value - 0.01,
                    f"{depth}/{key}/high": value + 0.02,
                }
        for part in ("train", "test"):
            found[f"{part}/{depth}/matrix"] = np.array([[30, 0, 2], [0, 0, 0], [1, 0, 40]])
            curve = np.stack([draw.integers(0, 9, 15), *draw.uniform(0, 1, (2, 15))])
            found[f"{part}/{depth}/reliability"] = found[f"{part}/teacher/reliability"] = curve
    parts = {part: {"images": 1234, "numbers": numbers} for part in ("train", "augmented", "test")}
    content: dict[str, Any] = {
        "data": {"name": "digits", "fingerprint": "ab12cd34"},
        "student": {"name": "runs/s", "trained": None},
        "teacher": {"name": "runs/<t>@20"},
        "controls": {depth: {"name": "runs/c"} for depth in depths if control},
        "augmentation": "rotate + mixup",
        "depths": depths, "stages": ["layer1"], "classes": classes, "level": 0.95, "parts": parts,
    }  # fmt: skip
    if line:
        points = [
            {"share": x, "test/accuracy": 1 - x, "test/agreement": x, "test/nll": float("nan")}
            for x in (0, 0.5, 1)
        ]
        content["interpolation"] = {depths[0]: points}
    write_json(run / "fidelity.json", content)
    np.savez(run / "fidelity.npz", **found)


def test_fidelity_is_shown_where_it_was_measured(tmp_path):
    run = fabricate(tmp_path / "run", depths=("20",))
    fabricate_fidelity(run, ("20",), control=True, line=True)
    page = page_of(run)
    assert_stands_alone(page)
    part = page.split("Fidelity to the teacher")[1].split("<h3>")[0]
    assert "runs/&lt;t&gt;" in part
    assert part.count("91.3% (90.3–93.3)") == 3
    assert part.count("+2.5 (+1.5 to +4.5)") == 3
    assert part.count("-0.4 (-1.4 to +1.6)") == 3
    assert "where the interval of the difference holds 0 that may be chance" in part
    assert "1,234 images" in part
    assert "augmented: the same images, augmented as in training (rotate + mixup)" in part
    assert "CKA of layer1" in part
    classes = part.split("by class, on test images")[1]
    assert "77.7% (76.7–79.7)" in classes
    assert "&lt;b&gt;&amp;" in classes
    points, curves, matrix, line = figures_in(part)
    assert ">control</text>" in points
    assert ">augmented images</text>" in points
    assert ">teacher</text>" in curves
    assert "mathdefault" not in curves
    assert ">40</text>" in matrix
    assert "BatchNorm statistics measured again" in line


def test_fidelity_of_several_depths_without_a_control_says_what_is_missing(tmp_path):
    run = fabricate(tmp_path / "run")
    fabricate_fidelity(run, DEPTHS[:2], control=False, line=False)
    part = page_of(run).split("Fidelity to the teacher")[1].split("<h3>")[0]
    assert "There is no control" in part
    assert "of the control</td>" not in part
    figures = figures_in(part)
    assert len(figures) == 1 + 2 * 2
    assert all(f">depth {depth}</text>" in figures[0] for depth in DEPTHS[:2])
    (run / "fidelity.npz").unlink()
    write_json(run / "fidelity.json", {"depths": ["20"], "parts": {"test": {}}})
    assert not figures_in(page_of(run).split("Fidelity to the teacher")[1].split("<h3>")[0])


@pytest.mark.parametrize(
    ("about", "message"),
    [
        ({"data": {"name": "<other>", "fingerprint": "x"}}, "other data (&lt;other&gt;)"),
        ({"student": {"trained": "2026-01-01"}}, "an earlier training, which ended 2026-01-01"),
    ],
)
def test_fidelity_of_something_else_than_the_run_is_not_shown_as_its_own(tmp_path, about, message):
    run = fabricate(tmp_path / "run")
    fabricate_fidelity(run, DEPTHS[:1], control=False, line=False)
    file = run / "fidelity.json"
    write_json(file, json.loads(file.read_text()) | about)
    part = fidelity_section(read_run(run, "run"), {})
    assert f"Not shown: fidelity.json is of {message}" in part
    assert "91.3%" not in part


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(
    "name",
    [
        "config.json", "results.json", "evaluations.json", "predictions.npz", "fidelity.json",
        "fidelity.npz",
    ],
)  # fmt: skip
def test_damaged_file_is_named(tmp_path, name):
    run = fabricate(tmp_path / "run")
    fabricate_fidelity(run, DEPTHS[:1], control=True, line=False)
    write_json(run / "evaluations.json", {"evaluations": [], "padding": "x" * 40})
    (run / name).write_bytes((run / name).read_bytes()[:40])
    with pytest.raises(ValueError, match=rf"run/{re.escape(name)}(:| is damaged)"):
        write_report([run], tmp_path / "report.html")


def evaluate_again(run: Path, name: str, *, accuracy: float, own: bool, **more: Any) -> None:
    """Keep an evaluation as `stepwell eval` does, of two depths, one of them new."""
    depths = ("20", "23", "32")
    answers = {"<b>&": {"<b>&": 9, "1": 1}, "1": {"<b>&": 10}}
    results = {
        "kind": "classifier", "rows": "depth", "examples": 20, "churn": {},
        "data": {"name": name, "fingerprint": name, "own": own},
        "test": {f"{d}/accuracy": accuracy for d in depths}
        | {f"{d}/balanced_accuracy": accuracy - 0.2 for d in depths},
        "confusion": dict.fromkeys(depths, answers),
        "costs": {d: {"macs": 1e6, "ms": 2.0, "ms_low": 1.0, "ms_high": 3.0} for d in depths},
    }  # fmt: skip
    keep_evaluation(run, results | more, date="2026-02-03 04:05:06", device="a phone")


CASCADE = {
    "validation": {
        "depths": ["20", "32"], "thresholds": [0.9], "goal": "as accurate as the full net",
        "accuracy": 38 / 39, "macs": 1.2e6, "shares": [0.8, 0.2], "images": 39,
    },
    "test": {
        "accuracy": 0.6, "macs": 1.5e6, "shares": [0.7, 0.3], "images": 20, "full_accuracy": 0.65,
        "full_macs": 2e6, "ms": 1.5, "full_ms": 2.0, "unsure": True,
    },
}  # fmt: skip


@pytest.mark.usefixtures("undrawn")
def test_what_eval_measured_later_is_shown(tmp_path):
    run = fabricate(tmp_path / "run")
    evaluate_again(run, "digits", accuracy=0.625, own=True, cascade=CASCADE)
    evaluate_again(run, "digits", accuracy=0.65, own=True)
    evaluate_again(run, "<other>", accuracy=0.35, own=False)
    page = page_of(run)
    first = page.split('<p class="lead">')[1].split("</p>")[0]
    assert "65.0% of 20 test examples right at the full depth 32, 45.0% in the mean over" in first
    assert "Depths 20, 23, 32 get no test example of class 1 right." in first
    table = page.split("Every depth, tested and measured")[1].split("</table>")[0]
    assert [name in table for name in ("20", "23", "26", "32 (full)")] == [True, True, False, True]
    assert "Measured 2026-02-03 04:05:06 on a phone." in page
    cascade = page.split("<h3>Cascade, set on 39 validation images</h3>")[1].split("<h3>")[0]
    assert "97.4% (86.8–99.5); on 20 test images: 60.0% (38.7–78.1)" in cascade
    assert "the machine was busy, so times are unsure" in cascade
    others = page.split("<h3>Evaluated on other data</h3>")[1].split("<h3>")[0]
    assert "On &lt;other&gt;, by depth" in others
    assert "35.0%" in others
    assert "65.0%" not in others


@pytest.mark.usefixtures("undrawn")
def test_an_evaluation_of_an_earlier_training_is_not_shown(tmp_path):
    run = fabricate(tmp_path / "run")
    evaluate_again(run, "digits", accuracy=0.625, own=True)
    results = json.loads((run / "results.json").read_text())
    write_json(run / "results.json", results | {"finished": "2026-03-01"})
    assert "62.5%" not in page_of(run)


@pytest.mark.parametrize(
    ("slow", "said"),
    [
        ({"ms_low": 2.1, "ms_high": 2.4}, "takes 1.7× fewer MACs, is 1.7× faster and is"),
        ({"ms_low": 1.4, "ms_high": 9.0}, "takes 1.7× fewer MACs and is 2.2 points less accurate (not"),
        ({"unsure": True}, "less accurate (the machine was busy, so times are unsure)"),
    ],
)
def test_no_factor_in_time_where_the_times_are_not_clearly_apart(tmp_path, slow, said):
    run = fabricate(tmp_path / "run")
    results = json.loads((run / "results.json").read_text())
    results["costs"]["32"] |= slow
    write_json(run / "results.json", results)
    sentence = lead(read_run(run, "run"), {})
    assert said in sentence
    assert ("faster and" in sentence) == (said[-2:] == "is")


@pytest.mark.usefixtures("undrawn")
def test_the_worst_of_many_classes_come_first_and_the_rest_is_folded(tmp_path):
    run = fabricate(tmp_path / "run", depths=("20",), predictions=False)
    results = json.loads((run / "results.json").read_text())
    counts = {f"c{i}": {f"c{i}": i, "c0": 50 - i} for i in range(1, 50)}
    write_json(run / "results.json", results | {"confusion": {"20": counts}})
    section = classes_section(read_run(run, "run"), {})
    shown, folded = section.split("<details>")
    assert "The 12 worst of 49 classes at depth 20:" in shown
    assert re.findall(r'class="word">(c\d+)<', shown) == [f"c{i}" for i in range(1, 13)]
    assert re.findall(r'class="word">(c\d+)<', folded) == [f"c{i}" for i in range(13, 50)]
    assert "<td>50</td><td>2.0%</td><td>c0 (49)</td>" in shown


def test_run_facts_stand_at_the_foot(tmp_path, undrawn):
    page = page_of(fabricate(tmp_path / "run"))
    assert (
        page.index("Other examples") < page.index('class="facts"') < page.index("Arguments of the run")
    )


def test_examples_are_of_all_classes_in_turn():
    labels = torch.tensor([0, 0, 0, 1, 1, 2])
    assert in_turn(torch.arange(6), labels).tolist() == [0, 3, 5, 1, 4, 2]
    assert in_turn(torch.tensor([1, 2, 4]), labels).tolist() == [1, 4, 2]
    assert in_turn(torch.tensor([], dtype=torch.long), labels).tolist() == []
