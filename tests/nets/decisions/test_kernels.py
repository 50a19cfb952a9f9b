"""Mixed kernels: pieces equal a loop over the examples; temperature, starts, exports."""

from copy import deepcopy

import pytest
import torch
from torch import nn
from torch.nn.functional import conv2d, cross_entropy
from torch.testing import assert_close

import stepwell
from nets.example_nets import lively
from stepwell.export import export_onnx
from stepwell.methods.kernels import ConditionalKernels
from stepwell.nets import build
from stepwell.nets.decisions import kernels
from stepwell.nets.decisions.kernels import MixedConv2d, kernel_layers
from stepwell.nets.files.initial_weights import initialise
from stepwell.types import Batch

EXACT = {"rtol": 0, "atol": 0}
NETS = {"resnet8": {}, "resnet14": {}, "resnet26": {"stem": "small"}}


def mixed(name="resnet14", depths=(), **options):
    """A network whose kernels' weights depend much on the image."""
    torch.manual_seed(0)
    net = build(
        name, depths, num_classes=5, kernels=3, zero_init_residual=False, **NETS[name], **options
    )
    lively(net).eval()
    for _, layer in kernel_layers(net.module):
        for part in layer.routing.modules():
            if isinstance(part, nn.Linear):
                nn.init.normal_(part.weight)
    net.mark("trained")
    return net, torch.randn(6, 3, 8, 8)


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("routing", ["condconv", "dynamic"])
def test_pieces_of_a_batch_equal_a_loop_and_so_do_gradients(routing, memory, monkeypatch):
    if routing == "dynamic":
        monkeypatch.setattr(kernels, "CACHE", 3 * 5 * 8 * 9 * 8)  # the kernels of three examples
    torch.manual_seed(0)
    conv = nn.Conv2d(8, 5, 3, stride=2, padding=1, bias=False)
    layer = MixedConv2d(conv, 3, routing).double().to(memory_format=memory)
    x = torch.randn(11, 8, 6, 6, dtype=torch.float64).contiguous(memory_format=memory)

    def loop(x):
        mean = x.mean((2, 3))
        scores = layer.routing(mean)
        shares = scores.sigmoid() if routing == "condconv" else (scores / 2.0).softmax(1)
        every = layer.weight.unflatten(0, (3, 5))
        own = [torch.einsum("k,koihw->oihw", r, every) for r in shares]
        pairs = zip(x.split(1), own, strict=True)
        return torch.cat([conv2d(image, kernel, stride=2, padding=1) for image, kernel in pairs])

    results = []
    for run in (loop, lambda x: layer.run(x, layer.shares(x, 2.0))):
        given = x.clone().requires_grad_()
        y = run(given)
        grads = torch.autograd.grad(y.square().sum(), [given, *layer.parameters()])
        results.append([y, *grads])
    for a, b in zip(*results, strict=True):
        assert_close(b, a, rtol=1e-9, atol=1e-10)
    one = layer(x[:1])
    assert_close(one, layer(x)[:1], rtol=1e-9, atol=1e-10)
    assert layer(x[:0]).shape == (0, 5, 3, 3)


def test_small_maps_under_autocast_are_convolved_in_float32():
    layer = MixedConv2d(nn.Conv2d(64, 5, 3, bias=False), 3, "dynamic")
    for size, same in ((15, True), (16, False)):
        x = torch.randn(2, 64, size, size)
        shares = layer.shares(x)
        with torch.autocast("cpu", torch.bfloat16):
            y = layer.run(x, shares)
        assert y.dtype == torch.bfloat16
        exact = layer.run(x, shares)
        assert torch.equal(y, exact.bfloat16()) == same
        assert_close(y.float(), exact, rtol=0.02, atol=0.02)


@pytest.mark.parametrize(("name", "routing", "layers"), [
    ("resnet8", "dynamic", 6), ("resnet8", "condconv", 2),
    pytest.param("resnet26", "condconv", 6, marks=pytest.mark.long),
])  # fmt: skip
def test_a_batch_equals_its_images_alone_and_the_network_its_file_and_graph(
    name, routing, layers, tmp_path
):
    net, x = mixed(name, routing=routing)
    assert len(kernel_layers(net.module)) == layers
    net.card = stepwell.Card(tuple("abcde"), 8)
    with torch.no_grad():
        found = net(x)
        assert_close(torch.cat([net(image) for image in x.split(1)]), found, rtol=1e-4, atol=1e-5)
        assert net(x[:0]).shape == (0, 5)
        back = stepwell.load(stepwell.save(net, tmp_path / "net"))
        assert_close(back(x), found, **EXACT)
        shares = torch.cat(net.forward_all(x, extras=("shares",))[net.full].extras["shares"], 1)
        assert shares.shape == (6, layers, 3)
        assert float(shares.std(0).mean()) > 0.01
        hot = net(x, given={"temperature": 9.0})
        assert torch.equal(hot, found) == (routing == "condconv")
    if name == "resnet8":
        parity = export_onnx(net, net.full, tmp_path / "net.onnx", x)
        assert (parity.same_class, parity.images) == (1.0, 6)


def test_kernels_of_every_depth_learn_and_the_temperature_falls_to_one():
    net, x = mixed("resnet14", ["8"])
    net.train()
    other = deepcopy(net)
    labels = torch.arange(6) % 5
    method = ConditionalKernels(net, anneal=0.2)
    temperatures = []
    for progress in (0.0, 0.1, 0.2, 0.7):
        method.progress = progress
        temperatures.append(method.temperature)
    assert temperatures == pytest.approx([30.0, 15.5, 1.0, 1.0])
    method.progress = 0.1
    step = method.training_step(Batch(x, labels))
    step.loss.backward()
    given = {"temperature": 15.5}
    sum(cross_entropy(e.logits, labels) for e in other.forward_all(x, given=given).values()).backward()
    for (name, a), b in zip(net.named_parameters(), other.named_parameters(), strict=True):
        assert_close(a.grad, b[1].grad, rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")
    for _, layer in kernel_layers(net.module):
        assert layer.weight.grad.abs().sum() > 0
        assert layer.routing[0].weight.grad.abs().sum() > 0


@pytest.mark.parametrize("routing", ["condconv", "dynamic"])
def test_a_plain_network_is_a_start(routing, tmp_path):
    plain = lively(build("resnet8", num_classes=5)).eval()
    plain.mark("trained")
    net = build("resnet8", num_classes=5, kernels=4, routing=routing).eval()
    initialise(net, stepwell.save(plain, tmp_path / "net"))
    x = torch.randn(4, 3, 8, 8)
    with torch.no_grad():
        if routing == "dynamic":  # weights of softmax sum to one
            assert_close(net(x), plain(x), rtol=1e-4, atol=1e-4)
        for _, layer in kernel_layers(net.module):
            if routing == "condconv":
                nn.init.zeros_(layer.routing.weight)
        assert_close(net(x), plain(x), rtol=1e-4, atol=1e-4)
    again = build("resnet8", num_classes=5, kernels=4, routing=routing).eval()
    initialise(again, stepwell.save(net, tmp_path / "kernels"))
    with torch.no_grad():
        assert_close(again(x), net(x), **EXACT)


def test_what_cannot_be_mixed_is_refused():
    with pytest.raises(ValueError, match="takes a whole number of kernels, 2 or more, not 1"):
        build("resnet8", kernels=1)
    with pytest.raises(ValueError, match="routing is of networks with mixed kernels"):
        build("resnet8", routing="condconv")
    for name in ("resnet8", "resnet18"):
        with pytest.raises(ValueError, match="gates or mixed kernels: leave out"):
            build(name, kernels=4, gates=True)
    net = build("resnet8", num_classes=3, kernels=2)
    with pytest.raises(ValueError, match="temperature of mixed kernels is 0: must be above 0"):
        net(torch.randn(1, 3, 8, 8), given={"temperature": 0})
    with pytest.raises(ValueError, match="temperature 0: must be above 0"):
        ConditionalKernels(net, temperature=0)
    with pytest.raises(ValueError, match="anneal 0: must be above 0, at most 1"):
        ConditionalKernels(net, anneal=0)
    with pytest.raises(ValueError, match="no mixed convolutions: build a ResNet with kernels=4"):
        ConditionalKernels(build("resnet8", num_classes=3))
