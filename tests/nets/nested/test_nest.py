import shutil
from collections import OrderedDict
from copy import deepcopy
from itertools import pairwise

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close

import stepwell
from forking import Forked
from nets.example_nets import lively
from stepwell.nets import build
from stepwell.nets.nested.nest import nest
from stepwell.nets.nested.plan import is_norm
from stepwell.nets.nested.reading import find_stages, read

EXACT = {"rtol": 0, "atol": 0}
NORMS = {
    "batch": nn.BatchNorm2d,
    "group": lambda width: nn.GroupNorm(2, width),
    "none": lambda width: nn.Identity(),
}


class Block(nn.Module):
    """A residual block; the first of a stage may change the width and the resolution."""

    def __init__(self, width_in: int, width: int, stride: int, norm: str) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width_in, width, 3, stride, 1)
        self.norm = NORMS[norm](width)
        plain = stride == 1 and width_in == width
        self.shortcut = nn.Identity() if plain else nn.Conv2d(width_in, width, 1, stride)

    def forward(self, x):
        return torch.relu(self.norm(self.conv(x)) + self.shortcut(x))


class Stage(nn.Module):
    """Its blocks stand in a container of its own, behind a norm that a path must meet, too."""

    def __init__(self, width_in: int, width: int, blocks: int, norm: str) -> None:
        super().__init__()
        self.before = NORMS[norm](width_in)
        self.blocks = stage(width_in, width, blocks, norm)

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return x + 1

    def __len__(self):
        return len(self.blocks)


def stage(width_in, width, blocks, norm):
    widths = [width_in] + [width] * blocks
    return nn.Sequential(
        *(Block(a, b, 1 + (i == 0 and a != b), norm) for i, (a, b) in
          enumerate(pairwise(widths)))
    )  # fmt: skip


shape = st.lists(
    st.tuples(
        st.integers(1, 4), st.sampled_from([4, 6, 8]), st.sampled_from(list(NORMS)), st.booleans()
    ),
    min_size=1,
    max_size=4,
)


def random_net(stages):
    """A plain network of stages (blocks, width, kind of norm, whether a `Stage` holds them)."""
    parts, width_in = OrderedDict(stem=nn.Conv2d(3, 4, 3)), 4
    for i, (blocks, width, norm, own) in enumerate(stages):
        parts[f"s{i}"] = (Stage if own else stage)(width_in, width, blocks, norm)
        width_in = width
    parts |= {"pool": nn.AdaptiveAvgPool2d(1), "flat": nn.Flatten(), "fc": nn.Linear(width_in, 3)}
    return lively(nn.Sequential(parts))


@settings(max_examples=10, deadline=None)
@given(shape, st.data())
def test_random_networks_nest(stages, data):
    sizes = [blocks for blocks, *_ in stages]
    kept = st.tuples(*(st.integers(1, n) for n in sizes)).filter(lambda b: list(b) != sizes)
    depths = data.draw(st.lists(kept, unique=True, max_size=3)) if sum(sizes) > len(sizes) else []
    names = [f"s{i}.blocks" if own else f"s{i}" for i, (*_, own) in enumerate(stages)]
    module = random_net(stages)
    net = nest(module, names, {f"d{i}": b for i, b in enumerate(depths)}, input_size=(3, 16, 16))
    assert net.depths["full"] == tuple(sizes)
    x = torch.randn(2, 3, 16, 16)
    for training in (False, True):
        net = lively(net).train(training)
        together = deepcopy(net).forward_all(x)
        for depth, blocks in net.depths.items():
            expected = deepcopy(net)(x, depth)
            plain = random_net([(n, *rest) for n, (_, *rest) in zip(blocks, stages, strict=True)])
            plain.train(training).load_state_dict(net.subnet(depth).state_dict())
            for got in (plain(x), net.subnet(depth)(x), together[depth].logits):
                assert_close(got, expected, **EXACT)
    assert_close(module.eval()(x), net.eval()(x), **EXACT)


def test_a_nested_net_leaves_the_module_and_the_random_numbers_as_they_were():
    module = torchvision.models.resnet18(num_classes=3)
    module.layer1.eval()
    modes = [m.training for m in module.modules()]
    state, random = deepcopy(module.state_dict()), torch.get_rng_state()
    net = nest(module, ["layer1", "layer2", "layer3", "layer4"], {"half": (1, 1, 1, 1)})
    assert net.module is module
    assert list(net.depths) == ["half", "full"]
    assert [m.training for m in module.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random)
    for name, value in module.state_dict().items():
        assert_close(value, state[name], **EXACT)


def in_a_process_of_its_own(code):
    """Without checks of types, which the compiler would trace."""
    process = Forked("-c", code)
    _, err = process.communicate()
    assert process.returncode == 0, err


def test_blocks_that_are_no_whole_numbers_are_refused_by_name():
    in_a_process_of_its_own("""
import pytest
from stepwell.nets import build
from stepwell.nets.nested.nest import nest
module = build("resnet20", num_classes=2).module
stages = ["layer1", "layer2", "layer3"]
for blocks in (2, "222", (2.0, 2, 2), None):
    message = "depth '(h|full)' = .*: give the blocks of each stage, .* as .3, 3, 3. of the full net"
    for call in (
        lambda: nest(module, stages, {"h": blocks}),
        lambda: nest(module, stages, {"full": blocks}),
        lambda: build("resnet20", {"h": blocks}),
        lambda: build("resnet20").add_depth("h", blocks),
    ):
        with pytest.raises(ValueError, match=message):
            call()
""")


# Eight more families than the next test compiles: half a minute of torch's compiler.
@pytest.mark.long
def test_every_family_compiles_to_one_graph_of_all_depths():
    """By tracing alone, for some by making it functional, too; machine code would take minutes."""
    in_a_process_of_its_own("""
import torch
from nets.example_nets import FAMILIES, lively
from stepwell.nets.nested.nest import nest
for name, family in FAMILIES.items():
    module = family.make(family.blocks)
    net = lively(nest(module, family.stages, family.subnets, input_size=family.input_size)).eval()
    depths = [next(iter(net.depths)), net.full]
    x = torch.randn(2, *family.input_size)
    torch.compiler.reset()
    with torch.no_grad():
        backend = "aot_eager" if name in ("vit", "mixed", "timm swin") else "eager"
        compiled = torch.compile(net.forward_all, fullgraph=True, backend=backend)
        for depth, exit in compiled(x, depths).items():
            expected = net(x, depth)
            same = torch.allclose(exit.logits, expected, rtol=1e-5, atol=1e-5)
            assert same, f"{name} at {depth}"
            assert len(exit.features) == len(family.stages), name
from nets.example_text import MASK, TEXT, Encoder
net = nest(Encoder(), ["layers"], {"2": (2,)}, input_size=(7,)).eval()
net.add_exit("e", (1,), input_size=(7,))
how = {"given": {"mask": MASK}, "extras": ("attention",)}
with torch.no_grad():
    compiled = torch.compile(net.forward_all, fullgraph=True, backend="aot_eager")
    for depth, exit in compiled(TEXT, ["e", "2", "full"], **how).items():
        assert torch.allclose(exit.logits, net(TEXT, depth, given=how["given"]), atol=1e-5), depth
        assert len(exit.extras["attention"]) == sum(net.depths[depth])
""")


@pytest.mark.skipif(
    not any(shutil.which(c) for c in ("c++", "g++", "clang++")), reason="no C++ compiler"
)
def test_a_compiled_net_gives_the_same_logits():
    in_a_process_of_its_own("""
import torch
from nets.example_nets import FAMILIES, lively
from stepwell.nets.nested.nest import nest
family = FAMILIES["mixed"]  # steps of several calls among its modules
net = lively(nest(family.make(family.blocks), family.stages, family.subnets)).eval()
x = torch.randn(2, *family.input_size)
with torch.no_grad():
    compiled = torch.compile(net, fullgraph=True)
    torch.testing.assert_close(compiled(x, "a"), net(x, "a"), rtol=1e-5, atol=1e-5)
""")


def test_stages_are_found():
    models = torchvision.models
    with torch.device("meta"):
        found = {
            name: find_stages(getattr(models, name)())
            for name in ("resnet18", "convnext_tiny", "vit_b_16", "vgg11")
        }
    assert found["resnet18"] == ("layer1", "layer2", "layer3", "layer4")
    assert found["convnext_tiny"] == ("features.1", "features.3", "features.5", "features.7")
    assert found["vit_b_16"] == ("encoder.layers",)
    assert found["vgg11"] == ()


def small(**changes):
    """A network of two stages that a test spoils."""
    net = random_net([(2, 4, "batch", False), (2, 6, "batch", True)])
    for name, module in changes.items():
        setattr(net, name, module)
    return net


class Spoilt(nn.Module):
    """Two stages around which `forward` does what a path cannot."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.a, self.b = stage(3, 4, 2, "batch"), stage(4, 4, 2, "batch")
        self.fc = nn.Linear(4, 2)

    def forward(self, x):
        how = self.how
        if how == "branch" and x.mean() > 0:
            x = x + 1
        y = self.a(x)
        if how == "skip":
            x = self.b(y) + y
        elif how == "order":
            x = self.a(self.b(x[:, :1].expand(-1, 4, -1, -1))[:, :3])
        elif how == "between":
            x = self.b[1](self.b[0](y) * 2)
        elif how == "twice":
            x = self.b(self.b(y))
        elif how == "random":
            x = self.b(y + torch.rand_like(y))
        else:
            x = self.b(y)
        if how == "index":
            x = x + self.a[1].conv.bias.sum()
        if how == "count":
            x = x * len(self.a)
        x = self.fc(x.mean((2, 3)))
        return (x, x) if how == "tuple" else x


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (
            "branch",
            r"cannot be read as a path: symbolically traced .* \(line \d+ of .*test_nest.py\)",
        ),
        ("branch", r"possible stages in Spoilt: a \(2 blocks\), b \(2 blocks\)"),
        ("skip", "block 'b.0' takes or gives, the forward still needs .*: a path hands one tensor"),
        ("twice", "calls block 'b.0' 2 times where a path runs it once"),
        ("between", "between the blocks of one stage, behind 'b.0', the forward runs mul"),
        ("random", "gives other logits than itself"),
        ("tuple", "gives a tuple, not a tensor of logits"),
        ("index", r"does not run \(index 1 is out of range\): its forward names blocks one by one"),
        ("count", "differs from the path of 'x': its forward does more than run the blocks"),
    ],
)
def test_forwards_that_are_no_path(how, message):
    with pytest.raises(ValueError, match=message) as caught:
        nest(lively(Spoilt(how)), ["a", "b"], {"x": (1, 1)})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("stages", "depths", "message"),
    [
        ([], {}, r"no stage was named; possible stages in Sequential: s0 \(2 blocks\), s1"),
        (["s2"], {}, r"no module 's2' to be a stage; possible stages .* s1.blocks \(2 blocks\)"),
        (["s0", "s1"], {}, r"'s1' is a Stage, not a container .* blocks: 's1.blocks'"),
        (["s0", "fc"], {}, "'fc' is a Linear, not a container of blocks; it has no children"),
        (["s0", "s0[0:1]"], {}, "block 's0.0' is in two stages"),
        (["s0[0:3]"], {}, r"stage 's0\[0:3\]': s0 has 2 children"),
        (["s0[0:2:3]"], {}, "blocks of 3 must fill the slice"),
        (["s1.blocks", "s0"], {}, "runs its blocks in another order than the stages name them"),
        (["s0", "s1.blocks"], {"x": (1, 3)}, "s1.blocks can keep 1 to 2 blocks"),
        (["s0", "s1.blocks"], {"x": (2, 2)}, "is the same network as depth 'full'"),
    ],
)  # fmt: skip
def test_stages_that_cannot_be(stages, depths, message):
    with pytest.raises(ValueError, match=message):
        nest(small(), stages, depths)


def test_blocks_that_change_the_shape_must_stay():
    module = nn.Sequential(
        OrderedDict(all=nn.Sequential(*stage(3, 4, 2, "batch"), *stage(4, 6, 2, "none")),
                    pool=nn.AdaptiveAvgPool2d(1), flat=nn.Flatten(), fc=nn.Linear(6, 2))
    )  # fmt: skip
    assert nest(module, ["all"], {"3": (3,)}, input_size=(3, 8, 8)).depths["3"] == (3,)
    with pytest.raises(
        ValueError,
        match=r"'2' keeps 2 of 4 blocks of all, but block 3 changes the shape from \(2, 4, 4, 4\) to "
        r"\(2, 6, 2, 2\): keep at least 3, or let another stage begin with that block",
    ):
        nest(module, ["all"], {"2": (2,)}, input_size=(3, 8, 8))
    split = nest(module, ["all[0:2]", "all[2:4]"], {"2": (1, 1)}, input_size=(3, 8, 8))
    assert split.subnet("2").all[1].conv.weight.shape == (6, 4, 3, 3)


def test_a_module_that_is_one_list_counts_its_children_anew():
    def make(count):
        blocks = [Block(4, 4, 1, "batch") for _ in range(count)]
        parts = [
            nn.Conv2d(3, 4, 3),
            *blocks,
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(4, 2),
        ]
        return lively(nn.Sequential(*parts))

    net = nest(make(3), ["[1:4]"], {"2": (2,)})
    plain = make(2).eval()
    plain.load_state_dict(net.subnet("2").state_dict())
    x = torch.randn(2, 3, 8, 8)
    assert_close(plain(x), net.eval()(x, "2"), **EXACT)


def test_the_shape_of_the_input_is_found_or_asked_for():
    module = nn.Sequential(OrderedDict(body=nn.Sequential(*(nn.Linear(7, 7) for _ in range(3)))))
    assert nest(module, ["body"], {"1": (1,)}).depths == {"1": (1,), "full": (3,)}
    with pytest.raises(ValueError, match=r"does not run on input of shape \(2, 3\): mat1 and mat2"):
        nest(module, ["body"], {"1": (1,)}, input_size=(3,))
    words = nn.Sequential(OrderedDict(body=nn.Sequential(nn.Embedding(5, 5), nn.Embedding(5, 5))))
    with pytest.raises(ValueError, match=r"input could not be found .*: give that of one example"):
        nest(words, ["body"], {"1": (1,)})


def test_a_file_of_ones_own_module_says_what_it_needs(tmp_path):
    def make():
        return small()

    net = nest(make(), ["s0", "s1.blocks"], {"x": (1, 1)}, input_size=(3, 16, 16))
    path = stepwell.save(net, tmp_path / "net")
    with pytest.raises(ValueError, match=r"give load\(path, module=FACTORY\)"):
        stepwell.load(path)
    with pytest.raises(ValueError, match="was made of another module than `module` makes"):
        stepwell.load(path, lambda: small(fc=nn.Linear(6, 4)))
    x = torch.randn(2, 3, 16, 16)
    assert_close(stepwell.load(path, make)(x, "x"), net.eval()(x, "x"), **EXACT)
    named = stepwell.save(build("resnet8", num_classes=2), tmp_path / "named")
    with pytest.raises(ValueError, match="names its network, resnet8: load it without module=FACTORY"):
        stepwell.load(named, make)


def test_reading_takes_one_step_a_module():
    plan = read(build("resnet8", num_classes=2).module, ["layer1", "layer2", "layer3"])
    stem, *between, head = plan.gaps
    assert stem == ("conv1", "bn1", "relu")
    assert between == [(), ()]
    assert (head[0], head[2]) == ("avgpool", "fc")
    assert plan.head == ("avgpool", "fc")


def like(name, *shapes, child=None):
    """A module of a class of that name with parameters of these shapes."""
    module = type(name, (nn.Module,), {})()
    for i, size in enumerate(shapes):
        module.register_parameter(f"p{i}", nn.Parameter(torch.ones(size)))
    if child is not None:
        module.child = child
    return module


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (like("RmsNorm", (6,)), True),
        (like("ChannelNorm", (1, 6, 1, 1), (6, 1, 1)), True),
        (like("EvoNorm2dB0", (6,), (6,)), True),
        (like("SimpleNorm"), False),
        (like("NormalizedLinear", (6, 4)), False),
        (like("NormalizedScale", (6,)), False),
        (like("WeightNorm", (6, 4)), False),
        (like("PreNormBlock", (6,), child=nn.Linear(6, 6)), False),
        (nn.GroupNorm(2, 6), True),
    ],
)
def test_what_counts_as_a_norm(module, expected):
    assert is_norm(module) is expected


def test_weights_under_two_names_are_one_tensor():
    module = random_net([(2, 4, "none", False), (1, 4, "none", False)])
    module.s1[0].conv.weight = module.s0[1].conv.weight
    net = nest(module, ["s0", "s1"], {"a": (1, 1)}, input_size=(3, 16, 16))
    assert "s1.0.conv.weight" not in net.tensors()
    assert net.stored_names("a")["s1.0.conv.weight"] == "s0.1.conv.weight"


class MakesTensors(nn.Module):
    """Normalises its input and adds positions by tensors that its forward makes."""

    def __init__(self, noisy: bool = False) -> None:
        super().__init__()
        self.noisy = noisy
        self.position = nn.Embedding(6, 1)
        self.blocks = nn.Sequential(*(nn.Conv2d(3, 3, 1) for _ in range(3)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x - torch.tensor([0.5, 0.4, 0.3])[:, None, None]
        x = x + self.position(torch.arange(6)).T
        if self.noisy and self.training:
            x = x + torch.randn(3, 1, 1)
        return self.blocks(x).mean((2, 3))


def test_tensors_that_the_forward_makes_are_kept():
    module = MakesTensors()
    net = nest(module, ["blocks"], {"1": (1,)}, input_size=(3, 6, 6))
    x = torch.randn(2, 3, 6, 6)
    assert_close(net(x), module(x), rtol=0, atol=0)
    assert_close(net(x, "1"), net.subnet("1")(x), rtol=0, atol=0)
    net(x).sum().backward()
    assert module.position.weight.grad.any()
    with pytest.raises(ValueError, match="makes a tensor that differs from call to call"):
        nest(MakesTensors(noisy=True), ["blocks"], {"1": (1,)}, input_size=(3, 6, 6))
