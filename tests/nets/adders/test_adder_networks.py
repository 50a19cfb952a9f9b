"""Networks of adder layers: built, converted, nested and filed."""

from copy import deepcopy

import pytest
import torch
import torchvision
from torch import nn
from torch.fx import symbolic_trace
from torch.nn.functional import cross_entropy
from torch.nn.utils import prune
from torch.nn.utils.parametrizations import weight_norm
from torch.testing import assert_close

import stepwell
from stepwell.cost import count_macs
from stepwell.nets.adders.layers import NormedLinear, adder_layers
from stepwell.nets.files.initial_weights import start_pretrained


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return stepwell.build("resnet14", ["8"], num_classes=10, adder=True)


def test_first_and_last_layer_stay_and_the_file_knows_the_rest(net, tmp_path):
    plain = stepwell.build("resnet14", ["8"], num_classes=10)
    layers = adder_layers(net.module)
    assert len(layers) == 12 + 2  # and the shortcuts
    assert "layer2.0.downsample.0" in layers
    assert type(net.module.conv1) is nn.Conv2d
    assert isinstance(net.module.fc, NormedLinear)
    assert all(m.weight.eq(1).all() for m in net.module.modules() if isinstance(m, nn.BatchNorm2d))
    x = torch.randn(2, 3, 16, 16)
    assert count_macs(net, x) == count_macs(plain, x)  # a pair of additions stands for a product
    with torch.no_grad():  # statistics and norms that are not those of a fresh network
        for value in (*net.parameters(), *net.buffers()):
            if value.is_floating_point():
                value.add_(torch.rand_like(value))
    net.eval().mark("trained")
    loaded = stepwell.load(stepwell.save(net, tmp_path / "net.safetensors"))
    assert loaded.builder == ("resnet14", {"num_classes": 10, "adder": True})
    for depth in ("8", "14"):
        assert torch.equal(loaded(x, depth), net(x, depth))
        assert torch.equal(net.subnet(depth)(x), net(x, depth))
    names = net.module.state_dict().keys() - plain.module.state_dict().keys()
    assert {name.rpartition(".")[0] for name in names} == {"fc.norm"}
    net.train()


def test_joint_gradients_equal_the_naive_sum(net):
    x, labels = torch.randn(6, 3, 16, 16), torch.randint(10, (6,))
    other = deepcopy(net)
    net.zero_grad(), other.zero_grad()

    def loss_of(depth, exit, done):
        return cross_entropy(exit.logits, labels), {}

    loss, _ = net.joint_loss(x, loss_of)
    loss.backward()
    apart = [cross_entropy(other(x, depth), labels) for depth in reversed(other.depths)]
    sum(apart).backward()
    assert_close(loss, sum(apart))
    for (name, one), two in zip(net.named_parameters(), other.parameters(), strict=True):
        scale = two.grad.abs().max()
        assert scale > 0, name
        assert_close(one.grad / scale, two.grad / scale, rtol=1e-3, atol=1e-4, msg=name)


def test_a_norm_of_another_library_may_have_parts():
    net = stepwell.build("adder/timm/darknet53", num_classes=3)
    assert len(adder_layers(net.module)) == 51
    double = stepwell.to_adder(Own(nn.Conv2d(8, 8, 1)).double())
    assert double(torch.randn(2, 3, 5, 5, dtype=torch.float64)).dtype == torch.float64


def test_a_network_converted_after_it_was_built_is_not_written(tmp_path):
    net = stepwell.build("resnet8", num_classes=3)
    stepwell.to_adder(net.module, normed_logits=False)
    net.mark("trained")
    with pytest.raises(ValueError, match="are not those that `build` made.*adder=True"):
        stepwell.save(net, tmp_path / "net.safetensors")
    assert not any(tmp_path.iterdir())


def test_depths_get_statistics_from_data(net):
    net = deepcopy(net)
    net.mark("trained")
    net.add_depth("late", (1, 2, 1))
    stepwell.calibrate(net, [(torch.randn(8, 3, 16, 16), None)] * 2)
    assert net.status["late"] == "calibrated"
    assert net.eval()(torch.randn(2, 3, 16, 16), "late").isfinite().all()


class Own(nn.Module):
    def __init__(self, *layers, norm=True):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3)
        self.body = nn.Sequential(*layers)
        if norm:
            self.norm = nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, 4)

    def forward(self, x):
        x = self.body(self.first(x))
        x = self.norm(x) if hasattr(self, "norm") else x
        return self.fc(x.mean((2, 3)))


def test_a_module_of_ones_own_is_converted_and_nested():
    own = Own(*(nn.Sequential(nn.Conv2d(8, 8, 3, padding="same"), nn.BatchNorm2d(8)) for _ in range(3)))
    net = stepwell.nest(stepwell.to_adder(own), ["body"], {"one": (1,)})
    net(torch.randn(4, 3, 9, 9), "one").sum().backward()
    assert own.body[0][0].padding == (1, 1)
    assert own.body[0][0].weight.grad.abs().sum() > 0
    every = Own(nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8))
    assert [*adder_layers(stepwell.to_adder(every, everywhere=True))] == ["first", "body.1"]
    filters = []
    for everywhere in (False, True):  # whether the first layer adds does not change the others' filters
        torch.manual_seed(3)
        net = stepwell.build("resnet8", adder={"everywhere": everywhere})
        filters.append(net.module.layer3[0].conv2.weight)
    assert torch.equal(*filters)
    with torch.device("meta"):
        vgg = stepwell.to_adder(torchvision.models.vgg11_bn(num_classes=5), normed_logits=False)
    assert len(adder_layers(vgg)) == 7
    assert type(vgg.classifier[-1]) is nn.Linear


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (nn.Conv2d(8, 8, 3, groups=8), "body.0: a convolution of 8 groups has no adder layer: keep"),
        (nn.Conv2d(8, 8, 3, dilation=2), "body.0: a convolution of dilation \\(2, 2\\) has no"),
        (
            nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect"),
            "body.0: .* padding mode 'reflect' has",
        ),
        (nn.Conv2d(8, 8, 2, padding="same"), 'body.0: padding="same" of a kernel of 2×2 is uneven'),
        (nn.ReLU(), "Own has no convolution to convert: first and last layer stay as they are"),
    ],
)
def test_what_has_no_adder_form_is_refused(layer, message):
    own = Own(layer)
    with pytest.raises(ValueError, match=message):
        stepwell.to_adder(own)
    assert own.body[0] is layer


def test_a_convolution_of_two_names_stays_one_layer():
    shared = nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8))
    own = stepwell.to_adder(Own(shared, shared))
    own.other = own.body[0]
    assert own.body[0][0] is own.body[1][0]
    twice = Own(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8))
    twice.alias = twice.body[0]
    assert stepwell.to_adder(twice).alias is twice.body[0]
    assert [*adder_layers(twice)] == ["body.0"]


class Backwards(nn.Module):
    """It defines its layers in another order than it runs them, and has two outputs."""

    def __init__(self):
        super().__init__()
        self.fc, self.other = nn.Linear(8, 4), nn.Linear(8, 2)
        self.block = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())

    def forward(self, x):
        features = self.block(self.stem(x)).mean((2, 3))
        return self.fc(features), self.other(features)


@pytest.mark.usefixtures("untyped")
def test_first_and_last_are_those_that_run_first_and_last():
    net = stepwell.to_adder(Backwards())
    assert [*adder_layers(net)] == ["block.0"]
    assert [type(layer) for layer in (net.fc, net.other)] == [NormedLinear] * 2
    traced, x = symbolic_trace(net.eval()), torch.randn(2, 3, 8, 8)
    assert_close(traced(x), net(x))


@pytest.mark.usefixtures("untyped")
def test_a_convolution_whose_hooks_or_parts_would_be_lost_is_refused():
    hooked, pruned, split = (Own(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8)) for _ in range(3))
    hooked.body[0].register_forward_hook(lambda *_: None)
    prune.l1_unstructured(pruned.body[0], "weight", 0.5)
    for net in (hooked, pruned):
        with pytest.raises(ValueError, match="body.0: a convolution with hooks, such as pruning's"):
            stepwell.to_adder(net)
    weight_norm(split.body[0])
    with pytest.raises(ValueError, match="body.0: a ParametrizedConv2d is no plain nn.Conv2d"):
        stepwell.to_adder(split)
    groups = Own(nn.Conv2d(8, 8, 3, groups=2), nn.Conv2d(8, 8, 1, groups=2), nn.BatchNorm2d(8))
    with pytest.raises(ValueError, match=r"one of 2 such .* keep=\['body.0', 'body.1'\]"):
        stepwell.to_adder(groups)
    for wrong, message in (
        (lambda: stepwell.to_adder(3), "takes an nn.Module, not 3"),
        (lambda: stepwell.to_adder(Backwards(), keep=None), "keep is a list of names"),
    ):
        with pytest.raises(ValueError, match=message):
            wrong()


def test_a_last_layer_that_cannot_normalise_its_logits_is_refused_before_anything_changes():
    class Head(nn.Linear):
        pass

    body = nn.Sequential(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8))
    pruned, split, derived, backward = (Own(deepcopy(body)) for _ in range(4))
    prune.l1_unstructured(pruned.fc, "weight", 0.5)
    weight_norm(split.fc)
    derived.fc = Head(8, 4)
    backward.fc.register_full_backward_hook(lambda *_: None)
    for net in (pruned, split, derived, backward):
        before = net.body[0][0]
        with pytest.raises(ValueError, match="fc: a .* cannot normalise its logits; convert with"):
            stepwell.to_adder(net)
        assert net.body[0][0] is before
        assert [*adder_layers(stepwell.to_adder(net, normed_logits=False))] == ["body.0.0"]
    steps = NormedLinear(nn.Linear(8, 5))
    with pytest.raises(ValueError, match=r"logits of shape \(2, 7, 5\) cannot be normalised"):
        steps(torch.randn(2, 7, 8))


def test_convolutions_that_share_filters_are_refused():
    own = Own(*(nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)) for _ in range(2)))
    own.body[1][0].weight = own.body[0][0].weight
    with pytest.raises(
        ValueError, match="body.0.0 has the filters of body.1.0, and adder layers share none"
    ):
        stepwell.to_adder(own)


def test_outputs_may_change_in_place():
    body = nn.Sequential(nn.Conv2d(8, 8, 3), nn.LeakyReLU(0.1, inplace=True), nn.BatchNorm2d(8))
    net = stepwell.to_adder(Own(body))
    net(torch.randn(4, 3, 9, 9)).sum().backward()
    assert net.body[0][0].weight.grad.abs().sum() > 0


def test_other_networks_without_an_adder_form():
    with pytest.raises(ValueError, match="no norm follows .* 'body.0', .* could not train"):
        stepwell.to_adder(Own(nn.Conv2d(8, 8, 3), norm=False))
    early = nn.Sequential(nn.Conv2d(8, 8, 1), nn.ReLU(), nn.BatchNorm2d(8))
    with pytest.raises(ValueError, match="body.0.1, a ReLU, takes the outputs of .* 'body.0.0'"):
        stepwell.to_adder(Own(early))
    for call in (torch.relu, nn.functional.relu6, lambda x: x.relu_()):

        class Functional(Own):
            def forward(self, x):
                y = self.norm(call(self.body(self.first(x))))  # noqa: B023
                return self.fc(y.mean((2, 3)))

        with pytest.raises(ValueError, match="a call of relu.* takes the outputs of .* 'body.0'"):
            stepwell.to_adder(Functional(nn.Conv2d(8, 8, 1)))

    class Unordered(Own):
        """Its norm stands behind the convolution by name, and runs before it."""

        def forward(self, x):
            return self.fc(self.body(self.norm(self.first(x))).mean((2, 3)))

    class Summed(Own):
        """A sum of the outputs with others comes before the norm, as in pre-activation networks."""

        def forward(self, x):
            x = self.first(x)
            return self.fc(self.norm(x + self.body(x)).mean((2, 3)))

    for other in (Unordered, Summed):
        with pytest.raises(ValueError, match="no norm follows the convolution 'body.0'"):
            stepwell.to_adder(other(nn.Conv2d(8, 8, 1)))

    class Reordered(nn.Module):
        """Its norm stands before the convolution by name, and runs behind it, through a pool."""

        def __init__(self):
            super().__init__()
            self.norm, self.first, self.conv = nn.BatchNorm2d(8), nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)
            self.fc = nn.Linear(8, 4)

        def forward(self, x):
            y = nn.functional.avg_pool2d(self.conv(self.first(x)), 2)
            return self.fc(self.norm(torch.cat([y, y[:, :0]], 1)).mean((2, 3)))

    assert [*adder_layers(stepwell.to_adder(Reordered()))] == ["conv"]

    class Sized(Own):
        """It reads a size of the outputs, which is no way to another layer."""

        def forward(self, x):
            y = self.body(self.first(x))
            count, wide = y.shape[0], y.size(1)
            return self.fc(nn.functional.dropout(self.norm(y)).mean((2, 3)).view(count, wide))

    assert [*adder_layers(stepwell.to_adder(Sized(nn.Conv2d(8, 8, 1))))] == ["body.0"]

    class Dropped(Own):
        def forward(self, x):
            y = nn.functional.dropout(self.body(self.first(x)), 0.5, self.training)
            return self.fc(self.norm(y).mean((2, 3)))

    for seed in range(4):  # which numbers are dropped does not decide
        torch.manual_seed(seed)
        stepwell.to_adder(own := Dropped(nn.Conv2d(8, 8, 1)), keep=["first"])
        assert [*adder_layers(own)] == ["body.0"]

    class Hidden(Own):
        """torch.fx cannot follow it, so the next norm by name counts."""

        def forward(self, x):
            y = self.body(self.first(x))
            return self.fc(self.norm(y if y.sum() > 0 else -y).mean((2, 3)))

    assert [*adder_layers(stepwell.to_adder(Hidden(nn.Conv2d(8, 8, 1))))] == ["body.0"]
    with pytest.raises(ValueError, match="body.0.1, a ReLU, takes the outputs of .* 'body.0.0'"):
        stepwell.to_adder(Hidden(nn.Sequential(nn.Conv2d(8, 8, 1), nn.ReLU(), nn.BatchNorm2d(8))))
    with pytest.raises(ValueError, match="no norm follows the convolution 'body.0'"):
        stepwell.to_adder(Hidden(nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1), norm=False))

    class Pooled(Own):
        def forward(self, x):
            x = nn.functional.max_pool2d(self.body(self.first(x)), 2)
            return self.fc(self.norm(torch.relu(x)).mean((2, 3)))

    with pytest.raises(ValueError, match="a call of relu takes the outputs of .* 'body.0'"):
        stepwell.to_adder(Pooled(nn.Conv2d(8, 8, 1)))

    class Scaled(nn.Conv2d):
        def forward(self, x):
            return 2 * super().forward(x)

    with pytest.raises(ValueError, match="body.0: a Scaled is no plain nn.Conv2d"):
        stepwell.to_adder(Own(Scaled(8, 8, 1)))
    with pytest.raises(ValueError, match="this network is nested already: build it with adder=True"):
        stepwell.to_adder(stepwell.build("resnet8"))
    early[1] = nn.LeakyReLU()  # which loses nothing
    assert [*adder_layers(stepwell.to_adder(Own(early)))] == ["body.0.0"]
    with pytest.raises(ValueError, match="keep 'fc': no convolution has this name"):
        stepwell.to_adder(Own(nn.Conv2d(8, 8, 3)), keep=["fc"])
    kept = Own(nn.Conv2d(8, 8, 3, groups=2), nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8))
    assert [*adder_layers(stepwell.to_adder(kept, keep=["body.0"]))] == ["body.1"]
    for name, options, message in (
        ("resnet8", {"gates": True}, "layer1.0 is a GatedBasicBlock: networks with such parts have no"),
        (
            "adder/resnet8",
            {"multipliers": (0.5, 1)},
            "resnet8: networks of several widths have no adder form",
        ),
        ("resnet8", {"adder": {"other": 1}}, "resnet8 has no option 'other'"),
        ("mobilenet_v2", {}, "mobilenet_v2 has no adder form: .*of 32 groups has no adder layer$"),
        ("vit6", {}, "VisionTransformer has no convolution to convert"),
    ):
        with pytest.raises(ValueError, match=message):
            stepwell.build(name, **{"adder": True, **options})
    net = stepwell.build("adder/resnet14", ["8"], adder={"normed_logits": False})
    assert net.builder == ("resnet14", {"adder": {"normed_logits": False}})
    with pytest.raises(ValueError, match="no weights of adder networks are published"):
        start_pretrained(stepwell.build("adder/resnet18", stem="small"))
    with pytest.raises(ValueError, match="no network 'adder/none': `stepwell list` names all"):
        stepwell.build("adder/none")
