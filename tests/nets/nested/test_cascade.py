"""Cascades: every image by the shallowest depth first, deeper ones on from the common prefix."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close

from nets.example_nets import FAMILIES, lively
from stepwell import Cascade
from stepwell.nets import build
from stepwell.nets.nested.criteria import CRITERIA, certainty, features_of, top_probability
from stepwell.nets.nested.nest import nest

EXACT = {"rtol": 0, "atol": 0}
DEPTHS = {"8": (1, 1, 1), "a": (1, 2, 3), "14": (2, 2, 2), "b": (3, 1, 1)}


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    net = build("resnet20", DEPTHS, num_classes=5, zero_init_residual=False)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    net.mark("trained")
    return net.eval()


def test_at_threshold_0_the_shallowest_depth_answers_all(net):
    x = torch.randn(6, 3, 8, 8)
    answer = Cascade(net, {"8": 0.0, "14": 0.5})(x)
    assert_close(answer.logits, net(x, "8").detach(), **EXACT)
    assert answer.depth.tolist() == [0] * 6


def test_a_constant_of_the_batch_is_not_cut_because_as_many_images_are_left():
    class Shifted(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x, shift=None):
            return torch.tanh(self.linear(x if shift is None else x + shift))

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Sequential(Shifted(), Shifted(), Shifted())
            self.fc = nn.Linear(4, 3)

        def forward(self, x, shift=None):
            for block in self.layer:
                x = block(x) if shift is None else block(x, shift=shift)
            return self.fc(x)

    torch.manual_seed(3)
    net = nest(Net(), ["layer"], {"a": (1,), "b": (2,)}, input_size=(4,)).eval()
    net.mark("trained")
    x, constants = torch.randn(9, 4), {"shift": torch.randn(4)}
    sure = top_probability(net(x, "a", given=constants).detach()).sort(descending=True).values
    cascade = Cascade(net, {"a": float(sure[4]), "b": 1.0})  # four images are left behind a
    answer = cascade(x, given=constants)
    assert (answer.depth == 2).sum() == 4
    late = answer.depth == 2
    assert_close(answer.logits[late], net(x, given=constants)[late].detach())


def test_at_threshold_1_the_full_net_answers_all(net):
    x = torch.randn(6, 3, 8, 8)
    answer = Cascade(net, dict.fromkeys(DEPTHS, 1.0))(x)
    assert_close(answer.logits, net(x).detach(), **EXACT)
    assert answer.depth.tolist() == [4] * 6


@settings(max_examples=20, deadline=None)
@given(
    st.sets(st.sampled_from([*DEPTHS]), min_size=1),
    st.lists(st.floats(0.2, 0.8), min_size=4, max_size=4),
)
def test_going_on_from_the_prefix_equals_running_whole_paths(net, depths, values):
    thresholds = dict(zip(sorted(depths), values, strict=False))
    x = torch.randn(16, 3, 8, 8)
    cascade = Cascade(net, thresholds)
    answer = cascade(x)
    with torch.no_grad():
        whole = net.logits_by_depth(x)
    assert torch.equal(cascade.decide(whole).depth, answer.depth)
    assert_close(cascade.decide(whole).logits, answer.logits, rtol=1e-4, atol=1e-5)
    for i, depth in enumerate(answer.depth.tolist()):
        name = cascade.depths[depth]
        assert_close(answer.logits[i], whole[name][i], rtol=1e-4, atol=1e-5)
        for earlier in cascade.depths[:depth]:
            assert top_probability(whole[earlier])[i] < thresholds[earlier] + 1e-5
        if name != "20":
            assert top_probability(whole[name])[i] > thresholds[name] - 1e-5


def test_a_prefix_runs_once_and_deeper_steps_see_the_unsure_images_only(net):
    seen: dict[int, list[int]] = {}
    steps = {id(s): s for d in net.depths for s in net.path(d)[:-1]}
    hooks = [
        s.register_forward_hook(lambda m, a, _: seen.setdefault(id(m), []).append(len(a[0])))
        for s in steps.values()
    ]
    x = torch.randn(32, 3, 8, 8)
    limit = float(top_probability(net(x, "8")).median().detach())
    seen.clear()
    answer = Cascade(net, {"8": limit})(x)
    for hook in hooks:
        hook.remove()
    unsure = int((answer.depth == 1).sum())
    assert 0 < unsure < 32
    shallow, full = net.path("8"), net.path("20")
    shared = [id(a) for a, b in zip(shallow, full, strict=False) if a is b][:4]
    assert [seen[s] for s in shared] == [[32]] * 4  # conv1, bn1, relu, layer1.0
    assert {n for step in full[4:-1] for n in seen[id(step)]} >= {unsure}
    assert set(seen[id(full[4])]) == {unsure}


@pytest.mark.parametrize("name", ["vgg", "mobilenet", "timm convnext", "vit", "mixed"])
def test_a_cascade_of_any_family_equals_running_whole_paths(name):
    torch.manual_seed(0)
    family = FAMILIES[name]
    module = lively(family.make(family.blocks))
    net = lively(nest(module, family.stages, family.subnets, input_size=family.input_size)).eval()
    net.mark("trained")
    x = torch.randn(16, *family.input_size)
    with torch.no_grad():
        alone = {depth: net(x, depth) for depth in net.depths}
    middle = {d: float(top_probability(alone[d]).median()) for d in family.subnets}
    cascade = Cascade(net, middle)
    answer = cascade(x)
    assert len(set(answer.depth.tolist())) > 1
    for i, depth in enumerate(answer.depth.tolist()):
        expected = alone[cascade.depths[depth]][i]
        assert_close(answer.logits[i], expected, rtol=1e-4, atol=1e-4)


def test_confidence_may_be_another(net):
    x = torch.randn(6, 3, 8, 8)
    margin = lambda z: z.topk(2).values.diff().neg().flatten()  # noqa: E731
    assert_close(Cascade(net, {"8": 1e9}, "14", margin)(x).logits, net(x, "14").detach(), **EXACT)
    assert Cascade(net, {"8": 0.0}, "14", margin)(x).depth.tolist() == [0] * 6


def test_it_is_read_from_the_card(net):
    with pytest.raises(ValueError, match="no cascade yet: `stepwell eval RUN --cascade --save`"):
        Cascade.of(net)
    saved = {"depths": ["8", "14"], "thresholds": [0.5]}
    before, net.card = net.card, replace(net.card, cascade=saved)
    try:
        cascade = Cascade.of(net)
    finally:
        net.card = before
    assert (cascade.depths, cascade.thresholds) == (("8", "14"), {"8": 0.5})


def test_bad_cascades_are_refused(net):
    with pytest.raises(ValueError, match="no depth '9'; this net has"):
        Cascade(net, {"9": 0.5})
    with pytest.raises(ValueError, match="a cascade ends with its deepest depth: '8' has no place"):
        Cascade(net, {"14": 0.5}, "8")
    with pytest.raises(ValueError, match="the last depth of a cascade, '20', answers all remaining"):
        Cascade(net, {"8": 0.4, "20": 0.99})
    for bad in (float("nan"), -0.1, 1.01, float("inf")):
        with pytest.raises(ValueError, match=f"'8' is {bad}: it must be between 0 and 1"):
            Cascade(net, {"8": bad})
    with pytest.raises(
        (ValueError, TypeError), match="'8' is '0.5': it must be a number|violates type hint"
    ):
        Cascade(net, {"8": "0.5"})
    with pytest.raises(ValueError, match="a temperature for '9', which is no depth of this cascade"):
        Cascade(net, {"8": 0.5}, temperatures={"9": 2.0})
    minus_entropy = lambda z: (z.softmax(1) * z.log_softmax(1)).sum(1)  # noqa: E731
    assert Cascade(net, {"8": -0.5}, criterion=minus_entropy).thresholds == {"8": -0.5}
    with pytest.raises(ValueError, match="'8' is True: it must be a number"):
        Cascade(net, {"8": True})
    with pytest.raises(ValueError, match="'8' is nan: it must be a number"):
        Cascade(net, {"8": float("nan")}, criterion=minus_entropy)
    net.mark("fresh", "8")
    try:
        with pytest.raises(ValueError, match="depth '8' was never trained or calibrated"):
            Cascade(net, {"8": 0.5})
    finally:
        net.mark("trained", "8")
    net.train()
    try:
        with pytest.raises(ValueError, match=r"in eval mode: call net.eval\(\) first"):
            Cascade(net, {"8": 0.5})(torch.zeros(2, 3, 8, 8))
    finally:
        net.eval()


WEIGHTS = dict.fromkeys(DEPTHS, (0.1, 1.0, -2.0, 0.5, 0.3))


def naive_answer(net, x, thresholds, score):
    """One image after the other, each depth run whole."""
    with torch.no_grad():
        whole = net.logits_by_depth(x)
    depths, answers = [*(d for d in net.depths if d in thresholds), net.full], []
    for i in range(len(x)):
        agreed, before = 0, -1
        for k, depth in enumerate(depths):
            y = whole[depth][i : i + 1]
            agreed = agreed + 1 if int(y.argmax()) == before else 0
            before = int(y.argmax())
            sure = depth in thresholds and score(depth, y, agreed) >= thresholds[depth]
            if sure or depth not in thresholds:
                answers.append((k, y[0]))
                break
    return answers


@pytest.mark.parametrize("name", CRITERIA)
def test_each_criterion_answers_as_a_naive_loop_and_a_batch_as_its_images_alone(net, name):
    x = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    temperatures = {"8": 0.5, "14": 2.0}

    def score(depth, y, agreed):
        y = y / temperatures.get(depth, 1.0)
        p = y.softmax(1)[0]
        first, second = p.sort(descending=True).values[:2].tolist()
        sure = 1 + float((p * p.log()).sum()) / math.log(5)
        bias, *slopes = WEIGHTS[depth]
        features = (first, first - second, sure, float(agreed > 0))
        z = bias + sum(w * f for w, f in zip(slopes, features, strict=True))
        return {"confidence": first, "entropy": sure, "patience": agreed,
                "learned": 1 / (1 + math.exp(-z))}[name]  # fmt: skip

    with torch.no_grad():
        whole = net.logits_by_depth(x)
    middle = {
        d: 1.0 if name == "patience" else sorted(score(d, y[None], 0) for y in whole[d])[40]
        for d in DEPTHS
    }
    if name != "patience":  # not between two scores that are equal to rounding
        middle = {d: value + 1e-4 for d, value in middle.items()}
    cascade = Cascade(net, middle, criterion=name, temperatures=temperatures, weights=WEIGHTS)
    answer = cascade(x)
    expected = naive_answer(net, x, middle, score)
    assert answer.depth.tolist() == [k for k, _ in expected]
    assert len(set(answer.depth.tolist())) > 1
    assert_close(answer.logits, torch.stack([y for _, y in expected]), rtol=1e-4, atol=1e-5)
    alone = [cascade(image) for image in x.split(1)]
    assert torch.equal(torch.cat([a.depth for a in alone]), answer.depth)
    assert_close(torch.cat([a.logits for a in alone]), answer.logits, rtol=1e-4, atol=1e-5)
    assert cascade(x[:0]).logits.shape == (0, 5)


def test_criterion_temperatures_and_weights_are_read_from_the_card(net):
    saved = {
        "depths": ["8", "14"], "thresholds": [0.5], "criterion": "learned", "temperatures": [1.5],
        "weights": [[0.0, 1.0, 1.0, 1.0, 1.0]],
    }  # fmt: skip
    before, net.card = net.card, replace(net.card, cascade=saved)
    try:
        cascade = Cascade.of(net)
    finally:
        net.card = before
    assert (cascade.criterion, cascade.temperatures) == ("learned", {"8": 1.5})
    assert cascade.weights == {"8": [0.0, 1.0, 1.0, 1.0, 1.0]}


def test_arguments_of_other_types_are_refused(net, untyped):
    for arguments, message in (
        ((None,), "thresholds=None: give one for each depth"),
        ((0.5,), "thresholds=0.5: give one for each depth, such as {'8': 0.9}"),
        (({"8": 0.5}, None, "learned", {"8": 3}), "the weights of depth '8' are 3: a learned"),
        (
            ({"8": 0.5}, None, "learned", {"8": ["a"] * 5}),
            "the weights of depth '8' are .*'a'.* finite",
        ),
    ):
        thresholds, last, criterion, weights = (*arguments, None, "confidence", None)[:4]
        with pytest.raises(ValueError, match=message):
            Cascade(net, thresholds, last, criterion, weights=weights)


def test_bad_criteria_are_refused(net):
    with pytest.raises(ValueError, match="no criterion 'luck' of a cascade; there are confidence"):
        Cascade(net, {"8": 0.5}, criterion="luck")
    with pytest.raises(ValueError, match="temperature of depth '8' is 0: must be above 0"):
        Cascade(net, {"8": 0.5}, temperatures={"8": 0})
    with pytest.raises(ValueError, match="'8' is 0.5: it must be a whole number of earlier depths"):
        Cascade(net, {"8": 0.5}, criterion="patience")
    with pytest.raises(ValueError, match="no depth before .* a patience of 9 needs as many earlier"):
        Cascade(net, {"8": 9}, criterion="patience")
    with pytest.raises(ValueError, match="a learned criterion has weights for every depth .* '8'"):
        Cascade(net, {"8": 0.5}, criterion="learned")
    for weights in ([1.0, 2.0], [math.nan] * 5, []):
        with pytest.raises(ValueError, match="weights of depth '8' are .*has 5 finite numbers"):
            Cascade(net, {"8": 0.5}, criterion="learned", weights={"8": weights})
    with pytest.raises(ValueError, match="threshold of depth '8' is 1000.*: it must be a number"):
        Cascade(net, {"8": 10**400})
    x = torch.randn(3, 3, 8, 8)
    for wrong, message in (
        (lambda logits: logits.softmax(1), r"one score an image \(3\), not shape \(3, 5\)"),
        (lambda logits: 1, r"one score an image \(3\), not 1"),
    ):
        with pytest.raises(ValueError, match=message):
            Cascade(net, {"8": 0.5}, criterion=wrong)(x)
    with pytest.raises(
        (ValueError, TypeError), match="criterion=3: name one, or give|violates type hint"
    ):
        Cascade(net, {"8": 0.5}, criterion=3)


def test_certainty_is_one_minus_the_entropys_share_of_its_largest():
    p = torch.tensor([[0.5, 0.25, 0.25], [1 / 3, 1 / 3, 1 / 3]])
    expected = 1 - (0.5 * math.log(2) + 0.5 * math.log(4)) / math.log(3)
    assert_close(certainty(p.log()), torch.tensor([expected, 0.0]), rtol=1e-5, atol=1e-6)
    assert_close(features_of(p.log(), torch.tensor([0, 2]))[:, [0, 1, 3]],
                 torch.tensor([[0.5, 0.25, 0.0], [1 / 3, 0.0, 1.0]]))  # fmt: skip
