"""The recipe of dynamic resolution: its phases, its file, its results, and what it refuses."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.models import register_model
from torch.testing import assert_close
from torchvision.models.vision_transformer import VisionTransformer

from stepwell import cli
from stepwell.cost import count_macs
from stepwell.export import OpenChoices, Sample, export_resolution
from stepwell.measure.choices import macs_of_choices
from stepwell.measure.data_parts import batches_of
from stepwell.nets.files.container import kind_of
from stepwell.nets.files.nested import load, read_beside, rewrite_card, save
from stepwell.nets.files.resolution import load_resolution, save_resolution
from stepwell.nets.nested.nest import nest
from stepwell.nets.resolution.chooser import Always, Choice, Chooser, ResolutionNet
from stepwell.nets.resolution.resolutions import Resolutions
from stepwell.recipes import train
from stepwell.training import Loop

pytestmark = pytest.mark.usefixtures("quick")
FEW = {"data": "digits", "net": "resnet8", "part": "1/6", "epochs": 1, "loop": Loop(device="cpu")}


@pytest.fixture(scope="module")
def trained(quick, tmp_path_factory):
    out = tmp_path_factory.mktemp("drnet") / "run"
    return out, train("drnet", out=out, **FEW | {"epochs": 2}, target=0.6)


def phases(run):
    return [p.name for p in sorted((run / "phases").iterdir(), key=lambda p: p.stat().st_mtime)]


def test_a_run_has_both_phases_and_all_numbers(trained):
    out, results = trained
    assert phases(out) == ["resolutions", "joint"]
    assert list(results["costs"]) == ["chosen", "4", "6", "8"]
    assert {f"{row}/accuracy" for row in results["costs"]} <= results["test"].keys()
    found = results["drnet"]
    assert sum(found["shares"].values()) == pytest.approx(1)
    assert found["target"] == 0.6
    assert found["unpriced"].keys() == {"accuracy", "cost"}
    assert [row["batch"] for row in found["speed"]] == [64, 1]
    for row in found["speed"]:
        assert row.keys() - {"unsure"} == {"batch", "chosen", "fixed", "speed_up", "by_macs"}
        assert row["by_macs"] == pytest.approx(1 / found["cost"], rel=0.2)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 4
    for line in lines[2:]:
        assert line["val/mean_cost"] <= 0.6
        assert line["share/8"] + line["share/6"] + line["share/4"] == pytest.approx(1)
    assert train("drnet", out=out, **FEW | {"epochs": 2}, target=0.6) == results


def test_the_numbers_are_those_of_the_network_in_the_file(trained):
    out, results = trained
    net = load_resolution(out / "net.safetensors")
    _, test = batches_of(out)
    right, costs = [], []
    x = torch.zeros(1, 3, 8, 8)
    chooser = count_macs(net.chooser, x)
    sizes = [count_macs(net.net.at(s).module, torch.zeros(1, 3, s, s)) for s in net.net.sizes]
    with np.load(out / "predictions.npz") as arrays:
        kept = torch.from_numpy(arrays["choice"])
        dynamic = torch.from_numpy(arrays["logits/chosen"])
    with torch.inference_mode():
        for images, labels in test:
            answer = net.answer(images)
            right.append(answer.logits.argmax(1) == labels)
            costs += [sizes[i] + chooser for i in answer.depth.tolist()]
            rows = slice(sum(map(len, right[:-1])), sum(map(len, right)))
            assert answer.depth.equal(kept[rows])
            assert_close(dynamic[rows], answer.logits, rtol=1e-3, atol=1e-3)
    assert results["test"]["chosen/accuracy"] == torch.cat(right).double().mean().item()
    mean = sum(costs) / len(costs)
    assert results["drnet"]["cost"] == pytest.approx(mean / (sizes[0] + chooser))
    assert results["costs"]["chosen"]["macs"] == round(mean)
    assert_close(net.costs, torch.tensor([s + chooser for s in sizes]) / (sizes[0] + chooser))


def test_a_damaged_file_of_predictions_is_written_again(trained, tmp_path):
    out, results = trained
    copy = shutil.copytree(out, tmp_path / "run")
    (copy / "predictions.npz").write_text("junk")
    again = train("drnet", out=copy, **FEW | {"epochs": 2}, target=0.6)
    assert again["test"] == pytest.approx(results["test"])
    with np.load(copy / "predictions.npz") as arrays, np.load(out / "predictions.npz") as before:
        assert (arrays["choice"] == before["choice"]).all()


def test_pictures_of_a_choice_are_spread_over_its_images(trained):
    out, _ = trained
    with np.load(out / "predictions.npz") as arrays:
        who, kept, pixels = (arrays[k] for k in ("choice", "choice_index", "choice_images"))
    _, test = batches_of(out)
    assert (pixels == test.images.pixels[kept].permute(0, 2, 3, 1).numpy()).all()
    for i in np.unique(who):
        made, shown = np.flatnonzero(who == i), kept[who[kept] == i]
        assert len(set(shown)) == min(len(made), 12)
        assert (shown[0], shown[-1]) == (made[0], made[-1])


def test_the_file_is_that_of_a_nested_net_with_the_rest_beside_it(trained, tmp_path):
    out, _ = trained
    file = out / "net.safetensors"
    net, nested = load_resolution(file), load(file)
    x = torch.randn(5, 3, 8, 8)
    assert_close(nested(x), net.net(x, 8), rtol=0, atol=0)
    assert kind_of(file) == "resolution"
    again = tmp_path / "again.safetensors"
    save_resolution(net, again)
    assert again.read_bytes() == file.read_bytes()
    rewrite_card(again, replace(nested.card, licence="CC0"))
    assert load(again).card.licence == "CC0"
    assert_close(load_resolution(again)(x), net(x), rtol=0, atol=0)
    net.hold("4")
    held = load_resolution(save_resolution(net, tmp_path / "held.safetensors"))
    assert set(held.choose(x).tolist()) == {2}
    assert_close(held(x), net(x), rtol=0, atol=0)
    net = load_resolution(file)
    plain = save(nested, tmp_path / "plain.safetensors")
    assert kind_of(plain) == "classifier"
    assert read_beside(plain) is None
    with pytest.raises(ValueError, match="holds a network of one resolution: `stepwell train drnet`"):
        load_resolution(plain)
    own = sum(v.numel() * v.element_size() for v in net.net.own_tensors().values())
    own += sum(v.numel() * v.element_size() for v in net.chooser.state_dict().values())
    assert file.stat().st_size - plain.stat().st_size - own < 12000  # their names


def test_a_run_of_the_same_resolutions_brings_its_first_phase(trained, tmp_path):
    out, _ = trained
    train("drnet", out=tmp_path / "run", init=out, **FEW, target=0.8, schedule="imitate")
    assert phases(tmp_path / "run") == ["imitate"]
    before, after = (load_resolution(p / "net.safetensors") for p in (out, tmp_path / "run"))
    for name, value in after.net.own_tensors().items():  # imitation leaves the network as it is
        assert_close(value, before.net.own_tensors()[name], rtol=0, atol=0)
    with pytest.warns(UserWarning, match="has other resolutions, depths or norms: .* the first phase"):
        train("drnet", out=tmp_path / "other", init=out / "net.safetensors", sizes=(8, 4), **FEW)
    assert phases(tmp_path / "other") == ["resolutions", "joint"]


def test_a_network_of_ones_own_comes_back_with_its_maker(tmp_path):
    def made(size=16):
        return VisionTransformer(size, 8, 2, 2, 16, 32, num_classes=5)

    nested = nest(made(), ["encoder.layers"], {}, input_size=(3, 16, 16))
    net = ResolutionNet(
        Resolutions(nested, (16, 8), made_for=made),
        [Choice("full", 16), Choice("full", 8)], Chooser(2, 8),
    ).eval()  # fmt: skip
    file = save_resolution(net, tmp_path / "own.safetensors")
    again = load_resolution(file, made, made_for=made)
    x = torch.randn(4, 3, 16, 16)
    for name, logits in net.logits_by_choice(x).items():
        assert_close(again.logits_by_choice(x)[name], logits, rtol=0, atol=0)
    with pytest.raises(ValueError, match="give load"):
        load_resolution(file)


def test_a_plain_network_may_be_the_start(tmp_path):
    train("supervised", out=tmp_path / "plain", **FEW)
    results = train("drnet", out=tmp_path / "run", init=tmp_path / "plain", **FEW)
    assert phases(tmp_path / "run") == ["resolutions", "joint"]
    assert results["costs"].keys() == {"chosen", "4", "6", "8"}


def picture(folder):
    Image.new("RGB", (8, 8)).save(folder / "picture.png")
    return folder / "picture.png"


def test_the_first_phase_alone_is_always_at_full_size(tmp_path, capsys):
    results = train("drnet", out=tmp_path / "run", schedule="resolutions", norms="shared", **FEW)
    net = load_resolution(tmp_path / "run" / "net.safetensors")
    assert isinstance(net.chooser, Always)
    assert net.net.at(4) is net.net.at(8)
    assert results["drnet"]["shares"] == {"8": 1.0, "6": 0.0, "4": 0.0}
    assert results["drnet"]["cost"] == 1.0
    assert results["test"]["chosen/accuracy"] == results["test"]["8/accuracy"]
    cli.main(["predict", str(tmp_path / "run"), str(picture(tmp_path)), "--budget-macs", "1e9"])
    assert "depth 8: " in capsys.readouterr().err  # no price to set: its depths fit budgets


@pytest.mark.long
def test_the_doubt_of_the_cheapest_choice_may_decide(tmp_path):
    out = tmp_path / "run"
    results = train("drnet", out=out, schedule="doubt", gate_fraction=0.25, **FEW)
    assert phases(out) == ["resolutions", "doubt"]
    net = load_resolution(out)
    x = torch.randn(9, 3, 8, 8)
    with torch.inference_mode():
        answer = net.answer(x)
        fixed = net.logits_by_choice(x)
        again = torch.stack([fixed[net.names[i]][row] for row, i in enumerate(answer.depth.tolist())])
    assert_close(answer.logits, again, rtol=1e-4, atol=1e-4)
    # the cheapest choice costs what the chooser has run, and a costlier one costs that, too
    sizes = [count_macs(net.net.at(s).module, torch.zeros(1, 3, s, s)) for s in net.net.sizes]
    chooser = count_macs(net.chooser, x[:1])
    assert macs_of_choices(net, 8) == [sizes[0] + chooser, sizes[1] + chooser, chooser]
    assert results["drnet"]["chooser_macs"] == chooser > sizes[2]
    net.price.fill_(0.01)  # shares of all choices
    loop = export_resolution(net, tmp_path / "onnx", Sample(x, "noise"))
    assert loop["parity"]
    assert loop["chooser_reads"] == net.names[-1]
    with torch.inference_mode():
        assert OpenChoices(tmp_path / "onnx")(x).depth.equal(net.answer(x).depth)


def test_depths_and_resolutions_together(tmp_path):
    options = FEW | {"net": "resnet14", "depths": ("8",), "sizes": (8, 4)}
    with pytest.warns(UserWarning, match="the cost penalty is set on training images"):
        results = train("drnet", out=tmp_path / "run", **options, mixing="all", val_fraction=0.0)
    assert next(iter(results["costs"])) == "chosen"
    assert set(results["costs"]) == {"chosen", "8@4", "14@4", "8@8", "14@8"}
    net = load_resolution(tmp_path / "run" / "net.safetensors")
    assert set(net.net.net.status.values()) == {"trained"}


@register_model
def deit_short(pretrained=False, **options):
    """timm's smallest transformer of this kind has twelve blocks, which take long to export."""
    assert not pretrained
    return timm.create_model("deit_tiny_patch16_224", depth=1, embed_dim=24, num_heads=2, **options)


@pytest.mark.long
def test_a_vision_transformer_has_positions_for_each_resolution(tmp_path):
    options = {"net": "timm/deit_short", "sizes": (32, 16), "part": "1/30"}
    first = train("drnet", out=tmp_path / "run", **FEW | options)
    net = load_resolution(tmp_path / "run" / "net.safetensors")
    shapes = {
        n: v.shape[1] for n, v in net.state_dict().items() if "pos_embed" in n or "own_parts" in n
    }
    assert sorted(shapes.values()) == [2, 5]  # of 1 and of 4 patches, and the class token
    assert set(first["costs"]) == {"chosen", "16", "32"}
    train("drnet", out=tmp_path / "next", init=tmp_path / "run", **FEW | options, schedule="imitate")
    after = load_resolution(tmp_path / "next" / "net.safetensors")
    for name, value in net.net.own_tensors().items():
        assert_close(after.net.own_tensors()[name], value, rtol=0, atol=0)
    result = export_resolution(net, tmp_path / "export", Sample(torch.randn(4, 3, 32, 32), "noise"))
    assert result["parity"]["same_choice"] == 1.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sizes": (8,)}, "at least two choices are needed, got 1: name two resolutions or more"),
        ({"sizes": (8, 8)}, "the resolution of 8 pixels is named twice"),
        ({"sizes": (8, 3)}, "images of 3 pixels are smaller than the network's stride of 4"),
        ({"sizes": (8, 4), "size": 16}, "--size 16: the largest of --sizes is 8"),
        (
            {"net": "timm/deit_tiny_patch16_224", "sizes": (32, 8)},
            r"pos_embed .* from \(1, 5, 192\) to",
        ),
        (
            {"net": "timm/deit_tiny_patch16_224", "sizes": (48, 40)},
            "--sizes 40: images of 40 pixels are no multiple of the patches' 16, .*: use 32 or 48",
        ),
        ({"gate_fraction": 0.2}, "--gate-fraction is for --schedule doubt, not joint: leave it out"),
        ({"target": 0.2}, "a target of 0.2 .* the cheapest choice has 0.257, the costliest 1"),
    ],
)
def test_what_cannot_work_is_refused_before_there_is_a_run(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        train("drnet", out=tmp_path / "run", **FEW | options)
    assert not (tmp_path / "run").exists()
