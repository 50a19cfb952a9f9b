"""Fixtures that several parts share."""

# Before any of Stepwell: a package that is first imported inside a module with checks of types is
# compiled from its source, for jaxtyping caches what it loads under another name.

import gc
from functools import cache
from pathlib import Path

import beartype.door  # noqa: F401
import jaxtyping
import numpy as np
import pytest
import rich.console  # noqa: F401
import safetensors.torch  # noqa: F401
import torch
import torchvision  # noqa: F401
from PIL import Image

from typecheck import jaxtyped

# The import hook of jaxtyping's plugin looks it up for every function.
jaxtyping.jaxtyped = jaxtyped
# Small networks are no work to share, and threads that wait for a busy core cost much.
torch.set_num_threads(1)


def pytest_collection_finish():
    """Exempt what the imports made, which stays to the end, from all searches for garbage."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def _short_times():
    """Timing takes a hundredth of its seconds; tests of timing itself take all of them."""
    from stepwell.cost import latency  # not before the option for type checks is read

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(latency, "SCALE", 0.01)
        yield


@pytest.fixture(scope="session", autouse=True)
def _operators_read_once():
    """For each graph torch's exporter parses the source of its 500 operators; here it does so once.

    That is a third of an export's time. A torch that does it elsewhere is only slower.
    """
    try:
        from torch.onnx._internal._lazy_import import onnxscript_apis as apis
    except ImportError:
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        read = cache(lambda: type(apis).__getattr__(apis, "get_torchlib_ops")())
        patch.setattr(apis, "get_torchlib_ops", read, raising=False)
        yield


@pytest.fixture(scope="module")
def quick():
    """Training says nothing, and few batches are timed."""
    from stepwell.measure import speed

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STEPWELL_QUIET", "1")
        patch.setattr(speed, "PARTS", 2)
        yield


@pytest.fixture
def untyped():
    """Nothing checks types: torch cannot export a loop whose functions do."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def image_folder(tmp_path: Path):
    """Writes class folders of random images and gives their root."""

    def write(classes=("cat", "dog"), count=6, size=(16, 16), root: Path | None = None) -> Path:
        root = root or tmp_path / "images"
        rng = np.random.default_rng(0)
        for shade, name in enumerate(classes):
            folder = root / name
            folder.mkdir(parents=True, exist_ok=True)
            for i in range(count):
                pixels = rng.integers(0, 60, (*size[::-1], 3)) + 150 * (shade % 2)
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.png")
        return root

    return write


@pytest.fixture(scope="session")
def three_shades(tmp_path_factory):
    """The folder of small images in three classes, which tell by their brightness."""
    root, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for part in ("train", "test"):
        for shade, name in enumerate(("dark", "grey", "light")):
            (root / part / name).mkdir(parents=True)
            for i in range(12):
                pixels = rng.integers(0, 60, (8, 8, 3)) + 90 * shade
                Image.fromarray(pixels.astype(np.uint8)).save(root / part / name / f"{i}.png")
    return str(root)


@pytest.fixture
def foreign_onnx():
    """Writes an ONNX file as others do: names of its own, no metadata, probabilities, maybe a fixed
    batch; of images (3, 8, 8). Returns the weights (192, classes) of its one layer.
    """

    def write(path: Path, batch: int | str, classes: int = 3) -> torch.Tensor:
        import onnx
        from onnx import TensorProto, helper

        w = torch.linspace(-1, 1, 192 * classes).sin()
        nodes = [
            helper.make_node("Flatten", ["x"], ["f"]),
            helper.make_node("MatMul", ["f", "w"], ["y"]),
            helper.make_node("Softmax", ["y"], ["p"], axis=1),
        ]
        graph = helper.make_graph(
            nodes,
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 3, 8, 8])],
            [helper.make_tensor_value_info("p", TensorProto.FLOAT, [batch, classes])],
            [helper.make_tensor("w", TensorProto.FLOAT, [192, classes], w.tolist())],
        )
        opset = [helper.make_opsetid("", 17)]
        onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), path)
        return w.view(192, classes)

    return write
