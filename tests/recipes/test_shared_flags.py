"""Flags that all image recipes share, flags from a file, and what a run says before and after."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from stepwell import cli
from stepwell.data import Batches, ImageSet
from stepwell.nets.build import build, usual_depths
from stepwell.nets.files.nested import load
from stepwell.recipes import RECIPES, train
from stepwell.tasks.task import tell_cost
from stepwell.training import Loop

SMALL = {"data": "digits", "epochs": 1, "batch_size": 512, "loop": Loop(device="cpu")}
NETS = {
    "supervised": {"net": "resnet8"},
    "ekd": {"net": "resnet14", "depths": ("8",), "schedule": "plain"},
    "drnet": {"net": "resnet8", "choose_epochs": 1},
}


@pytest.fixture
def photos(tmp_path):
    """Uneven classes of images of unlike sizes: 12 of "many", 4 of "few"."""
    rng = np.random.default_rng(0)
    for name, count in (("many", 12), ("few", 4)):
        folder = tmp_path / "photos" / name
        folder.mkdir(parents=True)
        for i in range(count):
            pixels = rng.integers(0, 255, (90 + i, 100, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{i}.png")
    return str(tmp_path / "photos")


@pytest.mark.parametrize("recipe", NETS)
def test_image_recipes_take_the_same_flags(recipe, tmp_path, quick):
    own = {"augment": "rotate", "mix": "mixup", "balance": True, "optimizer": "adamw", "patience": 1}
    train(recipe, out=tmp_path / "r", **NETS[recipe], **SMALL | own)
    recorded = json.loads((tmp_path / "r" / "config.json").read_text())["arguments"]
    assert own.items() <= recorded.items()


def test_a_run_that_records_none_of_the_later_flags_resumes(tmp_path, quick):
    options = NETS["ekd"] | SMALL | {"out": tmp_path / "r"}
    results = train("ekd", **options)
    file = tmp_path / "r" / "config.json"
    config = json.loads(file.read_text())
    for name in ("augment", "mix", "balance", "optimizer", "patience"):
        del config["arguments"][name]
    config["arguments"]["lr"] = 0.1  # the rate, not its default in words
    del config["arguments"]["loop"]["log"]
    file.write_text(json.dumps(config))
    assert train("ekd", **options) == results
    for name, value in (("augment", "jitter"), ("optimizer", "adam"), ("balance", True)):
        with pytest.raises(ValueError, match=f"holds a run with --{name} None"):
            train("ekd", **options | {name: value} | {"lr": 0.1})


def test_balance_draws_every_class_equally_often():
    labels = torch.tensor([0] * 17 + [1] * 2 + [3] * 5)
    images = ImageSet(torch.zeros(24, 3, 2, 2, dtype=torch.uint8), labels, tuple("abcd"))
    images.pixels[:] = torch.arange(24, dtype=torch.uint8)[:, None, None, None]
    batches = Batches(
        images, 24, mean=(0, 0, 0), std=(1 / 255,) * 3, shuffle=True, balance=True
    )  # fmt: skip
    seen = [batches.at(epoch) for epoch in range(3)]
    for batch in seen:
        assert batch.labels.bincount().tolist() == [8, 8, 0, 8]
        drawn = batch.inputs[:, 0, 0, 0].round().long()
        assert torch.equal(labels[drawn], batch.labels)
        # images of a class take turns before one comes again
        counts = drawn.bincount(minlength=24)
        assert (counts[:17] <= 1).all()
        assert counts[17:19].tolist() == [4, 4]
    assert not torch.equal(seen[0].labels, seen[1].labels)
    assert torch.equal(batches.at(1).labels, seen[1].labels)


def test_patience_stops_and_the_cosine_stays_planned_for_all_epochs(tmp_path, quick):
    options = NETS["supervised"] | SMALL | {"epochs": 40, "lr": 1e-9, "val_fraction": 0.5}
    train("supervised", out=tmp_path / "r", patience=2, **options)
    lines = [json.loads(x) for x in (tmp_path / "r" / "metrics.jsonl").read_text().splitlines()]
    scores = [line["val/8/accuracy"] for line in lines]
    best = scores.index(max(scores))
    assert len(lines) == best + 3 < 40
    assert lines[-1]["lr"] > 0.5e-9  # not at the end of its cosine
    with pytest.raises(ValueError, match="--patience 2 counts epochs .* set --val-fraction above 0"):
        train("supervised", out=tmp_path / "n", patience=2, **options | {"val_fraction": 0.0})
    with pytest.raises(ValueError, match="--patience 2 could stop before the sub-nets begin"):
        train("ekd", out=tmp_path / "e", patience=2, schedule="one-run", **SMALL)


def test_flags_are_read_from_a_run_or_a_file(tmp_path, monkeypatch, capsys, quick):
    monkeypatch.chdir(tmp_path)
    hand = {"data": "digits", "net": "resnet8", "batch-size": 512, "epochs": 1, "device": "cpu"}
    Path("hand.json").write_text(json.dumps(hand | {"flip": False}))
    cli.main(["train", "supervised", "--config", "hand.json", "--out", "a"])
    cli.main(["train", "supervised", "--config", "a/config.json", "--out", "b", "--seed", "1"])
    a, b = (json.loads(Path(run, "config.json").read_text())["arguments"] for run in "ab")
    assert {k for k in a if a[k] != b[k]} == {"out", "seed"}
    assert (a["batch_size"], a["flip"], a["loop"]["device"]) == (512, False, "cpu")
    Path("wrong.json").write_text(json.dumps({"epoch": 3}))
    wrong = {
        "wrong.json": "train supervised has no flag epoch; did you mean epochs?",
        "missing.json": "missing.json",
    }
    for file, message in wrong.items():
        with pytest.raises(SystemExit) as stop:
            cli.main(["train", "supervised", "--config", file, "--out", "c"])
        assert stop.value.code == 2
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["train", "ekd", "--config", "a", "--out", "c"])
    assert "is of train supervised, not of train ekd" in capsys.readouterr().err


def test_csv_and_tensorboard_logs(tmp_path, monkeypatch, quick):
    options = NETS["supervised"] | SMALL | {"epochs": 2}
    train("supervised", out=tmp_path / "r", **options | {"loop": Loop(device="cpu", log="csv")})
    with (tmp_path / "r" / "logs" / "train" / "metrics.csv").open() as file:
        rows = [*csv.DictReader(file)]
    assert [float(row["epoch"]) for row in rows] == [1, 2]
    assert float(rows[1]["val/8/accuracy"]) >= 0
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match="needs the package tensorboard: pip install tensorboard"):
        Loop(log="tensorboard").check()


def test_a_network_for_small_images_gets_its_own_size(photos, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("STEPWELL_QUIET", raising=False)
    options = {"net": "resnet8", "epochs": 2, "batch_size": 8, "device": "cpu"}
    with pytest.warns(UserWarning, match="brought to|no test part") as notes:
        train("supervised", out=tmp_path / "r", data=photos, **options)
    assert "32 × 32, for which the network is made; --size" in str(notes[0].message)
    assert load(tmp_path / "r").card.size == 32
    err = capsys.readouterr().err
    assert "resnet8: 12.50 M MACs per image of 32 pixels" in err


def test_stems_and_their_costs_are_said(capsys, monkeypatch):
    monkeypatch.delenv("STEPWELL_QUIET", raising=False)
    tell_cost(build("resnet18", num_classes=2, stem="small"), 40, "auto")
    err = " ".join(capsys.readouterr().err.split())
    assert "resnet18 with the small stem (3×3, stride 1): 867.84 M MACs per image of 40 pixels" in err
    assert "--size 64 takes the imagenet stem and costs less, 148.05 M" in err
    for size, stem in ((32, "auto"), (40, "small")):
        tell_cost(build("resnet18", num_classes=2, stem="small"), size, stem)
        assert "costs less" not in capsys.readouterr().err


def test_a_run_says_which_classes_are_missed_and_what_may_help(photos, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("STEPWELL_QUIET", raising=False)
    options = {"epochs": 1, "batch_size": 16, "size": 64, "device": "cpu", "lr": 1e-9, "data": photos}
    with pytest.warns(UserWarning, match="no test part"):
        train("supervised", out=tmp_path / "a", net="resnet18", val_fraction=0.0, **options)
    err = " ".join(capsys.readouterr().err.split())
    assert "the classifier gives the class" in err
    assert "--balance draws every class equally often" in err
    assert "there are published weights, and --init pretrained is likely better" in err


def test_the_depths_of_a_family_are_the_default():
    assert usual_depths("resnet32") == ("20", "26")
    assert usual_depths("resnet34") == ("18",)
    with pytest.raises(ValueError, match=r"resnet18 has no depths by name: .* --depths half=1,1,1,1"):
        usual_depths("resnet18")
    with pytest.raises(ValueError, match="resnet8 has one block in each stage"):
        usual_depths("resnet8")
    with pytest.raises(ValueError, match="for other --stages"):
        usual_depths("resnet32", ("layer1",))


def test_netgraft_takes_all_unlabeled_images(photos, tmp_path, quick):
    train("supervised", out=tmp_path / "t", **NETS["supervised"] | SMALL)
    few = {
        "teacher": str(tmp_path / "t"), "student": "resnet8_slim", "graft_steps": 1, "join_steps": 1,
        "device": "cpu", "unlabeled": Path(photos),
    }  # fmt: skip
    with pytest.warns(UserWarning, match="learned nothing|normalised"):
        results = train("netgraft", out=tmp_path / "g", **few, lr=1e-9)
    assert results["netgraft"]["images"] == 16
    with pytest.raises(ValueError, match="--shots 10 of 10 classes are 100 images"):
        train("netgraft", out=tmp_path / "h", **few, shots=10)


@pytest.mark.parametrize("recipe", [name for name in RECIPES if name != "netgraft"])
def test_a_run_of_another_recipe_is_refused_before_any_data_is_read(recipe, tmp_path):
    """The arguments of netgraft depend on its teacher, so it opens the teacher first."""
    needed = {
        "sequences": {"net": "skiplstm"}, "dkge": {"triples": tmp_path / "nothing"},
        "distill": {"teacher": ("nothing",)}, "pseudo": {"teacher": ("nothing",)},
        "bert": {"teacher": "nothing"},
    }  # fmt: skip
    config = {"recipe": "other", "arguments": {}, "data": {}, "teacher": None}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "metrics.jsonl").touch()  # it has begun
    data = {} if recipe == "dkge" else {"data": "nothing"}
    with pytest.raises(ValueError, match=f"holds a run of 'other', not '{recipe}'"):
        train(recipe, out=tmp_path, **data, **needed.get(recipe, {}))
