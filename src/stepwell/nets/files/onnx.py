"""ONNX files as networks, run by onnxruntime: exports of Stepwell and of other programs."""

import hashlib
import json
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from stepwell.extras import extra
from stepwell.nets.card import Card
from stepwell.types import Images, Logits

PROVIDERS = ["CPUExecutionProvider"]
#: Optimisations of onnxruntime that make weights of their own.
FOLDING = ("ConvBNFusion", "ConvMulFusion", "ConvAddFusion")
#: Input types of graphs of images.
FLOATS = {"tensor(float)": torch.float32, "tensor(float16)": torch.float16}


class OnnxNet(nn.Module):
    """An ONNX file as a module: images (batch, 3, height, width) to logits (batch, classes).

    It runs on the CPU, without gradients. Logits have single precision, even from a graph of half
    precision. A graph of fixed batch size runs several times for more images.

    Args:
        path: the file. Its graph takes one tensor of images; the logits are the output "logits", or
            else the first.

    Raises:
        FileNotFoundError, ValueError, ImportError: as for `open_onnx`; or the input is no batch of
            float images.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__()
        self.session = open_onnx(path)
        inputs, outputs = self.session.get_inputs(), self.session.get_outputs()
        if len(inputs) != 1 or not _takes_images(inputs[0]):
            taken = ", ".join(f"{i.name} {i.type} {i.shape}" for i in inputs)
            raise ValueError(
                f"{path} takes {taken}, not one tensor(float) of images (batch, 3, height, width): "
                "export it for these"
            )
        self.dtype = FLOATS[inputs[0].type]
        names = [output.name for output in outputs]
        self.output = "logits" if "logits" in names else names[0]
        self.input = inputs[0].name
        batch = inputs[0].shape[0]
        self.batch = batch if isinstance(batch, int) else None
        self.described: dict[str, str] = self.session.get_modelmeta().custom_metadata_map

    @property
    def card(self) -> Card | None:
        """Read images and classes from the file's metadata, as Stepwell's exports write them."""
        if not {"classes", "size", "mean", "std"} <= self.described.keys():
            return None
        lists: dict[str, Any] = {
            k: tuple(json.loads(self.described[k])) for k in ("classes", "mean", "std")
        }
        return Card(size=int(self.described["size"]), **lists)

    @torch.no_grad()
    def forward(self, images: Images) -> Logits:
        """The logits of one batch, on the device of the images."""
        x = images.to("cpu", self.dtype)
        if self.batch is None:
            return self._run(x).to(images.device)
        logits = []
        for part in x.split(self.batch):
            missing = self.batch - len(part)
            whole = torch.cat([part, part.new_zeros(missing, *part.shape[1:])])
            logits.append(self._run(whole)[: len(part)])
        return torch.cat(logits).to(images.device)

    def __deepcopy__(self, memo: Any) -> "OnnxNet":
        """Return itself: a session never changes, and cannot be copied."""
        return self

    def _run(self, images: Tensor) -> Tensor:
        feed = {self.input: images.contiguous().numpy()}
        (logits,) = self.session.run([self.output], feed)
        return torch.from_numpy(logits).float()


def _takes_images(taken: Any) -> bool:
    """Check that a graph's input is a batch of float images, with three channels if known."""
    shape = taken.shape  # a number, a name or nothing for each
    known = len(shape) == 4 and (shape[1] == 3 or not isinstance(shape[1], int))
    return known and taken.type in FLOATS


def open_onnx(path: str | Path) -> Any:
    """An onnxruntime session for an exported depth, after a check of its external weights.

    onnxruntime alone would accept any file of the right name and length as its weights.

    Raises:
        FileNotFoundError: there is no such file, or its weights are missing.
        ValueError: it is no ONNX file, onnxruntime cannot run it, or its external weights are of
            another network.
        ImportError: the extra `onnx` is not installed.
    """
    require("onnx", "onnxruntime")
    path = Path(path)
    check_weights(path)
    return _opened(path, session)


def open_sharing(paths: Sequence[Path]) -> list[Any]:
    """Sessions of exported graphs whose external weights are in memory once, as the mapped file.

    onnxruntime would fold norms into copies of the weights, and lay them out again for each session.
    Without that, a session of a ResNet is a quarter slower. Errors as for `open_onnx`.
    """
    require("onnx", "onnxruntime")
    for path in paths:
        check_weights(path)
    weights = SharedWeights()
    return [_opened(path, weights.session) for path in paths]


class SharedWeights:
    """External weights of graphs, each mapped once; it must live as long as its sessions."""

    def __init__(self) -> None:
        self.values: dict[tuple[str, str, tuple[int, ...]], Any] = {}

    def session(self, path: str) -> Any:
        """A session of a graph that reads its external weights here."""
        import onnxruntime

        options = _options()
        options.enable_cpu_mem_arena = False  # each session would keep its own
        options.add_session_config_entry("session.disable_prepacking", "1")
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        for tensor in _proto(Path(path)).graph.initializer:
            if tensor.external_data and tensor.dims:
                options.add_initializer(tensor.name, self._value(Path(path).parent, tensor))
        made = onnxruntime.InferenceSession(
            path, options, providers=PROVIDERS, disabled_optimizers=[*FOLDING]
        )
        made.shared = self  # onnxruntime keeps no reference
        return made

    def _value(self, folder: Path, tensor: Any) -> Any:
        import onnx
        import onnxruntime

        entry = {e.key: e.value for e in tensor.external_data}
        place = entry["location"], entry["offset"], tuple(tensor.dims)
        if place not in self.values:
            kind = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
            file, start = folder / entry["location"], int(entry["offset"])
            mapped = np.memmap(file, kind, "r", start, tuple(tensor.dims))
            self.values[place] = onnxruntime.OrtValue.ortvalue_from_numpy(mapped)
        return self.values[place]


def check_weights(path: Path) -> None:
    """Check the external weights of an exported graph; FileNotFoundError or ValueError if wrong."""
    metadata = metadata_of(path)
    if "weights" not in metadata:
        return
    weights = path.parent / metadata["weights"]
    if not weights.is_file():
        raise FileNotFoundError(f"{path} keeps its weights in {weights}, which is not there: copy both")
    if file_sha256(weights) != metadata["weights_sha256"]:
        raise ValueError(
            f"{weights} is not the file that {path.name} was exported with: copy both from one export, "
            "or export again"
        )


def _opened(path: Path, make: Callable[[str], Any]) -> Any:
    try:
        return make(str(path))
    except Exception as error:  # onnxruntime has its own kinds
        reason = " ".join(str(error).split())
        raise ValueError(
            f"onnxruntime cannot run {path} ({reason[:300]}): export it again, or for this version"
        ) from error


def weights_of(path: Path) -> str | None:
    """Name the external file of weights of an exported graph; None if there is none."""
    try:
        return metadata_of(path).get("weights")
    except ValueError:
        return None


def onnx_fingerprint(path: Path) -> str:
    """A hash of an ONNX file and of its external weights."""
    digest = hashlib.sha256(file_sha256(path).encode())
    entries = (entry for tensor in _proto(path).graph.initializer for entry in tensor.external_data)
    for name in sorted({entry.value for entry in entries if entry.key == "location"}):
        digest.update(file_sha256(path.parent / name).encode())
    return digest.hexdigest()[:16]


def runner(
    session: Any, names: Sequence[str] = ("images",),
    inputs: Callable[[Tensor], Sequence[Tensor]] = lambda x: (x,),
) -> Callable[[Tensor], Tensor]:  # fmt: skip
    """A session of an export as a function of a batch to logits (n, classes).

    `inputs` gives the graph's inputs, called `names`, for a batch.
    """

    return lambda x: outputs_of(session, names, inputs(x), ["logits"])[0]


def outputs_of(
    session: Any, names: Sequence[str], inputs: Sequence[Tensor], outputs: Sequence[str]
) -> list[Tensor]:
    """The outputs of a session, by their names, for inputs called `names`."""
    feed = {name: x.contiguous().numpy() for name, x in zip(names, inputs, strict=True)}
    return [torch.from_numpy(y) for y in session.run([*outputs], feed)]


def file_sha256(path: Path) -> str:
    """The checksum of a whole file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def require(*modules: str) -> None:
    """Raise ImportError for a missing module of the extra `onnx`."""
    with extra("onnx"):
        for module in modules:
            import_module(module)


def session(model: bytes | str, folder: Path | None = None) -> Any:
    """A session with torch's number of threads; `folder` holds the weights of a model in memory."""
    import onnxruntime

    options = _options()
    if folder is not None:
        key = "session.model_external_initializers_file_folder_path"
        options.add_session_config_entry(key, str(folder))
    return onnxruntime.InferenceSession(model, options, providers=PROVIDERS)


def _options() -> Any:
    """Options with torch's number of threads."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    return options


def metadata_of(path: Path) -> dict[str, str]:
    """The metadata of an ONNX file; errors as for `open_onnx`."""
    return {entry.key: entry.value for entry in _proto(path).metadata_props}


def _proto(path: Path) -> Any:
    import onnx

    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    try:
        return onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf has its own kinds, by version
        raise ValueError(f"{path} is damaged or no ONNX file ({error}): export it again") from error
