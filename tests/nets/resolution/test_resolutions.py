"""A nested net at several resolutions: shared weights, private norms, positions of their own."""

import pickle
from copy import deepcopy

import pytest
import timm
import torch
from torch import nn
from torch.testing import assert_close

from nets.example_nets import FAMILIES, lively
from stepwell.nets import build
from stepwell.nets.nested.nest import nest
from stepwell.nets.nested.plan import is_norm
from stepwell.nets.resolution.resolutions import Resolutions, resize

EXACT = {"rtol": 0, "atol": 0}
ANY_SIZE = ["vgg", "convnext", "timm resnetv2", "mixed"]
#: Those that are made for one size are made again for another.
MADE_FOR_ONE = ["vit", "deit"]


@pytest.fixture(params=[*ANY_SIZE, *MADE_FOR_ONE], scope="module")
def family(request):
    return FAMILIES[request.param]


def plain(family, size):
    """A plain network of the family that takes images of this size."""
    if family in [FAMILIES[name] for name in MADE_FOR_ONE]:
        return family.make(family.blocks, size)
    return family.make(family.blocks)


@pytest.fixture(scope="module")
def ready(family):
    torch.manual_seed(0)
    return several(family)


@pytest.fixture
def made(ready):
    return deepcopy(ready).eval()


@pytest.fixture
def x(family):
    return torch.randn(2, *family.input_size)


def several(family):
    """At the family's size and at twice as much, every norm with values of its own."""
    size = family.input_size[-1]
    full = (3, 2 * size, 2 * size)
    net = lively(nest(lively(plain(family, 2 * size)), family.stages, family.subnets, input_size=full))
    fixed = family in [FAMILIES[name] for name in MADE_FOR_ONE]
    made_for = (lambda size: plain(family, size)) if fixed else None
    found = Resolutions(net, (size, 2 * size), made_for=made_for)
    lively(found.own_norms)
    return found


def test_each_resolution_is_the_plain_network_with_its_own_norms(family, made, x):
    large, small = made.sizes
    assert small == family.input_size[-1]
    shared = made.net.module.state_dict()
    names = made.own_tensors()
    own = {n.removeprefix(f"{small}/"): v for n, v in names.items() if "/depths/" not in n}
    assert own.keys() < shared.keys()
    assert own
    for size, state in ((large, shared), (small, shared | own)):
        alone = plain(family, size).eval()
        alone.load_state_dict(state)
        assert_close(made(x, size), alone(resize(x, size)), **EXACT)
    assert_close(made(x), made(x, large), **EXACT)


def test_every_depth_of_a_resolution_has_norms_of_its_own(made, x):
    for size in made.sizes:
        at = made.at(size)
        for depth in made.net.depths:
            expected = at.subnet(depth)(resize(x, size))
            assert_close(made(x, size, depth), expected, **EXACT)
    assert any("/depths/" in name for name in made.own_tensors()) or not len(made.net.private_norms)


def test_everything_is_registered_once_and_only_norms_twice(made):
    net, norms = made.net, list(made.own_norms)
    assert all(is_norm(norm) for norm in norms)
    ids = [id(v) for v in made.state_dict(keep_vars=True).values()]
    assert len(ids) == len(set(ids))
    of_norms = sum(p.numel() for norm in norms for p in norm.parameters())
    of_positions = sum(p.numel() for part in made.own_parts for p in part.parameters())
    assert sum(p.numel() for p in made.parameters()) == of_norms + of_positions + sum(
        p.numel() for p in net.parameters()
    )
    reached = {id(p) for size in made.sizes for d in net.depths for p in made.at(size).parameters()}
    assert reached == {id(p) for p in made.parameters()}


def test_copies_and_conversions_keep_it_whole(made, x):
    expected = {size: made(x, size) for size in made.sizes}
    twin = deepcopy(made)
    for parameter in made.parameters():
        nn.init.zeros_(parameter)
    for size, logits in expected.items():
        assert_close(twin(x, size), logits, **EXACT)
    twin.double()
    for size, logits in expected.items():
        assert_close(twin(x.double(), size).float(), logits, rtol=1e-2, atol=1e-2)
        assert {p.dtype for p in twin.at(size).parameters()} == {torch.float64}
        assert {b.dtype for b in twin.at(size).buffers()} <= {torch.float64, torch.int64}


def test_what_a_resolution_has_for_itself_comes_back(made, x):
    other = deepcopy(made)
    for parameter in other.parameters():
        nn.init.zeros_(parameter)
    other.net.load_tensors(made.net.tensors())
    other.load_own(made.own_tensors())
    for size in made.sizes:
        for depth in made.net.depths:
            assert_close(other(x, size, depth), made(x, size, depth), **EXACT)
    names = other.stored_names(made.sizes[1])
    stored = made.net.tensors() | made.own_tensors()
    for name, value in other.at(made.sizes[1]).module.state_dict().items():
        assert_close(stored[names[name]], value, **EXACT)
    with pytest.raises(RuntimeError, match="names differ from this network's"):
        other.load_own({})


def test_modes_reach_all_resolutions():
    made = Resolutions(build("resnet14", ["8"], num_classes=5), (16, 8))
    for mode in (False, True):
        made.train(mode)
        assert {m.training for m in made.hidden_modules()} == {mode}
        assert {n.training for s in made.sizes for d in ("8", "14") for n in made.at(s).norms(d)} == {
            mode
        }


def test_norms_see_images_of_their_own_resolution_alone():
    made = Resolutions(build("resnet8", num_classes=5), (16, 8)).train()
    before = {name: value.clone() for name, value in made.own_tensors().items()}
    made(torch.randn(4, 3, 16, 16), 16)
    for name, value in made.own_tensors().items():
        assert_close(value, before[name], **EXACT)
    kept = {name: value.clone() for name, value in made.net.tensors().items()}
    made(torch.randn(4, 3, 16, 16), 8)
    for name, value in made.net.tensors().items():
        assert_close(value, kept[name], **EXACT)
    changed = [name for name, v in made.own_tensors().items() if not v.equal(before[name])]
    assert any(name.endswith("running_mean") for name in changed)


def test_shared_norms_are_the_ablation():
    net = build("resnet8", num_classes=5)
    made = Resolutions(net, (16, 8), norms="shared")
    assert made.at(8) is net
    assert not made.own_tensors()
    made.load_own({})


def test_subnets_keep_their_own_norms_at_first():
    net = lively(build("resnet14", ["8"], num_classes=5)).eval()
    made = Resolutions(net, (16, 8))
    x = torch.randn(2, 3, 8, 8)
    for depth in net.depths:
        assert_close(made.at(8)(x, depth), net(x, depth), **EXACT)
    assert made.at(8).status == net.status


@pytest.mark.parametrize("name", MADE_FOR_ONE)
def test_positions_are_interpolated_and_then_their_own(name):
    """Of 4×4 patches to 2×2; the class token's stays, and all else but norms is shared."""
    family = FAMILIES[name]
    net = nest(plain(family, 32), family.stages, {}, input_size=(3, 32, 32))
    made = Resolutions(net, (32, 16), made_for=lambda size: plain(family, size))
    (large,) = [k for k in net.module.state_dict() if "pos_emb" in k]
    before, after = net.tensors()[large], made.own_tensors()[f"16/{large}"]
    assert (before.shape[1], after.shape[1]) == (17, 5)
    assert_close(after[:, 0], before[:, 0], **EXACT)
    square = before[:, 1:].reshape(1, 4, 4, -1).permute(0, 3, 1, 2)
    halved = nn.functional.interpolate(square, (2, 2), mode="bicubic", antialias=True)
    assert_close(after[:, 1:], halved.permute(0, 2, 3, 1).reshape(1, 4, -1))
    small = dict(made.at(16).module.named_parameters())
    norms = {n for n, m in net.module.named_modules() if is_norm(m)}
    for n, parameter in net.module.named_parameters():
        own = n == large or n.rpartition(".")[0] in norms
        assert (small[n] is parameter) is not own, n
    made(torch.randn(2, 3, 32, 32), 16).sum().backward()
    gradients = {n: p.grad is not None for n, p in made.named_parameters() if "pos_emb" in n}
    assert sorted(gradients.values()) == [False, True]  # of each size's own


def test_networks_by_name_are_made_for_each_size():
    net = build("timm/vit_tiny_patch16_224", ["1"], num_classes=5, img_size=32)
    made = Resolutions(net, (32, 16))
    assert made(torch.randn(2, 3, 32, 32), 16, "1").shape == (2, 5)
    with pytest.raises(ValueError, match="use private norms"):
        Resolutions(net, (32, 16), norms="shared")
    assert Resolutions(net, (32,), norms="shared").at(32) is net
    with pytest.raises(ValueError, match=r"pos_embed depends on .* from \(1, 5, 192\) to"):
        Resolutions(net, (32, 8))


def test_what_else_depends_on_the_size_is_refused():
    net = build("timm/swin_tiny_patch4_window7_224", num_classes=5, img_size=64)
    with pytest.raises(ValueError, match="relative_position_bias_table depends on the size"):
        Resolutions(net, (64, 32))
    with pytest.raises(ValueError, match="is made for images of 64 pixels, and the largest .* is 48"):
        Resolutions(net, (48, 32))


class Table(nn.Module):
    """Whose block has a table of its input's size, saved or not; and an RNN, of lists of tensors."""

    def __init__(self, size, persistent):
        super().__init__()
        self.body = nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 1)))
        self.body[0].register_buffer("table", torch.arange(float(size)), persistent=persistent)
        self.body[0].size = size
        self.unused = nn.LSTM(4, 2)
        self.out = nn.Linear(4, 5)

    def forward(self, x):
        return self.out(self.body(x).mean((2, 3)))


def test_buffers_that_depend_on_the_size_are_its_own_if_nobody_saves_them():
    net = nest(Table(16, False), ["body"], {}, input_size=(3, 16, 16))
    made = Resolutions(net, (16, 8), made_for=lambda size: Table(size, False))
    block = made.at(8).module.body[0]
    assert (len(block.table), block.size) == (8, 8)
    assert block[0] is net.module.body[0][0]
    assert not made.own_tensors()
    twin = deepcopy(made).double()  # which replaces buffers
    assert {b.dtype for s in (16, 8) for b in twin.at(s).module.buffers()} == {torch.float64}
    assert len(twin.at(8).module.body[0].table) == 8
    net = nest(Table(16, True), ["body"], {}, input_size=(3, 16, 16))
    with pytest.raises(ValueError, match=r"body.0.table depends on .* from \(16,\) to \(8,\)"):
        Resolutions(net, (16, 8), made_for=lambda size: Table(size, True))


def test_a_swin_of_equal_windows_runs_at_both_sizes():
    def swin(size):
        return timm.create_model(
            "swin_tiny_patch4_window7_224", img_size=size, num_classes=5, embed_dim=8, depths=(2, 2),
            num_heads=(1, 2),
        )  # fmt: skip

    stages = ("layers.0.blocks", "layers.1.blocks")
    net = lively(nest(lively(swin(112)), stages, {}, input_size=(3, 112, 112)))
    made = lively(Resolutions(net, (112, 56), made_for=swin)).eval()
    x = torch.randn(2, 3, 56, 56)
    alone = swin(56).eval()
    alone.load_state_dict(net.tensors() | {k[3:]: v for k, v in made.own_tensors().items()})
    assert_close(made(x, 56), alone(x), **EXACT)
    again = pickle.loads(pickle.dumps(made))
    assert_close(again(x, 56), alone(x), **EXACT)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((), "no resolution was named"),
        ((16, 16), "the resolution of 16 pixels is named twice"),
        ((16, 0), "a resolution of 0 pixels: it must be 1 or more"),
    ],
)
def test_resolutions_that_are_none_are_refused(sizes, message):
    with pytest.raises(ValueError, match=message):
        Resolutions(build("resnet8", num_classes=5), sizes)


def test_an_unknown_resolution_names_those_there_are():
    with pytest.raises(ValueError, match="no resolution of 12 pixels; this network has 16, 8"):
        Resolutions(build("resnet8", num_classes=5), (8, 16)).at(12)


def test_halving_is_a_triangle_filter_of_four_pixels():
    """Antialias widens the filter to two output pixels: 1/8, 3/8, 3/8, 1/8 along each axis."""
    x = torch.randn(2, 3, 12, 12, dtype=torch.float64)
    weights = torch.tensor([1, 3, 3, 1], dtype=torch.float64) / 8
    kernel = torch.outer(weights, weights)[None, None].expand(3, 1, 4, 4)
    expected = nn.functional.conv2d(x, kernel, stride=2, padding=1, groups=3)
    assert_close(resize(x, 6)[:, :, 1:-1, 1:-1], expected[:, :, 1:-1, 1:-1])
    assert resize(x, 12) is x
