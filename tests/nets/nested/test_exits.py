"""Exits: depths that end early with a head of their own."""

from collections import Counter, OrderedDict
from copy import deepcopy

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

import stepwell
from nets.example_nets import FAMILIES, lively
from nets.example_text import MASK, TEXT, Encoder
from stepwell import Batch, Cascade, EmbeddedKD
from stepwell.nets import NestedNet, build
from stepwell.nets.files.initial_weights import initialise
from stepwell.nets.files.nested import fingerprint
from stepwell.nets.nested.exits import PooledHead
from stepwell.nets.nested.nest import nest

EXACT = {"rtol": 0, "atol": 0}
X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 2, 3])


def own_head():
    return nn.Sequential(
        OrderedDict(conv=nn.Conv2d(16, 6, 1), norm=nn.BatchNorm2d(6), act=nn.ReLU(inplace=True),
                    pool=nn.AdaptiveAvgPool2d(1), flat=nn.Flatten(), fc=nn.Linear(6, 5))
    )  # fmt: skip


def with_exits(depths=("8", "14")):
    """Exits on the full net's own path, behind a fork, and where a sub-net ends a stage."""
    torch.manual_seed(0)
    net = build("resnet20", depths, num_classes=5, zero_init_residual=False)
    net.add_exit("early", (2, 0, 0), own_head())
    net.add_exit("middle", after=(3, 3, 0))
    net.add_depth("11", (1, 2, 2))
    net.add_exit("off", after=(1, 2, 0))
    return lively(net)


def test_exits_are_depths():
    net = with_exits()
    assert net.depths == {
        "early": (2, 0, 0), "8": (1, 1, 1), "off": (1, 2, 0), "11": (1, 2, 2), "14": (2, 2, 2),
        "middle": (3, 3, 0), "20": (3, 3, 3),
    }  # fmt: skip
    assert list(net.exits) == ["early", "middle", "off"]
    assert net.status == dict.fromkeys(net.depths, "fresh")
    assert isinstance(net.exits["middle"], PooledHead)
    assert net.exits["middle"].fc.weight.shape == (5, 32)
    parameters = {id(p) for p in net.parameters()}
    assert all(id(p) in parameters for head in net.exits.values() for p in head.parameters())
    full, middle = net.path("20"), net.path("middle")
    assert all(a is b for a, b in zip(full, middle[:-1], strict=False))  # nothing private but the head
    assert net.path("11")[:6] == net.path("off")[:6]  # private norms behind the fork, shared by both
    assert net.path("off")[5] is not full[5]


@pytest.mark.parametrize("training", [False, True])
def test_every_way_to_run_an_exit_gives_the_same_bits(training):
    net = with_exits().train(training)
    together = deepcopy(net).forward_all(X)
    assert list(together) == list(net.depths)
    for depth, blocks in net.depths.items():
        alone = deepcopy(net)(X, depth)
        assert_close(together[depth].logits, alone, **EXACT)
        assert_close(net.subnet(depth)(X), alone, **EXACT)
        assert_close(deepcopy(net).forward_all(X, [depth])[depth].logits, alone, **EXACT)
        assert_close(deepcopy(net).logits_by_depth(X, [depth, "20"])[depth], alone, **EXACT)
        assert len(together[depth].features) == sum(b > 0 for b in blocks)
    head = net.subnet("middle").exit_head
    with torch.no_grad():
        assert_close(head(together["middle"].features[-1]), together["middle"].logits, **EXACT)


def test_the_plain_network_of_an_exit_has_the_full_nets_names():
    net = with_exits()
    plain = net.subnet("off")
    names = list(plain.state_dict())
    assert {n for n in names if not n.startswith("exit_head.")} < set(net.module.state_dict())
    assert names[-2:] == ["exit_head.fc.weight", "exit_head.fc.bias"]
    assert not any(n.startswith(("layer3", "fc", "layer2.2")) for n in names)
    stored, tensors = net.stored_names("off"), net.tensors()
    assert stored.keys() == set(names)
    assert stored["exit_head.fc.bias"] == "depths/off/exit_head.fc.bias"
    assert stored["layer2.0.bn1.weight"] == "depths/8/layer2.0.bn1.weight"
    for name, value in plain.state_dict().items():
        assert_close(tensors[stored[name]], value, **EXACT)
    used = {name for depth in net.depths for name in net.stored_names(depth).values()}
    assert used == tensors.keys()


def loss_of(depth, exit, done):
    parts = {"ce": cross_entropy(exit.logits, LABELS)}
    parts["size"] = 0.1 * torch.stack([f.square().mean() for f in exit.features]).sum()
    return torch.stack(list(parts.values())).sum(), parts


@pytest.mark.parametrize("subnets", [("8", "14"), ()])
def test_gradients_are_those_of_the_naive_sum(subnets):
    net = with_exits(subnets).double().train()
    other, x = deepcopy(net), X.double()
    loss, logs = net.joint_loss(x, loss_of)
    loss.backward()
    exits = other.forward_all(x)
    expected = sum(loss_of(d, exits[d], {})[0] for d in reversed(other.depths))
    expected.backward()
    assert_close(loss, expected)
    for (name, a), b in zip(net.named_parameters(), other.parameters(), strict=True):
        assert_close(a.grad, b.grad, rtol=1e-9, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}")
    assert_close(dict(net.named_buffers()), dict(other.named_buffers()), **EXACT)
    assert {name.split("/")[0] for name in logs} == set(net.depths)


def test_a_file_gives_back_exits_with_the_default_head(tmp_path):
    net = build("resnet20", ["14"], num_classes=5)
    net.add_exit("e", (2, 2, 0))
    net.add_depth("b", (2, 2, 1))  # the exit owns the norms that it shares with this depth
    net.mark("trained", "e", "20")
    lively(net).eval()
    file = stepwell.save(net, tmp_path / "net")
    back = stepwell.load(file)
    assert (back.depths, back.status, list(back.exits)) == (net.depths, net.status, ["e"])
    for depth in net.depths:
        assert_close(back(X, depth), net(X, depth), **EXACT)
    assert stepwell.save(back, tmp_path / "again").read_bytes() == file.read_bytes()
    mark = fingerprint(file)
    back.add_depth("c", (1, 1, 1))
    back.mark("calibrated", "c")
    assert fingerprint(stepwell.save(back, file)) == mark
    nn.init.zeros_(back.exits["e"].fc.bias)
    assert fingerprint(stepwell.save(back, file)) != mark


def test_a_file_with_a_head_of_ones_own_needs_its_factory(tmp_path):
    net = with_exits().eval()
    file = stepwell.save(net, tmp_path / "net")
    message = r"exit 'early' with a custom head: give load\(path, heads={'early': FACTORY}"
    with pytest.raises(ValueError, match=message):
        stepwell.load(file)
    with pytest.raises(ValueError, match="has no exit '8': leave it out of heads="):
        stepwell.load(file, heads={"early": own_head, "8": own_head})
    back = stepwell.load(file, heads={"early": own_head})
    for depth in net.depths:
        assert_close(back(X, depth), net(X, depth), **EXACT)
    other = with_exits().eval()
    assert initialise(other, file).fresh == ()
    for depth in net.depths:
        assert_close(other(X, depth), net(X, depth), **EXACT)


def test_a_module_of_ones_own_keeps_its_exits_in_its_file(tmp_path):
    family = FAMILIES["mixed"]
    net = nest(family.make(family.blocks), family.stages, family.subnets)
    net.add_exit("e", (2, 0))
    lively(net).eval()
    file = stepwell.save(net, tmp_path / "net")
    back = stepwell.load(file, lambda: family.make(family.blocks))
    assert_close(back(X, "e"), net(X, "e"), **EXACT)
    assert_close(back.subnet("e")(X), net(X, "e"), **EXACT)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_has_exits(name):
    family = FAMILIES[name]
    module = family.make(family.blocks)
    net = nest(module, family.stages, family.subnets, input_size=family.input_size)
    first = family.blocks[0]
    behind = (0,) * (len(family.blocks) - 1)
    if behind:
        net.add_exit("whole", (first, *behind), input_size=family.input_size)
    if first > 1:
        net.add_exit("part", (first - 1, *behind), input_size=family.input_size)
    lively(net).eval()
    x = torch.randn(2, *family.input_size)
    exits = net.forward_all(x)
    for exit in net.exits:
        alone = net(x, exit)
        assert alone.shape == net(x).shape
        assert_close(exits[exit].logits, alone, **EXACT)
        assert_close(net.subnet(exit)(x), alone, **EXACT)
        assert_close(net.double().subnet(exit)(x.double()).float(), alone, rtol=1e-3, atol=1e-3)
        net.float()


def test_a_fresh_exit_is_trained_not_calibrated():
    net = build("resnet20", ["8"], num_classes=5)
    net.add_exit("e", (1, 1, 0))
    net.mark("trained", "20")
    stepwell.calibrate(net, [Batch(X, LABELS)])
    assert net.status == {"e": "fresh", "8": "calibrated", "20": "trained"}
    with pytest.raises(ValueError, match="exit 'e' was never trained, .*: train it"):
        net.require_ready("e")
    net.mark("trained", "e")
    net.require_ready()


def test_a_budget_may_choose_an_exit():
    net = build("resnet20", num_classes=5)
    net.add_exit("e", (1, 1, 0))
    net.mark("trained")
    costs = {"e": {"ms": 1.0, "macs": 1}, "20": {"ms": 2.0, "macs": 2}}
    net.card = net.card.with_costs(costs, "this machine")
    assert net.for_budget(macs=1) == "e"


def test_a_cascade_ends_at_exits():
    net = with_exits().eval()
    net.mark("trained")
    answer = Cascade(net, {"early": 1.0, "middle": 1.0})(X)
    assert_close(answer.logits, net(X).detach(), **EXACT)


def test_embedded_distillation_compares_the_stages_that_an_exit_has():
    net = with_exits().train()
    method = EmbeddedKD(net, distill_from=0.0)
    step = method.training_step(Batch(X, LABELS))
    assert {f"{d}/attention" for d in net.subnets} <= step.logs.keys()
    assert float(step.logs["middle/attention"]) == 0  # both stages are the full net's own
    assert float(step.logs["off/attention"]) > 0
    step.loss.backward()
    assert net.exits["off"].fc.weight.grad.any()
    assert method.trained_depths == tuple(net.depths)


@pytest.mark.parametrize(
    ("name", "after", "message"),
    [
        (
            "e",
            (0, 0, 0),
            r"exit 'e' = \(0, 0, 0\): an exit runs a block of the first stage, and after",
        ),
        ("e", (1, 0, 1), "after a stage with 0 blocks all later stages have 0, too"),
        ("e", (4, 1, 0), r"exit 'e' = \(4, 1, 0\): layer1 can keep 1 to 3 blocks"),
        ("e", (-1, 0, 0), "layer1 can keep 1 to 3 blocks"),
        ("e", (1, 0), "names 2 stages; this net has 3"),
        ("e", (3, 3, 3), r"\(3, 3, 3\): the full net ends behind its last block with its own head"),
        ("8", (1, 1, 0), "this net already has '8'"),
        ("all", (1, 1, 0), "'all' cannot name a depth"),
    ],
)
def test_exits_that_cannot_be(name, after, message):
    net = build("resnet20", ["8"], num_classes=5)
    with pytest.raises(ValueError, match=message):
        net.add_exit(name, after, nn.Flatten())
    assert list(net.depths) == ["8", "20"]
    assert not len(net.exit_heads)


def test_the_name_of_an_exit_is_a_text(untyped):
    with pytest.raises(ValueError, match="the name of a depth is a text: write '3', not 3"):
        build("resnet20").add_exit(3, (1, 1, 0), nn.Flatten())


def test_a_head_that_shares_weights_with_the_network_is_refused():
    net = build("resnet20", num_classes=5)
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), net.module.fc)
    with pytest.raises(ValueError, match=r"the head of exit 'e' shares '2.weight' with the network"):
        net.add_exit("e", (3, 3, 2), head)


def test_an_exit_may_end_where_a_depth_does_and_not_where_an_exit_does():
    net = build("resnet20", num_classes=5)
    net.add_exit("a", (2, 3, 0))
    with pytest.raises(ValueError, match=r"exit 'b' = \(2, 3, 0\) ends where exit 'a' does: drop one"):
        net.add_exit("b", (2, 3, 0))
    net.add_exit("c", (1, 1, 1))
    net.add_depth("8", (1, 1, 1))
    net.eval()
    for depth, exit in net.forward_all(X).items():
        assert_close(exit.logits, net(X, depth), **EXACT)
        assert_close(net.subnet(depth)(X), net(X, depth), **EXACT)


def test_a_head_of_other_classes_or_channels_is_refused():
    net = build("resnet20", num_classes=5)
    with pytest.raises(
        ValueError, match=r"exit 'e' gives \(2, 7\) where .* shape \(2, 5\): make it for 5"
    ):
        net.add_exit("e", (2, 0, 0), PooledHead(16, 7))
    with pytest.raises(ValueError, match="exit 'e' does not take the output of its block, of shape"):
        net.add_exit("e", (2, 1, 0), own_head())
    assert list(net.depths) == ["20"]


def test_exits_run_the_steps_that_they_share_once():
    """Three exits on the full net's path: one pass, and a joint loss, call every step once."""
    net = build("resnet20", num_classes=5).train()
    for name, after in (("a", (1, 0, 0)), ("b", (3, 1, 0)), ("c", (3, 3, 2))):
        net.add_exit(name, after)
    calls = Counter()
    for depth in net.depths:
        for step in net.path(depth):
            step.register_forward_hook(lambda module, *_: calls.update([id(module)]))
    assert len({id(s) for d in net.depths for s in net.path(d)}) == len(net.path()) + 3
    for run in (lambda: net.forward_all(X), lambda: net.joint_loss(X, loss_of)[0].backward()):
        calls.clear()
        run()
        uses = Counter(id(s) for s in {id(s): s for d in net.depths for s in net.path(d)}.values())
        hooks = {id(s): len(s._forward_hooks) for d in net.depths for s in net.path(d)}
        assert calls == Counter({s: n * hooks[s] for s, n in uses.items()})


def test_the_default_head_asks_for_a_size_where_none_is_found():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(*(nn.Conv1d(3, 3, 1) for _ in range(2)))

        def forward(self, x):
            return self.body(x).mean(2)

    net = nest(Odd(), ["body"], {}, input_size=(3, 8))
    net.add_exit("remembered", (1,))
    net = nest(Odd(), ["body"], {}, input_size=(3, 8))
    net.input_size = None  # as in a net that was loaded
    with pytest.raises(ValueError, match="the shape of Odd's input could not be found"):
        net.add_exit("e", (1,))
    net.add_exit("e", (1,), input_size=(3, 8))
    assert net(torch.randn(2, 3, 8), "e").shape == (2, 3)


def test_the_plain_network_of_an_exit_takes_constants_of_any_name():
    class Block(nn.Module):
        def forward(self, x, real=None):
            return x if real is None else x + real

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.fc = nn.Sequential(Block(), Block()), nn.Linear(4, 3)

        def forward(self, x, real=None):
            for block in self.body:
                x = block(x) if real is None else block(x, real=real)
            return self.fc(x)

    net = nest(Net(), ["body"], {}, input_size=(4,)).eval()
    net.add_exit("e", (1,))
    x, constant = torch.randn(2, 4), torch.randn(2, 4)
    expected = net(x, "e", given={"real": constant})
    assert not torch.allclose(expected, net(x, "e"))
    assert_close(net.subnet("e")(x, real=constant), expected, **EXACT)


def test_the_default_head_knows_the_size_of_a_network_made_for_one():
    net = build("vit6", num_classes=10, image_size=16).eval()
    net.add_exit("a", after=(3,))
    assert net(torch.randn(2, 3, 16, 16), "a").shape == (2, 10)


def test_an_exit_of_a_network_with_maps_as_outputs_needs_a_head():
    module = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(*[nn.Conv2d(4, 4, 1) for _ in range(3)]))
    net = nest(module, ["1"], {})
    with pytest.raises(ValueError, match=r"output of one input has the shape \(4, 32, 32\)"):
        net.add_exit("a", after=(2,))


def test_an_exit_of_text_takes_constants():
    net: NestedNet = nest(Encoder(), ["layers"], {"3": (3,)}, input_size=(7,))
    net.add_exit("e", (2,), input_size=(7,))
    net.eval()
    expected = net(TEXT, "e", given={"mask": MASK})
    assert not torch.equal(expected, net(TEXT, "e"))
    assert_close(net.subnet("e")(TEXT, mask=MASK), expected, **EXACT)
    assert_close(net.forward_all(TEXT, given={"mask": MASK})["e"].logits, expected, **EXACT)


def test_an_exit_is_exported_and_costed(tmp_path):
    from safetensors.torch import load_file

    from stepwell.cost import count_macs
    from stepwell.export import export_safetensors

    net = with_exits().eval()
    net.mark("trained")
    export_safetensors(net, "off", tmp_path / "off", X)
    plain = deepcopy(net.subnet("off"))
    for p in plain.parameters():
        nn.init.zeros_(p)
    plain.load_state_dict(load_file(tmp_path / "off"))
    assert_close(plain(X), net(X, "off"), **EXACT)
    macs = [count_macs(net.subnet(depth), X[:1]) for depth in net.depths]
    assert macs == sorted(macs)


def test_a_network_with_exits_has_one_resolution():
    from stepwell.nets.resolution.resolutions import Resolutions

    with pytest.raises(ValueError, match=r"a network with exits \(early, middle, off\) runs at one"):
        Resolutions(with_exits(), [8, 6])
