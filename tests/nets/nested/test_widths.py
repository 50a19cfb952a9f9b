"""Widths of a nested net: each is a plain network of the first channels, and they train together."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy
from torch.testing import assert_close
from torchvision.models import vgg13_bn

import stepwell
from nets.example_nets import lively
from stepwell.losses import soft_target_kl
from stepwell.methods.widths import Slimmable
from stepwell.nets import build
from stepwell.nets.families.resnet import CifarResNet
from stepwell.nets.nested.widths import Narrow, check_widths
from stepwell.types import Batch

EXACT = {"rtol": 0, "atol": 0}
SHARES = (0.25, 0.5, 1.0)


def slimmable(name="resnet8", **options):
    torch.manual_seed(0)
    options = {"num_classes": 5, "multipliers": SHARES, "zero_init_residual": False} | options
    net = lively(build(name, **options)).eval()
    net.mark("trained")
    return net, torch.randn(6, 3, 8, 8)


@pytest.mark.parametrize("name", ["resnet8", "resnet26"])
def test_a_width_is_the_plain_network_of_the_first_channels(name):
    net, x = slimmable(name, **({"stem": "small"} if name == "resnet26" else {}))
    assert list(net.depths) == ["0.25", "0.5", "1"]
    assert net.widths == ("0.25", "0.5")
    with torch.no_grad():
        every = net.logits_by_depth(x)
        for width, share in zip(net.depths, SHARES, strict=True):
            plain = net.subnet(width)
            assert type(plain) is type(net.module)
            assert not any(isinstance(m, Narrow) for m in plain.modules())
            assert_close(plain(x), every[width], rtol=1e-5, atol=1e-5)
            assert_close(net(x, width), every[width], **EXACT)
            full, narrow = net.module.layer2[0].conv1, plain.layer2[0].conv1
            o, i = (round(share * n) for n in (full.out_channels, full.in_channels))
            assert_close(narrow.weight, full.weight[:o, :i], **EXACT)
            assert (narrow.out_channels, narrow.in_channels) == (o, i)
            assert plain.conv1.in_channels == 3
            assert plain.fc.weight.shape == (5, round(share * net.module.fc.in_features))
    if name == "resnet8":
        alone = CifarResNet((1, 1, 1), num_classes=5, widths=(4, 8, 16)).eval()
        alone.load_state_dict(net.subnet("0.25").state_dict())
        assert_close(alone(x), net(x, "0.25"), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("sandwich", [False, True])
def test_gradients_are_those_of_the_sum_over_separate_networks(sandwich):
    net, x = slimmable()
    net.double().train()
    x, labels = x.double(), torch.arange(6) % 5
    alone = {width: net.subnet(width).train() for width in net.depths}
    target = alone["1"](x).detach()
    step = Slimmable(net, sandwich=sandwich).training_step(Batch(x, labels))
    step.loss.backward()
    kind = "kl" if sandwich else "ce"
    assert step.logs.keys() == {"1/ce", f"0.5/{kind}", f"0.25/{kind}"}
    naive = {n: torch.zeros_like(p) for n, p in net.module.named_parameters()}
    norms = {}
    for width, plain in alone.items():
        logits = plain(x)
        taught = sandwich and width != "1"
        loss = soft_target_kl(logits, target, 1.0) if taught else cross_entropy(logits, labels)
        loss.backward()
        for name, p in plain.named_parameters():
            if "bn" in name or "downsample.1" in name:
                norms[width, name] = p.grad
            else:
                naive[name][tuple(slice(n) for n in p.shape)] += p.grad
    for name, p in net.module.named_parameters():
        expected = norms.get(("1", name), naive[name])
        assert_close(p.grad, expected, rtol=1e-8, atol=1e-10, msg=lambda m, n=name: f"{n}: {m}")
    for private in net._maker.norms:
        for key, p in private.norm.named_parameters():
            assert_close(p.grad, norms[private.owner, f"{private.name}.{key}"])


def test_the_sandwich_draws_two_widths_between_and_others_get_no_gradient():
    net, x = slimmable(multipliers=(0.125, 0.25, 0.5, 0.75, 1.0))
    seen = set()
    for seed in range(8):
        torch.manual_seed(seed)
        logs = Slimmable(net.train(), sandwich=True).training_step(Batch(x, torch.arange(6) % 5)).logs
        widths = {name.split("/")[0] for name in logs}
        assert {"0.125", "1"} <= widths
        assert len(widths) == 4
        seen |= widths
    assert seen == set(net.depths)


def test_copied_weights_are_never_stale(tmp_path):
    net, x = slimmable()
    layer = next(m for m in net.path("0.5")[0].modules() if isinstance(m, Narrow))

    def fresh():
        with torch.no_grad():
            same = net(x, "0.5")
            assert layer.weight is layer.weight  # copied once
            assert layer.weight.is_contiguous()
            assert_close(net.subnet("0.5")(x), same, rtol=1e-5, atol=1e-5)
        return same

    before = fresh()
    optimizer = torch.optim.SGD(net.module.parameters(), 0.1)
    Slimmable(net.train()).training_step(Batch(x, torch.arange(6) % 5)).loss.backward()
    optimizer.step()
    net.eval()
    trained = fresh()
    assert not torch.allclose(trained, before)
    net.load_state_dict(slimmable()[0].state_dict())
    assert_close(fresh(), before)
    with torch.inference_mode():
        assert_close(net(x, "0.5"), before)
    x = x.double()
    net.double()
    assert_close(fresh(), before.double(), rtol=1e-4, atol=1e-4)
    # a copy that inference made is of use where a gradient goes through
    net.requires_grad_(False)
    layer._copy = None
    with torch.inference_mode():
        net(x, "0.5")
    net(x.clone().requires_grad_(), "0.5").sum().backward()
    net.requires_grad_(True)
    # where a gradient is needed, the shared weights themselves are used
    net(x, "0.5").sum().backward()
    assert net.module.conv1.weight.grad.abs().sum() > 0


def test_widths_are_in_the_file_and_a_plain_network_is_a_start(tmp_path):
    net, x = slimmable()
    back = stepwell.load(stepwell.save(net, tmp_path / "net"))
    assert back.depths == net.depths
    assert back.builder == net.builder
    with torch.no_grad():
        for width in net.depths:
            assert_close(back(x, width), net(x, width), **EXACT)
    names = net.stored_names("0.25")
    assert names["bn1.weight"] == "depths/0.25/bn1.weight"
    assert "conv1.weight" not in names
    assert net.stored_names("1")["conv1.weight"] == "conv1.weight"
    plain = lively(build("resnet8", num_classes=5))
    net.load_full(plain.module.state_dict())
    narrow = net.subnet("0.5").bn1
    assert_close(narrow.running_var, plain.module.bn1.running_var[:8], **EXACT)
    assert net.status == {"0.25": "fresh", "0.5": "fresh", "1": "trained"}


@pytest.mark.parametrize(
    ("multipliers", "message"),
    [
        (
            (0.3, 1),
            r"a width of 0.3: .* multiples of 16, and 0.3 of 16 is 4.8, no whole number; name",
        ),
        ((1,), "at least two widths are needed, got 1: name some, such as 0.5 1"),
        ((), "at least two widths are needed, got none"),
        (
            (0.25, 0.5),
            "widths 0.25 0.5: each is a share of the channels, above 0, and the largest",
        ),
        ((0, 1), "widths 0 1: each is a share"),
        ((0.5, 2), "widths 0.5 2: each is a share"),
        ((0.5, 0.5, 1), "widths 0.5 0.5 1: one is named twice"),
    ],
)
def test_widths_that_cannot_be_are_refused(multipliers, message):
    with pytest.raises(ValueError, match=message):
        build("resnet8", multipliers=multipliers)


def test_widths_may_be_numbers_of_other_types(tmp_path, untyped):
    net = build("resnet8", multipliers=(np.float32(0.5), Fraction(1, 4), 1))
    assert [*net.depths] == ["0.25", "0.5", "1"]
    stepwell.save(net, tmp_path / "net.safetensors")
    assert [*stepwell.load(tmp_path / "net.safetensors").depths] == [*net.depths]


def test_networks_that_cannot_be_narrowed_are_refused():
    for name, message in {
        "resnet8_ln": "GroupNorm 'bn1' has no narrower form: widths are for ResNets of convolutions",
        "mobilenet_v2": "the grouped convolution 'features.1.conv.0.0' has no narrower form",
    }.items():
        with pytest.raises(ValueError, match=message):
            build(name, multipliers=(0.5, 1))
    with torch.device("meta"):
        vgg = vgg13_bn(init_weights=False)
    with pytest.raises(ValueError, match="VGG has not one linear layer, its head: widths are for Res"):
        check_widths((0.5, 1), vgg)
    with pytest.raises(ValueError, match="several widths has one depth: leave depths out"):
        build("resnet14", ["8"], multipliers=(0.5, 1))
    with pytest.raises(ValueError, match="this network has one width: build a ResNet with multipliers"):
        Slimmable(build("resnet8"))
    with pytest.raises(ValueError, match="this net already has '1'"):
        slimmable()[0].add_width("1", 0.75)
