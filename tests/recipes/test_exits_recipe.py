"""The recipe of early exits: its run, what every command does with it, and what it refuses."""

import json

import pytest
import torch
from torch.testing import assert_close

import stepwell
from stepwell import cli
from stepwell.methods import ExitHeads
from stepwell.nets import build
from stepwell.nets.nested.cascade import Cascade
from stepwell.nets.nested.exits import ConvHead
from stepwell.recipes import train
from stepwell.recipes.exits import Exits, places_of, usual_places
from stepwell.training import Loop
from stepwell.types import Batch

pytestmark = pytest.mark.usefixtures("quick")
FEW = {"data": "digits", "net": "resnet8", "part": "1/6", "epochs": 1, "loop": Loop(device="cpu")}


@pytest.fixture(scope="module")
def trained(quick, tmp_path_factory):
    out = tmp_path_factory.mktemp("exits") / "run"
    return out, train("exits", out=out, criterion="learned", temper=True, **FEW)


def test_a_run_has_every_exit_and_a_cascade(trained):
    out, results = trained
    assert list(results["costs"]) == ["exit1", "exit2", "8"]
    macs = [row["macs"] for row in results["costs"].values()]
    assert macs == sorted(macs)
    assert {f"{row}/accuracy" for row in results["costs"]} <= results["test"].keys()
    found, test = results["cascade"]["validation"], results["cascade"]["test"]
    assert (found["criterion"], found["search"]) == ("learned", "best")
    assert sum(test["shares"]) == pytest.approx(1)
    for point in results["cascade"]["curve"]:
        assert macs[0] <= point["macs"] <= macs[-1]
        assert 0 <= point["random_accuracy"] <= 1
    net = stepwell.load(out)
    assert net.card.cascade == found
    assert net.status == dict.fromkeys(("exit1", "exit2", "8"), "trained")
    assert Cascade.of(net).depths == tuple(found["depths"])
    assert train("exits", out=out, criterion="learned", temper=True, **FEW) == results


def test_every_command_takes_the_run(trained, tmp_path, capsys, image_folder):
    out, _ = trained
    pictures = image_folder(("a",), 3, (8, 8))
    cli.main(["report", str(out)])
    page = (out / "report.html").read_text()
    assert "Cascades within budgets of MACs" in page
    assert "whiskers: 95% intervals; dotted: cascades within budgets." in page
    assert "Chance and the best: as many images" in page
    cli.main(["eval", str(out), "--cascade", "--criterion", "patience", "--save", "--json"])
    found = json.loads(capsys.readouterr().out)["cascade"]["validation"]
    assert found["criterion"] == "patience"
    assert stepwell.load(out).card.cascade == found
    cli.main(["predict", str(out), str(pictures), "--cascade", "--json"])
    rows = json.loads(capsys.readouterr().out)
    assert {row["depth"] for row in rows} <= {"exit1", "exit2", "8"}
    cli.main(["predict", str(out), str(pictures), "--depth", "exit1"])
    assert "depth exit1" in capsys.readouterr().out
    cli.main(["export", str(out), "--out", str(tmp_path / "e"), "--json"])
    files = {row["file"] for row in json.loads(capsys.readouterr().out)["files"]}
    assert files == {"exit1.onnx", "exit2.onnx", "8.onnx"}
    cli.main(["report", str(out)])
    page = (out / "report.html").read_text()
    assert "depths that agree" in page


def test_the_frozen_schedule_trains_the_heads_alone(tmp_path):
    results = train("exits", out=tmp_path / "r", schedule="frozen", **FEW)
    net = stepwell.load(tmp_path / "r")
    train("supervised", out=tmp_path / "s", **FEW)
    plain = stepwell.load(tmp_path / "s")
    for name, value in plain.module.state_dict().items():
        assert_close(net.module.state_dict()[name], value, rtol=0, atol=0)
    assert sorted(p.name for p in (tmp_path / "r" / "phases").iterdir()) == ["exits", "full"]
    assert results["cascade"]["validation"]["images"] > 0
    again = train("exits", out=tmp_path / "i", init=tmp_path / "s", schedule="frozen", **FEW)
    assert [p.name for p in (tmp_path / "i" / "phases").iterdir()] == ["exits"]
    assert again["test"]["8/accuracy"] == results["test"]["8/accuracy"]


def test_weights_of_the_losses():
    net = build("resnet8", num_classes=3)
    Exits().added_to(net, (3, 8, 8))
    assert Exits().weights_of(net) == ({"exit1": 1.0, "exit2": 1.0}, 1.0)
    assert Exits(weights="depth").weights_of(net) == ({"exit1": 1 / 6, "exit2": 1 / 3}, 0.5)


def test_only_the_heads_get_gradients_in_the_frozen_phase():
    net = build("resnet8", num_classes=3).train()
    with pytest.raises(ValueError, match="this net has no exits: add them with net.add_exit"):
        ExitHeads(net)
    net.add_exit("e", (1, 1, 0), ConvHead(32, 3))
    method = ExitHeads(net, kl=0.0, attention=0.0).train()
    before = {name: value.clone() for name, value in net.module.state_dict().items()}
    method.training_step(Batch(torch.randn(4, 3, 8, 8), torch.arange(4) % 3)).loss.backward()
    assert {n for n, p in net.named_parameters() if p.grad is not None} == {
        n for n, _ in net.named_parameters() if n.startswith("exit_heads")
    }
    assert_close(dict(net.module.state_dict()), before, rtol=0, atol=0)


def test_usual_places():
    assert usual_places(build("resnet20")) == {"exit1": (3, 0, 0), "exit2": (3, 3, 0)}
    assert list(usual_places(build("msdnet10"))) == ["exit1", "exit2", "exit3"]
    vit = build("timm/vit_tiny_patch16_224", num_classes=3, img_size=32)
    assert usual_places(vit) == {"exit1": (4,), "exit2": (8,)}


@pytest.mark.parametrize(
    ("places", "message"),
    [
        (("e=1,x,0",), "--exits e=1,x,0: write NAME=BLOCKS,..., the blocks of each stage"),
        (("e",), "--exits e: write NAME=BLOCKS"),
        (("e=1,0,0", "e=1,1,0"), "exit 'e' is named twice"),
        (("e=1,1,1",), "the full net ends behind its last block"),
        (("a=1,0,0", "b=1,0,0"), "exit 'b' = .* ends where exit 'a' does"),
        (("e=0,0,0",), "an exit runs a block of the first stage"),
    ],
)
def test_exits_that_cannot_be_are_refused_before_there_is_a_run(places, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        train("exits", out=tmp_path / "r", **FEW | {"exits": places})
    assert not (tmp_path / "r").exists()
    if "=" in places[0] and "x" not in places[0] and "twice" not in message:
        assert places_of(places)


def test_a_search_without_thresholds_is_refused_before_there_is_a_run(tmp_path):
    with pytest.raises(ValueError, match="patience has a few whole numbers .* leave one of them out"):
        train("exits", out=tmp_path / "r", search="geometric", criterion="patience", **FEW)
    assert not (tmp_path / "r").exists()


def test_flags_of_other_kinds_are_refused(trained, capsys, tmp_path):
    for flags in (["--coco", "a.json"], ["--draw", "d"], ["--min-score", "0.1"]):
        with pytest.raises(SystemExit) as stop:
            cli.main(["predict", str(trained[0]), str(tmp_path), *flags])
        assert stop.value.code == 2
        assert f"{flags[0]} is not for an image classifier" in " ".join(capsys.readouterr().err.split())
