"""What the page on dynamic resolution shows runs, and what commands say of such a network."""

import contextlib
import json
import re
import shlex
import warnings
from pathlib import Path

import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch.testing import assert_close

from stepwell import cli
from stepwell.kinds import resolution
from stepwell.nets.files.container import kind_of
from stepwell.nets.files.resolution import load_resolution, save_resolution

PAGE = (Path(__file__).parents[1] / "docs" / "drnet.md").read_text()
CODE = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
COMMANDS = re.findall(r"^    stepwell (.*)$", PAGE, re.MULTILINE)


@pytest.fixture(scope="module")
def shown(quick, tmp_path_factory):
    """A folder in which the page's commands have run, but for the study's."""
    root = tmp_path_factory.mktemp("page")
    (root / "photos").mkdir()
    for i, pixels in enumerate(load_digits().images[:64]):
        Image.fromarray((pixels * 15.9).astype("uint8")).save(root / "photos" / f"{i}.png")
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        patch.chdir(root)
        patch.setattr(warnings, "showwarning", warnings.showwarning)
        warnings.simplefilter("always", UserWarning)
        for line in COMMANDS[:-1]:
            net = "resnet14" if "--depths" in line else "resnet8"
            line = re.sub(r"--epochs \d+", f"--epochs 1 --part 1/6 --net {net}", line)
            line = re.sub(r"--budget-ms \d+", "--budget-ms 1000000", line)  # on a busy machine, too
            cli.main(shlex.split(line))
    return root


@pytest.fixture
def stepwell(shown, monkeypatch, capsys):
    monkeypatch.chdir(shown)
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)

    def run(*arguments):
        with contextlib.suppress(SystemExit):
            cli.main(list(arguments))
        return capsys.readouterr()

    return run


def test_what_the_page_shows_runs(shown):
    assert (shown / "runs" / "chosen" / "report.html").stat().st_size > 10_000
    assert COMMANDS[-1].startswith("verify drnet ")


def test_eval_repeats_the_numbers_of_training(shown, stepwell):
    trained = json.loads((shown / "runs" / "chosen" / "results.json").read_text())
    found = json.loads(stepwell("eval", "runs/chosen", "--json").out)
    assert found["test"] == pytest.approx(trained["test"])
    for name in ("shares", "classes", "cost", "price", "unpriced"):
        assert found["drnet"][name] == trained["drnet"][name]
    said = stepwell("eval", "runs/chosen").out
    for text in ("chosen, images/s", "chosen: 8 ", "without it", "speed-up", "by MACs"):
        assert text in said


def test_predict_names_the_choice_and_the_speed(stepwell):
    rows = json.loads(stepwell("predict", "runs/chosen", "photos", "--json").out)
    assert {row["depth"] for row in rows} <= {"8", "6", "4"}
    said = stepwell("predict", "runs/chosen", "photos")
    assert re.search(r"in batches of 64: \d+ images/s, at the costliest choice always \d+: ", said.err)
    assert "in batches of 1: " in said.err
    assert "chosen of 8, 6, 4" in said.out
    assert "images/s" not in stepwell("predict", "runs/chosen", "photos/1.png").err  # too few


def test_one_choice_or_one_depth_for_all_images(shown, stepwell):
    for name in ("4", "8"):  # a resolution, and a depth at full size, which names go first
        given = ["predict", "runs/chosen", "photos", "--depth", name]
        rows = json.loads(stepwell(*given, "--json").out)
        assert {row["depth"] for row in rows} == {name}
        assert f"{'choice' if name == '4' else 'depth'} {name}" in stepwell(*given).out
    net = load_resolution(shown / "runs" / "chosen" / "net.safetensors")
    x = torch.randn(3, 3, 8, 8)
    net.hold("4")
    assert_close(net(x), net.logits_by_choice(x)["4"], rtol=1e-4, atol=1e-4)
    error = stepwell("predict", "runs/chosen", "photos", "--depth", "5").err
    assert "error: no choice '5'; there are 8, 6, 4" in error


def test_a_chooser_that_makes_one_choice_is_told(shown, stepwell, tmp_path):
    net = load_resolution(shown / "runs" / "chosen" / "net.safetensors")
    torch.nn.init.zeros_(net.chooser.scores.weight)
    save_resolution(net, tmp_path / "same.safetensors")
    said = stepwell("eval", str(tmp_path / "same.safetensors"), "--data", "digits").out
    assert "nearly all images make one choice" in said


def test_budgets_set_the_price(shown, stepwell):
    net = load_resolution(shown / "runs" / "chosen" / "net.safetensors")
    cheap, dear = net.budgets[0], net.budgets[-1]
    assert cheap.macs <= dear.macs
    for what, value in (("--budget-macs", cheap.macs * 1.0001), ("--min-accuracy", cheap.accuracy)):
        said = stepwell("predict", "runs/chosen", "photos", what, str(value))
        assert f"cost penalty {cheap.price:.3g}: " in said.err
        assert "chosen of 8, 6, 4" in said.out
    priced = json.loads(
        stepwell("eval", "runs/chosen", "--json", "--budget-macs", str(dear.macs * 1.0001)).out
    )
    assert priced["drnet"]["price"] == pytest.approx(dear.price)
    said = stepwell("eval", "runs/chosen").out
    assert "for predict's --budget-ms, --budget-macs and --min-accuracy" in said
    error = stepwell("predict", "runs/chosen", "photos", "--budget-macs", "10").err
    assert "error: no budget gives 10 MACs an image: they reach from " in error


def test_export_of_one_resolution_says_what_to_do(shown, stepwell):
    error = stepwell("export", "runs/chosen", "--depth", "6").err
    assert "error: --depth 6 is a choice of resolution, and all choices are exported together" in error


def test_a_target_is_told_and_so_is_a_miss(shown, stepwell, monkeypatch):
    said = stepwell("eval", "runs/chosen").out
    target = json.loads((shown / "runs" / "chosen" / "results.json").read_text())["drnet"]["target"]
    assert f"target {100 * target:g} %" in said
    monkeypatch.setattr(resolution, "OVER", 0.01)
    assert "the mean cost is above the target: the cost penalty" in stepwell("eval", "runs/chosen").out


def test_a_budget_of_time_sets_the_price(shown, stepwell):
    net = load_resolution(shown / "runs" / "chosen" / "net.safetensors")
    said = stepwell("predict", "runs/chosen", "photos", "--budget-ms", "1000")
    assert f"cost penalty {net.budgets[-1].price:.3g}: " in said.err  # the most accurate: all fit
    assert " ms here, one by one" in said.err
    assert "chosen of 8, 6, 4" in said.out
    error = stepwell("predict", "runs/chosen", "photos", "--budget-ms", "0.00001").err
    assert "error: no budget gives 1e-05 ms an image: they reach from " in error
    both = ["--budget-ms", "1000", "--budget-macs", str(net.budgets[0].macs * 1.0001)]
    said = stepwell("predict", "runs/chosen", "photos", *both)
    assert f"cost penalty {net.budgets[0].price:.3g}: " in said.err


def test_measured_costs_leave_the_resolutions_in_the_file(shown, stepwell):
    file = shown / "runs" / "chosen" / "net.safetensors"
    stepwell("cost", "runs/chosen", "--save")
    assert kind_of(file) == "resolution"
    error = stepwell("calibrate", "runs/chosen", "--depths", "14").err
    assert (
        "error: stepwell calibrate: runs/chosen holds a network of several resolutions, which cannot be"
        in error
    )
    assert kind_of(file) == "resolution"


def test_a_loop_of_ones_own_gives_what_the_network_does(shown):
    code = CODE[0]
    scope: dict = {}
    exec(compile(code, "drnet.md", "exec"), scope)
    images = torch.randn(9, 3, 8, 8)
    net = load_resolution(shown / "runs" / "chosen" / "net.safetensors")
    with torch.inference_mode():
        expected = net(images)
    found = scope["load"](shown / "runs" / "chosen" / "export")(images.numpy())
    assert_close(torch.from_numpy(found), expected, rtol=1e-3, atol=1e-3)


def test_the_lines_in_python_run():
    scope: dict = {}
    exec(compile(CODE[1], "drnet.md", "exec"), scope)
    assert scope["answer"].logits.shape == (20, 10)
