"""What can be named as a teacher, and what is made of it for some data."""

import sys
import warnings
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn
from torch.testing import assert_close

from stepwell.export import export_onnx, export_safetensors
from stepwell.losses import ensemble_logits
from stepwell.nets import Card, build
from stepwell.nets.files.initial_weights import Start
from stepwell.nets.files.nested import fingerprint, save
from stepwell.nets.files.onnx import OnnxNet
from stepwell.teachers import Ensemble, Frozen, OpenTeacher, open_teacher
from stepwell.teachers.opening import Source
from stepwell.types import Exit

CLASSES = ("a", "b", "c")
PLAIN = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
OWN = ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


def make(seed=0, normalisation=OWN):
    torch.manual_seed(seed)
    net = build("resnet14", ["8"], num_classes=3)
    for p in net.parameters():
        nn.init.normal_(p, std=0.2)
    for depth in net.depths:
        net.train()(torch.randn(16, 3, 8, 8), depth)
    net.card = Card(CLASSES, 8, *normalisation)
    net.mark("trained")
    return net.eval()


@pytest.fixture
def images():
    """Pixels in [0, 1], as they are normalised by nothing."""
    return torch.rand(6, 3, 8, 8)


def normalised(pixels, normalisation):
    mean, std = (torch.tensor(v)[:, None, None] for v in normalisation)
    return (pixels - mean) / std


# Ensembles


def test_an_ensemble_predicts_the_mean_of_its_members(images):
    members = [Frozen(make(seed)) for seed in range(3)]
    logits = Ensemble(members)(images).logits
    mean = torch.stack([m(images).logits.double().softmax(1) for m in members]).mean(0)
    assert_close(logits.double().softmax(1), mean, rtol=1e-5, atol=1e-6)
    # Hand-worked: (3/4, 1/4) and (1/4, 3/4) are (1/2, 1/2) together, and 2 members' logits average
    # to something else.
    z = torch.tensor([[[3.0, 1.0]], [[1.0, 3.0]], [[1.0, 1.0]]]).log()
    assert_close(ensemble_logits(z), torch.tensor([[0.5, 0.5]]).log())
    with pytest.raises(ValueError, match="at least one"):
        Ensemble([])


def test_members_that_give_probabilities_are_found_out_each_and_the_mean_is_theirs():
    sure = torch.full((4, 10), 0.01 / 9)
    sure[:, 0] = 0.99
    give = {"p": lambda x: Exit(sure), "z": lambda x: Exit(sure.log() + 5)}
    for members, odd in (("pp", (1, 2)), ("zp", (2,)), ("zz", ())):
        ensemble = Ensemble([give[kind] for kind in members])
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            top = ensemble(torch.zeros(4, 1)).logits.softmax(1)[:, 0]
        assert_close(top, torch.full((4,), 0.99))
        assert [str(w.message).split(" (")[0] for w in said] == [
            f"member {i} of 2 of an ensemble gives probabilities, not logits" for i in odd
        ]


def test_a_member_that_gives_no_exit_is_named():
    ensemble = Ensemble([lambda x: Exit(x), lambda x: x])
    with pytest.raises(ValueError, match="member 2 of 2 of an ensemble gives a Tensor, not an Ex"):
        ensemble(torch.randn(4, 3))


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 5), st.integers(1, 4), st.floats(0.1, 80.0), st.integers(0, 99))
def test_an_ensembles_logits_are_log_probabilities(members, classes, scale, seed):
    generator = torch.Generator().manual_seed(seed)
    z = scale * torch.randn(members, 4, classes, generator=generator, dtype=torch.float64)
    together = ensemble_logits(z)
    assert_close(together.exp().sum(1), torch.ones(4, dtype=torch.float64))
    assert_close(ensemble_logits(z.flip(0)), together)
    assert_close(ensemble_logits(torch.cat([z, z])), together)  # only shares count
    assert_close(ensemble_logits(z + 7.0), together)


def test_members_follow_to_another_type_and_stay_out_of_the_state(images):
    owner = nn.ModuleDict({"t": Ensemble([Frozen(make()), Frozen(make(1))])})
    assert not owner.state_dict()
    assert not list(owner.parameters())
    owner.double().train()
    assert owner["t"](images.double()).logits.dtype == torch.float64


# Opening


def test_a_file_a_run_and_a_depth(images, tmp_path):
    net = make()
    (tmp_path / "run@2").mkdir()
    file = save(net, tmp_path / "run@2" / "net.safetensors")
    x = normalised(images, OWN)
    for name, depth in (
        (file, "14"), (file.parent, "14"), (f"{file}@8", "8"), (f"{file.parent}@8", "8"),
    ):  # fmt: skip
        opened = open_teacher(str(name))
        assert opened.normalisation == OWN
        assert opened.fingerprint.startswith(fingerprint(file) + "@8:" * (depth == "8"))
        teacher = opened.for_data(CLASSES, x, OWN)
        assert teacher.stages == ("layer1", "layer2", "layer3")
        exit = teacher(x)
        assert_close(exit.logits, net(x, depth), rtol=0, atol=0)
        assert len(exit.features) == 3


def test_a_calibrated_depth_that_is_measured_again_is_another_teacher(tmp_path):
    net = make()
    net.add_depth("tiny", (2, 1, 1))
    net.mark("calibrated", "tiny")
    file = save(net, tmp_path / "net.safetensors")
    before = [open_teacher([str(file) + which]) for which in ("", "@8", "@tiny")]
    others = {id(norm) for depth in ("8", "14") for norm in net.norms(depth)}
    for norm in net.norms("tiny"):
        if id(norm) not in others:
            norm.running_mean += 0.1
    save(net, file)
    after = [open_teacher([str(file) + which]) for which in ("", "@8", "@tiny")]
    same = [a.fingerprint == b.fingerprint for a, b in zip(before, after, strict=True)]
    assert same == [True, True, False]
    assert {o.sources[0].weights for o in (*before, *after)} == {fingerprint(file)}


def test_a_card_that_nobody_filled_in_says_no_normalisation(images, tmp_path):
    net = make()
    net.card = Card()
    name = str(save(net, tmp_path / "net.safetensors"))
    opened = open_teacher([name])
    assert opened.normalisation is None
    with (
        pytest.warns(UserWarning, match="does not name its classes"),
        pytest.warns(UserWarning, match="does not record how its images are normalised"),
    ):
        opened.for_data(CLASSES, images, PLAIN)
    given_ = open_teacher([name], mean=OWN[0], std=OWN[1])
    assert given_.normalisation == OWN
    other = open_teacher([name], mean=OWN[0], std=OWN[0])
    assert len({opened.fingerprint, given_.fingerprint, other.fingerprint}) == 3
    net.card = Card(CLASSES)  # somebody wrote this one, and left the rest as it was
    save(net, tmp_path / "net.safetensors")
    assert open_teacher([name]).normalisation == (Card().mean, Card().std)


def test_the_same_pixels_reach_members_that_are_normalised_in_other_ways(images, tmp_path):
    nets = [make(0), make(1, PLAIN)]
    names = [str(save(net, tmp_path / f"{i}.safetensors")) for i, net in enumerate(nets)]
    opened = open_teacher(names)
    assert opened.normalisation == OWN
    expected = ensemble_logits(
        torch.stack([net(normalised(images, n)) for net, n in zip(nets, (OWN, PLAIN), strict=True)])
    )
    for given_ in (OWN, PLAIN, ((0.5, 0.5, 0.5), (0.2, 0.3, 0.1))):
        x = normalised(images, given_)
        teacher = opened.for_data(CLASSES, x, given_)
        assert_close(teacher(x).logits, expected, rtol=1e-4, atol=1e-4)


def test_an_onnx_file_says_what_it_knows(images, tmp_path):
    net, x = make(), normalised(images, OWN)
    export_onnx(net, "8", tmp_path / "t.onnx", x)
    opened = open_teacher([str(tmp_path / "t.onnx")])
    assert opened.normalisation == OWN
    assert opened.sources[0].classes == CLASSES
    teacher = opened.for_data(CLASSES, x, OWN)
    assert_close(teacher(x).logits, net(x, "8"), rtol=1e-4, atol=1e-4)
    assert teacher.stages == ()
    with pytest.raises(ValueError, match="have the same classes in another order"):
        opened.for_data(("b", "a", "c"), x, OWN)


@pytest.mark.parametrize("batch", ["n", 4])
def test_anybodys_onnx_file_teaches_and_its_probabilities_are_found_out(
    images, tmp_path, batch, foreign_onnx
):
    w = foreign_onnx(tmp_path / "t.onnx", batch)
    opened = open_teacher([str(tmp_path / "t.onnx")], mean=OWN[0], std=OWN[1])
    assert opened.normalisation == OWN
    x = normalised(images, PLAIN)
    with (
        pytest.warns(
            UserWarning, match="does not name its classes: assuming the data's order for its 3"
        ),
        pytest.warns(UserWarning, match="gives probabilities, not logits .*: their logarithm is"),
    ):
        teacher = opened.for_data(CLASSES, x, PLAIN)
    expected = (normalised(images, OWN).flatten(1) @ w).log_softmax(1)
    assert_close(teacher(x).logits, expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="t.onnx does not run on images of 16 pixels"):
        opened.for_data(CLASSES, torch.rand(4, 3, 16, 16), PLAIN)
    with pytest.warns(UserWarning) as said:  # noqa: PT030
        open_teacher([str(tmp_path / "t.onnx")]).for_data(CLASSES, x, PLAIN)
    assert "does not record how its images are normalised" in str(said[0].message)
    assert len(said) == 3
    other = OnnxNet(tmp_path / "t.onnx")
    assert other.card is None
    with pytest.raises(ValueError, match="t.onnx@8: an ONNX file has one depth"):
        open_teacher([f"{tmp_path / 't.onnx'}@8"])


def test_an_onnx_file_that_takes_no_images(tmp_path, foreign_onnx):
    foreign_onnx(tmp_path / "t.onnx", "n")
    import onnx

    model = onnx.load(tmp_path / "t.onnx")
    model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.DOUBLE
    del model.graph.node[1:]
    model.graph.output[0].CopyFrom(
        onnx.helper.make_tensor_value_info("f", onnx.TensorProto.DOUBLE, ["n", 192])
    )
    onnx.save(model, tmp_path / "t.onnx")
    with pytest.raises(ValueError, match=r"takes x tensor\(double\).*not one tensor\(float\)"):
        open_teacher([str(tmp_path / "t.onnx")])


@pytest.mark.parametrize("channels", [1, 4])
def test_an_onnx_file_of_other_channels(tmp_path, foreign_onnx, channels):
    import onnx

    foreign_onnx(tmp_path / "t.onnx", "n")
    model = onnx.load(tmp_path / "t.onnx")
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = channels
    del model.graph.node[1:]
    model.graph.output[0].name = "f"
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 64 * channels
    onnx.save(model, tmp_path / "t.onnx")
    message = rf"'n', {channels}, 8, 8\], not one .*: export it for these"
    with pytest.raises(ValueError, match=message):
        open_teacher([str(tmp_path / "t.onnx")])


def test_an_onnx_file_that_does_not_say_its_sizes(images, tmp_path, foreign_onnx):
    import onnx

    w = foreign_onnx(tmp_path / "t.onnx", "n")
    model = onnx.load(tmp_path / "t.onnx")
    for dim in model.graph.input[0].type.tensor_type.shape.dim:
        dim.Clear()
    onnx.save(model, tmp_path / "t.onnx")
    net = OnnxNet(tmp_path / "t.onnx")
    assert_close(net(images), (images.flatten(1) @ w).softmax(1), rtol=1e-4, atol=1e-4)


def test_a_graph_that_does_not_run_is_refused_in_one_line(tmp_path, foreign_onnx):
    import onnx

    foreign_onnx(tmp_path / "t.onnx", "n")
    model = onnx.load(tmp_path / "t.onnx")
    model.graph.initializer[0].dims[0] = 96  # half the rows that there must be
    model.graph.initializer[0].dims[1] = 6
    onnx.save(model, tmp_path / "t.onnx")
    with pytest.raises(ValueError, match="onnxruntime cannot run .*t.onnx .*: export it again") as e:
        open_teacher([str(tmp_path / "t.onnx")])
    assert "\n" not in str(e.value)


def test_an_onnx_file_of_half_precision_teaches(images, tmp_path, foreign_onnx):
    import onnx
    from onnx import TensorProto, numpy_helper

    w = foreign_onnx(tmp_path / "t.onnx", "n")
    model = onnx.load(tmp_path / "t.onnx")
    for value in (model.graph.input[0], model.graph.output[0]):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(w.half().numpy(), "w"))
    del model.graph.node[2]  # logits
    model.graph.output[0].name = "y"
    onnx.save(model, tmp_path / "t.onnx")
    opened = open_teacher([str(tmp_path / "t.onnx")], mean=PLAIN[0], std=PLAIN[1])
    with pytest.warns(UserWarning, match="does not name its classes"):
        logits = opened.for_data(CLASSES, images, PLAIN)(images).logits
    assert logits.dtype == torch.float32
    assert_close(logits, images.flatten(1) @ w, rtol=1e-2, atol=2e-2)


def test_without_the_extra_an_onnx_file_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "t.onnx").touch()
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ImportError, match=r"ONNX files need onnxruntime: pip install"):
        open_teacher([str(tmp_path / "t.onnx")])


def test_weights_beside_an_onnx_file_are_part_of_its_fingerprint(images, tmp_path):
    from stepwell.nets.files.onnx import onnx_fingerprint

    net = make()
    weights = save(net, tmp_path / "net.safetensors")
    export_onnx(net, "8", tmp_path / "8.onnx", normalised(images, OWN), weights=weights)
    before = onnx_fingerprint(tmp_path / "8.onnx")
    assert onnx_fingerprint(tmp_path / "8.onnx") == before
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    assert onnx_fingerprint(tmp_path / "8.onnx") != before
    with pytest.raises(ValueError, match="is not the file that 8.onnx was exported with"):
        open_teacher([str(tmp_path / "8.onnx")])


@pytest.mark.parametrize("stem", ["small", "imagenet"])
def test_plain_weights_of_a_named_network(images, tmp_path, stem):
    net = build("resnet18", num_classes=3, stem=stem)
    nn.init.normal_(net.module.fc.weight)
    torch.save(net.module.state_dict(), tmp_path / "w.pth")
    opened = open_teacher([f"resnet18={tmp_path / 'w.pth'}"], mean=OWN[0], std=OWN[1])
    assert opened.normalisation == OWN
    x = torch.rand(2, 3, 32, 32)
    with pytest.warns(UserWarning, match="does not name its classes"):
        teacher = opened.for_data(CLASSES, x, OWN)
    assert_close(teacher(x).logits, net.eval()(x))
    with pytest.raises(ValueError, match=r"w.pth does not fit this resnet20: \d+ names differ"):
        open_teacher([f"resnet20={tmp_path / 'w.pth'}"])


def test_plain_weights_of_a_depth_by_name(tmp_path):
    net = build("resnet20@14", num_classes=3)
    torch.save(net.module.state_dict(), tmp_path / "w.pth")
    (source,) = open_teacher([f"resnet20@14={tmp_path / 'w.pth'}"]).sources
    assert torch.equal(source.module.fc.weight, net.module.fc.weight)
    torch.save(build("resnet20", num_classes=3).module.state_dict(), tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"w.pth does not fit this resnet20@14: \d+ names differ"):
        open_teacher([f"resnet20@14={tmp_path / 'w.pth'}"])


def test_exported_weights_of_a_network_of_one_image_size_say_that_size(tmp_path):
    net = build("vit6@3", num_classes=3, image_size=8)
    net.card = Card(CLASSES, size=8)
    net.mark("trained")
    images = torch.rand(2, 3, 8, 8)
    export_safetensors(net, "3", tmp_path / "w.safetensors", images)
    (source,) = open_teacher([f"vit6@3={tmp_path / 'w.safetensors'}"]).sources
    assert (source.size, source.classes) == (8, CLASSES)
    assert_close(source.teacher(images).logits, net.eval()(images))


def test_plain_weights_that_do_not_say_their_stem(tmp_path):
    torch.save(build("mobilenet_v2").module.state_dict(), tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"fits mobilenet_v2 with either stem and does not say"):
        open_teacher([f"mobilenet_v2={tmp_path / 'w.pth'}"])


def test_an_exported_depth_says_its_classes(images, tmp_path):
    net, x = make(), normalised(images, OWN)
    export_safetensors(net, "8", tmp_path / "8.safetensors", x)
    opened = open_teacher([f"resnet8={tmp_path / '8.safetensors'}"])
    assert opened.sources[0].classes == CLASSES
    assert_close(opened.for_data(CLASSES, x, OWN)(x).logits, net(x, "8"))
    file = save(net, tmp_path / "net.safetensors")
    with pytest.raises(ValueError, match="says itself which network it holds"):
        open_teacher([f"resnet14={file}"])


def test_published_weights_by_name(images, monkeypatch):
    from stepwell.teachers import opening as teachers

    def start(net):
        nn.init.constant_(net.module.fc.bias, 3.0)
        return Start(Card(mean=OWN[0], std=OWN[1]), ())

    monkeypatch.setattr(teachers, "start_pretrained", start)
    opened = open_teacher(["timm/test_resnet"])
    assert opened.normalisation == OWN
    assert len(opened.fingerprint) == 16
    x = torch.rand(2, 3, 32, 32)
    with pytest.warns(UserWarning, match="timm/test_resnet does not name its classes"):
        teacher = opened.for_data(tuple(map(str, range(1000))), x, OWN)
    assert teacher.stages
    assert len(teacher(x).features) == len(teacher.stages)


@pytest.mark.parametrize(
    ("names", "options", "message"),
    [
        ([], {}, "name a teacher, or several"),
        (["nowhere"], {}, "no teacher 'nowhere': name a run directory, a file"),
        ([""], {}, "no teacher '': name a run directory, a file"),
        (["{net}", "{plain}", "{net}"], {}, "net.safetensors is named twice: name each member"),
        (["{net}@9"], {}, "no depth '9'; this net has 8, 14"),
        (["{net}@"], {}, "net.safetensors@: name a depth behind the @, or leave the @ out"),
        (["{fresh}@8"], {}, "depth '8' was never trained"),
        (
            ["{tmp}/begun"],
            {},
            "begun holds no net.safetensors, so it is no finished run: start",
        ),
        (["{tmp}"], {}, "empty is no run directory: name the --out folder"),
        (["{tmp}/model.py"], {}, "model.py is not a network's file: name a run directory, a file"),
        (["{cut}"], {}, "cut.safetensors is damaged or no safetensors file"),
        (["{plain}"], {}, "holds weights only: add the network's name, NETWORK=FILE, such"),
        (["{tmp}/w.pth"], {}, "w.pth holds weights only: add the network's name, NETWORK="),
        (
            ["{tmp}/model.pt"],
            {},
            "holds more than weights, such as .* never done: where the model was made, save",
        ),
        (["resnet18={tmp}/model.pt"], {}, "holds more than weights, such as a pickled module"),
        (["{tmp}/script.pt"], {}, "holds more than weights, such as a pickled module"),
        (["resnet18={tmp}/epoch.pt"], {}, "is no state dict: save `model.state_dict"),
        (["resnet20"], {}, "torchvision publishes no weights for resnet20"),
        (["resnet18="], {}, "teacher resnet18=: name a file of weights behind the ="),
        (["resnet34@18"], {}, "teacher resnet34@18: no weights of a depth alone are published: name a"),
        (["timm/vit_tiny_patch16_224@2"], {}, "no weights of a depth alone are published: name a run"),
        (
            ["{net}", "{other}"],
            {},
            r"net.safetensors has 3 classes, .* has 3, and they differ: only the first has 'b', 'c', "
            r"only the second has 'y', 'z'; .*ensemble",
        ),
        (["{net}"], {"mean": OWN[0], "std": OWN[1]}, "drop --teacher-mean and --teacher-std"),
        (["{net}"], {"mean": OWN[0]}, "give both, three numbers each"),
        (["{net}"], {"mean": OWN[0], "std": (1.0, 0.0, 1.0)}, "with std above 0"),
    ],
)
def test_what_cannot_be_opened(tmp_path, names, options, message):
    net = make()
    save(net, tmp_path / "net.safetensors")
    net.card = replace(net.card, classes=("a", "y", "z"))
    save(net, tmp_path / "other.safetensors")
    net.mark("fresh", "8")
    save(net, tmp_path / "fresh.safetensors")
    (tmp_path / "empty").mkdir()
    save_file({"w": torch.ones(1)}, tmp_path / "plain.safetensors")
    torch.save({"w": torch.ones(1)}, tmp_path / "empty" / "w.pth")
    torch.save(net.module, tmp_path / "empty" / "model.pt")
    zipped = {"code/__torch__.py": b"", "constants.pkl": b"", "data.pkl": b"", "version": b"3"}
    with zipfile.ZipFile(tmp_path / "empty" / "script.pt", "w") as archive:  # as torch.jit.save
        for name, content in zipped.items():
            archive.writestr(f"script/{name}", content)
    torch.save({"epoch": 3, "model": {"w": torch.ones(1)}}, tmp_path / "empty" / "epoch.pt")
    (tmp_path / "empty" / "begun").mkdir()
    (tmp_path / "empty" / "begun" / "config.json").write_text("{}")
    (tmp_path / "empty" / "model.py").write_text("class Model: ...\n")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "net.safetensors").read_bytes()[:99])
    places = {n: tmp_path / f"{n}.safetensors" for n in ("net", "other", "fresh", "plain", "cut")}
    places["tmp"] = tmp_path / "empty"
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        open_teacher([name.format(**places) for name in names], **options)


def test_a_pickled_teacher_runs_no_code(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"w": Bomb()}, tmp_path / "w.pth")
    for name in ("", "resnet18="):
        with pytest.raises(ValueError, match="could run any code, so it is never done") as said:
            open_teacher([f"{name}{tmp_path / 'w.pth'}"])
        assert "\n" not in str(said.value)
        assert "weights_only" not in str(said.value)  # torch's own advice is to unpickle it
    assert not (tmp_path / "ran").exists()


# For some data


@pytest.mark.parametrize(
    ("give", "message"),
    [
        (lambda x: torch.randn(len(x), 4), "has 4 classes .*the data has 3"),
        (lambda x: torch.randn(len(x)), "its output is"),
        (lambda x: torch.full((len(x), 3), torch.nan), "outputs that are not finite"),
        (lambda x: [][0], "teacher t does not run on images of 8 pixels"),
    ],
)
def test_teachers_that_do_not_fit_the_data(images, give, message):
    teacher = Frozen(Function(give))
    with pytest.raises(ValueError, match=message):
        OpenTeacher([Source("t", teacher, "0", CLASSES, 0, PLAIN)]).for_data(CLASSES, images, PLAIN)


class Function(nn.Module):
    """A function as a network."""

    def __init__(self, give):
        super().__init__()
        self.give = give

    def forward(self, x):
        return self.give(x)


def test_probabilities_of_zero_are_finite_logits_and_features_stay(images):
    p = torch.tensor([[1.0, 0.0, 0.0]]).expand(6, 3)
    net = Function(lambda x: Exit(p, (x,)))
    net.stages = ("pixels",)
    opened = OpenTeacher([Source("t", Frozen(net), "0", CLASSES, 8, PLAIN)])
    with pytest.warns(UserWarning, match="t gives probabilities, not logits .*: their logarithm"):
        teacher = opened.for_data(CLASSES, images, PLAIN)
    exit = teacher(images)
    assert exit.logits.isfinite().all()
    assert_close(exit.logits.softmax(1), p)
    assert teacher.stages == ("pixels",)
    assert_close(exit.features[0], images)


def test_logits_are_not_taken_for_probabilities(images, recwarn):
    for z in (torch.zeros(6, 3), torch.rand(6, 3) + 1, torch.randn(6, 3)):
        opened = OpenTeacher([Source("t", Frozen(Function(lambda x, z=z: z)), "0", CLASSES, 8, PLAIN)])
        assert_close(opened.for_data(CLASSES, images, PLAIN)(images).logits, z, rtol=0, atol=0)
    assert not recwarn.list


def test_another_size_than_the_teachers_is_told_of(images):
    opened = OpenTeacher([Source("t", Frozen(make()), "0", CLASSES, 32, PLAIN)])
    with pytest.warns(UserWarning, match="was trained on images of 32 pixels and gets 8 here"):
        opened.for_data(CLASSES, images, PLAIN)


def test_images_are_scaled_to_the_teachers_own_size_where_that_is_asked_for(images):
    net = make()
    opened = OpenTeacher([Source("t", Frozen(net), "0", CLASSES, 16, OWN)])
    with pytest.warns(UserWarning, match="images are scaled from 8 to 16 pixels for t"):
        teacher = opened.for_data(CLASSES, images, PLAIN, resize=True)
    scaled = nn.functional.interpolate(images, 16, mode="bilinear", antialias=True)
    assert_close(teacher(images).logits, net(normalised(scaled, OWN)), rtol=1e-4, atol=1e-4)
    assert teacher.stages == net.stages


def test_what_gives_no_weights_says_so(tmp_path, foreign_onnx):
    names = [str(save(make(seed), tmp_path / f"{seed}.safetensors")) for seed in range(2)]
    with pytest.raises(ValueError, match=r"an ensemble \(.*0.safetensors, .*1.safetensors\) has no"):
        _ = open_teacher(names).module
    foreign_onnx(tmp_path / "t.onnx", "n")
    with pytest.raises(ValueError, match="t.onnx has no weights to share: name a file of weights"):
        _ = open_teacher([str(tmp_path / "t.onnx")]).module


def test_a_source_says_its_depth_and_weights(tmp_path):
    file = save(make(), tmp_path / "net.safetensors")
    (full,) = open_teacher([str(file)]).sources
    (named,) = open_teacher([f"{file}@8"]).sources
    assert (str(full), full.depths, full.depth) == (f"{file}@14", ("8", "14"), "14")
    assert (str(named), named.depths, named.depth) == (f"{file}@8", (), "8")
    assert full.weights == named.weights == fingerprint(file)
    assert full.file == named.file == file
