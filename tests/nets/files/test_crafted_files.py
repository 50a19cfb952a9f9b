"""Files with a right checksum whose header or tensors make no sense: one line that names the file."""

import json
import math

import pytest
import safetensors
import torch
from safetensors.torch import load_file, save_file

import stepwell
from stepwell.nets.card import Card
from stepwell.nets.files.container import digest
from stepwell.nets.files.initial_weights import initialise
from stepwell.nets.files.resolution import load_resolution, save_resolution
from stepwell.nets.resolution.chooser import Choice, Chooser, ResolutionNet
from stepwell.nets.resolution.resolutions import Resolutions


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    net = stepwell.build("resnet14", ["8"], num_classes=3)
    net.mark("trained")
    return stepwell.save(net, tmp_path_factory.mktemp("crafted") / "net.safetensors")


@pytest.fixture
def craft(whole, tmp_path):
    """Writes a changed copy with a right checksum; `change` takes the header and the tensors."""

    def write(change):
        with safetensors.safe_open(whole, framework="pt") as file:
            header = json.loads(file.metadata()["stepwell"])
        tensors = load_file(whole)
        del header["sha256"]
        change(header, tensors)
        header["sha256"] = digest(header, tensors)
        save_file(tensors, tmp_path / "net.safetensors", {"stepwell": json.dumps(header)})
        return tmp_path / "net.safetensors"

    return write


def entry(*path, value):
    def change(header, _):
        for key in path[:-1]:
            header = header[key]
        header[path[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (entry("card", "newer", value=1), "unexpected keyword argument 'newer'"),
        (entry("card", "std", value=[0, 1, 1]), "a network's card cannot have std"),
        (entry("card", "size", value=10**12), "a network's card cannot have size 1000000000000"),
        (entry("card", "costs", value={"8": {"ms": math.nan}}), "a network's card cannot have costs"),
        (entry("card", value=[]), r"its card is \[\]"),
        (entry("depths", "8", value=[1, 1, 2.5]), r"the blocks of depth '8' are \[1, 1, 2.5\]"),
        (entry("depths", "8", value=[1, 1, 10**6]), "1000000"),
        (entry("status", value={}), "depth '14' is in one of depths and status alone"),
        (entry("status", "8", value="x"), "'x'"),
        (entry("builder", value="resnet15"), "no network 'resnet15'"),
        (
            entry("arguments", value={"num_classes": 10**9}),
            "would need 65,000,175,743 numbers, and it has",
        ),
        (entry("arguments", value={"depth": 3}), "unexpected keyword argument 'depth'"),
        (entry("norms", value="none"), "none"),
        (lambda header, tensors: tensors.pop("fc.bias"), r"names differ from this network's: fc\.bias"),
        (lambda header, tensors: tensors.update({"fc.bias": torch.zeros(4)}), "size mismatch"),
    ],
)
def test_a_header_or_tensors_that_make_no_sense_are_one_line(craft, change, reason):
    file = craft(change)
    with pytest.raises(ValueError, match=rf"damaged or of another version.*{reason}") as caught:
        stepwell.load(file)
    assert str(caught.value).startswith(str(file))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("name", "options"), [
    ("frames-resnet8/3", {"image_size": 128}),  # whose frames share their weights
    ("glance-resnet8/4", {"image_size": 96}),
    ("resnet14", {"kept": (1, 1, 1)}),
])  # fmt: skip
def test_networks_that_share_weights_or_are_cut_are_read_at_any_size(name, options, tmp_path):
    net = stepwell.build(name, num_classes=300, **options)
    net.mark("trained")
    back = stepwell.load(stepwell.save(net, tmp_path / "net"))
    tensors = net.module.state_dict()
    assert all(torch.equal(value, tensors[key]) for key, value in back.module.state_dict().items())


@pytest.mark.parametrize("argument", ["checkpoint_path", "pretrained", "pretrained_cfg", "cache_dir"])
def test_a_file_cannot_make_its_network_read_other_files(craft, argument):
    def change(header, _):
        header["builder"], header["arguments"] = "timm/resnet18", {argument: "/etc/passwd"}

    with pytest.raises(ValueError, match=f"its network would read other files: {argument}"):
        stepwell.load(craft(change))


@pytest.mark.parametrize(
    ("name", "value"),
    [("fc.weight", math.nan), ("fc.weight", math.inf), ("bn1.running_var", math.nan),
     ("depths/8/layer2.0.bn1.running_mean", -math.inf)],
)  # fmt: skip
def test_weights_that_are_not_finite_are_refused_by_name(craft, name, value):
    with pytest.raises(ValueError, match=rf"{name} holds values that are not finite"):
        stepwell.load(craft(lambda header, tensors: tensors[name].view(-1)[0].fill_(value)))


@pytest.mark.parametrize(
    "change",
    [
        entry("card", "size", value=True), entry("format", value=True), entry("format", value=0),
        entry("format", value=-1), entry("card", "classes", value=["\ud800"]),
        entry("card", "latency", value={"cpu": {"8": {"ms": -1.0}}}),
        entry("card", "costs", value={"8": {"accuracy": "high"}}),
    ],
)  # fmt: skip
def test_entries_that_mean_nothing_are_refused(craft, change):
    with pytest.raises(ValueError, match=r"net\.safetensors (is damaged|has format)"):
        stepwell.load(craft(change))


def test_a_header_nested_too_deeply_is_damage(whole, tmp_path):
    save_file({"a": torch.zeros(1)}, tmp_path / "deep", {"stepwell": "[" * 100_000})
    with pytest.raises(ValueError, match="deep is damaged or no safetensors file"):
        stepwell.load(tmp_path / "deep")


def test_logits_that_are_not_finite_are_no_answer():
    net = stepwell.build("resnet14", ["8"], num_classes=2)
    net.mark("trained")
    net.card = Card(("a", "b"), 16)
    with torch.no_grad():
        net.module.fc.weight.fill_(3e38)
    with pytest.raises(ValueError, match="the network's logits are not finite"):
        net.eval().predict(torch.zeros(16, 16, 3, dtype=torch.uint8).numpy() + 200)


def test_initial_weights_that_are_not_finite_are_named(tmp_path):
    net = stepwell.build("resnet8", num_classes=2)
    state = net.module.state_dict() | {"fc.bias": torch.tensor([0.0, math.nan])}
    save_file(state, tmp_path / "nan.safetensors")
    with pytest.raises(ValueError, match=r"nan\.safetensors: fc\.bias holds values that are not"):
        initialise(net, tmp_path / "nan.safetensors")


def test_weights_that_are_not_finite_are_not_saved(tmp_path):
    net = stepwell.build("resnet14", ["8"], num_classes=3)
    with torch.no_grad():
        net.module.fc.weight[0, 0] = math.nan
    with pytest.raises(ValueError, match=r"net is not written: fc\.weight holds values"):
        stepwell.save(net, tmp_path / "net")
    assert not any(tmp_path.iterdir())


def test_a_mask_may_hold_infinite_values(tmp_path):
    class Masked(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
            self.register_buffer("mask", torch.tensor([0.0, -math.inf]))

        def forward(self, x):
            return self.blocks(x) + self.mask

    net = stepwell.nest(Masked(), stages=["blocks"], depths={"half": (1,)})
    net.mark("trained")
    file = stepwell.save(net, tmp_path / "net.safetensors")
    x = torch.ones(1, 2)
    assert torch.equal(stepwell.load(file, Masked)(x), net.eval()(x))


def test_a_damaged_kind_is_damage(whole, tmp_path):
    data = whole.read_bytes().replace(b'"kind\\": \\"classifier', b'"kind\\": \\"blassifier')
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(data)
    assert data != whole.read_bytes()
    with pytest.raises(ValueError, match="damaged .its checksum does not match"):
        stepwell.load(bad)


@pytest.mark.parametrize(
    "entries",
    [
        {"size": -1},
        {"std": (0.5,)},
        {"std": (0.5, 0.5, -1.0)},
        {"mean": (math.nan, 0.0, 0.0)},
        {"costs": {"8": 3}},
        {"latency": {"cpu": {"8": 1}}},
    ],
)
def test_a_card_checks_its_entries(entries):
    (name,) = entries
    with pytest.raises(ValueError, match=f"a network's card cannot have {name} "):
        Card(**entries)


def test_a_norm_of_one_resolution_that_is_not_finite_is_refused_by_name(tmp_path, monkeypatch):
    nested = Resolutions(stepwell.build("resnet8", num_classes=3), (16, 8))
    net = ResolutionNet(nested, [Choice("8", 16), Choice("8", 8)], Chooser(2, 8))
    nested.net.mark("trained")
    file = save_resolution(net, tmp_path / "net.safetensors")
    load_resolution(file)
    with torch.no_grad():
        next(value for value in nested.own_tensors().values()).view(-1)[0].fill_(math.inf)
    with pytest.raises(ValueError, match=r"net\.safetensors is not written: 8/.* not finite"):
        save_resolution(net, file)
    monkeypatch.setattr("stepwell.nets.files.nested.not_finite", lambda tensors: None)
    save_resolution(net, file)  # as an older version would
    with pytest.raises(ValueError, match=r"net\.safetensors: 8/.* holds values that are not finite"):
        load_resolution(file)
