"""Recipes with a teacher from outside: its name, cached logits, hints, and resuming."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch.testing import assert_close

from stepwell.data import load_images
from stepwell.data.distill_data import DistillData
from stepwell.measure.data_parts import parts_for
from stepwell.methods import Distill
from stepwell.nets.files.nested import load, save
from stepwell.recipes import train
from stepwell.teachers import CachedLogits, Frozen
from stepwell.training import Loop

COMMON = {
    "data": "digits", "part": "1/4", "epochs": 2, "batch_size": 60, "loop": Loop(device="cpu")
}  # fmt: skip


pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    out = tmp_path_factory.mktemp("teacher") / "run"
    train("supervised", out=out, net="resnet14", **COMMON)
    return out


@pytest.fixture
def teach(teacher, tmp_path):
    def run(out="s", **options):
        options = {"teacher": (str(teacher),), "student": "resnet8"} | options
        return train("distill", out=tmp_path / out, **COMMON | options)

    return run


def same_net(a, b):
    mine, theirs = (load_file(run / "net.safetensors") for run in (a, b))
    assert mine.keys() == theirs.keys()
    for name, value in mine.items():
        assert_close(value, theirs[name], rtol=0, atol=0)


def test_with_a_warm_cache_no_teacher_runs_and_every_bit_is_the_same(teach, tmp_path, monkeypatch):
    runs = []
    forward = Frozen.forward
    monkeypatch.setattr(Frozen, "forward", lambda self, *x: (runs.append(1), forward(self, *x))[1])
    cache = tmp_path / "cache"
    teach("plain")
    images = 2 * 320  # epochs, and the training part
    runs.clear()
    assert teach("first", cache=cache)["distill"]["cache"] == {"read": 0, "computed": images}
    cold = len(runs)
    runs.clear()
    assert teach("second", cache=cache)["distill"]["cache"] == {"read": images, "computed": 0}
    assert (cold, len(runs)) == (1 + 2 * 6, 1)  # a few images are tried before training
    teach("third", cache=cache, student="resnet14", temperature=1.0, ce=0.0, lr=0.05)
    assert len(runs) == 2
    same_net(tmp_path / "plain", tmp_path / "first")
    same_net(tmp_path / "plain", tmp_path / "second")
    for change, what in (
        ({"teacher": (str(tmp_path / "plain"),)}, "teacher"),
        ({"flip": True}, "augmentation"),
    ):
        with pytest.raises(ValueError, match=f"made with {what} .*use another --cache"):
            teach("other", cache=cache, **change)
        assert not (tmp_path / "other").exists()
    assert teach("seed", cache=cache, seed=1, epochs=1)["distill"]["cache"]["read"] == 0


def test_a_cache_is_found_by_pixels_and_belongs_to_a_teacher(teach, tmp_path, monkeypatch):
    """Where the unlabeled images lie and what the student starts from do not matter."""
    for name in ("extra", "moved"):
        (tmp_path / name).mkdir()
        for i in range(4):
            pixels = np.full((8, 8, 3), 60 * i, np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{i}.png")

    def shown(name, **options):
        return {"distill_data": DistillData(unlabeled=tmp_path / name, **options), "epochs": 1}

    cache = {"cache": tmp_path / "cache"}
    count = teach("first", **cache, **shown("extra"))["distill"]["cache"]["computed"]
    init = tmp_path / "first" / "net.safetensors"
    again = teach("second", **cache, **shown("moved"), init=init)
    assert again["distill"]["cache"] == {"read": count, "computed": 0}
    made = []
    original = CachedLogits.__init__

    def watched(self, *args, by_image):
        made.append(by_image)
        original(self, *args, by_image=by_image)

    monkeypatch.setattr(CachedLogits, "__init__", watched)
    still = {"augment": "none"}
    teach("a", cache=tmp_path / "c1", **shown("extra", **still))
    teach("b", cache=tmp_path / "c2", **shown("extra", **still, mix="mixup"))
    assert made == [True, False]


def stopping(monkeypatch, step):
    """Every student is stopped once, at this step."""
    training_step = Distill.training_step
    left = [step]

    def run(self, batch):
        left[0] -= 1
        if left[0] == 0:
            raise RuntimeError("stopped")
        return training_step(self, batch)

    monkeypatch.setattr(Distill, "training_step", run)


@pytest.mark.parametrize(
    "options",
    [{"hint": 1.0, "hint_stages": ("layer2",), "attention": 2.0}, {"cache": "cache", "ce": 0.0}],
    ids=["hint", "cache"],
)
def test_a_run_that_was_stopped_ends_as_if_it_had_not_been(teach, tmp_path, monkeypatch, options):
    whole, stopped = dict(options), dict(options)
    if "cache" in options:
        whole["cache"], stopped["cache"] = tmp_path / "c1", tmp_path / "c2"
    expected = teach("whole", **whole)
    stopping(monkeypatch, 9)
    with pytest.raises(RuntimeError, match="stopped"):
        teach("stopped", **stopped)
    result = teach("stopped", **stopped)
    assert result["test"] == expected["test"]
    same_net(tmp_path / "whole", tmp_path / "stopped")
    assert not any("regressor" in name for name in load(tmp_path / "whole/net.safetensors").tensors())


def test_a_resumed_run_refuses_another_teacher(teach, teacher, tmp_path):
    file = tmp_path / "t.safetensors"
    shutil.copy(teacher / "net.safetensors", file)
    two = (str(file), str(teacher))
    results = teach(teacher=two, ce=0.0, epochs=1)
    config = json.loads((tmp_path / "s" / "config.json").read_text())
    assert len(config["teacher"].split("+")) == 2
    assert teach(teacher=two, ce=0.0, epochs=1) == results
    net = load(file)
    torch.nn.init.normal_(net.module.fc.bias)
    save(net, file)
    with pytest.raises(ValueError, match="holds a run on other teacher .*use another --out"):
        teach(teacher=two, ce=0.0, epochs=1)


def test_what_does_not_fit_is_refused_before_there_is_a_run(teach, teacher, tmp_path):
    net = load(teacher / "net.safetensors")
    net.card = replace(net.card, classes=tuple("1023456789"))
    other = str(save(net, tmp_path / "other.safetensors"))
    for options, message in (
        ({"teacher": (other,)}, "same classes in another order .number 0 is '1' and '0'"),
        ({"teacher": ()}, "name a teacher"),
        ({"cache": tmp_path / "c", "hint": 1.0}, "--cache keeps logits alone"),
        ({"cache": tmp_path / "c", "kl": 0.0}, "with --kl 0 no logits are looked at"),
        ({"hint": -1.0}, "--hint -1.0: must be 0 or more"),
        ({"hint": 1.0, "hint_stages": ("layer9",)}, "the student has no stage 'layer9'"),
        ({"attention": 1.0, "attention_stages": ("layer1=layer3",)}, "stages of the same"),
        ({"hint_stages": ("layer1",)}, "--hint-stages layer1: give a weight, --hint"),
        ({"attention_stages": ("layer1",)}, "--attention-stages layer1: give a weight, --att"),
        ({"ce": 0.0, "kl": 0.0}, "the student has no loss"),
        ({"start_from_teacher": 0.5}, "no line between two architectures"),
    ):
        with pytest.raises(ValueError, match=message):
            teach(**options)
        assert not (tmp_path / "s").exists()


def test_weights_to_start_from_say_how_images_are_normalised(teach, teacher, tmp_path):
    """The teacher's images are converted; a student's trained weights know one normalisation."""
    net = load(teacher / "net.safetensors")
    net.card = replace(net.card, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    init = save(net, tmp_path / "init.safetensors")
    teach(student="resnet14", init=init, epochs=1)
    assert load(tmp_path / "s" / "net.safetensors").card.mean == (0.1, 0.2, 0.3)


def test_a_nested_net_is_taught_from_outside_as_a_student_is(teach, teacher, tmp_path):
    """Without sub-nets the schedule `taught` is `distill`, to the bit."""
    nested = {"net": "resnet14", "schedule": "taught", "teacher": (str(teacher),)} | COMMON
    expected = teach("student", student="resnet14")
    result = train("ekd", out=tmp_path / "alone", depths=(), **nested)
    assert result["test"] == expected["test"]
    same_net(tmp_path / "student", tmp_path / "alone")
    both = train("ekd", out=tmp_path / "nested", depths=("8",), **nested)
    assert {"8/accuracy", "14/accuracy"} <= both["test"].keys()
    config = json.loads((tmp_path / "nested" / "config.json").read_text())
    assert config["teacher"] == json.loads((tmp_path / "alone" / "config.json").read_text())["teacher"]
    assert config["teacher"] is not None
    with pytest.raises(ValueError, match="--teacher-mean and --teacher-std need --teacher"):
        train("ekd", out=tmp_path / "no", **COMMON, teacher_mean=(0.5, 0.5, 0.5))
    for change in ({"teacher": ()}, {"schedule": "one-run"}):
        with pytest.raises(ValueError, match="--schedule taught needs --teacher, and the other"):
            train("ekd", out=tmp_path / "no", depths=("8",), **nested | change)


def test_a_part_of_the_training_images_is_taken_and_a_run_on_it_resumed(teach, tmp_path):
    found = teach("s1", part="1/2", val_fraction=0.0)
    config = json.loads((tmp_path / "s1" / "config.json").read_text())
    assert config["data"]["train"] == 719
    assert found == teach("s1", part="1/2", val_fraction=0.0)
    with pytest.raises(ValueError, match="holds a run with --part 1/2, not 2/2"):
        teach("s1", part="2/2", val_fraction=0.0)


def test_a_cache_is_of_one_part(teach, tmp_path):
    teach("one", cache=tmp_path / "cache", part="1/2")
    with pytest.raises(ValueError, match="part"):
        teach("two", cache=tmp_path / "cache", part="2/2")


def test_a_run_is_measured_on_the_part_it_was_trained_on(teach, tmp_path):
    teach("half", part="1/3", val_fraction=0.1)
    config = json.loads((tmp_path / "half" / "config.json").read_text())
    net = load(tmp_path / "half" / "net.safetensors")
    found = config["data"]["fingerprint"]
    parts = parts_for(net, "digits", found, 0.1, "1/3")
    assert [len(parts.train.images), len(parts.validation.images)] == [
        config["data"]["train"], config["data"]["validation"]
    ]  # fmt: skip
    whole = load_images("digits").train
    expected = whole.part(1, 3).split(0.1)[0]
    assert parts.train.images.fingerprint == expected.fingerprint
