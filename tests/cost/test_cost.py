import itertools
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torchvision.models.convnext import CNBlockConfig, ConvNeXt
from torchvision.models.vision_transformer import VisionTransformer

from stepwell.cost import (
    cost_of,
    count_macs,
    mean_of_medians,
    measure_latencies,
    peak_bytes,
    time_each,
)
from stepwell.nets import build


@pytest.fixture(autouse=True)
def _whole_times(monkeypatch):
    monkeypatch.setattr("stepwell.cost.latency.SCALE", 1.0)


def closed_form(blocks, expansion, size, classes=1000):
    """MACs of torchvision's ResNets at `size`, convolution by convolution."""

    def conv(cin, cout, kernel, out):
        return cin * cout * kernel**2 * out**2

    size //= 2
    macs, size, width_in = conv(3, 64, 7, size), size // 2, 64
    for stage, count in enumerate(blocks):
        width, stride = 64 * 2**stage, 2 if stage else 1
        for i in range(count):
            before = size
            size //= stride if i == 0 else 1
            out = width * expansion
            if expansion == 1:
                macs += conv(width_in, width, 3, size) + conv(width, width, 3, size)
            else:
                macs += conv(width_in, width, 1, before) + conv(width, width, 3, size)
                macs += conv(width, out, 1, size)
            if width_in != out or size != before:
                macs += conv(width_in, out, 1, size)
            width_in = out
    return macs + width_in * classes


@pytest.mark.parametrize(
    ("name", "blocks", "expansion"),
    [("resnet18", (2, 2, 2, 2), 1), ("resnet34", (3, 4, 6, 3), 1), ("resnet50", (3, 4, 6, 3), 4)],
)
def test_macs_equal_the_closed_form(name, blocks, expansion):
    module = build(name).module
    assert count_macs(module, torch.zeros(1, 3, 64, 64)) == closed_form(blocks, expansion, 64)
    assert module.training


def test_published_macs():
    """torchvision's documentation: 1.81 G for ResNet-18 at 224 pixels."""
    with torch.device("meta"):
        module = build("resnet18").module
        assert count_macs(module, torch.zeros(1, 3, 224, 224)) / 1e9 == pytest.approx(1.81, abs=0.01)


@pytest.mark.parametrize("frozen", [False, True])
def test_macs_of_transformers_have_a_closed_form(frozen):
    """Torch's own counter sees no fused attention and no fused layer."""
    size, patch, layers, width, hidden, classes = 16, 8, 2, 16, 32, 5
    patches = (size // patch) ** 2
    tokens = patches + 1
    block = tokens * width * (4 * width + 2 * hidden) + 2 * tokens**2 * width
    macs = 3 * patch**2 * width * patches + layers * block + width * classes
    net = VisionTransformer(size, patch, layers, 2, width, hidden, num_classes=classes)
    net.requires_grad_(not frozen)
    assert count_macs(net, torch.zeros(3, 3, size, size)) == 3 * macs
    layer = nn.TransformerEncoderLayer(width, 2, hidden, batch_first=True).requires_grad_(not frozen)
    assert count_macs(layer, torch.zeros(1, tokens, width)) == block


def test_macs_of_convnext_have_a_closed_form():
    def block(width, side):
        return side**2 * width * (49 + 8 * width)

    net = ConvNeXt([CNBlockConfig(8, 12, 1), CNBlockConfig(12, None, 2)], num_classes=5)
    macs = 3 * 16 * 8 * 4**2 + block(8, 4) + 4 * 8 * 12 * 2**2 + 2 * block(12, 2) + 12 * 5
    assert count_macs(net, torch.zeros(2, 3, 16, 16)) == 2 * macs


def test_peak_of_live_bytes_by_hand():
    x = torch.ones(1000)

    def call():
        a = x + 1  # 4000 bytes
        b = a * 2  # 8000
        del a
        c = b.view(10, 100)  # no bytes of its own
        return (c + 1).sum()  # 8000 + 4

    assert peak_bytes(call) == 8004


def test_activations_kept_for_the_backward_pass_count():
    net = nn.Sequential(*[nn.Sequential(nn.Linear(50, 50), nn.Tanh()) for _ in range(4)])
    x = torch.ones(20, 50)
    with torch.no_grad():
        without = peak_bytes(lambda: net(x))
    kept = peak_bytes(lambda: net(x).sum().backward())
    # a layer's input and output, and the input of the block, which its caller holds
    assert without == 3 * 20 * 50 * 4
    assert kept >= 8 * 20 * 50 * 4


def test_latency_is_the_median_with_its_spread(monkeypatch):
    now = 0.0
    clock = SimpleNamespace(perf_counter=lambda: now, thread_time=lambda: now)
    monkeypatch.setattr("stepwell.cost.latency.time", clock)
    durations = iter([9.0, 0.002, 0.002, 0.003, 0.004, 0.03])  # a slow call is warm at once

    def call():
        nonlocal now
        now += next(durations)

    time_ = measure_latencies({"": call}, seconds=0.0, warmup=2, least=5)[""]
    assert time_[:3] == pytest.approx((3, 2, 4 + 0.6 * 26))
    assert not time_.unsure


@pytest.fixture
def machine(monkeypatch):
    """A clock, and calls that take given times of it; `served` is the share with a processor."""
    now, own = 0.0, 0.0
    clock = SimpleNamespace(perf_counter=lambda: now, thread_time=lambda: own)
    monkeypatch.setattr("stepwell.cost.latency.time", clock)

    def call(seconds, served=1.0):
        def run():
            nonlocal now, own
            duration = next(seconds)
            now += duration
            own += served * duration

        return run

    return call


def busy_turns(*medians):
    """The seconds of calls, three a turn (one warms up), of turns that are so slow each."""
    return (seconds for median in medians for seconds in [median] * 3)


def test_turns_go_on_until_the_calmest_agree(machine, monkeypatch):
    monkeypatch.setattr("stepwell.cost.latency.PATIENCE", 100)
    calls = {"a": machine(busy_turns(0.9, 0.5, 0.2, 0.7, 0.21, 0.8, 0.1, 0.1))}
    found = measure_latencies(calls, seconds=0.2, warmup=1, least=4, rounds=2)["a"]
    assert found == pytest.approx((205, 200, 210, False))  # the first two turns are slow and unlike


def test_a_time_is_unsure_if_the_machine_stays_busy(machine):
    doubling = (0.1 * 2**i for i in itertools.count())
    calls = {"a": machine(busy_turns(*itertools.islice(doubling, 30)))}
    found = measure_latencies(calls, seconds=0.2, warmup=1, least=4, rounds=2)["a"]
    assert (found.ms, found.unsure) == (pytest.approx(150), True)
    assert found.row(batch=2) == pytest.approx({"ms": 75, "ms_low": 50, "ms_high": 100, "unsure": True})


def test_a_steady_load_is_noticed_by_the_time_without_a_processor(machine):
    calls = {"a": machine(itertools.repeat(0.1), served=0.5)}
    found = measure_latencies(calls, seconds=0.2, warmup=1, least=4, rounds=2)["a"]
    assert (found.ms, found.unsure) == (pytest.approx(100), True)


def test_calls_that_were_interrupted_do_not_widen_the_spread(machine):
    served, waited = machine(itertools.repeat(0.01)), machine(itertools.repeat(0.5), served=0.1)
    count = itertools.count()

    def call():
        (waited if next(count) % 4 == 3 else served)()

    found = measure_latencies({"a": call}, seconds=0.2, warmup=1, least=20, rounds=2)["a"]
    assert found == pytest.approx((10, 10, 10, False))


def test_all_costs_of_a_network():
    module = build("resnet20", num_classes=10).module
    got = cost_of(module, torch.zeros(4, 3, 8, 8), seconds=0.01)
    assert got["params"] == sum(p.numel() for p in module.parameters())
    assert got["macs"] == count_macs(module, torch.zeros(1, 3, 8, 8))
    assert got["ms_low"] <= got["ms"] <= got["ms_high"]
    assert (got["batch"], got["threads"]) == (4, torch.get_num_threads())
    assert got["peak_bytes"] >= 4 * 16 * 8 * 8 * 4
    assert got["weight_bytes"] == sum(v.nbytes for v in module.state_dict().values())
    assert module.training


def test_networks_are_timed_in_turns():
    turns = []
    calls = {name: lambda name=name: turns.append(name) for name in "ab"}
    times = measure_latencies(calls, seconds=0.0, warmup=1, least=6, rounds=3)
    assert "".join(turns) == "aaabbb" * 3  # a warm-up and two of the six, three times
    assert set(times) == {"a", "b"}


def test_each_input_has_its_own_time(monkeypatch):
    now = 0.0
    clock = SimpleNamespace(perf_counter=lambda: now, thread_time=lambda: now)
    monkeypatch.setattr("stepwell.cost.latency.time", clock)

    def call(x):
        nonlocal now
        now += float(x)
        return x

    inputs = [torch.tensor(s) for s in (1.0, 10.0, 2.0, 20.0)]
    times = time_each({"one": call, "twice": lambda x: call(2 * x)}, inputs, seconds=1000.0)
    assert times["one"].times == pytest.approx([1, 10, 2, 20])
    assert times["twice"].times == pytest.approx([2, 20, 4, 40])
    some = time_each({"one": call}, inputs, seconds=5.0, least=1)  # the second input passes the end
    assert some["one"].times == pytest.approx([1, 10])


def test_counting_gives_every_module_its_own_mode_back():
    net = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.BatchNorm1d(2), nn.Dropout()))
    net[1].eval()
    net[1][1].train()
    count_macs(net, torch.zeros(3, 2))
    cost_of(net, torch.zeros(3, 2), seconds=0.01)
    assert [m.training for m in net.modules()] == [True, True, False, False, True]


def test_an_outlier_of_the_clock_is_its_groups_median():
    assert mean_of_medians([1.0, 5.0, 900.0, 2.0, 5.0], [0, 1, 1, 0, 1, 1]) == (2 * 1.5 + 3 * 5.0) / 5
