"""Open an export for onnxruntime, after a check that it is of this network."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from stepwell.export.cascade import NAME as CASCADE
from stepwell.export.cascade import cascade_runner, decides_like
from stepwell.export.folder import INDEX
from stepwell.export.interface import INTERFACES
from stepwell.files import read_json
from stepwell.nets import NestedNet
from stepwell.nets.files.container import state_digest
from stepwell.nets.files.onnx import open_onnx, open_sharing, runner
from stepwell.nets.nested.cascade import Answer, Cascade


def open_depths(
    net: NestedNet, folder: Path, depths: Sequence[str], *, share: bool = True,
    advice: str = "export it",
) -> dict[str, Callable[[Tensor], Tensor]]:  # fmt: skip
    """Open the graphs of depths in an export of `net`, each as a function of inputs to logits.

    Args:
        share: keep the weights in memory once, see `open_sharing`.
        advice: how to export.

    Raises:
        ValueError, FileNotFoundError: there is no export of this network with these depths.
        ImportError: the extra `onnx` is not installed.
    """
    index = exported_state(folder, state_digest(net.tensors()), advice)
    files = _files_of(index, folder)
    if missing := [depth for depth in depths if depth not in files]:
        raise ValueError(
            f"the export in {folder} lacks depth {missing[0]}: write it again with `{advice}`"
        )
    sessions = sessions_of([files[depth] for depth in depths], share=share)
    interface = INTERFACES[net.card.input]
    inputs = partial(interface.inputs, net.module)
    return {
        depth: runner(session, interface.names, inputs)
        for depth, session in zip(depths, sessions, strict=True)
    }


def open_cascade(
    cascade: Cascade, folder: Path, *, advice: str = "export it"
) -> Callable[[Tensor], Answer]:
    """Open the graph of a cascade in an export of its network, which answers as the cascade does.

    The graph has a copy of the weights of its own. Args and errors as for `open_depths`; ValueError,
    too, if the graph is of a cascade with other depths or thresholds.
    """
    net = cascade.net
    file = _files_of(exported_state(folder, state_digest(net.tensors()), advice), folder).get(CASCADE)
    if file is None or not file.is_file():
        raise ValueError(f"the export in {folder} lacks the cascade: write it with `{advice}`")
    if not decides_like(file, cascade):
        raise ValueError(f"{file} is of another cascade: write it again with `{advice}`")
    return cascade_runner(open_onnx(file), net)


def sessions_of(paths: Sequence[Path], *, share: bool) -> list[Any]:
    """Sessions of exported graphs, with their shared weights in memory once or once for each."""
    return open_sharing(paths) if share else [open_onnx(path) for path in paths]


def exported_state(folder: Path, network: str, advice: str) -> dict[str, Any]:
    """The index of an export of the network with this digest; ValueError if there is none."""
    if not (folder / INDEX).is_file():
        raise ValueError(f"{folder} holds no export: write it with `{advice}`")
    index: dict[str, Any] = read_json(folder / INDEX, f"write it again with `{advice}`")
    if index.get("network") != network:
        raise ValueError(
            f"the export in {folder} is of another state of the network: write it again with `{advice}`"
        )
    return index


def _files_of(index: Mapping[str, Any], folder: Path) -> dict[str, Path]:
    """The ONNX files of an index by depth."""
    return {row["depth"]: folder / row["file"] for row in index["files"] if row["format"] == "onnx"}
