"""PKKD: the loss by hand, who gets gradients, and the local learning rate."""

import math
import subprocess
import sys
from collections import OrderedDict
from copy import deepcopy

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, kl_div, unfold
from torch.testing import assert_close

from stepwell import nest, to_adder
from stepwell.losses.kernels import gaussian_exponent, kernel_features
from stepwell.methods.pkkd import ProgressiveKernelKD
from stepwell.nets import build
from stepwell.nets.adders.layers import adder_layers
from stepwell.nets.adders.tracing import LayerValues
from stepwell.training.local_rates import scale_filter_gradients, with_local_rates
from stepwell.training.optim import sgd
from stepwell.types import Batch


def pair(**options):
    net = build("resnet8", num_classes=5, adder=True)
    return ProgressiveKernelKD(net, build("resnet8", num_classes=5), **options)


@pytest.fixture
def batch():
    return Batch(torch.randn(6, 3, 16, 16), torch.randint(5, (6,)))


def test_the_gaussian_exponent_is_the_distance_of_patches_and_filters():
    x, weight = torch.randn(2, 3, 7, 6), torch.randn(4, 3, 3, 2)
    y = torch.nn.functional.conv2d(x, weight, stride=(2, 1), padding=(1, 2))
    patches = unfold(x, (3, 2), padding=(1, 2), stride=(2, 1))
    apart = -(patches[:, None] - weight.flatten(1)[None, :, :, None]).square().sum(2)
    found = gaussian_exponent(x, y, weight, (2, 1), (1, 2))
    assert_close(found.flatten(2), apart, rtol=1e-4, atol=1e-4)


def test_kernels_do_not_vanish_at_real_sizes():
    exponent = (torch.randn(8, 64, 4, 4) * 18 - 554).requires_grad_()  # 576 numbers a filter
    assert exponent.exp().sum() == 0
    features = kernel_features(exponent)
    fixed = exponent.detach().double()
    expected = ((fixed - fixed.mean()) / fixed.std(correction=0)).clamp(max=5).exp()
    assert_close(features.detach().double(), expected, rtol=1e-5, atol=1e-5)
    assert 1 < features.mean() < 2.5
    (features * torch.randn_like(features)).sum().backward()
    assert exponent.grad.count_nonzero() > 0.99 * exponent.numel()
    # moving or scaling all exponents changes no feature, so no gradient goes in these directions
    across = exponent.grad.double(), (exponent.grad * (exponent.detach() + 554)).double()
    for part in across:
        assert part.sum().abs() < 1e-3 * part.abs().sum()
    assert kernel_features(torch.full((1, 1, 2, 2), -3.0)).eq(1).all()


def test_the_loss_is_that_of_the_equations(batch):
    objective = pair(alpha=0.3, beta=0.2, temperature=2.0)
    for linear in objective.maps:
        torch.nn.init.normal_(linear.weight)
    copied = deepcopy(objective)
    step = objective.training_step(batch)
    z, twin = copied.net(batch.images), copied.twin(batch.images)
    soft = 4 * kl_div((z / 2).log_softmax(1), (twin / 2).softmax(1), reduction="batchmean")
    assert_close(step.logs["kl"], soft, rtol=1e-4, atol=1e-5)
    expected = 0.3 * cross_entropy(z, batch.labels) + 0.7 * soft + cross_entropy(twin, batch.labels)
    assert_close(step.loss, expected + 0.2 * step.logs["features"], rtol=1e-4, atol=1e-4)
    # the first adder layer by hand
    name, layer = next(iter(adder_layers(copied.net.module).items()))
    conv = copied.twin.module.get_submodule(name)
    ours = copied.net.module.relu(copied.net.module.bn1(copied.net.module.conv1(batch.images)))
    theirs = copied.twin.module.relu(copied.twin.module.bn1(copied.twin.module.conv1(batch.images)))
    target = kernel_features(gaussian_exponent(theirs, conv(theirs), conv.weight, (1, 1), (1, 1)))
    alone = copied.maps[0](kernel_features(layer(ours)))
    values = [
        copied._ours(copied.net.module, batch.images)[1],
        copied._theirs(copied.twin.module, batch.images)[1],
    ]
    assert_close(
        copied._feature_distance(0, *(v[name] for v in values)), (alone - target).square().mean()
    )
    # and the sum over all of them
    apart = 0.0
    for index, (name, layer) in enumerate(adder_layers(copied.net.module).items()):
        conv = copied.twin.module.get_submodule(name)
        exponent = gaussian_exponent(*values[1][name], conv.weight, conv.stride, conv.padding)
        own = copied.maps[index](kernel_features(layer(values[0][name][0])))
        apart = apart + (own - kernel_features(exponent)).square().mean()
    assert_close(step.logs["features"], apart, rtol=1e-3, atol=1e-4)


UNKNOWN = """
import stepwell
from stepwell.methods.pkkd import ProgressiveKernelKD
net, twin = stepwell.build("adder/resnet8"), stepwell.build("resnet8")
try:
    ProgressiveKernelKD(net, twin, features="Mapped")
except ValueError as error:
    assert str(error).startswith("no features 'Mapped'; there are mapped, kernel"), error
else:
    raise SystemExit("taken")
"""


def test_unknown_features_are_refused():
    # in a process of its own: tests check all types before a function sees its arguments
    subprocess.run([sys.executable, "-c", UNKNOWN], check=True)


def test_raw_features_are_standardised_outputs(batch):
    objective = pair(features="raw")
    step = objective.training_step(batch)
    ours, theirs = (
        run(net.module, batch.images)[1]
        for run, net in ((objective._ours, objective.net), (objective._theirs, objective.twin))
    )
    expected = 0.0
    for name in objective.layers:
        one, two = ((v[1] - v[1].mean()) / v[1].std(correction=0) for v in (ours[name], theirs[name]))
        expected = expected + (one - two).square().mean()
    assert_close(step.logs["features"], expected, rtol=1e-3, atol=1e-4)


def test_every_layer_is_taught_and_the_twin_is_not(batch):
    for features in ("mapped", "kernel", "raw"):
        objective = pair(features=features, alpha=1.0, beta=1.0)
        step = objective.training_step(batch)
        step.logs["features"].backward()
        for name, layer in adder_layers(objective.net.module).items():
            assert layer.weight.grad.abs().max() > 0, (features, name)
        assert all(p.grad is None for p in objective.twin.parameters())
        assert len(objective.maps) == (len(objective.layers) if features == "mapped" else 0)
    objective = pair(features="none")
    objective.training_step(batch).loss.backward()
    assert objective.layers == ()
    assert all(p.grad is not None for p in objective.parameters())


def test_the_local_rate_acts_on_the_filters_of_adder_layers_alone(batch):
    objective = pair()
    for _ in range(2):  # accumulated
        (objective.training_step(batch).loss / 2).backward()
    before = {n: p.grad.clone() for n, p in objective.named_parameters()}
    layers = {f"net.module.{n}.weight" for n in adder_layers(objective.net.module)}
    silent = next(iter(layers))
    objective.get_parameter(silent).grad.zero_()
    prepare = with_local_rates(sgd(0.1), 0.2).prepare
    prepare(objective)
    for name, parameter in objective.named_parameters():
        if name == silent:
            assert parameter.grad.eq(0).all()
        elif name in layers:
            assert parameter.grad.square().mean().sqrt() == pytest.approx(0.2, rel=1e-4)
            along = torch.cosine_similarity(parameter.grad.flatten(), before[name].flatten(), dim=0)
            assert along == pytest.approx(1, abs=1e-4)
        else:
            assert torch.equal(parameter.grad, before[name])
    scale_filter_gradients(objective, 1.0)
    norm = math.sqrt(sum(objective.get_parameter(n).numel() for n in layers - {silent}))
    found = torch.stack([objective.get_parameter(n).grad.norm() for n in layers]).norm()
    assert found == pytest.approx(norm, rel=1e-4)
    before = {n: objective.get_parameter(n).grad.clone() for n in layers}
    assert len(scale_filter_gradients(objective, 0.0, 3.0)) == len(layers)
    for name, gradient in before.items():
        assert_close(objective.get_parameter(name).grad, 3 * gradient)
    for rate in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=f"local rate {rate}: a finite number of 0 or more"):
            scale_filter_gradients(objective, rate)


def test_biases_of_the_twin_are_no_part_of_its_kernels(batch):
    def small(adder):
        layers = [nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)) for _ in range(2)]
        module = nn.Sequential(OrderedDict(
            first=nn.Conv2d(3, 8, 3), body=nn.Sequential(*layers), pool=nn.AdaptiveAvgPool2d(1),
            flat=nn.Flatten(), fc=nn.Linear(8, 5),
        ))  # fmt: skip
        return nest(to_adder(module) if adder else module, ["body"], {})

    net, twin = small(True), small(False)
    objective = ProgressiveKernelKD(net, twin)
    losses = []
    for bias in (0.0, 3.0):
        for layer in twin.module.body:
            nn.init.constant_(layer[0].bias, bias)
        losses.append(objective.training_step(batch).logs["features"].detach())
    assert_close(*losses, rtol=1e-3, atol=1e-4)


def test_a_convolutional_student_is_taught_in_the_same_layers(batch):
    student, twin = build("resnet8", num_classes=5), build("resnet8", num_classes=5)
    objective = ProgressiveKernelKD(student, twin, convolutional=True, features="kernel")
    assert objective.layers == pair().layers
    loss = objective.training_step(batch).logs["features"]
    own, theirs = (
        run(net.module, batch.images)[1]
        for run, net in ((objective._ours, student), (objective._theirs, twin))
    )
    expected = 0.0
    for name in objective.layers:
        conv, other = (net.module.get_submodule(name) for net in (student, twin))
        one, two = (
            kernel_features(gaussian_exponent(*v[name], c.weight, c.stride, c.padding))
            for v, c in ((own, conv), (theirs, other))
        )
        expected = expected + (one - two).square().mean()
    assert_close(loss, expected, rtol=1e-3, atol=1e-3)
    loss.backward()
    assert all(student.module.get_submodule(n).weight.grad.abs().max() > 0 for n in objective.layers)
    assert all(p.grad is None for p in twin.parameters())


def test_networks_that_are_no_twins_are_refused():
    net = build("resnet8", num_classes=5, adder=True)
    with pytest.raises(ValueError, match="the network has no adder layer: build it with adder=True"):
        ProgressiveKernelKD(build("resnet8"), build("resnet8"))
    body = nn.Sequential(nn.ReLU(), nn.ReLU())
    layers = OrderedDict(first=nn.Conv2d(3, 4, 3), body=body, fc=nn.Flatten())
    single = nest(nn.Sequential(layers), ["body"], {})
    with pytest.raises(ValueError, match="the network has no convolution behind the first: none"):
        ProgressiveKernelKD(single, single, convolutional=True)
    with pytest.raises(ValueError, match="no convolution 'layer1.0.conv1' like the layer"):
        ProgressiveKernelKD(net, net)
    with pytest.raises(ValueError, match="no convolution 'layer3.0.conv1' like the layer"):
        ProgressiveKernelKD(net, build("resnet8_slim"))
    with pytest.raises(ValueError, match="PKKD trains one depth, and this network has 8, 14"):
        ProgressiveKernelKD(build("resnet14", ["8"], adder=True), build("resnet14"))
    with pytest.raises(ValueError, match="alpha 1.5: must be between 0 and 1"):
        pair(alpha=1.5)
    other = build("resnet8", num_classes=5)
    other.module.layer1[0].conv1.stride = (2, 2)
    with pytest.raises(ValueError, match="'layer1.0.conv1' has another stride or padding"):
        ProgressiveKernelKD(net, other)
    grouped = [build("mobilenet_v2", num_classes=5) for _ in range(2)]
    with pytest.raises(ValueError, match="has 32 groups: features are of plain ones"):
        ProgressiveKernelKD(*grouped, convolutional=True)


def test_padding_by_words_is_that_by_numbers(batch):
    twins = []
    for padding in (1, "same"):
        torch.manual_seed(0)
        student, teacher = (build("resnet8", num_classes=5) for _ in range(2))
        for convolution in [student.module.layer1[0].conv1, teacher.module.layer1[0].conv1]:
            convolution.padding = padding if padding == "same" else (padding, padding)
        twins.append(ProgressiveKernelKD(student, teacher, convolutional=True).training_step(batch))
    assert_close(twins[0].logs["features"], twins[1].logs["features"])


def test_layers_that_cannot_be_watched_are_refused():
    class Unruly(nn.Sequential):
        def forward(self, x):
            return self[0](x) if x.sum() > 0 else x

    class Idle(nn.Sequential):
        def forward(self, x):
            return 2 * x

    with pytest.raises(ValueError, match="Unruly cannot be traced, so its layers give no features"):
        LayerValues(Unruly(nn.ReLU()), ["0"])
    with pytest.raises(ValueError, match="Idle does not run a layer '0'"):
        LayerValues(Idle(nn.ReLU()), ["0"])
