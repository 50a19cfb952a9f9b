"""Adder layers of bytes: exact where numbers are, and near the trained layer elsewhere."""

from collections import OrderedDict

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import stepwell
from stepwell.nets.adders import quantised
from stepwell.nets.adders.layers import AdderConv2d, adder_layers
from stepwell.nets.adders.quantised import ByteAdderConv2d, quantise
from stepwell.nets.nested.calibrate import estimate_all
from stepwell.ops.adder import reference


def layer_of(channels=7, filters=5, spread=3.0):
    layer = AdderConv2d(nn.Conv2d(channels, filters, 3, stride=2, padding=1))
    nn.init.normal_(layer.weight, std=spread)
    return layer


@pytest.mark.parametrize(("low", "high"), [(0.0, 2.55), (-0.5, 2.05)])
def test_numbers_of_the_grid_and_all_filters_beyond_the_range_are_exact(low, high):
    torch.manual_seed(0)
    layer, step = layer_of(), 0.01
    inside = layer.weight.data.clamp(low, high)
    layer.weight.data += (
        inside / step
    ).round() * step - inside  # what lies in the range is on the grid
    x = torch.randint(round(low / step), round(high / step) + 1, (2, 7, 9, 8)) * step
    assert (layer.weight < low).any()
    assert (layer.weight > high).any()
    quantised = ByteAdderConv2d(layer, low, high)
    assert quantised.weight.dtype == torch.uint8
    assert_close(quantised(x), layer(x).detach(), rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("bits", [8, 4])
def test_a_layer_of_bytes_equals_the_formula(bits):
    torch.manual_seed(1)
    layer, x = layer_of(), torch.randn(2, 7, 9, 8) * 2  # some inputs are beyond the range
    found = ByteAdderConv2d(layer, -1.0, 3.0, bits)
    step = 4.0 / (2**bits - 1)
    zero = round(1.0 / step)
    ends = -zero * step, (2**bits - 1 - zero) * step
    weight, apart = layer.weight.detach().double(), layer.weight.detach().double().clamp(*ends)
    a, c = ((v.double() / step).round().clamp(-zero, 2**bits - 1 - zero) for v in (x, apart))
    expected = step * reference.forward(a, c, (2, 2), (1, 1))
    expected -= (weight - apart).abs().sum((1, 2, 3))[:, None, None]
    assert_close(found(x).double(), expected, rtol=1e-4, atol=1e-3)
    silent = ByteAdderConv2d(layer, 0.0, 0.0, bits)(torch.zeros_like(x))  # whose inputs are all 0
    assert_close(silent, layer(torch.zeros_like(x)).detach(), rtol=1e-5, atol=1e-4)
    with pytest.raises(ValueError, match="bits 9: bytes hold 2 to 8"):
        ByteAdderConv2d(layer, 0.0, 1.0, 9)


def test_a_network_of_bytes_answers_nearly_as_the_trained_one():
    torch.manual_seed(0)
    net = stepwell.build("resnet8", num_classes=5, adder=True).eval()
    module = net.module
    images = [torch.randn(8, 3, 16, 16) for _ in range(2)]
    estimate_all(net, [(x, None) for x in images])
    made = quantise(module, images, (8, 2))
    assert not adder_layers(made[8])
    assert len(adder_layers(module)) == 8
    apart = [(made[bits](images[0]) - module(images[0])).abs().mean() for bits in (8, 2)]
    assert apart[0] < 0.1
    assert apart[0] < apart[1] / 4
    with pytest.raises(ValueError, match="the network has no adder layer: bits are for adder networks"):
        quantise(stepwell.build("resnet8").module, images, (8,))
    with pytest.raises(ValueError, match="ranges of adder layers need at least one batch"):
        quantise(module, [], (8,))
    with pytest.raises(ValueError, match="a batch without an input sets no range"):
        quantise(module, [torch.zeros(0, 3, 16, 16)], (8,))


@pytest.mark.parametrize("width", [7, 8, 14])
@pytest.mark.parametrize("column", range(3))
def test_a_sample_of_the_inputs_sees_every_column(monkeypatch, width, column):
    monkeypatch.setattr(quantised, "SAMPLED", 300)
    x = torch.zeros(4, 7, 7, width)
    x[..., column] = 5.0
    observed = quantised._Observed(layer_of())
    observed(x)
    assert observed.range() == (0.0, 5.0)


def test_a_layer_of_two_names_has_bytes_under_both():
    layer = layer_of(5, 5)
    net = nn.Sequential(OrderedDict(one=layer, other=nn.Identity(), again=layer))
    made = quantise(net, [torch.randn(2, 5, 9, 9)], (8,))[8]
    assert isinstance(made.one, ByteAdderConv2d)
    assert made.again is made.one
    assert net.again is layer


def test_a_state_dict_of_bytes_has_their_scale():
    net, x = nn.Sequential(layer_of()), torch.randn(2, 7, 9, 9)
    one, other = (quantise(net, [spread * x], (8,))[8] for spread in (1, 20))
    assert not torch.equal(one(x), other(x))
    other.load_state_dict(one.state_dict())
    assert torch.equal(one(x), other(x))
    assert one.half()(x.half()).dtype == torch.float16


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_inputs_that_are_not_finite_have_no_bytes(value):
    layer, x = layer_of(), torch.randn(1, 7, 5, 5)
    x[0, 0, 0, 0] = value
    with pytest.raises(ValueError, match="the inputs of an adder layer are not finite"):
        ByteAdderConv2d(layer, 0.0, 1.0)(x)
    with pytest.raises(ValueError, match="the inputs of an adder layer are not finite"):
        quantise(nn.Sequential(layer), [x], (8,))
