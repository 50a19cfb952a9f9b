"""What a student is taught on, and where it starts."""

import contextlib
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch.testing import assert_close

from stepwell.data import Batches, ImageSet, load_images
from stepwell.data.distill_data import DistillData
from stepwell.methods import Distill, FlowMatching
from stepwell.nets import Card, build
from stepwell.nets.files.nested import load, save
from stepwell.recipes import train
from stepwell.tasks import generator
from stepwell.training import Loop

CPU = Loop(device="cpu", checkpoint_minutes=0.0)
MEAN, STD = (0.4, 0.4, 0.4), (0.2, 0.2, 0.2)


@pytest.fixture
def small(image_folder, tmp_path, monkeypatch):
    """Arguments of a small distillation: data, a teacher that somebody trained, an empty place."""
    monkeypatch.setenv("STEPWELL_QUIET", "1")
    monkeypatch.setattr(generator, "_widths", lambda size: (8, 8))
    for part, count in (("train", 8), ("test", 3)):
        image_folder(count=count, size=(8, 8), root=tmp_path / "data" / part)
    torch.manual_seed(7)
    net = build("resnet8_ln", num_classes=2)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    net.mark("trained")
    net.card = Card(("cat", "dog"), 8, MEAN, STD)
    return {
        "data": str(tmp_path / "data"), "teacher": (str(save(net, tmp_path / "teacher.safetensors")),),
        "student": "resnet8_ln", "epochs": 2, "batch_size": 6, "val_fraction": 0.0, "loop": CPU,
    }  # fmt: skip


def extra_images(folder, count=5):
    (folder / "deep" / "er").mkdir(parents=True)
    for i in range(count):
        pixels = np.full((12, 9, 3), 40 * i, np.uint8)
        place = folder / "deep" / "er" if i % 2 else folder
        Image.fromarray(pixels).save(place / f"{i}.png")
    return folder


@contextlib.contextmanager
def stopping(method, at):
    """Make the `at`-th training step of a method fail, as a killed process would stop there."""
    original, count = method.training_step, 0

    def step(self, batch):
        nonlocal count
        count += 1
        if count > at:
            raise RuntimeError("stopped here")
        return original(self, batch)

    method.training_step = step
    try:
        with pytest.raises(RuntimeError, match="stopped here"):
            yield
    finally:
        method.training_step = original


EVERYTHING = {
    "generator": DistillData(
        augment="combined", mix="cutmix", synthetic="generator", synthetic_share=0.25,
        synthetic_count=7, generator_steps=6,
    ),
    "unlabeled": DistillData(mix="mixup", synthetic="noise"),
    "composites": DistillData(augment="none", synthetic="composites", unlabeled_share=0.3),
}  # fmt: skip


@pytest.mark.parametrize("kind", EVERYTHING)
def test_a_run_that_was_cut_off_ends_as_one_that_was_not(small, tmp_path, kind):
    data = EVERYTHING[kind]
    if kind != "generator":
        folder = extra_images(tmp_path / "extra")
        data = DistillData(**vars(data) | {"unlabeled": folder})
    small |= {"distill_data": data}
    if kind == "generator":
        small |= {"hint": 1.0}  # whose regressors draw numbers, as the generator does
    results = train("distill", out=tmp_path / "whole", **small)
    if kind == "generator":
        with stopping(FlowMatching, 4):
            train("distill", out=tmp_path / "cut", **small)
        with stopping(Distill, 0):
            train("distill", out=tmp_path / "cut", **small)
    with stopping(Distill, 3):
        train("distill", out=tmp_path / "cut", **small)
    assert train("distill", out=tmp_path / "cut", **small)["test"] == results["test"]
    for name in ("net.safetensors", "synthetic.safetensors"):
        if (tmp_path / "whole" / name).exists():
            first, second = (load_file(tmp_path / run / name) for run in ("whole", "cut"))
            assert_close(first, second, rtol=0, atol=0)
    assert (tmp_path / "whole" / "synthetic.safetensors").exists() == (kind == "generator")


@pytest.mark.parametrize(("asked", "images"), [(1, [6]), (2, [6, 6]), (7, [6, 6, 4] * 2)])
def test_the_generator_takes_the_steps_it_is_given(small, tmp_path, asked, images):
    seen, original = [], FlowMatching.training_step

    def step(self, batch):
        seen.append(batch.images)
        return original(self, batch)

    small |= {"distill_data": DistillData(synthetic="generator", generator_steps=asked)}
    with pytest.MonkeyPatch.context() as patch, stopping(Distill, 0):
        patch.setattr(FlowMatching, "training_step", step)
        train("distill", out=tmp_path / "r", **small)
    assert [len(batch) for batch in seen] == images  # of the 16 in all, at most once a pass


def test_what_the_generator_made_is_kept_as_bytes_and_joins_without_labels(small, tmp_path):
    seen = []
    original = Distill.training_step

    class Watched(Distill):
        def training_step(self, batch):
            seen.append(batch.labels)
            return original(self, batch)

    data = DistillData(synthetic="generator", synthetic_share=0.5, generator_steps=3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stepwell.recipes.distill.Distill", Watched)
        train("distill", out=tmp_path / "r", **small, distill_data=data)
    images = load_file(tmp_path / "r" / "synthetic.safetensors")["images"]
    assert (images.shape, images.dtype) == ((16, 3, 8, 8), torch.uint8)
    assert images.float().std() > 20
    (tmp_path / "r" / "results.json").unlink()
    (tmp_path / "r" / "synthetic.safetensors").write_bytes(b"cut off")
    with pytest.raises(ValueError, match=r"synthetic.safetensors is damaged .*: remove it, and the"):
        train("distill", out=tmp_path / "r", **small, distill_data=data)
    # 16 training images at 3 a batch of 6
    assert [int((labels == -1).sum()) for labels in seen] == 12 * [3]
    assert {p.name for p in (tmp_path / "r" / "phases").iterdir()} == {"generator", "train"}


def test_a_run_is_resumed_with_the_same_extra_images_only(small, tmp_path):
    data = DistillData(unlabeled=extra_images(tmp_path / "extra"))
    train("distill", out=tmp_path / "r", **small, distill_data=data)
    with pytest.raises(ValueError, match=r"a run with --unlabeled .*extra, not None"):
        train("distill", out=tmp_path / "r", **small)
    (tmp_path / "extra" / "0.png").unlink()
    with pytest.raises(ValueError, match=r"run on other data \(unlabeled was \w+ and is \w+\)"):
        train("distill", out=tmp_path / "r", **small, distill_data=data)


def test_images_of_a_named_set_join_without_labels(small, tmp_path, monkeypatch):
    """Of another domain: handwritten digits among what the folder holds."""
    seen = []
    step = Distill.training_step

    def watched(self, batch):
        seen.append(batch)
        return step(self, batch)

    monkeypatch.setattr(Distill, "training_step", watched)
    data = DistillData(unlabeled=Path("digits"), unlabeled_share=0.5, augment="none")
    train("distill", out=tmp_path / "r", **small | {"epochs": 1, "distill_data": data})
    assert [int((labels == -1).sum()) for _, labels in seen] == 6 * [3]
    images = torch.cat([batch.images[batch.labels == -1] for batch in seen])
    joined = {image.numpy().tobytes() for image in images}
    pixels = load_images("digits", 8).train.pixels
    digits = Batches(
        ImageSet(pixels, torch.zeros(len(pixels)).long(), ("a", "b")), 99, mean=MEAN, std=STD
    )
    assert joined <= {image.numpy().tobytes() for batch in digits for image in batch.images}
    assert len(joined) == 18


def broken(folder):
    (folder / "deep" / "x.jpg").write_text("no image")


def emptied(folder):
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / "notes.txt").touch()


@pytest.mark.parametrize(
    ("harm", "options", "message"),
    [
        (broken, {}, r"cannot read image .*x\.jpg .*: replace or remove it"),
        (emptied, {}, r"extra holds no image \(\.bmp.*: fill it, or leave it out"),
        (shutil.rmtree, {}, r"no folder of images .*extra, nor one of digits, cifar10"),
        (None, {"unlabeled_share": 1.0}, "--unlabeled-share 1.0: must be above 0"),
        (None, {"unlabeled_share": 0.9}, "leave no room for the training images.*unlabeled-share"),
        (None, {"synthetic_share": 0.5}, "--synthetic-share 0.5: of what"),
        (None, {"synthetic_count": 5}, "--synthetic-count 5: of --synthetic generator only"),
        (None, {"unlabeled": None, "unlabeled_share": 0.5}, "name a folder, --unlabeled"),
        (None, {"synthetic_share": -0.1}, "--synthetic-share -0.1: must be above 0"),
        (None, {"synthetic_count": 0}, "--synthetic-count 0: must be 1 or more"),
        (None, {"generator_steps": 0}, "--generator-steps 0: must be 1 or more"),
    ],
)
def test_bad_input_is_refused_before_a_run_begins(small, tmp_path, harm, options, message):
    folder = extra_images(tmp_path / "extra")
    if harm is not None:
        harm(folder)
    data = DistillData(**{"unlabeled": folder} | options)
    with pytest.raises(ValueError, match=message):
        train("distill", out=tmp_path / "r", **small, distill_data=data)
    assert not (tmp_path / "r").exists()


# where the student starts


def logits(net, images):
    batches = Batches(images, 64, mean=net.card.mean, std=net.card.std)
    with torch.no_grad():
        return torch.cat([net.eval()(batch.images) for batch in batches])


def test_a_student_that_starts_at_its_teacher_stays_there(small, tmp_path):
    """The gradient vanishes where both predict the same: Stanton et al. 2021, section 6.2."""
    still = {"start_from_teacher": 1.0, "ce": 0.0, "weight_decay": 0.0, "epochs": 3}
    train("distill", out=tmp_path / "r", **small | still)
    teacher, student = load(small["teacher"][0]), load(tmp_path / "r" / "net.safetensors")
    for name, value in teacher.module.state_dict().items():
        assert_close(student.module.state_dict()[name], value, rtol=0, atol=1e-4)
    splits = load_images(small["data"])
    for part in (splits.train, splits.test):
        ours, theirs = logits(student, part), logits(teacher, part)
        assert ours.argmax(1).equal(theirs.argmax(1))
        assert_close(ours, theirs, atol=1e-3, rtol=1e-3)
    train("distill", out=tmp_path / "far", **small | still | {"start_from_teacher": 0.0})
    far = load(tmp_path / "far" / "net.safetensors").module.state_dict()
    theirs = teacher.module.state_dict()
    assert max((far[k] - v).abs().max() for k, v in theirs.items()) > 0.1


def test_a_run_that_goes_on_passes_over_no_images_to_start(small, tmp_path, monkeypatch):
    small |= {"start_from_teacher": 0.5}
    results = train("distill", out=tmp_path / "whole", **small)
    with stopping(Distill, 4):  # after the checkpoint of the first epoch
        train("distill", out=tmp_path / "cut", **small)
    monkeypatch.delattr("stepwell.recipes.distill.start_interpolated")
    assert train("distill", out=tmp_path / "cut", **small)["test"] == results["test"]


def test_a_start_needs_a_teacher_of_the_same_architecture(small, tmp_path):
    with pytest.raises(ValueError, match="no line between two architectures"):
        train(
            "distill",
            out=tmp_path / "a",
            **small | {"student": "resnet14_ln", "start_from_teacher": 0.5},
        )
    (teacher,) = small["teacher"]
    other = shutil.copy(teacher, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"an ensemble \(.*\) has no weights of its own"):
        train(
            "distill",
            out=tmp_path / "c",
            **small | {"teacher": (teacher, str(other)), "start_from_teacher": 0.5},
        )
    with pytest.raises(ValueError, match=r"--start-from-teacher 2.0: must be between 0 and 1"):
        train("distill", out=tmp_path / "b", **small | {"start_from_teacher": 2.0})
