"""The command line as a user meets it."""

import csv
import importlib
import inspect
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import warnings
from dataclasses import fields, replace
from pathlib import Path
from pkgutil import resolve_name

import pytest
import torch
from filelock import FileLock
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

import stepwell as library
from stepwell import __version__, cli, console
from stepwell.claims import CLAIMS
from stepwell.claims.fidelity.study import STUDY
from stepwell.claims.kit.study import only
from stepwell.console import print_json
from stepwell.data import load_images
from stepwell.device import device_name
from stepwell.evaluation import side_by_side
from stepwell.export import export_onnx
from stepwell.flags import flags_of, groups_of
from stepwell.measure.data_parts import parts_for
from stepwell.nets import BUILDERS, build
from stepwell.nets.files.nested import fingerprint, load, rewrite_card, save
from stepwell.recipes import RECIPES

TRAIN = [
    "train", "ekd", "--data", "digits", "--net", "resnet20", "--depths", "8", "--epochs", "1",
    "--batch-size", "256", "--device", "cpu",
]  # fmt: skip

TEACH = ["train", "distill", "--data", "digits", "--teacher", "{run}"]


@pytest.fixture(autouse=True)
def _warnings(monkeypatch):
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    monkeypatch.setenv("STEPWELL_QUIET", "1")
    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)  # a user reads them as notes
        yield


@pytest.fixture(autouse=True)
def _few_examples(monkeypatch):
    """CKA is computed of few examples: no test here looks at it."""
    monkeypatch.setattr(side_by_side, "CKA_EXAMPLES", 50)


@pytest.fixture
def stepwell(capsys):
    """Runs a command and gives exit code, standard output and standard error."""

    def run(*arguments):
        code = 0
        try:
            cli.main([str(a) for a in arguments])
        except SystemExit as stop:
            code = stop.code or 0
        out, err = capsys.readouterr()
        return code, out, err

    return run


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("cli") / "run"
    cli.main([*TRAIN, "--out", str(out)])
    return out


def digit_images(folder: Path, count=3) -> list[Path]:
    folder.mkdir(parents=True)
    paths = [folder / f"{i}.png" for i in range(count)]
    for i, path in enumerate(paths):
        Image.new("RGB", (10, 12), (20 * i, 50, 90)).save(path)
    return paths


def test_a_run_directory_holds_what_the_design_names(trained):
    names = {p.name for p in trained.iterdir()}
    assert {"config.json", "metrics.jsonl", "net.safetensors", "predictions.npz", "phases"} <= names
    config = json.loads((trained / "config.json").read_text())
    recipe = resolve_name(RECIPES["ekd"][0])
    together = {"loop", "ablation"}
    spread = {name: group for name, group in groups_of(recipe).items() if name not in together}
    flags = inspect.signature(recipe).parameters.keys() - spread.keys()
    flags |= {field.name for group in spread.values() for field in fields(group)}
    assert config["arguments"].keys() == flags
    assert config["data"]["train"] + config["data"]["validation"] + config["data"]["test"] == 1797
    assert {"python", "torch", "stepwell"} <= config["versions"].keys()


def test_training_again_shows_the_same_results_without_training(stepwell, trained):
    before = (trained / "net.safetensors").stat().st_mtime_ns
    code, out, err = stepwell(*TRAIN, "--out", trained)
    assert code == 0
    assert f"nothing was trained: {trained} holds this run, finished" in err
    assert all(word in out for word in ("depth", "blocks", "params", "MACs", "accuracy", "ms per"))
    assert (trained / "net.safetensors").stat().st_mtime_ns == before
    code, out, _ = stepwell(*TRAIN, "--out", trained, "--json")
    assert json.loads(out) == json.loads((trained / "results.json").read_text())


def test_a_damaged_network_is_made_again_of_its_checkpoint(stepwell, trained, tmp_path):
    run = shutil.copytree(trained, tmp_path / "run")
    whole = load_file(trained / "net.safetensors")
    (run / "net.safetensors").write_bytes((run / "net.safetensors").read_bytes()[:-5])
    code, _, err = stepwell(*TRAIN, "--out", run)
    assert (code, "nothing was trained" in err) == (0, False), err
    assert_close(load_file(run / "net.safetensors"), whole, rtol=0, atol=0)
    (run / "results.json").unlink()
    for name, damage, message in (
        ("metrics.jsonl", "{", "metrics.jsonl is damaged ("),
        (
            "config.json",
            '{"recipe": "ekd"}',
            "config.json is damaged (it does not say its arguments)",
        ),
    ):
        (run / name).write_text(damage)
        code, _, err = stepwell(*TRAIN, "--out", run)
        assert (code, err.count("\n")) == (2, 1), err
        assert message in err


def test_eval_repeats_the_numbers_of_training(stepwell, trained):
    code, out, _ = stepwell("eval", trained, "--json")
    assert code == 0
    results = json.loads((trained / "results.json").read_text())
    assert json.loads(out)["test"] == pytest.approx(results["test"], rel=1e-4)
    code, out, _ = stepwell("eval", trained / "net.safetensors", "--data", "digits")
    assert code == 0
    assert "on 359 images" in out


def test_cost_of_a_name_and_of_a_run(stepwell, trained):
    code, out, _ = stepwell("cost", "resnet32", "--depths", "20", "26", "--num-classes", 10, "--json")
    assert code == 0
    assert list(json.loads(out)) == ["20", "26", "32"]
    code, out, _ = stepwell("cost", trained)
    assert code == 0
    assert "at 8×8" in out
    code, out, _ = stepwell("cost", "mobilenet_v2", "--depths", "7", "--stem", "small")
    assert code == 0
    assert "mobilenet_v2 at 32×32" in out


def test_cost_measures_the_network_that_train_would_build(stepwell):
    resnet = ("cost", "resnet18", "--num-classes", 10, "--json", "--size", 16)
    by_default, small = (json.loads(stepwell(*resnet, *stem)[1]) for stem in ((), ("--stem", "small")))
    assert by_default["18"]["macs"] == small["18"]["macs"]


def test_pretrained_is_a_word_and_no_file(stepwell, tmp_path):
    common = ("--data", "digits", "--net", "resnet14", "--init", "pretrained")
    for recipe in (("ekd", "--depths", "8"), ("supervised",)):
        code, _, err = stepwell("train", *recipe, *common, "--out", tmp_path / recipe[0])
        assert code == 2
        assert "torchvision publishes no weights for resnet14" in err


def test_predict_to_a_table_and_to_csv(stepwell, trained, tmp_path):
    paths = digit_images(tmp_path / "in")
    code, out, _ = stepwell("predict", trained, *paths[:2])
    assert code == 0
    assert "0.png" in out
    code, _, err = stepwell(
        "predict", trained, tmp_path / "in", "--depth", "8", "--csv", tmp_path / "o.csv"
    )
    assert code == 0, err
    with (tmp_path / "o.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [Path(r["file"]).name for r in rows] == ["0.png", "1.png", "2.png"]
    assert all(r["class"] in "0123456789" and 0 < float(r["probability"]) <= 1 for r in rows)


def test_predict_gives_the_best_classes_and_names_as_they_are(stepwell, trained, tmp_path, monkeypatch):
    (path, other, _) = digit_images(tmp_path / "in")
    path = path.rename(path.with_name("Öl \x1b[1m\x85.png"))
    other.write_text("no image")
    code, out, _ = stepwell("predict", trained, path, other, "--top", 3, "--json")
    rows = json.loads(out)
    assert (code, "Öl \\u001b[1m\\u0085.png" in out) == (2, True)
    assert rows[0].keys() == {"file", "class", "probability", "depth", "top"}
    assert rows[0]["top"][0]["class"] == rows[0]["class"]
    assert len(rows[0]["top"]) == 3
    assert rows[1].keys() == {"file", "error"}
    expected = load(trained).predict(path, top=3)
    assert rows[0]["top"] == [{"class": c, "probability": p} for c, p in expected.top]
    monkeypatch.chdir(path.parent)  # the table breaks a long path
    code, out, _ = stepwell("predict", trained, path.name, "--top", 3)
    assert (code, "Öl \\x1b[1m\\x85.png" in out, out.count(" % ")) == (0, True, 3)
    stepwell("predict", trained, path, other, "--top", 2, "--csv", tmp_path / "o.csv")
    with (tmp_path / "o.csv").open() as file:
        first, second = csv.DictReader(file)
    assert (first["class"], first["class_2"]) == tuple(c for c, _ in expected.top[:2])
    assert "cannot read image" in second["error"]


def test_json_has_no_nan_and_no_more_escapes_than_it_needs(capsys, monkeypatch):
    value = {"a": [float("nan"), (1.0, -float("inf"))], "ü": "é"}
    print_json(value)
    out = capsys.readouterr().out
    assert "".join(out.split()) == '{"a":[null,[1.0,null]],"ü":"é"}'
    few = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", few)
    print_json(value)
    few.seek(0)
    assert json.loads(few.read()) == {"a": [None, [1.0, None]], "ü": "é"}


def test_a_long_work_off_a_terminal_says_how_far_it_is(capsys, monkeypatch):
    monkeypatch.setattr(console, "EVERY", 0.0)
    monkeypatch.delenv("STEPWELL_QUIET", raising=False)
    assert [*console.track(range(2000), "classifying", 2000)] == [*range(2000)]
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("classifying: 1 of 2,000, about ")
    assert lines[-1] == "classifying: 2,000 of 2,000, about 0 s left"


def test_predict_works_on_a_file_that_was_moved(stepwell, trained, tmp_path):
    shutil.copy(trained / "net.safetensors", tmp_path / "elsewhere.safetensors")
    paths = digit_images(tmp_path / "in")
    both = [
        stepwell("predict", where, *paths, "--json")
        for where in (trained, tmp_path / "elsewhere.safetensors")
    ]
    assert both[0][:2] == both[1][:2]


def test_predict_within_a_budget(stepwell, trained, tmp_path):
    (path, *_) = digit_images(tmp_path / "in")
    code, _, err = stepwell("predict", trained, path, "--budget-ms", 1e6)
    best = load(trained / "net.safetensors").for_budget(ms=1e6)
    assert (code, err.startswith(f"depth {best}: ")) == (0, True)
    code, _, err = stepwell("predict", trained, path, "--budget-ms", 1e-6)
    assert (code, err.count("\n")) == (2, 1)
    assert "no depth has at most 1e-06 ms an image; the cheapest, 8, has" in err
    code, out, err = stepwell("predict", trained, path, "--budget-macs", 1e6, "--json")
    assert (code, json.loads(out)[0]["depth"]) == (0, "8")
    code, out, err = stepwell("predict", trained, path, "--min-accuracy", 0, "--json")
    assert (code, json.loads(out)[0]["depth"]) == (0, "8")


def test_a_budget_on_a_device_without_a_table_measures_first(stepwell, trained, tmp_path):
    (path, *_) = digit_images(tmp_path / "in")
    net = load(trained / "net.safetensors")
    net.card = replace(net.card, latency={"a phone": net.card.latency[device_name()]})
    save(net, tmp_path / "net.safetensors")
    code, _, err = stepwell("predict", tmp_path / "net.safetensors", path, "--budget-ms", 1e6)
    assert (code, "no times of" in err and "net.safetensors --save` keeps" in err) == (0, True)
    assert list(load(tmp_path / "net.safetensors").card.latency) == ["a phone"]


def test_cost_keeps_its_table_in_the_file(stepwell, trained, tmp_path):
    file = shutil.copy(trained / "net.safetensors", tmp_path / "net.safetensors")
    before, whole = load_file(file), load(file)
    here = device_name()
    assert set(whole.card.latency) == {here}  # from training
    assert {d: c["accuracy_on"] for d, c in whole.card.costs.items()} == dict.fromkeys(
        whole.depths, "143 validation images"
    )
    net = load(file)
    net.card = replace(net.card, latency={"a phone": whole.card.latency[here]}, costs={})
    save(net, file)
    code, _, err = stepwell("cost", file, "--save", "--json")
    assert (code, "note: the accuracy of some depths is not known" in err) == (0, True)
    code, _, err = stepwell("cost", file, "--save", "--data", "digits")
    assert (code, "note: no validation part that the network was surely not" in err) == (0, True)
    shutil.copy(trained / "config.json", tmp_path)
    code, out, err = stepwell("cost", file, "--save", "--data", "digits", "--json")
    assert code == 0, err
    card = load(file).card
    assert set(card.latency) == {"a phone", here}
    for depth, cost in json.loads(out).items():
        assert cost["ms"] == card.latency[here][depth]["ms"]
        for name in ("macs", "params", "accuracy", "accuracy_on"):
            assert cost[name] == card.costs[depth][name] == whole.card.costs[depth][name]
    code, out, _ = stepwell("cost", file, "--save", "--data", "digits", "--accuracy-on", "test")
    assert (code, load(file).card.costs["8"]["accuracy_on"]) == (0, "359 test images")
    assert_close(load_file(file), before, rtol=0, atol=0)


def test_a_depth_nobody_trained_is_calibrated_and_then_accepted(stepwell, trained, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    code, out, err = stepwell(
        "calibrate", run, "--depths", "14", "x=3,2,1", "--out", tmp_path / "more", "--json"
    )
    assert code == 0, err
    assert json.loads(out)["calibrated"] == ["14", "x"]
    before = (run / "net.safetensors").read_bytes()
    assert before == (trained / "net.safetensors").read_bytes()
    assert stepwell("calibrate", run, "--depths", "14", "x=3,2,1")[0] == 0
    net, old = load(run / "net.safetensors"), load(trained / "net.safetensors")
    status = {"8": "trained", "14": "calibrated", "x": "calibrated", "20": "trained"}
    assert net.status == status
    assert fingerprint(run / "net.safetensors") == fingerprint(trained / "net.safetensors")
    for name, value in old.tensors().items():
        assert_close(net.tensors()[name], value, rtol=0, atol=0)
    code, out, err = stepwell("eval", run, "--json")
    assert code == 0, err
    found = json.loads(out)
    assert set(found["costs"]) == set(status)
    assert 0 <= found["churn"]["14/churn/20"] <= 1
    assert "x/negative_flips" in found["churn"]
    # the run itself is as it was: training it again shows its own results
    code, out, _ = stepwell(*TRAIN, "--out", run, "--json")
    assert (code, json.loads(out)) == (0, json.loads((trained / "results.json").read_text()))
    assert set(load(run / "net.safetensors").depths) == set(status)
    # damaged results are measured again, of all that is in the file
    (run / "results.json").write_text("{")
    calibrated = (run / "net.safetensors").read_bytes()
    code, out, err = stepwell(*TRAIN, "--out", run, "--json")
    assert (code, set(json.loads(out)["costs"])) == (0, set(status)), err
    assert (run / "net.safetensors").read_bytes() == calibrated


def test_a_run_that_is_being_written_is_left_alone(stepwell, trained, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    before = (run / "net.safetensors").read_bytes()
    with FileLock(run / "lock"):
        for command in (["cost", run, "--save"], ["calibrate", run, "--depths", "14"]):
            code, _, err = stepwell(*command)
            assert (code, "another process is writing to" in err) == (2, True), err
    assert (run / "net.safetensors").read_bytes() == before
    assert stepwell("cost", run / "net.safetensors", "--save")[0] == 0


MEASURING = {
    "cost": (["cost", "{file}", "--save"], "stepwell.measure.depths.costs_of"),
    "eval": (
        ["eval", "{file}", "--data", "{data}", "--cascade", "--save"],
        "stepwell.measure.cascade.measure_cascade",
    ),
    "calibrate": (
        ["calibrate", "{file}", "--data", "digits", "--depths", "14"],
        "stepwell.measure.depths.costs_of",
    ),
}


@pytest.fixture(params=MEASURING)
def measuring(request, stepwell, trained, tmp_path, image_folder, monkeypatch):
    """A file, and a command that measures for it and, while it does, calls what it is given."""
    file = shutil.copy(trained / "net.safetensors", tmp_path / "net.safetensors")
    for part in ("train", "val", "test"):
        image_folder(tuple("0123456789"), 2, (8, 8), root=tmp_path / "data" / part)
    command, place = MEASURING[request.param]
    command = [word.format(file=file, data=tmp_path / "data") for word in command]

    def run(meanwhile=lambda: None):
        module, _, name = place.rpartition(".")
        measure = getattr(importlib.import_module(module), name)

        def measured(*arguments, **options):
            meanwhile()
            return measure(*arguments, **options)

        with monkeypatch.context() as patch:
            patch.setattr(place, measured)
            return stepwell(*command)

    return file, run


def test_a_card_that_others_changed_meanwhile_keeps_their_change(measuring):
    file, run = measuring
    before = load(file).card

    def meanwhile():
        rewrite_card(file, replace(before, licence="CC0"))

    code, _, err = run(meanwhile)
    assert code == 0, err
    after = load(file)
    assert after.card.licence == "CC0"
    assert after.card != replace(before, licence="CC0")


def test_a_file_that_holds_another_network_by_now_is_left_alone(measuring):
    file, run = measuring
    net = load(file)
    torch.nn.init.normal_(net.module.fc.weight)
    code, _, err = run(lambda: save(net, file))
    assert (code, "was replaced by another network while" in err) == (2, True), err
    assert_close(load_file(file), net.tensors(), rtol=0, atol=0)


def test_what_cannot_be_written_is_refused_before_anything_is_measured(measuring):
    file, run = measuring

    def meanwhile():
        raise AssertionError("measured")

    with FileLock(file.parent / ".net.safetensors.lock"):
        code, _, err = run(meanwhile)
    assert (code, f"another process is writing to {file}" in err) == (2, True), err
    (file.parent / "8.onnx").touch()
    code, _, err = run(meanwhile)
    assert (code, "may read its weights from" in err) == (2, True), err


def test_a_student_of_a_network_whose_table_was_measured_again_goes_on(stepwell, trained, tmp_path):
    teacher = tmp_path / "teacher.safetensors"
    shutil.copy(trained / "net.safetensors", teacher)
    arguments = [
        "train", "distill", "--data", "digits", "--epochs", 1, "--batch-size", 256, "--json",
        "--teacher", teacher, "--student", "resnet8", "--out", tmp_path / "s", "--device", "cpu",
    ]  # fmt: skip
    assert stepwell(*arguments)[0] == 0
    assert stepwell("calibrate", teacher, "--depths", "14", "--data", "digits")[0] == 0
    code, _, err = stepwell(*arguments)
    assert code == 0, err


def test_a_cascade_is_calibrated_kept_and_used(stepwell, trained, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    code, out, err = stepwell("eval", run, "--cascade", "--save", "--json")
    assert code == 0, err
    found = json.loads(out)
    validation, test = found["cascade"]["validation"], found["cascade"]["test"]
    assert validation["images"] == 143
    assert test["images"] == 359
    assert sum(test["shares"]) == pytest.approx(1)
    assert test["full_accuracy"] == found["test"]["20/accuracy"]
    assert load(run / "net.safetensors").card.cascade == validation
    code, out, _ = stepwell("eval", run, "--cascade", "--budget-macs", "1.5e6")
    assert (code, "goal on the validation images: at most 1.50 M MACs an image" in out) == (0, True)
    assert "cascade, set on 143 validation images" in out
    digit_images(tmp_path / "in")
    csv_file = tmp_path / "o.csv"
    code, _, err = stepwell("predict", run, tmp_path / "in", "--cascade", "--csv", csv_file)
    assert code == 0, err
    with csv_file.open() as file:
        assert {row["depth"] for row in csv.DictReader(file)} <= set(validation["depths"])
    assert "cascade of" in stepwell("predict", run, tmp_path / "in", "--cascade")[1]


def test_one_bad_image_stops_no_other(stepwell, trained, tmp_path):
    paths = digit_images(tmp_path / "in")
    paths[1].write_bytes(paths[1].read_bytes()[:30])
    code, _, err = stepwell("predict", trained, tmp_path / "in", "--csv", tmp_path / "o.csv")
    assert code == 2
    assert "cannot read image" in err
    assert "1 of 3 files could not be read" in err
    assert len((tmp_path / "o.csv").read_text().splitlines()) == 4


def test_a_single_bad_image_is_one_line(stepwell, trained, tmp_path):
    (tmp_path / "bad.png").write_text("no image")
    code, out, err = stepwell("predict", trained, tmp_path / "bad.png")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "error: cannot read image" in err


def test_many_bad_images_are_counted_and_the_first_are_named(stepwell, trained, tmp_path):
    for i in range(12):
        (tmp_path / f"{i:02}.png").write_text("no image")
    code, out, err = stepwell("predict", trained, tmp_path)
    assert (code, out, err.count("\n")) == (2, "", 11)
    assert "09.png" in err
    assert "error: 12 of 12 files could not be read; the first 10 are named above" in err


def test_a_cascade_needs_two_depths(stepwell, trained, tmp_path):
    plain = build("resnet8", num_classes=10)
    plain.card = load(trained / "net.safetensors").card
    plain.mark("trained")
    file = save(plain, tmp_path / "net.safetensors")
    for command in (["eval", file, "--data", "digits"], ["predict", file, tmp_path]):
        code, out, err = stepwell(*command, "--cascade")
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert "a cascade needs two depths or more, and this network has 8 ready" in err


def test_export_checks_on_real_images(stepwell, trained, tmp_path):
    code, out, err = stepwell("export", trained, "--depth", "8", "--to", tmp_path / "x", "--json")
    assert code == 0, err
    (row,) = json.loads(out)["files"]
    assert (row["parity"]["part"], row["parity"]["images"]) == ("validation", 64)
    assert row["parity"]["difference"] < 1e-4
    assert (tmp_path / "x" / row["file"]).stat().st_size == row["bytes"]
    code, out, _ = stepwell("export", trained, "--format", "safetensors", "--out", tmp_path / "y")
    assert code == 0
    assert "checked on 64 validation images" in out
    assert {p.name for p in (tmp_path / "y").iterdir()} == {
        "8.safetensors", "20.safetensors", "export.json", "preprocess.py"
    }  # fmt: skip


def test_an_export_after_calibration_replaces_the_runs_own(stepwell, trained, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    exports = ["export", tmp_path / "run", "--format", "safetensors"]
    assert stepwell(*exports, "--depth", "8")[0] == 0
    assert stepwell("calibrate", tmp_path / "run", "--depths", "14")[0] == 0
    code, _, err = stepwell(*exports)
    assert code == 0, err
    index = json.loads((tmp_path / "run" / "export" / "export.json").read_text())
    assert [row["depth"] for row in index["files"]] == ["8", "14", "20"]
    assert {d: row["status"] for d, row in index["depths"].items()} == load(tmp_path / "run").status
    assert index["depths"]["14"]["accuracy_on"] == "143 validation images"


def test_a_module_of_ones_own_on_the_command_line(stepwell, tmp_path, monkeypatch):
    (tmp_path / "mine_on_the_command_line.py").write_text(
        "from torch import nn\n"
        "def make():\n"
        "    blocks = [nn.Conv2d(3, 3, 3, padding=1) for _ in range(2)]\n"
        "    stage = nn.Sequential(*blocks)\n"
        "    rest = nn.Sequential(nn.Flatten(), nn.Linear(192, 10))\n"
        "    return nn.Sequential(stage, rest)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)  # which the command does itself, for the current folder
    monkeypatch.chdir(tmp_path)
    make = importlib.import_module("mine_on_the_command_line").make
    net = library.nest(make(), ["0"], {"half": (1,)}, input_size=(3, 8, 8))
    net.card = library.Card(tuple("0123456789"), 8)
    net.mark("trained")
    file = save(net, tmp_path / "mine.safetensors")
    (path, *_) = digit_images(tmp_path / "in")
    module = ["--module", "mine_on_the_command_line:make"]
    code, out, err = stepwell("predict", file, path, *module, "--json")
    assert code == 0, err
    assert json.loads(out)[0]["class"] == net.eval().predict(path).label
    assert stepwell("eval", file, "--data", "digits", *module)[0] == 0
    code, _, err = stepwell("export", file, "--format", "safetensors", *module)
    assert (code, (tmp_path / "export" / "half.safetensors").exists()) == (0, True), err
    code, _, err = stepwell("predict", file, path)
    assert (code, err.count("\n"), "or --module PACKAGE:FACTORY" in err) == (2, 1, True)
    code, _, err = stepwell("eval", file, "--cascade", "--save", *module)
    assert (code, "--save is not for networks with --module" in err) == (2, True)


def test_export_of_a_run_whose_data_has_gone(stepwell, trained, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    config["arguments"]["data"] = str(tmp_path / "gone")
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    arguments = ["export", tmp_path / "run", "--depth", "8", "--format", "safetensors"]
    code, out, err = stepwell(*arguments)
    assert code == 0, err
    assert "its data cannot be used: no data" in err
    assert "test images" in out
    code, _, err = stepwell("export", tmp_path / "run", "--depth", "8", "--int8")
    assert code == 2
    assert "no data" in err
    code, out, _ = stepwell(*arguments, "--data", "digits", "--json")
    assert json.loads(out)["files"][0]["parity"]["part"] == "validation"


def test_a_delta_by_the_command_line(stepwell, trained, tmp_path):
    code, _, err = stepwell("export", trained, "--format", "safetensors", "--to", tmp_path / "y")
    assert code == 0, err
    arguments = ["export", trained, "--depth", "20", "--beyond", "8", "--out", tmp_path / "d"]
    code, out, err = stepwell(*arguments)
    assert code == 0, err
    assert all(word in out for word in ("delta", "depth 8", "depth 20", "100.0 %"))
    code, out, _ = stepwell(*arguments, "--json")
    assert json.loads(out)["bytes"] == (tmp_path / "d").stat().st_size
    base = tmp_path / "y" / "8.safetensors"
    code, _, err = stepwell("patch", base, tmp_path / "d", "--out", tmp_path / "20")
    assert (code, "wrote" in err) == (0, True)
    assert (tmp_path / "20").read_bytes() == (tmp_path / "y" / "20.safetensors").read_bytes()


def test_report_writes_one_page(stepwell, trained, tmp_path):
    code, _, err = stepwell("report", trained)
    assert code == 0, err
    page = (trained / "report.html").read_text()
    assert "<h1" in page
    assert 'src="http' not in page


def test_report_shows_what_eval_measured_last(stepwell, trained, tmp_path, image_folder):
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    assert stepwell("calibrate", run, "--depths", "14")[0] == 0
    code, _, err = stepwell("eval", run, "--cascade")
    assert (code, f"kept in {run}; next: stepwell report {run}" in err) == (0, True)
    assert stepwell("eval", run)[0] == 0  # which leaves the cascade
    for part in ("train", "test"):
        other = image_folder(tuple("0123456789"), 2, (8, 8), root=tmp_path / "other" / part).parent
    code, out, err = stepwell("eval", run / "net.safetensors", "--data", other)
    assert (code, f"on20imagesof{other}" in "".join(out.split())) == (0, True), err
    assert stepwell("report", run)[0] == 0
    page = (run / "report.html").read_text()
    own, others = page.split("<h3>Evaluated on other data</h3>")
    assert '<td class="word">14</td>' in own.split("Every depth, tested and measured")[1]
    assert "Cascade, set on 143 validation images" in own
    assert f"On {other}, by depth" in others
    with FileLock(run / "lock"):  # another process writes to the run
        code, out, err = stepwell("eval", run, "--json")
        assert (code, "note: not kept for the report: another process" in err) == (0, True)
    assert json.loads(out)["data"]["own"] is True


def test_times_of_a_busy_machine_are_doubted(stepwell, trained, tmp_path, monkeypatch):
    (path, *_) = digit_images(tmp_path / "in")
    file = shutil.copy(trained / "net.safetensors", tmp_path / "net.safetensors")
    monkeypatch.setattr("stepwell.cost.latency.SERVED", 1e9)
    code, out, err = stepwell("cost", file, "--save")
    assert (code, "1 thread; the machine was busy, so times are unsure" in out) == (0, True), err
    monkeypatch.undo()
    monkeypatch.setenv("STEPWELL_QUIET", "1")
    code, _, err = stepwell("predict", file, path, "--budget-ms", 1e6)
    assert (code, err.count("\n")) == (0, 1)
    again = (
        f"the machine was busy, so times are unsure: measure again with `stepwell cost {file} --save`"
    )
    assert again in err


def test_other_recipes_train_and_teach(stepwell, trained, tmp_path):
    common = ["--data", "digits", "--epochs", 1, "--batch-size", 256, "--json"]
    code, out, err = stepwell(
        "train", "supervised", *common, "--net", "resnet20", "--out", tmp_path / "t",
        "--init", trained / "net.safetensors",
    )  # fmt: skip
    assert code == 0, err
    code, out, err = stepwell(
        "train", "distill", *common, "--teacher", tmp_path / "t", f"{trained}@8", "--cache",
        tmp_path / "logits", "--student", "resnet20", "--out", tmp_path / "s",
    )  # fmt: skip
    assert code == 0, err
    assert list(json.loads(out)["costs"]) == ["20"]
    code, _, err = stepwell(
        "train", "ekd", *common, "--net", "resnet20", "--depths", "8", "tiny=1,2,1",
        "--schedule", "two-phase", "--out", tmp_path / "n",
    )  # fmt: skip
    assert code == 0, err
    phases = {p.name for p in (tmp_path / "n" / "phases").iterdir()}
    assert phases == {"full", "nest"}


def test_what_the_page_on_budgets_shows_runs(stepwell, trained, tmp_path, monkeypatch):
    page = (Path(__file__).parents[1] / "docs" / "budgets.md").read_text()
    page = page.replace("0.95", "0.1")  # the run here is trained for an epoch
    shutil.copytree(trained, tmp_path / "runs" / "digits")
    digit_images(tmp_path / "images")
    monkeypatch.chdir(tmp_path)
    commands = re.findall(r"^    stepwell (.*)$", page, re.MULTILINE)
    assert commands[0].startswith("train ekd --data digits")
    for line in commands[1:]:
        code, _, err = stepwell(*shlex.split(line))
        assert code == 0, f"{line}: {err}"
    names = {"stepwell": library, "images": torch.randn(2, 3, 8, 8)}
    for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(compile(code, "budgets.md", "exec"), names)
    assert names["cascade"].depths == ("8", "20")
    assert "Cascade" in library.__all__


FIDELITY = Path(__file__).parents[1] / "docs" / "fidelity.md"


@pytest.fixture(scope="module")
def taught(tmp_path_factory) -> Path:
    """A folder in which the page on fidelity has trained, for an epoch."""
    folder = tmp_path_factory.mktemp("fidelity")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for line in re.findall(r"^    stepwell (train .*)$", FIDELITY.read_text(), re.MULTILINE):
            line = line.replace("--epochs 15", "--epochs 1 --batch-size 256")
            line = line.replace("--net resnet20", "--net resnet14").replace("8 14", "8=1,1,1")
            cli.main([*shlex.split(line), "--device", "cpu"])
    return folder


@pytest.mark.long
def test_what_the_page_on_fidelity_shows_runs(stepwell, taught, monkeypatch):
    page = FIDELITY.read_text()
    monkeypatch.chdir(taught)
    commands = re.findall(r"^    stepwell ((?!train|verify).*)$", page, re.MULTILINE)
    assert len(commands) == 7
    for line in re.findall(r"^    stepwell verify fidelity (.*)$", page, re.MULTILINE):
        _, _, patterns = line.partition("--arms ")  # hours of training: that the arms are there must do
        assert only(STUDY, shlex.split(patterns) or ["*"])
    assert f"{len(STUDY.arms)} arms a seed" in page
    assert f"the {len(STUDY.claims)} claims" in page
    for line in commands:
        line = line.replace("--interpolate 11", "--interpolate 2").replace("@14", "@8")
        code, out, err = stepwell(*shlex.split(line))
        assert code == 0, f"{line}: {err}"
        if "control" in line:
            for words in (
                "transfer: the difference, points",
                "augmented: standard",
                "CKA of layer3",
            ):
                assert words in out
    report = (taught / "runs" / "student" / "report.html").read_text()
    assert "Fidelity to the teacher" in report
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    labels = torch.arange(6) % 2
    z = torch.randn(6, 2)
    names = dict.fromkeys(("teacher_logits", "student_logits"), z) | {"labels": labels}
    names |= dict.fromkeys(("teacher", "student", "control"), torch.clone)
    exec(compile(code, "fidelity.md", "exec"), names | {"batches": [library.Batch(z, labels)]})


@pytest.mark.long
def test_what_the_page_on_distillation_shows_runs(stepwell, image_folder, tmp_path, monkeypatch):
    page = (Path(__file__).parents[1] / "docs" / "distillation.md").read_text()
    for folder in ("extra", "photos"):
        digit_images(tmp_path / folder, 6)
    image_folder(root=tmp_path / "labelled")
    save_file(build("timm/resnet18").module.state_dict(), tmp_path / "resnet18.safetensors")
    monkeypatch.chdir(tmp_path)
    commands = re.findall(r"^    stepwell (.*)$", page, re.MULTILINE)
    assert len(commands) == 18
    for line in commands:
        line = line.replace("--size 64", "--size 32 --epochs 1 --batch-size 4 --device cpu")
        line = line.replace("--epochs 15", "--epochs 1 --batch-size 64 --part 1/8 --device cpu")
        line = line.replace("--generator-steps 1500", "--generator-steps 2 --synthetic-count 16")
        line = line.replace("resnet14", "resnet8").replace("resnet20_ln", "resnet8_ln")
        code, out, err = stepwell(*shlex.split(line), *["--json"] * line.startswith("train"))
        assert code == 0, f"{line}: {err}"
        if "runs/second" in line:  # the first one has filled the cache
            assert json.loads(out)["distill"]["cache"] == {"read": 160, "computed": 0}
    assert "against the ensemble of runs/one@8, runs/two@8" in " ".join(out.split())
    assert "no CKA: the ensemble of runs/one@8, runs/two@8 gives no features" in err
    # what was mixed in training is compared mixed, and has no class
    code, out, err = stepwell("eval", "runs/mixed", "--fidelity", "runs/one", "--json")
    assert code == 0, err
    found = json.loads(out)["fidelity"]
    assert found["augmentation"] == "rotate + mixup"
    augmented, train = (found["parts"][p]["numbers"] for p in ("augmented", "train"))
    assert {"8/agreement", "8/kl", "8/cka/layer1"} <= augmented.keys() & train.keys()
    assert "8/accuracy" not in augmented
    assert augmented["8/kl"] != train["8/kl"]
    assert "rotate + mixup" in stepwell("eval", "runs/mixed", "--fidelity", "runs/one")[1]
    assert stepwell("report", "runs/mixed")[0] == 0
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    exec(compile(code, "distillation.md", "exec"), {})


@pytest.mark.long
def test_a_teacher_is_the_same_by_every_name(stepwell, taught, odd_files, tmp_path):
    run = shutil.copytree(taught / "runs" / "student", tmp_path / "student")
    teacher, control = (taught / "runs" / name for name in ("teacher", "control"))
    graph = odd_files / "8.onnx"
    measured = []
    for names in ([teacher], [f"{teacher}@8"], [graph], [teacher, graph]):
        code, out, err = stepwell("eval", run, "--fidelity", *names, "--control", control, "--json")
        assert code == 0, err
        found = json.loads(out)["fidelity"]
        measured.append(found["parts"]["test"]["numbers"])
        assert found["stages"] == (["layer1", "layer2", "layer3"] if len(measured) < 3 else [])
    for other in measured[1:]:
        for key in ("8/agreement", "8/kl", "teacher/nll", "8/transfer_kl", "8/control/agreement"):
            assert other[key] == pytest.approx(measured[0][key], rel=1e-4), key


def test_anybodys_onnx_file_is_compared_with(stepwell, taught, tmp_path, foreign_onnx):
    run = shutil.copytree(taught / "runs" / "student", tmp_path / "student")
    w = foreign_onnx(tmp_path / "p.onnx", "n", classes=10)
    plain = ["--teacher-mean", 0, 0, 0, "--teacher-std", 1, 1, 1]
    code, out, err = stepwell("eval", run, "--fidelity", tmp_path / "p.onnx", *plain, "--json")
    assert code == 0, err
    for said in (
        "does not name its classes: assuming the data's order for its 10",
        "gives probabilities, not logits (no negative numbers, each row sums to 1): their logarithm",
        "no CKA: ",
    ):
        assert said in err
    splits = load_images("digits", 8)
    z = (splits.test.pixels.float() / 255).flatten(1) @ w
    expected = torch.nn.functional.cross_entropy(z.double(), splits.test.labels).item()
    numbers = json.loads(out)["fidelity"]["parts"]["test"]["numbers"]
    assert numbers["teacher/nll"] == pytest.approx(expected, rel=1e-3)


def test_a_student_is_compared_on_the_same_pixels_in_train_and_test(stepwell, taught, tmp_path):
    run = shutil.copytree(taught / "runs" / "student", tmp_path / "student")
    teacher, control = (taught / "runs" / name for name in ("teacher", "control"))
    code, out, err = stepwell(
        "eval", run, "--fidelity", teacher, "--control", control, "--interpolate", 3, "--json"
    )
    assert code == 0, err
    found = json.loads(out)["fidelity"]
    assert found == json.loads((run / "fidelity.json").read_text())
    results, config = (json.loads((run / f"{n}.json").read_text()) for n in ("results", "config"))
    assert found["student"]["trained"] == results["finished"]
    assert found["data"] == {key: config["data"][key] for key in ("name", "fingerprint")}
    assert {part: v["images"] for part, v in found["parts"].items()} == {
        "train": 1295, "augmented": 1295, "test": 359
    }  # fmt: skip
    nets = {name: load(taught / "runs" / name / "net.safetensors") for name in ("teacher", "student")}
    config = json.loads((run / "config.json").read_text())
    parts = parts_for(nets["student"], "digits", config["data"]["fingerprint"], val_fraction=0.1)
    expected = library.fidelity(nets["teacher"], nets["student"], parts.test)
    numbers = found["parts"]["test"]["numbers"]
    for key in ("agreement", "kl", "kl/low", "teacher/nll", "gain/high"):
        name = key if key.startswith("teacher") else f"8/{key}"
        assert numbers[name] == pytest.approx(expected[key])
    train, changed = (found["parts"][p]["numbers"]["8/accuracy"] for p in ("train", "augmented"))
    assert train != changed
    start, middle, end = found["interpolation"]["8"]
    assert (start["share"], middle["share"], end["share"]) == (0, 0.5, 1)
    assert {"train/nll", "test/accuracy", "test/agreement"} <= end.keys()
    for point, name in ((start, "student"), (end, "teacher")):
        plain, seen = nets[name].subnet().train(), 0
        norms = [m for m in plain.modules() if isinstance(m, torch.nn.BatchNorm2d)]
        for images, _ in parts.train:
            seen += len(images)
            for norm in norms:
                norm.momentum = len(images) / seen  # the first batch replaces what was there
            plain(images)
        measured = library.evaluate(plain.eval(), parts.test)
        assert point["test/nll"] == pytest.approx(measured["nll"])
    # a teacher that is normalised in its own way sees the same pixels
    net = load(teacher / "net.safetensors")
    net.card = replace(net.card, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    save(net, tmp_path / "other.safetensors")
    code, out, err = stepwell("eval", run, "--fidelity", tmp_path / "other.safetensors", "--json")
    assert code == 0, err
    other = json.loads(out)["fidelity"]["parts"]["test"]["numbers"]
    assert other["teacher/accuracy"] != numbers["teacher/accuracy"]


def test_sub_nets_are_compared_with_their_own_full_net(stepwell, trained, tmp_path):
    run = shutil.copytree(trained, tmp_path / "run")
    code, out, err = stepwell("eval", run, "--fidelity", run, "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["fidelity"]["depths"] == ["8"]
    numbers = found["fidelity"]["parts"]["test"]["numbers"]
    assert numbers["8/agreement"] == found["test"]["8/agreement"]
    assert numbers["teacher/accuracy"] == found["test"]["20/accuracy"]
    assert not any(key.startswith("20/") for key in numbers)
    code, out, _ = stepwell("eval", run, "--fidelity", f"{run}@8", "--json")
    assert json.loads(out)["fidelity"]["depths"] == ["20"]


def test_on_other_data_a_student_is_compared_on_test_images_only(
    stepwell, trained, taught, tmp_path, image_folder
):
    folder = image_folder(tuple("0123456789"), 4, (8, 8))
    file = shutil.copy(trained / "net.safetensors", tmp_path / "net.safetensors")
    teacher = taught / "runs" / "teacher"
    code, out, err = stepwell("eval", file, "--fidelity", teacher, "--data", folder, "--json")
    assert code == 0, err
    assert list(json.loads(out)["fidelity"]["parts"]) == ["test"]
    assert "compared on test images only" in err
    assert not (tmp_path / "fidelity.json").exists()
    run = shutil.copytree(trained, tmp_path / "run")
    (run / "fidelity.json").write_text("what was measured on its own data")
    code, out, err = stepwell("eval", run, "--fidelity", teacher, "--data", folder, "--json")
    assert code == 0, err
    assert json.loads(out)["fidelity"]["data"]["name"] != "digits"
    assert "not saved in" in err
    assert (run / "fidelity.json").read_text() == "what was measured on its own data"


def test_what_makes_a_comparison_doubtful_is_said(stepwell, taught, tmp_path):
    runs = taught / "runs"
    run = shutil.copytree(runs / "student", tmp_path / "student")
    config = json.loads((run / "config.json").read_text())
    config["arguments"]["seed"] = 0
    (run / "config.json").write_text(json.dumps(config))
    code, _, err = stepwell("eval", run, "--fidelity", runs / "teacher")
    assert (code, "has the --seed of its teacher" in err) == (0, True), err
    teacher = shutil.copytree(runs / "teacher", tmp_path / "teacher")
    config = json.loads((teacher / "config.json").read_text())
    config["data"]["fingerprint"] = "another"
    (teacher / "config.json").write_text(json.dumps(config))
    net = load(teacher / "net.safetensors")
    net.card = replace(net.card, size=16)
    save(net, teacher / "net.safetensors")
    code, _, err = stepwell("eval", run, "--fidelity", teacher)
    assert code == 0, err
    assert "was trained on other data than" in err
    assert "images are scaled from 8 to 16 pixels" in err


def test_a_config_of_somebody_elses_is_of_no_run(stepwell, taught, tmp_path):
    """Such as that which other libraries keep beside their weights."""
    runs = taught / "runs"
    files = {}
    for name in ("student", "teacher", "control"):
        folder = tmp_path / name
        folder.mkdir()
        files[name] = shutil.copy(runs / name / "net.safetensors", folder)
        (folder / "config.json").write_text('{"architectures": ["resnet"], "arguments": {}}')
    teacher, control = files["teacher"], files["control"]
    pair = ["--fidelity", teacher, "--control", control]
    code, _, err = stepwell("eval", runs / "student", *pair)
    assert code == 0, err
    code, _, err = stepwell("eval", files["student"], *pair)
    assert (code, "is not in a run directory, so say what to measure on" in err) == (2, True), err
    code, _, err = stepwell("eval", files["student"], *pair, "--data", "digits")
    assert code == 0, err


BAD_PAIRS = {
    "nothing to compare": (["--fidelity"], "--fidelity: name the teacher after it, such as a run"),
    "bits that are no number": (["--bits", "8", "b"], "--bits: cannot read '8', 'b'"),
    "no number of bits": (["--bits"], "--bits: name the numbers of bits after it, such as 8 6 5 4"),
    "nothing before a flag": (["--fidelity", "--json"], "--fidelity: name the teacher after it"),
    "no fidelity": (["--control", "{t}"], "--control and --interpolate need --fidelity"),
    "no teacher": (["--fidelity", "{tmp}/none"], "no teacher '{tmp}/none': name a run directory"),
    "no run": (["--fidelity", "{tmp}"], "{tmp} is no run directory: name the --out"),
    "no depth": (["--fidelity", "{t}@9"], "no depth '9'; this net has 8"),
    "itself": (["--fidelity", "{s}"], "is the network {s} itself, and has no other depth"),
    "order": (
        ["--fidelity", "{tmp}/order"],
        "the data have the same classes in another order (number 0 is '9' and '0')",
    ),
    "classes": (
        ["--fidelity", "{tmp}/names"],
        "{tmp}/names has 10 classes, the data has 10, and they differ: only the first has 'nine', "
        "only the second has '9'; both need the same classes in the same order",
    ),
    "members": (
        ["--fidelity", "{t}", "{tmp}/order"],
        "{t} and {tmp}/order have the same classes in another order",
    ),
    "classes of the control": (
        ["--fidelity", "{t}", "--control", "{tmp}/order"],
        "{tmp}/order@8 and the data have the same classes in another order",
    ),
    "line to several": (
        ["--fidelity", "{t}", "{run}", "--interpolate", "3"],
        "--interpolate: an ensemble ({t}, {run}) has no weights of its own: name one teacher",
    ),
    "line to a graph": (
        ["--fidelity", "{tmp}/8.onnx", "--interpolate", "3"],
        "--interpolate: {tmp}/8.onnx has no weights to share: name a file of weights",
    ),
    "line to other pixels": (
        ["--fidelity", "{tmp}/pixels", "--interpolate", "3"],
        "--interpolate: {tmp}/pixels@8 normalises its images in another way than {s}",
    ),
    "whose mean": (["--teacher-mean", "0", "0", "0"], "need --fidelity"),
    "mean of a network": (
        ["--fidelity", "{t}", "--teacher-mean", "0", "0", "0", "--teacher-std", "1", "1", "1"],
        "{t} records its own normalisation: drop --teacher-mean",
    ),
    "control itself": (["--fidelity", "{t}", "--control", "{s}"], "is the network {s} itself, or"),
    "control is teacher": (["--fidelity", "{t}", "--control", "{t}"], "or its teacher: name a"),
    "control of the teacher": (
        ["--fidelity", "{t}", "--control", "{same}"],
        "--control {same} was taught by {t}, too, or began with its weights, so it is no control",
    ),
    "control of a member": (
        ["--fidelity", "{t}", "{other}", "--control", "{same}"],
        "--control {same} was taught by {t}, too",
    ),
    "one point": (["--fidelity", "{t}", "--interpolate", "1"], "at least 2 points, its ends"),
    "no line": (
        ["--fidelity", "{run}", "--interpolate", "3"],
        "--interpolate needs equal architectures, and depth 8 of {s} differs from",
    ),
}


@pytest.fixture(scope="module")
def odd_files(taught, tmp_path_factory) -> Path:
    """The teacher's network in files that say other things about it, and as a graph."""
    folder = tmp_path_factory.mktemp("odd")
    net = load(taught / "runs" / "teacher" / "net.safetensors")
    card, classes = net.card, net.card.classes
    for name, other in (
        ("order", replace(card, classes=classes[::-1])),
        ("names", replace(card, classes=(*classes[:-1], "nine"))),
        ("pixels", replace(card, mean=(0.1, 0.2, 0.3))),
    ):
        net.card = other
        save(net, folder / name)
    net.card = card
    # another student of the teacher, whose weights alone would not tell
    shutil.copytree(taught / "runs" / "student", folder / "same")
    student = load(folder / "same" / "net.safetensors")
    with torch.no_grad():
        student.module.fc.bias.add_(0.1)
    save(student, folder / "same" / "net.safetensors")
    export_onnx(net, "8", folder / "8.onnx", torch.zeros(2, 3, 8, 8))
    return folder


@pytest.mark.parametrize("name", BAD_PAIRS)
def test_networks_that_do_not_compare_are_refused(stepwell, trained, taught, odd_files, name):
    arguments, message = BAD_PAIRS[name]
    runs = taught / "runs"
    places = {"tmp": odd_files, "t": runs / "teacher", "s": runs / "student", "run": trained}
    places |= {"other": runs / "other", "same": odd_files / "same"}
    code, _, err = stepwell("eval", runs / "student", *[a.format(**places) for a in arguments])
    assert code == 2, err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message.format(**places) in err


def test_a_control_needs_the_depths_of_the_student(stepwell, trained, taught, tmp_path):
    run = shutil.copytree(trained, tmp_path / "run")
    assert stepwell("calibrate", run, "--depths", "14")[0] == 0
    teacher, control = (taught / "runs" / name for name in ("teacher", "control"))
    code, _, err = stepwell("eval", run, "--fidelity", teacher, "--control", control)
    assert (code, "has 8, and " in err) == (2, True), err
    code, _, err = stepwell("eval", trained, "--fidelity", trained, "--control", control)
    assert (code, "itself" in err) == (0, False), err


BAD = {
    "unknown command": (["trian"], "no command 'trian'; did you mean 'train'? There are list, train"),
    "unknown recipe": (["train", "nothing"], "no recipe 'nothing'; there are ekd"),
    "near a recipe": (["train", "netgraff"], "no recipe 'netgraff'; did you mean 'netgraft'? There"),
    "unknown data": ([*TRAIN, "--data", "nowhere", "--out", "{tmp}/r"], "no data 'nowhere'"),
    "unknown depth": ([*TRAIN, "--depths", "9", "--out", "{tmp}/r"], "no depth '9' in the family"),
    "no sub-net": (
        [*TRAIN, "--net", "resnet8", "--depths", "8", "--out", "{tmp}/r"],
        "--depths 8 is the whole resnet8: name a shallower depth, too",
    ),
    "too deep": ([*TRAIN, "--depths", "x=3,3,4", "--out", "{tmp}/r"], "can keep 1 to 3 blocks"),
    "no block": ([*TRAIN, "--depths", "x=3,0,3", "--out", "{tmp}/r"], "can keep 1 to 3 blocks"),
    "no network": ([*TRAIN, "--net", "vgg", "--out", "{tmp}/r"], "no network 'vgg'"),
    "no part": ([*TRAIN, "--part", "0/2", "--out", "{tmp}/r"], "--part 0/2: write I/N"),
    "no loss": (
        [*TRAIN, "--ce", "0", "--kl", "0", "--attention", "0", "--out", "{tmp}/r"],
        "the sub-nets have no loss",
    ),
    "no norms": (
        [*TRAIN, "--depths", "--on-drop", "rollback", "--out", "{tmp}/r"],
        "rollback trains the sub-nets' own norms, and they have none",
    ),
    "no watch": (
        [*TRAIN, "--val-fraction", "0", "--on-drop", "rollback", "--out", "{tmp}/r"],
        "--on-drop rollback compares the full net on a validation part",
    ),
    "no way back": (
        [*TRAIN, "--schedule", "plain", "--on-drop", "rollback", "--out", "{tmp}/r"],
        "--on-drop rollback goes back to a trained full net",
    ),
    "twice": ([*TRAIN, "--depths", "8", "8", "--out", "{tmp}/r"], "depth '8' is named twice"),
    "no folder": (
        ["predict", "{run}", "{tmp}/i.png", "--csv", "{tmp}/no/o.csv"],
        "there is no folder",
    ),
    "a folder for a file": (
        ["predict", "{run}", "{tmp}/i.png", "--csv", "{tmp}/empty"],
        "empty is a folder: name a file",
    ),
    "costs of what": (
        ["cost", "{run}", "--depths", "14"],
        "--depths is for a network given by name, and {run} has its own",
    ),
    "classes of what": (["cost", "{run}", "--num-classes", "5"], "--num-classes is for a network"),
    "to a file": (["export", "{run}", "--to", "{tmp}/i.png"], "is a file: name a folder"),
    "among the classes": (
        ["train", "supervised", "--data", "{folder}", "--out", "{folder}/run"],
        "lies among the class folders of {folder}, and would be taken for one",
    ),
    "too small": (
        [*TRAIN, "--net", "resnet18", "--depths", "--stem", "imagenet", "--out", "{tmp}/r"],
        "images of 8 pixels are smaller than the network's stride of 32",
    ),
    "smaller than its poolings": (
        ["cost", "vgg13_bn", "--size", "16", "--stem", "small"],
        "images of 16 pixels are smaller than the network's stride of 32",
    ),
    "no whole patches": (["cost", "vit_b_16", "--size", "72"], "no multiple of the patches' 16"),
    "no timm model": (["cost", "timm/resnet17"], "timm has no model 'resnet17'; did you mean"),
    "no choice": (
        ["cost", "timm/convnext_atto", "--stem", "small"],
        "timm/convnext_atto has one stem only",
    ),
    "no such start": ([*TRAIN, "--init", "{tmp}/x", "--out", "{tmp}/r"], "no file"),
    "another run": (
        [*TRAIN, "--lr", "0.7", "--out", "{run}"],
        "holds a run with --lr 0.1, not 0.7",
    ),
    "another rate, before any data is read": (
        [*TRAIN, "--data", "{tmp}/nothing", "--lr", "0.7", "--out", "{run}"],
        "holds a run with --data digits, not {tmp}/nothing",
    ),
    "more epochs": (
        [*TRAIN, "--epochs", "2", "--out", "{run}"],
        "not 2: its learning rate was planned for those, so resume it with its own arguments, or use "
        "another --out, where --init {run}/net.safetensors begins with its weights",
    ),
    "another recipe": (
        ["train", "supervised", "--data", "digits", "--out", "{run}"],
        "holds a run of 'ekd', not 'supervised'",
    ),
    "no run": (["eval", "{tmp}/nothing"], "no file or run directory"),
    "the cost of a depth of a run": (["cost", "{run}@8"], "only a teacher is named RUN@DEPTH"),
    "a depth of a run": (["eval", "{run}@8"], "only a teacher is named RUN@DEPTH; here, name {run}"),
    "unfinished": (["eval", "{tmp}"], "is no run directory"),
    "eval where": (["eval", "{tmp}/copy.safetensors"], "say what to measure on with --data"),
    "no image": (["predict", "{run}", "{tmp}/none.png"], "no file or folder"),
    "empty folder": (["predict", "{run}", "{tmp}/empty"], "holds no image"),
    "which depth": (
        ["predict", "{run}", "{tmp}/i.png", "--depth", "9"],
        "no depth '9'; this net has 8, 20",
    ),
    "export depth": (["export", "{run}", "--depth", "9"], "no depth '9'"),
    "int8 of what": (
        ["export", "{tmp}/copy.safetensors", "--int8", "--to", "{tmp}/x"],
        "--int8 calibrates on training images",
    ),
    "int8 program": (["export", "{run}", "--int8", "--format", "pt2"], "format 'pt2' has none"),
    "module of what": (
        ["predict", "{run}", "{tmp}/i.png", "--module", "torch.nn:Identity"],
        "names its network, resnet20: load it without",
    ),
    "no module": (
        ["predict", "{run}", "{tmp}/i.png", "--module", "torch.nn:Nothing"],
        "--module torch.nn:Nothing: module 'torch.nn' has no attribute 'Nothing'; name PACKAGE:CLASS",
    ),
    "no class": (["export", "{run}", "--module", "torch"], "--module torch is no class or function"),
    "top of none": (["predict", "{run}", "{tmp}/i.png", "--top", "0"], "--top 0: must be 1 or more"),
    "delta to what": (["export", "{run}", "--beyond", "8"], "--beyond needs --depth"),
    "delta where": (["export", "{run}", "--depth", "20", "--beyond", "8"], "--beyond needs --out"),
    "delta back": (
        ["export", "{run}", "--depth", "8", "--beyond", "20", "--out", "{tmp}/d"],
        "depth '20' is not shallower than '8'",
    ),
    "patch of what": (["patch", "{tmp}/no", "{tmp}/no", "--out", "{tmp}/x"], "no file"),
    "report of nothing": (["report", "{tmp}/empty"], "is no run directory"),
    "two reports": (["report", "{run}", "{run}"], "several runs need --out"),
    "verify what": (["verify", "fidelty"], "no system 'fidelty'; did you mean 'fidelity'?"),
    "depth or budget": (
        ["predict", "{run}", "{tmp}/i.png", "--depth", "8", "--budget-ms", "3"],
        "give one of --depth, a budget (--budget-ms, --budget-macs, --min-accuracy), --cascade",
    ),
    "no cascade": (
        ["predict", "{run}", "{tmp}/i.png", "--cascade"],
        "this network has no cascade yet: `stepwell eval RUN --cascade --save`",
    ),
    "whose target": (
        ["eval", "{run}", "--target-accuracy", "0.9"],
        "--target-accuracy, --criterion and --search need --cascade",
    ),
    "save without": (["eval", "{run}", "--save"], "--save needs --cascade or --temper"),
    "no such target": (
        ["eval", "{run}", "--cascade", "--budget-macs", "10"],
        "no cascade reaches the goal on the 143 validation images (at most 10 MACs an image)",
    ),
    "two goals": (
        ["eval", "{run}", "--cascade", "--budget-macs", "1e6", "--target-accuracy", "0.5"],
        "a cascade has one goal",
    ),
    "save what": (
        ["cost", "resnet20", "--save"],
        "resnet20 is the name of one with random weights",
    ),
    "accuracy of what": (["cost", "resnet20", "--data", "digits"], "random weights: name a run"),
    "save batches": (["cost", "{run}", "--save", "--batch", "2"], "one input: leave out --batch"),
    "save size": (["cost", "{run}", "--save", "--size", "16"], "the network's own size, 8"),
    "nothing to calibrate": (["calibrate", "{run}"], "has no depth to calibrate"),
    "calibrate deeper": (
        ["calibrate", "{run}", "--depths", "x=3,3,4"],
        "layer3 can keep 1 to 3 blocks",
    ),
    "calibrate to": (
        ["calibrate", "{run}", "--depths", "14", "--out", "{tmp}/no/net"],
        "there is no folder",
    ),
    "graphs beside": (
        ["calibrate", "{tmp}/shipped/net.safetensors", "--depths", "14", "--data", "digits"],
        "may read its weights from",
    ),
    "teacher": (
        ["train", "distill", "--data", "{folder}", "--teacher", "{run}", "--out", "{tmp}/r"],
        "has 10 classes",
    ),
    "few images": (
        [
            "train",
            "netgraft",
            "--teacher",
            "{run}",
            "--student",
            "resnet8",
            "--unlabeled",
            "{folder}",
            "--shots",
            "2",
            "--out",
            "{tmp}/r",
        ],
        "--shots 2 of 10 classes are 20 images, and {folder} holds 12: use --shots 1 or less",
    ),
    "no teacher": (
        ["train", "distill", "--data", "digits", "--teacher", "nothing", "--out", "{tmp}/r"],
        "no teacher 'nothing': name a run directory, a file (.safetensors, .onnx), NETWORK=FILE",
    ),
    "cached features": (
        [*TEACH, "--out", "{tmp}/r", "--cache", "{tmp}/c", "--hint", "1"],
        "--cache keeps logits alone",
    ),
    "no cache": (
        [*TEACH, "--out", "{tmp}/r", "--cache", "{tmp}/shipped"],
        "holds other files and no cache",
    ),
    "no unlabeled image": (
        [
            "train",
            "distill",
            "--data",
            "digits",
            "--teacher",
            "{run}",
            "--out",
            "{tmp}/r",
            "--unlabeled",
            "{tmp}/empty",
        ],
        "holds no image",
    ),
    "other classes": (["eval", "{run}", "--data", "{folder}"], "has 2 classes, the network 10"),
    "damaged": (["predict", "{tmp}/bad.safetensors", "{tmp}/i.png"], "is damaged"),
    "pickle": (["predict", "{tmp}/p.pt", "{tmp}/i.png"], "is a pickle"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_and_exit_code_2(stepwell, trained, tmp_path, image_folder, name):
    arguments, message = BAD[name]
    shutil.copy(trained / "net.safetensors", tmp_path / "copy.safetensors")
    whole = (trained / "net.safetensors").read_bytes()
    (tmp_path / "bad.safetensors").write_bytes(whole[: len(whole) // 2])
    torch.save({"w": torch.zeros(1)}, tmp_path / "p.pt")
    (tmp_path / "empty").mkdir()
    (tmp_path / "shipped").mkdir()
    shutil.copy(trained / "net.safetensors", tmp_path / "shipped")
    (tmp_path / "shipped" / "8.onnx").touch()
    Image.new("RGB", (8, 8)).save(tmp_path / "i.png")
    before = {p: p.stat().st_mtime_ns for p in trained.rglob("*") if p.is_file()}
    folder = image_folder(size=(8, 8))
    places = {"tmp": tmp_path, "run": trained, "folder": folder}
    code, _, err = stepwell(*[str(a).format(**places) for a in arguments])
    assert code == 2, err
    assert message.format(**places) in err
    lines = [line for line in err.splitlines() if not line.startswith("note: ")]
    assert len(lines) == 1, err
    assert lines[0].startswith("error: ")
    assert before == {p: p.stat().st_mtime_ns for p in trained.rglob("*") if p.is_file()}


def test_an_import_that_is_interrupted_is_a_stop_whatever_it_ends_with():
    """Ctrl-C in an import can end with any error, and may come again while the process ends."""
    code = """
import signal, sys
from stepwell import cli
def cut_off(arguments):
    try:
        signal.raise_signal(signal.SIGINT)
    except KeyboardInterrupt:
        raise AttributeError("module 'numpy' has no attribute 'half'")
cli._run = cut_off
sys.argv = ["stepwell"]
try:
    cli.main()
finally:
    signal.raise_signal(signal.SIGINT)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (130, "stopped\n")


def test_an_error_is_red_on_a_terminal_only(monkeypatch, capsys):
    console.fail("a [b] c")
    assert capsys.readouterr().err == "error: a [b] c\n"
    terminal = Console(file=io.StringIO(), force_terminal=True, color_system="standard", width=10)
    monkeypatch.setattr(console, "_console", lambda **_: terminal)
    console.fail("no file a/long/path [b] c")
    assert terminal.file.getvalue() == "\x1b[1;31merror:\x1b[0m no file a/long/path [b] c\n"


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_a_shell_completes_commands_recipes_and_flags(stepwell, tmp_path):
    _, script, _ = stepwell("--tyro-print-completion", "bash")
    (tmp_path / "stepwell.bash").write_text(script)
    lines = {
        "stepwell pre": "predict", "stepwell train netg": "netgraft",
        "stepwell eval --casc": "--cascade", "stepwell kg query --rela": "--relation",
    }  # fmt: skip
    for line, expected in lines.items():
        words = line.split()
        asked = f"""source {tmp_path}/stepwell.bash; COMP_WORDS=({line}); COMP_CWORD={len(words) - 1}
        COMP_LINE="{line}"; COMP_POINT={len(line)}; _tyro_stepwell; echo "${{COMPREPLY[*]}}" """
        done = subprocess.run(["bash", "-c", asked], capture_output=True, text=True)
        assert done.stdout.strip() == expected, done.stderr


def test_wrong_flags_keep_the_parsers_box(stepwell):
    code, out, err = stepwell("eval", "x", "--nonsense")
    assert code == 2
    assert "--nonsense" in out + err


@pytest.mark.parametrize("command", [*cli.COMMANDS])
def test_every_command_has_help_with_examples(stepwell, command):
    code, out, _ = stepwell(command, "--help")
    assert code == 0
    assert len(out.splitlines()) > 5
    if command != "train":
        assert f"Examples:\n  stepwell {command}" in out


def options_of(recipe):
    """The flags of a recipe on the command line."""
    groups = groups_of(recipe)
    for_studies = fields(groups["ablation"]) if "ablation" in groups else ()
    return flags_of(recipe) - groups.keys() - {field.name for field in for_studies}


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_has_help_and_says_what_each_flag_means(stepwell, recipe):
    code, out, _ = stepwell("train", recipe, "--help")
    assert code == 0
    assert f"Examples:\n  stepwell train {recipe}" in out
    for name in options_of(resolve_name(RECIPES[recipe][0])):
        assert f"--{name.replace('_', '-')}" in out


def test_version_and_list(stepwell):
    assert stepwell("--version") == (0, f"stepwell {__version__}\n", "")
    code, out, _ = stepwell("list", "--json")
    assert code == 0
    assert list(json.loads(out)["networks"]) == [*BUILDERS, "FOLDER", "timm/NAME", "adder/NAME"]
    code, out, _ = stepwell("list")
    assert all(name in out for name in BUILDERS)


def test_list_dynamic_names_recipes_and_claims_that_are_there(stepwell):
    code, out, _ = stepwell("list", "dynamic")
    assert code == 0
    assert all(
        word in out for word in ("early exits", "train skipping", "verify drnet", "train frames")
    )
    code, out, _ = stepwell("list", "dynamic", "--json")
    leaves = [leaf for section in json.loads(out).values() for leaf in section.values()]
    assert {leaf["recipe"] for leaf in leaves} <= RECIPES.keys()
    assert {leaf["study"] for leaf in leaves} <= CLAIMS.keys()
    published = Path(__file__).parents[1] / "benchmarks" / "results" / "claims"
    for leaf in leaves:
        assert leaf["verified"] == (published / f"{leaf['study']}.json").exists(), leaf


def test_the_options_of_the_recipes_are_these():
    """A renamed option breaks scripts and resumed runs: say so in CHANGELOG."""
    loop = "device devices precision clip accumulate average checkpoint_minutes log"
    common = "data out size flip part augment stem batch_size lr seed " + loop
    trained = common + " init epochs weight_decay val_fraction mix balance optimizer patience"
    teachers = "teacher teacher_mean teacher_std"
    taught = f"{teachers} temperature ce kl attention"
    texts = "test valid text label regression max_tokens"
    pictures = "embedding walks walk_length window dimensions channels walk_seed directed loops "
    pictures += "multi_edges max_edges"
    detector = "net depths width convs init images test valid size flip epochs batch_size optimizer "
    detector += "lr weight_decay val_fraction patience seed teach"
    shown = "unlabeled unlabeled_share synthetic synthetic_share synthetic_count "
    expected = {
        "supervised": f"{trained} {texts} {pictures} net label_smoothing",
        "cnc": f"{trained} {pictures} net label_smoothing",
        "distill": f"{trained} {taught} {pictures} student attention_stages hint hint_stages cache "
        f"{shown} generator_steps",
        "ekd": f"{trained} {taught} {texts} {pictures} net depths calibrated stages nest_epochs "
        "schedule full_weight sample label_smoothing on_drop max_drop",
        "bert": f"{loop} {texts} data out teacher student_layers start teacher_epochs schedule layers "
        "attention cls kl ce temperature keep_task freeze keep_outputs label_share threshold epochs "
        "batch_size optimizer lr weight_decay val_fraction patience seed",
        "exits": f"{trained} {texts} net exits schedule weights kl temperature criterion search temper "
        "label_smoothing",
        "skipping": f"{trained} net method target label_smoothing",
        "pixels": f"{trained} net target sparsity_weight label_smoothing",
        "glance": f"{trained} net glances glance_size policy_epochs tune_epochs discount spread "
        "label_smoothing".replace(" stem ", " "),
        "frames": f"{trained} net frames glances policy_epochs tune_epochs discount spread "
        "label_smoothing".replace(" augment stem ", " ").replace(" mix balance ", " "),
        "widths": f"{trained} net widths sandwich target_cost gate gate_fraction gate_epochs "
        "label_smoothing",
        "experts": f"{trained} net experts top_k router balance_weight label_smoothing",
        "kernels": f"{trained} net method kernels label_smoothing",
        "pkkd": f"{trained} net local_rate alpha beta features".replace(" init ", " "),
        "drnet": f"{trained} net depths sizes schedule target gate_fraction choose_epochs "
        "label_smoothing",
        "netgraft": f"{common} {teachers} student keep unlabeled shots blocks schedule views "
        "graft_steps join_steps loss",
        "detect": f"{loop} {detector} zoom data out",
        "pseudo": f"{loop} {detector} zoom data out teacher labels label_fraction thresholds min_score "
        "ignore_from calibrate classes rename teacher_size store keep_empty label_share label_rate",
        "dkge": f"{loop} triples out valid test encoder dim context_size margin negatives "
        "warm_epochs epochs batch_size lr seed",
    }
    for recipe, options in expected.items():
        assert options_of(resolve_name(RECIPES[recipe][0])) == set(options.split())


def test_the_options_for_studies_are_these():
    expected = {
        "supervised": "ema_teacher",
        "distill": "attention_mode start_from_teacher",
        "ekd": "norms attention_mode distill_from ema_teacher teach_full",
        "skipping": "estimator temperature rate_weight reward policy_weight",
        "pixels": "estimator temperature",
        "glance": "where",
        "frames": "where",
        "widths": "estimator temperature cost_weight",
        "drnet": "mixing explore temperature cost_weight slack norms chooser_rate",
        "netgraft": "start statistics adaption_lr trace",
        "bert": "shuffled",
        "pkkd": "gradient_factor gradient normed_logits everywhere convolutional",
        "pseudo": "plain_fusion no_mask",
    }
    for recipe, options in expected.items():
        group = groups_of(resolve_name(RECIPES[recipe][0]))["ablation"]
        assert {field.name for field in fields(group)} == set(options.split())


def test_data_that_has_changed_is_not_measured_on_as_if_it_had_not(stepwell, image_folder, tmp_path):
    folder = image_folder(count=10, size=(8, 8))
    out = tmp_path / "r"
    arguments = ["--net", "resnet20", "--epochs", 1, "--batch-size", 4, "--out", out]
    code, _, err = stepwell("train", "supervised", "--data", folder, *arguments)
    assert code == 0, err
    assert "no test part: 4 of its 20 images are set aside" in err
    assert stepwell("eval", out)[0] == 0
    image_folder(count=12, size=(8, 8))
    for arguments in ([], ["--data", folder], ["--data", f"{folder}/"]):
        code, _, err = stepwell("eval", out, *arguments)
        assert (code, err.count("\n")) == (2, 1), err
        assert "has changed since the network was trained on it" in err


def test_what_was_trained_on_is_never_a_validation_part(stepwell, image_folder, tmp_path):
    folder = image_folder(count=10, size=(8, 8))
    out = tmp_path / "r"
    arguments = ["--net", "resnet20", "--depths", 8, "--schedule", "plain", "--val-fraction", 0]
    arguments += ["--epochs", 1, "--batch-size", 4]
    code, _, err = stepwell("train", "ekd", "--data", folder, *arguments, "--out", out)
    assert code == 0, err
    copied = shutil.copytree(folder, tmp_path / "copied")
    file = shutil.copy(out / "net.safetensors", tmp_path / "net.safetensors")
    for where, data in ((out, f"{folder}/"), (out, copied), (file, folder)):
        code, _, err = stepwell("eval", where, "--cascade", "--data", data)
        assert (code, "no validation part that the network was surely not" in err) == (2, True), err
    # another set than the run's may hold its images, so only what it brings is validation
    image_folder(count=12, size=(8, 8), root=tmp_path / "more")
    code, _, err = stepwell("cost", out, "--save", "--data", tmp_path / "more")
    assert (code, "note: no validation part" in err) == (0, True), err
    for part in ("train", "test"):
        image_folder(count=3, size=(8, 8), root=tmp_path / "parts" / part)
    image_folder(count=4, size=(8, 8), root=tmp_path / "parts" / "val")
    assert stepwell("cost", file, "--save", "--data", tmp_path / "parts")[0] == 0
    assert load(file).card.costs["20"]["accuracy_on"] == "8 validation images"


def test_no_file_of_another_kind_is_replaced(stepwell, trained, tmp_path):
    (path, *_) = digit_images(tmp_path / "in")
    before = path.read_bytes()
    for command in (
        ["predict", trained, path, "--csv", path],
        ["report", trained, "--out", path],
        ["export", trained, "--depth", "14", "--beyond", "8", "--out", path],
    ):
        code, _, err = stepwell(*command)
        assert (code, err.count("\n"), f"{path} exists and is no " in err) == (2, 1, True), err
        assert path.read_bytes() == before


def test_a_file_name_that_is_no_text_stands_in_the_csv_as_it_is(stepwell, trained, tmp_path):
    (path, *_) = digit_images(tmp_path / "in")
    odd = os.path.join(os.fsencode(tmp_path / "in"), b"na\xff\xfeme.png")
    os.rename(path, odd)
    code, _, err = stepwell("predict", trained, os.fsdecode(odd), "--csv", tmp_path / "o.csv")
    assert code == 0, err
    assert b"na\xff\xfeme.png," in (tmp_path / "o.csv").read_bytes()


def test_a_training_whose_logits_overflow_is_one_line(stepwell, tmp_path):
    short = ["--data", "digits", "--part", "1/8", "--net", "resnet8", "--epochs", 2, "--device", "cpu"]
    code, _, err = stepwell(
        "train", "supervised", *short, "--lr", 1e9, "--clip", 0, "--out", tmp_path / "r"
    )
    assert (code, err.count("error: ")) == (2, 1)
    assert "diverged" in err
