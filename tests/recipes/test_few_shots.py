"""The recipe of grafting: which images it takes, that no label counts, and what it leaves."""

import json
import shutil
from functools import partial

import pytest
import torch
from safetensors.torch import load_file, save_file

from running import stopped
from stepwell.cost import cost_of
from stepwell.data import Augment, Batches, ImageSet
from stepwell.measure.data_parts import parts_for
from stepwell.methods import Graft
from stepwell.nets import build
from stepwell.nets.files.nested import load
from stepwell.nets.grafting.split_points import Adaption
from stepwell.nets.grafting.surgery import Grafting
from stepwell.recipes import train
from stepwell.recipes.graft_phases import Stages, adam, views_of
from stepwell.training import Loop

CPU = Loop(device="cpu")
FEW = {"shots": 2, "graft_steps": 2, "join_steps": 2, "batch_size": 8, "views": 2, "loop": CPU}


pytestmark = [
    pytest.mark.usefixtures("quick"),
    pytest.mark.filterwarnings("ignore:the student has learned nothing"),  # in a few steps
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Digits 0 to 2 as class folders, train and test."""
    from PIL import Image
    from sklearn.datasets import load_digits

    root = tmp_path_factory.mktemp("data")
    digits = load_digits(n_class=3)
    for i, (pixels, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        place = root / ("test" if i % 5 == 0 else "train") / f"class {label}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray((pixels * 15.9).astype("uint8")).save(place / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def teacher(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("teacher") / "run"
    train(
        "supervised",
        out=out,
        data=str(folder),
        net="resnet14",
        epochs=4,
        batch_size=32,
        val_fraction=0.0,
        loop=CPU,
    )
    return out


@pytest.fixture
def graft(teacher, tmp_path):
    def run(out="s", **options):
        options = {"teacher": str(teacher), "student": "resnet8_slim"} | FEW | options
        return train("netgraft", out=tmp_path / out, **options)

    return run


def same_net(a, b):
    mine, theirs = (load_file(run / "net.safetensors") for run in (a, b))
    assert mine.keys() == theirs.keys()
    return all(torch.equal(value, theirs[name]) for name, value in mine.items())


def dealt_anew(images, root):
    """The same images in other class folders: each label is another's."""
    files = sorted(images.rglob("*.png"), key=lambda file: file.name)
    names = [file.parent.name for file in files]
    for file, name in zip(files, names[7:] + names[:7], strict=True):
        (root / name).mkdir(parents=True, exist_ok=True)
        shutil.copy(file, root / name / file.name)
    return root


def test_no_label_counts(graft, folder, tmp_path):
    """Neither of the training part of the data nor of the folders of a folder."""
    anew = dealt_anew(folder / "train", tmp_path / "data" / "train").parent
    shutil.copytree(folder / "test", anew / "test")
    found = graft("plain", schedule="direct")
    assert found["netgraft"]["images"] == 6
    graft("anew", data=str(anew), schedule="direct")
    assert same_net(tmp_path / "plain", tmp_path / "anew")
    graft("unlabeled", unlabeled=folder / "train", schedule="direct")
    graft("mixed", unlabeled=anew / "train", schedule="direct")
    assert same_net(tmp_path / "unlabeled", tmp_path / "mixed")
    assert same_net(tmp_path / "plain", tmp_path / "unlabeled")
    graft("seed", seed=1, schedule="direct")
    assert not same_net(tmp_path / "plain", tmp_path / "seed")


def test_what_a_run_leaves(graft, folder, teacher, tmp_path):
    found = graft()
    record = found["netgraft"]
    assert record["copied"] == []
    assert list(record["grafted"]) == ["layer1", "layer2", "layer3", "head"]
    assert list(record["joined"]) == ["layer2", "layer3", "head"]
    assert (
        record["teacher"] == json.loads((teacher / "results.json").read_text())["test"]["14/accuracy"]
    )
    assert found["test"]["8/accuracy"] == record["joined"]["head"]  # merged, it is the same network
    net = load(tmp_path / "s" / "net.safetensors")
    assert net.builder[0] == "resnet8_slim"
    assert (net.card.classes, net.card.size) == (("class 0", "class 1", "class 2"), 8)
    config = json.loads((tmp_path / "s" / "config.json").read_text())
    parts_for(net, str(folder), config["data"]["fingerprint"], same=True)  # as `eval` does
    assert graft() == json.loads((tmp_path / "s" / "results.json").read_text())


def test_norms_with_frozen_statistics_have_seen_every_view_once(graft, tmp_path):
    """6 images, 2 views of each, in batches of 8; each block trains for at least 2 steps more."""
    for statistics in ("frozen", "batch"):
        graft(statistics, statistics=statistics)
        state = load(tmp_path / statistics / "net.safetensors").module.state_dict()
        tracked = {k: int(v) for k, v in state.items() if k.endswith("num_batches_tracked")}
        assert len(tracked) > 3
        seen = set(tracked.values())
        assert seen == {2} if statistics == "frozen" else min(seen) > 2


@pytest.mark.parametrize(
    ("statistics", "stops"), [("batch", (1, 7)), pytest.param("frozen", (7,), marks=pytest.mark.long)]
)
def test_a_run_that_was_stopped_ends_the_same(graft, tmp_path, statistics, stops):
    graft = partial(graft, statistics=statistics)
    graft("whole")
    for stop in stops:  # 1 is within a graft, and 7 within a join, which has the grafts behind it
        with stopped(Graft, stop + 1):
            graft(f"cut {stop}")
        graft(f"cut {stop}")
        assert same_net(tmp_path / "whole", tmp_path / f"cut {stop}")


@pytest.mark.parametrize(
    ("schedule", "phases"),
    [
        ("direct", {"direct"}),
        ("graft", {"graft-1", "graft-2", "graft-3", "graft-4"}),
        ("join", {"join-2", "join-3", "join-4"}),
    ],
)
def test_schedules(graft, tmp_path, schedule, phases):
    found = graft(schedule=schedule)
    assert {folder.name for folder in (tmp_path / "s" / "phases").iterdir()} == phases
    lines = [json.loads(line) for line in (tmp_path / "s" / "metrics.jsonl").read_text().splitlines()]
    assert {line["phase"] for line in lines} == phases
    if schedule == "graft":
        assert found["test"]["8/accuracy"] == found["netgraft"]["untuned"]


@pytest.mark.filterwarnings("ignore:.* was trained on images of 8 pixels")
def test_a_convolution_that_stays_is_in_the_file_and_in_the_costs(graft, tmp_path):
    options = {"student": "timm/convnext_atto", "blocks": ("stages.0.blocks=layer3",), "size": 32}
    found = graft(**options, schedule="direct", graft_steps=1, join_steps=1, views=1)
    left = {"channels": 40, "macs": 40 * 40 * 8 * 8}
    assert found["netgraft"]["adaptions"] == {"stages.0.blocks.1": left}
    plain = build("timm/convnext_atto", num_classes=3).module
    macs = cost_of(plain, torch.zeros(1, 3, 32, 32), seconds=0.01)["macs"]
    assert next(iter(found["costs"].values()))["macs"] == macs + left["macs"]
    net = load(tmp_path / "s" / "net.safetensors")
    plain = load(tmp_path / "s" / "net.safetensors").subnet()
    assert plain.stages[0].blocks[1][1].weight.shape == (40, 40, 1, 1)
    assert net(torch.zeros(1, 3, 32, 32)).shape == (1, 3)


def test_bad_input_leaves_no_run(graft, folder, tmp_path, teacher):
    few, weights = tmp_path / "few", tmp_path / "w.safetensors"
    few.mkdir()
    shutil.copy(next((folder / "train").rglob("*.png")), few)
    save_file(load(teacher / "net.safetensors").module.state_dict(), weights)
    copied = shutil.copy(teacher / "net.safetensors", few)
    (few / "config.json").write_text('{"architectures": [], "arguments": {}}')  # somebody else's
    for options, message in (
        ({"shots": 200}, "are 600 images, and the training part has 429: use --shots 143 or less"),
        ({"unlabeled": few}, r"are 6 images, and .*few holds 1: add images"),
        ({"teacher": f"resnet14={weights}"}, "say what to measure the student on with --data"),
        ({"teacher": str(copied)}, "say what to measure the student on with --data"),
        ({"blocks": ("layer1=layer2",)}, "layer1 8×8 of the student and layer2 4×4 of the teacher"),
        ({"student": "resnet14"}, "nothing to learn"),
        ({"student": f"{teacher}@14"}, "is a file or a folder: .* of the teacher, --keep BLOCKS"),
        (
            {"schedule": "join", "student": "", "keep": (1, 2, 2)},
            "--schedule join: only layer1 is grafted",
        ),
        ({"student": ""}, "say what to train: --student NAME, or --keep BLOCKS of each stage"),
        ({"keep": (1, 1, 1)}, "--student resnet8_slim, --keep 1 1 1: drop one"),
        (
            {"student": "", "keep": (2, 2, 2)},
            r"nothing to learn: .*\(2 in layer1, 2 in layer2, 2 in layer3\): .*keep fewer blocks",
        ),
        (
            {"student": "", "keep": (1, 3, 1)},
            "--keep 1 3 1: the teacher has 3 stages of 2 2 2 blocks",
        ),
        ({"shots": 0}, "--shots 0: must be 1 or more"),
        ({"part": "1/2", "unlabeled": few}, r"--part 1/2 is of the training images, .*: drop one"),
    ):
        with pytest.raises(ValueError, match=message):
            graft(**options)
    assert not (tmp_path / "s").exists()


def test_a_student_that_learned_nothing_is_told_of(graft):
    """Its loss stays finite, whatever the rate: of logits the direction counts alone."""
    with pytest.warns(UserWarning, match=r"learned nothing: .* try a lower --lr than 1e\+06, or more"):
        graft(lr=1e6, schedule="direct", trace=False)


def test_a_teacher_is_shrunk(graft, tmp_path):
    found = graft(student="", keep=(1, 2, 1), schedule="direct")
    assert found["netgraft"]["copied"] == ["layer2", "head"]
    assert found["costs"]["1-2-1"]["blocks"] == [1, 2, 1]
    assert load(tmp_path / "s" / "net.safetensors").stages == ("layer1", "layer2", "layer3")


@pytest.mark.filterwarnings("ignore:.*does not (record how its images|name its classes)")
def test_few_images_that_must_normalise_themselves_are_warned_of(graft, folder, teacher, tmp_path):
    weights = tmp_path / "w.safetensors"
    save_file(load(teacher / "net.safetensors").module.state_dict(), weights)
    with pytest.warns(UserWarning, match="mean and deviation of the 6 drawn images"):
        graft(teacher=f"resnet14={weights}", data=str(folder), schedule="direct", trace=False)


def test_views_are_the_images_and_then_changes_of_them_that_are_always_the_same(monkeypatch):
    pixels = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8)
    images = ImageSet(pixels, torch.full((4,), -1), ("a", "b"))
    train = Batches(images, 2, mean=(0.5,) * 3, std=(0.3,) * 3, augment=Augment(), shuffle=True)
    stages = Stages(graft_steps=2, join_steps=6)
    shown = views_of(train, 3, stages)
    first, *others = shown.images.pixels.split(4)
    assert torch.equal(first, pixels)
    assert len({view.numpy().tobytes() for view in (first, *others)}) == 3
    assert torch.equal(shown.images.pixels, views_of(train, 3, stages).images.pixels)
    assert shown.augment is None
    assert len(views_of(train, 64, stages).images) == 6 * 2  # what 6 steps of 2 show
    monkeypatch.setattr("stepwell.recipes.graft_phases.MEMORY", 2 * pixels.numel() + 1)
    assert len(views_of(train, 64, stages).images) == 2 * 4
    plain = Batches(images, 2, mean=train.mean, std=train.std, shuffle=True)
    assert torch.equal(views_of(plain, 3, stages).images.pixels, pixels)  # nothing is changed


def test_adaptions_have_a_rate_of_their_own():
    student, teacher = build("resnet14_slimmer"), build("resnet20").eval()
    grafting = Grafting(student, teacher, input_shape=(3, 8, 8))
    optimizer = adam(0.1, 0.2).make(Graft(grafting, 2, 2))
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    before, after = (m for m in grafting.blocks[2].children() if isinstance(m, Adaption))
    own = {id(p): 0.1 for p in student.module.layer3.parameters()}
    assert rates == own | {id(before.weight): 0.2, id(after.weight): 0.2}
