"""Features of a published teacher, learned without its classes and without labels."""

import json

import pytest
import timm
import torch
from safetensors.torch import save_file

from stepwell import cli
from stepwell.methods import Distill
from stepwell.nets import build
from stepwell.nets.files.container import kind_of
from stepwell.nets.files.nested import load
from stepwell.recipes import train
from stepwell.teachers import Frozen

MODEL = "resnet10t"


@pytest.fixture
def teacher(tmp_path):
    """A timm model with random weights in a file, as a teacher."""
    torch.manual_seed(3)
    save_file(timm.create_model(MODEL).state_dict(), tmp_path / "plain.safetensors")
    return f"timm/{MODEL}={tmp_path / 'plain.safetensors'}"


def test_a_teacher_of_other_classes_teaches_its_features_only(teacher, tmp_path, quick):
    options = {
        "data": "digits", "size": 32, "student": "resnet8", "part": "1/20", "val_fraction": 0.0,
        "epochs": 1, "batch_size": 64, "device": "cpu", "teacher": (teacher,),
        "teacher_mean": (0.5,) * 3, "teacher_std": (0.5,) * 3,
    }  # fmt: skip
    message = (
        r"1000 classes .* the data has 10.*`stepwell train supervised --net timm/resnet10t --init \S+ "
        r"\.\.\.`.*--kl 0 --hint 1"
    )
    with pytest.raises(ValueError, match=message):
        train("distill", out=tmp_path / "r", **options)
    results = train(
        "distill", out=tmp_path / "r", **options, kl=0.0, hint=1.0, hint_stages=("layer3=layer4",)
    )
    assert results["examples"] == 359


def test_features_on_images_without_labels_are_a_start(
    teacher, tmp_path, image_folder, capsys, monkeypatch, quick
):
    monkeypatch.chdir(tmp_path)
    folder = image_folder(count=12, size=(32, 32))
    own = ["--student", "resnet8", "--teacher", teacher, "--unlabeled", str(folder)]
    own += ["--epochs", "2", "--batch-size", "8", "--device", "cpu"]
    own += ["--teacher-mean", *["0.5"] * 3, "--teacher-std", *["0.5"] * 3]
    command = ["train", "distill", *own, "--out", "r"]
    cli.main(command)
    _, err = capsys.readouterr()
    assert "loss against the teacher" in err
    assert "stepwell train supervised --data LABELLED --net resnet8 --size 32 --init r" in err
    assert kind_of("r") == "features"
    results = json.loads((tmp_path / "r" / "results.json").read_text())
    assert results["examples"] == 2
    lines = [json.loads(x) for x in (tmp_path / "r" / "metrics.jsonl").read_text().splitlines()]
    assert all(line["val/loss"] > 0 for line in lines)
    assert "val/8/accuracy" not in lines[0]
    cli.main(command)
    assert "nothing was trained" in capsys.readouterr().err
    (tmp_path / "r" / "results.json").unlink()
    cli.main(command)
    assert json.loads((tmp_path / "r" / "results.json").read_text())["test"] == results["test"]
    for verb in (["eval", "r"], ["predict", "r", str(folder)], ["export", "r"]):
        with pytest.raises(SystemExit):
            cli.main(verb)
        assert "which cannot be" in (said := capsys.readouterr().err)
        assert "train one: stepwell train supervised" in said
    cli.main(["report", "r"])
    with pytest.warns(UserWarning, match="classifier is for other classes|no test part"):
        train(
            "supervised", data=str(folder), out=tmp_path / "s", net="resnet8", init=tmp_path / "r",
            epochs=1, batch_size=8, lr=1e-9, val_fraction=0.0, device="cpu",
        )  # fmt: skip
    start, end = (load(tmp_path / run).module.conv1.weight for run in "rs")
    torch.testing.assert_close(start, end)


def test_losses_on_labels_need_labels(teacher, tmp_path, image_folder):
    options = {"out": tmp_path / "r", "teacher": (teacher,), "unlabeled": image_folder(count=4)}
    for name in ("ce", "kl"):
        with pytest.raises(ValueError, match=f"--{name} 1.0 needs classes.*add --data"):
            train("distill", **options | {name: 1.0})
    with pytest.raises(ValueError, match="--balance draws classes"):
        train("distill", **options, balance=True)
    with pytest.raises(ValueError, match="--unlabeled FOLDER"):
        train("distill", out=tmp_path / "r", teacher=(teacher,))
    with pytest.raises(ValueError, match="whose images train"):
        train("distill", **options | {"out": options["unlabeled"] / "r"})


def test_maps_are_compared_with_the_tokens_of_a_square():
    teacher = Frozen(build("timm/vit_tiny_patch16_224", img_size=32, num_classes=3))
    student = build("resnet8", num_classes=3)
    objective = Distill(
        student, teacher, ce=0, kl=0, hint=1, hint_stages="layer3=blocks", input_shape=(3, 32, 32)
    )
    images, labels = torch.randn(2, 3, 32, 32), torch.zeros(2, dtype=torch.long)
    from stepwell import Batch

    objective.training_step(Batch(images, labels)).loss.backward()
    tokens = teacher(images).features[0]  # a class token, then 2 × 2 patches
    ours = torch.nn.functional.adaptive_avg_pool2d(student.forward_all(images)["8"].features[2], 2)
    theirs = tokens[:, 1:].transpose(1, 2).reshape(2, -1, 2, 2)
    expected = (objective.hints.regressors[0](ours) - theirs).square().mean()
    torch.testing.assert_close(objective.training_step(Batch(images, labels)).loss, expected)
