import subprocess
import sys
import threading
from copy import deepcopy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

import stepwell
from stepwell.nets import BUILDERS, build
from stepwell.nets.nested.plan import is_norm

EXACT = {"rtol": 0, "atol": 0}


def lively(net):
    """Norms far from their initial values, so that a mixed-up norm shows."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return net


def small(depths=("8", "14"), **arguments):
    return lively(build("resnet20", depths, num_classes=5, **arguments))


blocks = st.tuples(*[st.integers(1, 3)] * 3).filter(lambda b: b != (3, 3, 3))


@settings(max_examples=10, deadline=None)
@given(st.lists(blocks, unique=True, max_size=3), st.booleans())
def test_every_way_to_run_a_depth_gives_the_same_bits(depths, training):
    net = small({f"d{i}": b for i, b in enumerate(depths)}).train(training)
    x = torch.randn(3, 3, 8, 8)
    for depth in net.depths:
        plain = net.subnet(depth)  # before its statistics move
        one = deepcopy(net) if training else net
        expected = net(x, depth)
        assert_close(plain(x), expected, **EXACT)
        assert_close(one.forward_all(x, [depth])[depth].logits, expected, **EXACT)
    if not training:
        exits = net.forward_all(x)
        assert list(exits) == list(net.depths)
        for depth, exit in exits.items():
            assert_close(exit.logits, net(x, depth), **EXACT)
            assert [f.shape for f in exit.features] == [(3, 16, 8, 8), (3, 32, 4, 4), (3, 64, 2, 2)]


@settings(max_examples=10, deadline=None)
@given(st.lists(blocks, unique=True, max_size=3))
def test_every_tensor_of_a_depth_is_found_in_the_file_by_name(depths):
    made = small({f"d{i}": b for i, b in enumerate(depths)})
    for net in (made, deepcopy(made), deepcopy(made).double()):
        tensors = net.tensors()
        for depth in net.depths:
            plain = net.subnet(depth).state_dict()
            names = net.stored_names(depth)
            assert names.keys() == plain.keys()
            for name, value in plain.items():
                assert_close(tensors[names[name]], value, **EXACT)
        assert net.stored_names() == {name: name for name in net.module.state_dict()}
        used = {name for depth in net.depths for name in net.stored_names(depth).values()}
        assert used == tensors.keys()
    with pytest.raises(ValueError, match="no depth 'x'"):
        net.stored_names("x")


def test_train_mode_runs_all_depths_as_each_alone_would():
    net = small().train()
    x = torch.randn(3, 3, 8, 8)
    together = deepcopy(net).forward_all(x)
    for depth, exit in together.items():
        assert_close(exit.logits, deepcopy(net)(x, depth), **EXACT)


def test_a_plain_network_of_the_depth_takes_the_weights():
    net = small().eval()
    x = torch.randn(2, 3, 8, 8)
    from stepwell.nets.families.resnet import CifarResNet

    plain = CifarResNet((2, 2, 2), num_classes=5).eval()
    plain.load_state_dict(net.subnet("14").state_dict())
    assert_close(plain(x), net(x, "14"), **EXACT)


@pytest.mark.parametrize(
    "name",
    [
        "resnet18",
        "resnet50",
        *[pytest.param(n, marks=pytest.mark.long) for n in ("resnet34", "resnet101")],
    ],
)
def test_torchvision_loads_full_net_and_subnets(name):
    import torchvision

    builder = BUILDERS[name]
    known = [d for d in builder.family if int(d) < int(builder.full)]
    net = build(name, known, num_classes=1000)
    for depth in net.depths:
        if depth != "26":  # torchvision has no such network
            twin = getattr(torchvision.models, f"resnet{depth}")()
            assert net.subnet(depth).state_dict().keys() == twin.state_dict().keys()
            twin.load_state_dict(net.subnet(depth).state_dict())
    x = torch.randn(1, 3, 64, 64)
    twin = getattr(torchvision.models, name)().eval()
    net.load_full(twin.state_dict())
    assert_close(net.eval()(x), twin(x))


def test_loading_the_full_net_fills_the_subnets_too():
    net, trained = small(), small(())
    net.load_full(trained.module.state_dict())
    expected = trained.module.state_dict()
    for name, value in net.subnet("8").state_dict().items():
        assert_close(value, expected[name], **EXACT)
    assert net.status == {"8": "fresh", "14": "fresh", "20": "trained"}


def test_convolutions_and_classifier_are_shared_and_norms_private_after_the_fork():
    net = build("resnet20", ["8"], num_classes=5)
    full, sub = net.path("20"), net.path("8")
    fork = 4  # conv1, bn1, relu, layer1.0
    assert all(a is b for a, b in zip(full[:fork], sub[:fork], strict=True))
    private = [m for step in sub[fork:] for m in step.modules() if is_norm(m)]
    theirs = {id(m) for m in net.norms("20")}
    assert len(private) == 2 + 2 + 2  # two blocks of two norms, two projections
    assert not any(id(m) in theirs for m in private)
    weights = {id(p) for p in net.module.parameters()}
    extra = [p for p in net.parameters() if id(p) not in weights]
    assert sum(p.numel() for p in extra) == sum(p.numel() for m in private for p in m.parameters())


def test_two_subnets_share_norms_until_they_differ():
    net = build("resnet20", {"a": (1, 1, 1), "b": (1, 2, 1)}, num_classes=5)
    a, b = net.path("a"), net.path("b")
    assert a[4] is b[4]  # layer2.0, which the full net does not share
    assert a[4] is not net.path("20")[6]
    assert a[5] is not b[5]


def test_common_prefixes_run_once():
    net = small()
    calls: dict[int, int] = {}
    for module in {id(m): m for m in net.hidden_modules()}.values():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_hook(lambda m, *_: calls.update({id(m): calls.get(id(m), 0) + 1}))
    net.train().forward_all(torch.randn(2, 3, 8, 8))
    every = {id(n) for d in net.depths for n in net.norms(d)}
    assert calls == dict.fromkeys(every, 1)
    assert {int(n.num_batches_tracked) for d in net.depths for n in net.norms(d)} == {1}


def naive_loss(net, x, y):
    return sum(cross_entropy(net(x, depth), y) for depth in net.depths)


@settings(max_examples=10, deadline=None)
@given(st.lists(blocks, unique=True, min_size=1, max_size=3))
def test_joint_loss_has_the_gradients_of_the_naive_sum(depths):
    net = small({f"d{i}": b for i, b in enumerate(depths)}).double().train()
    twin = deepcopy(net)
    x, y = torch.randn(4, 3, 8, 8).double(), torch.randint(5, (4,))
    seen = []

    def loss_of(depth, exit, done):
        assert list(done) == seen
        assert not any(e.logits.requires_grad for e in done.values())
        seen.append(depth)
        loss = cross_entropy(exit.logits, y)
        return loss, {"ce": loss}

    loss, logs = net.joint_loss(x, loss_of)
    assert seen[0] == "20"
    assert set(seen) == set(net.depths)
    assert set(logs) == {f"{d}/ce" for d in net.depths}
    expected = naive_loss(twin, x, y)
    assert_close(loss, expected)
    loss.backward()
    expected.backward()
    for (name, a), b in zip(net.named_parameters(), twin.parameters(), strict=True):
        assert_close(a.grad, b.grad, rtol=1e-9, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}")


def test_a_deep_copy_shares_nothing_and_moves_alike():
    net = small().eval()
    twin = deepcopy(net)
    assert not {id(p) for p in net.parameters()} & {id(p) for p in twin.parameters()}
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        net.module.conv1.weight.zero_()
    assert not torch.equal(net(x, "8"), twin(x, "8"))
    twin.double()
    assert twin(x.double(), "8").dtype == torch.float64
    assert all(b.dtype != torch.float32 for n in twin.norms("8") for b in n.buffers())


def test_train_and_eval_reach_modules_that_only_a_subnet_has():
    net = small().eval()
    modules = [m for d in net.depths for step in net.path(d) for m in step.modules()]
    assert not any(m.training for m in modules)
    net.train()
    assert all(m.training for m in modules)


def test_threads_may_run_different_depths_at_once():
    net = small().eval()
    x = torch.randn(2, 3, 8, 8)
    expected = {d: net(x, d) for d in net.depths}
    wrong = []

    def work(depth):
        for _ in range(20):
            if not torch.equal(net(x, depth), expected[depth]):
                wrong.append(depth)

    threads = [threading.Thread(target=work, args=(d,)) for d in net.depths]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize(
    ("depths", "message"),
    [
        ({"x": (2, 2, 4)}, r"depth 'x' = \(2, 2, 4\): layer3 can keep 1 to 3 blocks .* not 4"),
        ({"x": (2, 0, 2)}, r"layer2 can keep 1 to 3 blocks .* not 0"),
        ({"x": (2, 2)}, "names 2 stages; this net has 3: layer1, layer2, layer3"),
        ({"x": (3, 3, 3)}, "is the same network as depth '20'"),
        ({"a": (1, 1, 1), "b": (1, 1, 1)}, "is the same network as depth 'a'"),
        ({"a/b": (1, 1, 1)}, "'a/b' cannot name a depth"),
        ({"..": (1, 1, 1)}, "cannot name a depth"),
        ({"net": (1, 1, 1)}, "cannot name a depth"),
        ({"8.int8": (1, 1, 1)}, "cannot name a depth"),
        ({"a\n": (1, 1, 1)}, "cannot name a depth"),
        ({"": (1, 1, 1)}, "cannot name a depth"),
        ({"20": (1, 1, 1)}, "already has '20'"),
        (["19"], "no depth '19' in the family of resnet20"),
        (["x=1,b,1"], "write the blocks of each stage as whole numbers, x=3,3,3"),
    ],
)
def test_depths_that_cannot_be(depths, message):
    with pytest.raises(ValueError, match=message):
        build("resnet20", depths, num_classes=5)


def test_unknown_names_are_answered_with_the_known_ones():
    net = small()
    with pytest.raises(ValueError, match="no depth '9'; this net has 8, 14, 20"):
        net(torch.zeros(1, 3, 8, 8), "9")
    with pytest.raises(ValueError, match="no network 'resnet21': did you mean resnet32 or "):
        build("resnet21")
    with pytest.raises(ValueError, match="resnet20 has no option 'width'"):
        build("resnet20", width=3)
    for name in ("resnet20", "timm/convnext_atto"):
        with pytest.raises(ValueError, match="num_classes 0: must be 1 or more"):
            build(name, num_classes=0)


WRONG_TYPES: list[tuple[object, dict[str, object], str]] = [
    (5, {}, "a network's name is a text, such as 'resnet34', not 5"),
    ("resnet20", {"num_classes": "10"}, "num_classes '10': must be a number, 1 or more"),
    ("resnet20", {"depths": 5}, "depths=5: must be a list of names, or blocks by name"),
    ("resnet20", {"depths": [8]}, "the name of a depth is a text: write '8', not 8"),
    ("resnet20", {"depths": {8: (1, 1, 1)}}, "the name of a depth is a text: write '8', not 8"),
    ("resnet20", {"norms": "own"}, "no norms 'own'; there are private, shared"),
    ("resnet20", {"stages": 5}, "stages=5: must be a list of the stages' names"),
    ("resnet20", {"kept": "111"}, "kept='111': must be the blocks of each stage"),
    ("resnet20", {"adder": "yes"}, "adder='yes': must be True, or arguments of `to_adder` by name"),
    ("resnet20", {"adder": None}, "adder=None: must be True, or arguments of `to_adder` by name"),
    ("resnet20", {"adder": {"gradient": "clip"}}, "no gradient 'clip'; there are clipped, difference"),
    ("resnet20", {"multipliers": 0.5}, "multipliers=0.5: must be a list of shares, such as (0.5, 1)"),
    ("resnet20", {"multipliers": ("half", 1)}, "a width of 'half': must be a number, a share of"),
    ("resnet20", {"kernels": 2.5}, "takes a whole number of kernels, 2 or more, not 2.5"),
    ("resnet20", {"adaptions": 5}, "adaptions=5: must be lists by name"),
    ("resnet18", {"stem": "large"}, "no stem 'large'; there are imagenet, small"),
]
BUILD = f"""
import stepwell
assert [*stepwell.build("resnet20", dict.fromkeys(("8", "14")).keys()).depths] == ["8", "14", "20"]
for name, arguments, message in {WRONG_TYPES}:
    try:
        stepwell.build(name, **arguments)
    except ValueError as error:
        assert message in str(error), error
    else:
        raise SystemExit(f"built: {{name}}, {{arguments}}")
"""


def test_arguments_of_other_types_are_one_line():
    # in a process of its own: tests check all types before a function sees its arguments
    subprocess.run([sys.executable, "-c", BUILD], check=True)


def test_a_depth_that_nobody_trained_is_refused_until_it_is_calibrated():
    net = small(()).eval()
    net.mark("trained")
    net.add_depth("14", (2, 2, 2))
    with pytest.raises(ValueError, match=r"depth '14' was never trained .* stepwell.calibrate"):
        net.require_ready("14")
    net.require_ready("20")
    shared = {id(n): deepcopy(n.state_dict()) for n in net.norms("20")}
    batches = [stepwell.Batch(torch.randn(n, 3, 8, 8), torch.zeros(n).long()) for n in (8, 8, 1)]
    stepwell.calibrate(net, batches)
    assert net.status == {"14": "calibrated", "20": "trained"}
    assert not net.training
    net.require_ready()
    for norm in net.norms("20"):
        for name, value in norm.state_dict().items():
            assert_close(value, shared[id(norm)][name], **EXACT)
    # the statistics of the first private norm are the mean over all images
    first = next(n for n in net.norms("14") if id(n) not in shared)
    x = [b.images for b in batches]
    with torch.no_grad():
        for step in net.path("14")[:5]:
            x = [step(v) for v in x]
        inputs = [net.module.layer2[0].conv1(v) for v in x]
    assert_close(first.running_mean, torch.cat(inputs).mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
    spread = sum(len(v) * v.var((0, 2, 3)) for v in inputs) / 17
    assert_close(first.running_var, spread, rtol=1e-4, atol=1e-5)
    assert first.momentum == 0.1


def test_images_that_are_not_finite_calibrate_nothing():
    net = build("resnet14", ["8"], num_classes=3)
    net.mark("trained", net.full)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    good = torch.randn(4, 3, 8, 8)
    labels = torch.zeros(4, dtype=torch.int64)
    with pytest.raises(ValueError, match="numbers that are not finite"):
        stepwell.calibrate(
            net, [stepwell.Batch(good, labels), stepwell.Batch(good * float("nan"), labels)]
        )
    assert net.status["8"] == "fresh"
    assert all(value.equal(before[name]) for name, value in net.state_dict().items())


@pytest.mark.parametrize(
    ("batch", "given"),
    [
        (torch.zeros(2, 3, 8, 8), r"tensor of shape \(2, 3, 8, 8\)"),  # two images: no pair
        ([torch.zeros(4, 3, 8, 8)], "list of 1"),
        ({"image": torch.zeros(4, 3, 8, 8), "label": 0}, "dict of 2"),
    ],
)
def test_calibration_says_what_a_batch_is_where_it_gets_none(batch, given):
    net = build("resnet14", ["8"], num_classes=3)
    net.mark("trained", net.full)
    with pytest.raises(ValueError, match=rf"batches of \(images, labels\), and this is a {given}"):
        stepwell.calibrate(net, iter([batch]))
    assert net.status["8"] == "fresh"
    stepwell.calibrate(net, iter([(torch.randn(4, 3, 8, 8), None)]))
    assert net.status["8"] == "calibrated"


def test_a_status_is_one_of_three():
    with pytest.raises(Exception, match="foo"):
        build("resnet14", ["8"]).mark("foo")


def test_there_is_nothing_to_calibrate_where_nothing_was_trained():
    net = build("resnet20", ["8"], num_classes=5)
    batches = [stepwell.Batch(torch.randn(8, 3, 8, 8), torch.zeros(8).long())]
    with pytest.raises(ValueError, match="calibrate needs a trained depth, and this network has no"):
        stepwell.calibrate(net, batches)
    assert set(net.status.values()) == {"fresh"}


def test_layer_norms_have_no_statistics_so_calibration_changes_no_tensor():
    net = build("timm/convnext_atto", ["a=1,1,2,1"], num_classes=3)
    net.mark("trained", net.full)
    before = deepcopy(net.state_dict())
    stepwell.calibrate(net, [])
    assert net.status["a"] == "calibrated"
    assert_close(net.state_dict(), before, **EXACT)


def test_one_depth_takes_weights_by_its_own_names_and_no_others():
    net, other = small(), small()
    net.load_depth("8", other.subnet("8").state_dict())
    x = torch.randn(2, 3, 8, 8)
    assert_close(net.eval()(x, "8"), other.eval()(x, "8"), **EXACT)
    with pytest.raises(RuntimeError, match="depth '8' has no nonsense"):
        net.load_depth("8", {"nonsense": torch.zeros(1)})
