"""Kinds of networks: files say theirs, and commands and the report ask nothing else."""

import json
import sys
import types
from collections import Counter
from inspect import signature
from pathlib import Path
from pkgutil import resolve_name

import pytest
import torch
from safetensors.torch import save_file

import stepwell
from stepwell import cli
from stepwell.commands.arguments import first_sentence
from stepwell.kinds import KINDS, Predicted, kind_module, open_network
from stepwell.measures import MEASURES
from stepwell.nets.files import container, nested
from stepwell.nets.files import header as file_header
from stepwell.nets.files.container import kind_of
from stepwell.nets.files.initial_weights import initialise
from stepwell.nets.files.nested import fingerprint
from stepwell.nets.files.resolution import load_resolution, save_resolution
from stepwell.nets.resolution.chooser import Choice, Chooser, ResolutionNet
from stepwell.nets.resolution.resolutions import Resolutions
from stepwell.serve import Prediction

CARD = stepwell.Card(classes=("a", "b", "c"), size=16)


def classifier(classes: int = 3) -> stepwell.NestedNet:
    net = stepwell.build("resnet14", ["8"], num_classes=classes)
    net.mark("trained")
    net.card = CARD
    return net.eval()


def resolution() -> ResolutionNet:
    net = Resolutions(classifier(), (16, 12))
    return ResolutionNet(net, [Choice("14", 16), Choice("14", 12)], Chooser(2, 8)).eval()


def as_run(folder: Path) -> Path:
    """A run directory that holds a classifier."""
    folder.mkdir()
    stepwell.save(classifier(), folder / "net.safetensors")
    return folder


def test_files_say_their_kind(tmp_path):
    stepwell.save(classifier(), tmp_path / "c")
    save_resolution(resolution(), tmp_path / "r")
    assert (kind_of(tmp_path / "c"), kind_of(tmp_path / "r")) == ("classifier", "resolution")
    for name, kind in (("c", stepwell.NestedNet), ("r", ResolutionNet)):
        network = stepwell.open_network(tmp_path / name)
        assert isinstance(network.net, kind)
        assert network.config == {}
    assert isinstance(stepwell.load(tmp_path / "r"), stepwell.NestedNet)
    with pytest.raises(ValueError, match="holds a network of one resolution"):
        load_resolution(tmp_path / "c")


def without_kind(file: Path) -> None:
    """Rewrite a file as versions did that wrote no kind."""
    header, tensors, _ = container.read_checked(file, "stepwell", file_header.FORMAT)
    if header.pop("kind") == "resolution":
        header["beside"]["kind"] = "resolutions"
    nested._write(file, header, tensors)


@pytest.mark.parametrize("make", [classifier, resolution])
def test_files_of_older_versions_open_and_keep_their_fingerprint(tmp_path, make):
    net, file = make(), tmp_path / "net"
    (save_resolution if make is resolution else stepwell.save)(net, file)
    now, kind = fingerprint(file), kind_of(file)
    without_kind(file)
    x = torch.randn(2, 3, 16, 16)
    opened = open_network(file)
    assert opened.kind == kind
    assert torch.equal(opened.net(x), net(x))
    if make is classifier:
        assert fingerprint(file) == now


@pytest.mark.parametrize("make", [classifier, resolution])
def test_a_file_is_read_and_checked_once(tmp_path, monkeypatch, make):
    (save_resolution if make is resolution else stepwell.save)(make(), tmp_path / "net")
    calls: Counter[str] = Counter()
    for module, name in ((container, "digest"), (file_header, "read_checked")):
        real = getattr(module, name)
        counted = lambda *a, name=name, real=real: (calls.update([name]), real(*a))[1]  # noqa: E731
        monkeypatch.setattr(module, name, counted)
    open_network(tmp_path / "net")
    assert calls == {"digest": 1, "read_checked": 1}


def test_a_run_directory_is_taken_wherever_a_file_is(tmp_path):
    run = as_run(tmp_path / "run")
    file = run / "net.safetensors"
    x = torch.randn(2, 3, 16, 16)
    assert torch.equal(stepwell.load(run)(x), stepwell.load(file)(x))
    assert fingerprint(run) == fingerprint(file)
    net = stepwell.build("resnet14", ["8"], num_classes=3).eval()
    assert initialise(net, run, CARD.classes).fresh == ()
    assert torch.equal(net(x, "8"), stepwell.load(run)(x, "8"))
    save_resolution(resolution(), file)
    assert load_resolution(run).names == ("16", "12")
    with pytest.raises(ValueError, match="is no run directory: name the --out folder"):
        stepwell.load(tmp_path)
    file.unlink()
    (run / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"holds no net.safetensors, so it is no finished run"):
        stepwell.load(run)
    with pytest.raises(FileNotFoundError, match="no file or run directory"):
        open_network(tmp_path / "nothing")


def toy() -> types.ModuleType:
    """A kind of its own: a vector whose sign answers."""
    module = types.ModuleType("toy_kind")

    def open_(path):
        return torch.tensor([1.0, -2.0])

    def evaluate(network, *, data=None):
        costs = {"sum": {"macs": 2, "ms": 0.5, "batch": 1, "threads": 1}}
        test = {"sum/accuracy": 0.75 if data is None else 0.5}
        return {"kind": "toy", "rows": "way", "test": test, "examples": 4, "costs": costs}

    def show_results(results, title, *, brief=False):
        print(title, results["test"])

    def predict(network, files, *, depth=None):
        label = "plus" if network.net.sum() > 0 else "minus"
        return Predicted([Prediction(f, label, 1.0, depth="sum") for f in files], "signs", "way")

    module.__dict__.update(
        NAME="a toy", ADVICE={"export": "it is small enough to type"}, NEXT=("play {run}",),
        SECTIONS=("stepwell.report.sections:facts", "stepwell.report.sections:row_table"),
        open=open_, evaluate=evaluate, show_results=show_results, predict=predict,
    )  # fmt: skip
    return module


@pytest.fixture
def toy_run(tmp_path, monkeypatch) -> Path:
    monkeypatch.setitem(sys.modules, "toy_kind", toy())
    monkeypatch.setitem(KINDS, "toy", "toy_kind")
    run = tmp_path / "toy"
    run.mkdir()
    header = json.dumps({"format": 1, "kind": "toy"})
    save_file({"w": torch.zeros(1)}, run / "net.safetensors", {"stepwell": header})
    config = {"recipe": "play", "arguments": {}, "data": {"name": "dice"}}
    (run / "config.json").write_text(json.dumps(config))
    results = kind_module("toy").evaluate(None)
    (run / "results.json").write_text(json.dumps(results))
    return run


def test_a_new_kind_is_a_module_and_an_entry(toy_run, tmp_path, capsys):
    cli.main(["eval", str(toy_run), "--data", "x", "--json"])
    assert json.loads(capsys.readouterr().out)["test"] == {"sum/accuracy": 0.5}
    cli.main(["eval", str(toy_run)])
    assert "on 4 images {'sum/accuracy': 0.75}" in capsys.readouterr().out
    (tmp_path / "i.png").touch()
    cli.main(["predict", str(toy_run), str(tmp_path / "i.png")])
    out = capsys.readouterr().out
    assert all(word in out for word in ("signs", "way", "minus"))
    cli.main(["report", str(toy_run)])
    page = (toy_run / "report.html").read_text()
    assert "Every way, tested and measured" in page
    assert "75.0%" in page
    assert "<dd>dice</dd>" in page


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["export"],
            "stepwell export: {run} holds a toy, which cannot be exported; it is small enough to type",
        ),
        (["calibrate"], "stepwell calibrate: {run} holds a toy, which cannot be calibrated; see"),
        (["eval", "--cascade"], "--cascade is not for a toy, which {run} holds: leave it out"),
    ],
)
def test_what_a_kind_cannot_do_is_one_line(toy_run, capsys, arguments, message):
    command, *flags = arguments
    with pytest.raises(SystemExit) as stop:
        cli.main([command, str(toy_run), *flags])
    err = capsys.readouterr().err
    assert (stop.value.code, err.count("\n")) == (2, 1)
    assert message.format(run=toy_run) in err


def test_a_kind_of_a_later_version_is_refused(toy_run, monkeypatch):
    monkeypatch.delitem(KINDS, "toy")
    with pytest.raises(ValueError, match="no kind of network 'toy' in this version of Stepwell"):
        open_network(toy_run)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_whole(kind):
    module = kind_module(kind)
    assert [*signature(module.open).parameters] == ["path", "module"]  # as `open_network` passes them
    assert callable(module.show_results)
    assert module.NAME
    assert all("{run}" in command for command in module.NEXT)
    for path in module.SECTIONS:
        assert callable(resolve_name(path))
    for name in ("TRAINED", "EVALUATED"):
        assert set(getattr(module, name, ())) <= MEASURES.keys()


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_is_there_and_its_line_is_its_docstrings(name):
    path, line = cli.COMMANDS[name]
    assert " ".join(first_sentence(resolve_name(path)).split()) == line
