"""What the page on grafting shows runs."""

import re
import shlex
import warnings
from pathlib import Path

import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torchvision.models import ResNet

from stepwell import Batch, Grafting, cli

PAGE = (Path(__file__).parents[1] / "docs" / "netgraft.md").read_text()


@pytest.fixture(autouse=True)
def _as_a_user(quick, monkeypatch, tmp_path):
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        yield


def test_what_the_page_shows_runs(capsys, tmp_path):
    (tmp_path / "photos" / "old").mkdir(parents=True)
    for i, pixels in enumerate(load_digits().images[:60]):
        image = Image.fromarray((pixels * 15.9).astype("uint8"))
        image.save(tmp_path / "photos" / ("old" if i % 2 else "") / f"{i}.png")
    commands = re.findall(r"^    stepwell (.*)$", PAGE, re.MULTILINE)
    assert len(commands) == 7
    for line in commands[:-1]:
        line = line.replace("--epochs 15", "--epochs 1 --batch-size 256")
        if "netgraft" in line:
            line += " --graft-steps 1 --join-steps 1 --views 1"
        cli.main(shlex.split(line))
    assert (tmp_path / "report.html").stat().st_size > 10_000
    said = capsys.readouterr()
    assert "note: " not in said.err.replace("note: the student has learned nothing", "")  # in a step
    assert commands[-1].startswith("verify netgraft ")


def test_a_stop_behind_the_last_phase_goes_on_from_there(capsys, tmp_path, monkeypatch):
    """And what goes on there is told."""
    train = "train supervised --data digits --net resnet8 --epochs 1 --batch-size 256 --out t"
    cli.main(shlex.split(train))
    monkeypatch.delenv("STEPWELL_QUIET")
    graft = "train netgraft --teacher t --student resnet8_slim --shots 2 --schedule direct --out s"
    graft = shlex.split(graft + " --graft-steps 1 --join-steps 1 --views 1")

    def stopped(*_):
        raise KeyboardInterrupt  # a signal of our own may come a step later than it is raised

    with monkeypatch.context() as patch:
        patch.setattr(Grafting, "merged", stopped)
        with pytest.raises(SystemExit, match="130"):
            cli.main(graft)
    stop = "stopped (the finished phases are kept in s): the same command goes on from there"
    assert capsys.readouterr().err.splitlines()[-1] == stop
    cli.main(graft)
    told = capsys.readouterr().err.splitlines()
    merging = told.index("merging the student on 20 images")
    assert told[merging + 1] == "measuring on 359 test images"
    assert (tmp_path / "s" / "results.json").exists()


def test_the_lines_in_python_run():
    ours, others = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    scope: dict = {}
    exec(compile(ours, "netgraft.md", "exec"), scope)
    assert scope["student"].builder[0] == "resnet8"
    exec(compile(others, "netgraft.md", "exec"), scope := {})
    grafting = scope["grafting"]
    assert grafting.names == ("layer1", "layer2", "layer3", "layer4", "head")
    merged, stayed = grafting.merged([Batch(torch.randn(2, 3, 32, 32), torch.full((2,), -1))])
    assert isinstance(merged.module, ResNet)
    assert not stayed
