"""Adder layers: the kernels against the official way, a convolution and an FMA loop of the same shape.

64 to 64 channels, kernels of 3×3, maps of 16×16, a batch of 64, with channels last. The official way
(AdderNet's code) is plain torch by broadcasting; it runs on one image, and its time is scaled.
Compilation is timed once, without the cache. Times of one thread and of training steps are the
processor's, which a busy machine disturbs less.
"""

import ctypes
import os
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import onnxruntime
import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, cross_entropy, unfold

from benchmarks.timing import on_threads, ratio, side_by_side
from stepwell.cost import peak_bytes
from stepwell.export import export_onnx
from stepwell.nets import build
from stepwell.ops.adder import adder_conv2d, compiled, cpu, reference, sum_of_absolute_differences

IMAGES, CHANNELS, PIXELS, ROUNDS = 64, 64, 16, 5
#: The network of the comparison with onnxruntime.
EXPORTED = "resnet20"
#: Images of the official way, which needs much memory.
OFFICIAL = 1
SHAPE: tuple[tuple[int, int], tuple[int, int]] = ((1, 1), (1, 1))  # stride and padding


def measure() -> dict[str, Any]:
    """Ratios of times; `x/y` is the time of x over that of y."""
    start = time.perf_counter()
    compiled.compile_source()
    record: dict[str, Any] = {"compile_seconds": time.perf_counter() - start}
    record["load"] = os.getloadavg()[0]  # processes that wanted a processor in the last minute
    record["threads"] = {
        str(threads): _kernels(threads) for threads in dict.fromkeys((1, torch.get_num_threads()))
    }
    record["memory"] = _memory()
    record["step"] = _steps()
    record["onnx"] = _graphs()
    return record


def _maps(images: int = IMAGES) -> Tensor:
    x = torch.randn(images, CHANNELS, PIXELS, PIXELS)
    return x.to(memory_format=torch.channels_last)


def official(x: Tensor, weight: Tensor) -> Tensor:
    """AdderNet's forward: the difference of each filter and each patch in memory."""
    patches = unfold(x, weight.shape[2:], padding=1).permute(1, 0, 2).flatten(1)  # (K, all positions)
    sums = -(weight.flatten(1).unsqueeze(2) - patches.unsqueeze(0)).abs().sum(1)
    return sums.view(len(weight), len(x), *x.shape[2:]).transpose(0, 1)


def official_backward(grad: Tensor, x: Tensor, weight: Tensor) -> None:
    """AdderNet's backward, with the same memory; the folding of patches is left out."""
    patches = unfold(x, weight.shape[2:], padding=1).permute(1, 0, 2).flatten(1)
    g = grad.transpose(0, 1).flatten(1)
    apart = weight.flatten(1).unsqueeze(2) - patches.unsqueeze(0)
    (-apart * g.unsqueeze(1)).sum(2)
    (apart.clamp(-1, 1) * g.unsqueeze(1)).sum(0)


def _kernels(threads: int) -> dict[str, Any]:
    x, grad = _maps().relu(), _maps()
    weight = torch.randn(CHANNELS, CHANNELS, 3, 3)
    last = weight.to(memory_format=torch.channels_last)
    few, few_grad = x[:OFFICIAL].contiguous(), grad[:OFFICIAL].contiguous()
    bytes_x, bytes_w = (t.mul(30).add(128).clamp(0, 255).byte() for t in (x, weight))
    kernels = {"adder": compiled.library(), "avx2": compiled.library(("-mno-avx512f",))}
    kernels["fma"] = compiled.library(("-DPRODUCTS",))
    calls: dict[str, Callable[[], object]] = {
        "conv2d": partial(conv2d, x, last, padding=1),
        "official": partial(official, few, weight),
        "official_both": lambda: (official(few, weight), official_backward(few_grad, few, weight)),
        "cdist": partial(reference.forward, few, weight, *SHAPE),
        "both": partial(_both, x, weight, grad),
        "uint8": partial(sum_of_absolute_differences, bytes_x, bytes_w, 1, 1),
        "onnxruntime_int8": _int8_convolution(bytes_x.contiguous(), bytes_w, threads),
    }
    for name, library in kernels.items():
        if library is not None:
            calls[name] = partial(_forward, library, x, weight)
    clock = time.process_time if threads == 1 else time.perf_counter
    with on_threads(threads):
        times = side_by_side(calls, rounds=ROUNDS, clock=clock)
    for name in ("official", "official_both", "cdist"):
        times[name] = [t * IMAGES / OFFICIAL for t in times[name]]
    pairs = [
        ("official", "adder"), ("official", "avx2"), ("official", "cdist"), ("adder", "conv2d"),
        ("avx2", "conv2d"), ("adder", "fma"), ("official_both", "both"), ("adder", "uint8"),
        ("uint8", "onnxruntime_int8"),
    ]  # fmt: skip
    work = IMAGES * CHANNELS * CHANNELS * 9 * PIXELS * PIXELS / 1e9
    return {
        "pairs_per_ns": {name: work / min(seconds) for name, seconds in times.items()},
        **{f"{a}/{b}": ratio(times, a, b) for a, b in pairs if {a, b} <= times.keys()},
    }


def _int8_convolution(x: Tensor, weight: Tensor, threads: int) -> Callable[[], object]:
    """The same convolution in integers of eight bits, by onnxruntime."""
    from onnx import TensorProto, helper, numpy_helper

    constants = {"step": 0.02, "large": 2.0}
    values = [helper.make_tensor(name, TensorProto.FLOAT, [], [v]) for name, v in constants.items()]
    values.append(helper.make_tensor("zero", TensorProto.UINT8, [], [128]))
    values.append(helper.make_tensor("none", TensorProto.INT8, [], [0]))
    values.append(numpy_helper.from_array((weight.int() - 128).to(torch.int8).numpy(), "filters"))
    inputs = ["x", "step", "zero", "filters", "step", "none", "large", "zero"]
    node = helper.make_node("QLinearConv", inputs, ["y"], pads=[1, 1, 1, 1])
    ends = [helper.make_tensor_value_info(name, TensorProto.UINT8, [*x.shape]) for name in ("x", "y")]
    graph = helper.make_graph([node], "convolution", ends[:1], ends[1:], values)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # spinning threads of onnxruntime would take processors from the call that comes next
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    return partial(session.run, None, {"x": x.numpy()})


def _forward(library: ctypes.CDLL, x: Tensor, weight: Tensor) -> Tensor:
    return cpu.Kernels(library).forward(x, weight, *SHAPE)


def _both(x: Tensor, weight: Tensor, grad: Tensor) -> None:
    x, weight = x.detach().requires_grad_(), weight.detach().requires_grad_()
    adder_conv2d(x, weight, 1, 1).backward(grad)


def _memory() -> dict[str, float]:
    """Peak bytes of a forward and backward pass over those of a convolution."""
    x, grad, weight = _maps(8), _maps(8), torch.randn(CHANNELS, CHANNELS, 3, 3)

    def convolution() -> None:
        a, b = x.detach().requires_grad_(), weight.detach().requires_grad_()
        conv2d(a, b, padding=1).backward(grad)

    return {"adder/conv2d": peak_bytes(partial(_both, x, weight, grad)) / peak_bytes(convolution)}


def _steps() -> dict[str, Any]:
    """A training step of a whole ResNet-20, over that of the convolutional one, on one thread."""
    x = torch.randn(IMAGES, 3, 2 * PIXELS, 2 * PIXELS).to(memory_format=torch.channels_last)
    labels = torch.randint(10, (IMAGES,))
    calls = {}
    for name, adder in (("adder", True), ("convolutions", False)):
        net = build("resnet20", num_classes=10, adder=adder).to(memory_format=torch.channels_last)
        calls[name] = partial(_step, net, x, labels)
    with on_threads(1):
        times = side_by_side(calls, rounds=ROUNDS, clock=time.process_time)
    return {"adder/convolutions": ratio(times, "adder", "convolutions")}


def _graphs() -> dict[str, Any]:
    """An exported adder network in onnxruntime over the network itself, on one thread."""
    net = build(EXPORTED, num_classes=10, adder=True).eval()
    net.mark("trained")
    net.card = replace(net.card, size=2 * PIXELS)
    x = torch.randn(8, 3, 2 * PIXELS, 2 * PIXELS)
    with TemporaryDirectory() as folder:
        file = Path(folder) / "net.onnx"
        export_onnx(net, net.full, file, x)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        graph = onnxruntime.InferenceSession(str(file), options)
    (name,) = (entry.name for entry in graph.get_inputs())
    subnet = net.subnet(net.full).to(memory_format=torch.channels_last)
    ratios = {}
    for count in (1, 8):
        images = x[:count]
        calls = {
            "onnxruntime": partial(graph.run, None, {name: images.numpy()}),
            "net": partial(_answer, subnet, images.to(memory_format=torch.channels_last)),
        }
        with on_threads(1):
            times = side_by_side(calls, rounds=ROUNDS, clock=time.process_time)
        ratios[f"onnxruntime/net, {count} at a time"] = ratio(times, "onnxruntime", "net")
    return ratios


@torch.inference_mode()
def _answer(net: nn.Module, x: Tensor) -> Tensor:
    logits: Tensor = net(x)
    return logits


def _step(net: nn.Module, x: Tensor, labels: Tensor) -> None:
    net.zero_grad()
    cross_entropy(net(x), labels).backward()
