"""The recipe of frames: its run, what every command does with it, and what it refuses."""

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

import stepwell
from data.test_clips import folder_of_clips, write_clip
from stepwell import cli
from stepwell.recipes import train
from stepwell.training import Loop

pytestmark = pytest.mark.usefixtures("quick")
FEW = {
    "net": "resnet8", "frames": 4, "glances": 3, "epochs": 1, "batch_size": 4, "val_fraction": 0.25,
    "loop": Loop(device="cpu"),
}  # fmt: skip


@pytest.fixture(scope="module")
def trained(quick, tmp_path_factory):
    root = tmp_path_factory.mktemp("frames")
    return root / "run", train("frames", data=str(folder_of_clips(root / "d")), out=root / "run", **FEW)


def test_a_run_looks_at_frames(trained):
    out, results = trained
    assert list(results["costs"]) == ["1", "2", "3"]
    assert results["glance"]["side"] == 8
    assert [sum(map(sum, looks)) for looks in results["glance"]["looks"]] == [4, 4]
    assert np.load(out / "predictions.npz")["places"].shape == (4, 2, 1)
    assert stepwell.load(out).card.drawing == {"format": "clip", "frames": 4}


@pytest.mark.long
def test_every_command_takes_the_run(trained, tmp_path, capsys):
    out, results = trained
    clip = write_clip(tmp_path / "c.gif", [Image.new("RGB", (8, 8), (v,) * 3) for v in (9, 99, 200)])
    cli.main(["eval", str(out), "--json"])
    assert json.loads(capsys.readouterr().out)["test"] == results["test"]
    cli.main(["predict", str(out), str(clip), "--depth", "2", "--json"])
    (one,) = json.loads(capsys.readouterr().out)
    assert one["depth"] == "2"
    served = stepwell.open_network(out).do("serve")
    (answer,) = served.run([served.read(clip.read_bytes())], "2", 1)
    assert answer.probability == pytest.approx(one["probability"], abs=1e-5)
    cli.main(["export", str(out), "--depth", "3", "--out", str(tmp_path / "e"), "--json"])
    (row,) = json.loads(capsys.readouterr().out)["files"]
    assert row["parity"]["same_class"] == 1.0
    assert (tmp_path / "e" / "photographs.py").exists()
    cli.main(["report", str(out)])
    page = (out / "report.html").read_text()
    assert "first glance sees all frames, scaled to 8 pixels; each later one sees a frame of" in page
    assert "frames of another clip" in page
    assert "square" not in page.partition("Where the network looks")[2][:1000]


def test_what_cannot_be_is_refused(trained, tmp_path, capsys, image_folder):
    data = str(trained[0].parent / "d")
    stills = str(image_folder(size=(16, 16)))
    for flags, message in (
        (
            ["--data", data, "--net", "vgg13_bn"],
            "a ResNet looks at each frame: name a ResNet",
        ),
        (["--data", data, "--frames", "5"], "--frames 5: must be a square, 4, 9, 16, ... up to 64"),
        (["--data", data, "--frames", "4", "--glances", "6"], "see 5 frames, and a clip has 4"),
        (["--data", data, "--flip", "True"], "--flip: a mirrored clip would have its frames in"),
        (["--data", "digits"], "--data digits holds no clips: give class folders of GIF or WebP"),
        (["--data", stills], "holds still images, and a clip needs two or more frames"),
    ):
        with pytest.raises(SystemExit) as stop:
            cli.main(["train", "frames", "--out", str(tmp_path / "x"), *flags])
        assert stop.value.code == 2
        assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "x").exists()


def test_clips_and_their_pictures_of_other_settings_do_not_mix(trained):
    net = stepwell.load(trained[0])
    net.card = replace(net.card, drawing={"format": "clip", "frames": 5})
    with pytest.raises(ValueError, match="must be a square"):
        net.predict("c.gif")
