"""`stepwell export`."""

from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.conf import Positional

from stepwell.commands.arguments import Json, Module, check_place, imported
from stepwell.console import print_json
from stepwell.files import export_folder
from stepwell.flags import flag
from stepwell.kinds import kind_module, open_network
from stepwell.kinds.classifier_tables import show_delta


def export(
    run: Positional[Path],
    *,
    format: Literal["onnx", "pt2", "safetensors"] | None = None,
    depth: str = "all",
    int8: bool = False,
    cascade: bool = False,
    beyond: str | None = None,
    data: str | None = None,
    out: Annotated[Path | None, flag("FOLDER|FILE"), tyro.conf.arg(aliases=["--to"])] = None,
    module: Module = None,
    json: Json = False,
) -> None:
    """Write depths as files for other programs.

    Each file is checked against the network, except int8 versions and --beyond. `--depth all` with ONNX
    writes the weights once, net-CHECKSUM.safetensors, and a small graph a depth that points into it. A
    network that chooses resolutions or widths gives a graph a choice, and one for its chooser.

    Examples:
        stepwell export runs/digits
        stepwell export runs/photos --depth 18 --out shipping/
        stepwell export runs/photos --int8
        stepwell export runs/photos --cascade
        stepwell export runs/photos --depth 34 --beyond 18 --out 18-to-34.safetensors

    Args:
        run: a run directory, or the file of its network.
        format: onnx (the default): a graph for any batch size; pt2: a program of torch.export;
            safetensors: plain weights under torchvision's names.
        depth: one depth, whose file needs no other, or all depths.
        int8: also write each depth in integers of eight bits, and measure both on the test part.
        cascade: write the saved cascade instead, as one ONNX graph: an image stops at the depth that is
            sure of it, and the output "depth" says at which (0 for the shallowest).
        beyond: write only the weights that --depth needs in addition to this shallower depth;
            `stepwell patch` applies them.
        data: images (a folder or a name) or texts (a tab-separated file) to check on; by default the
            data of the run.
        out: the folder to write to; by default export/ beside the network. With --beyond, the file.
    """
    if beyond is not None:
        others = int8 or cascade or data or module or format not in (None, "safetensors")
        _export_delta(run, depth, beyond, out, others, json=json)
        return
    network = open_network(run, to="export", module=imported(module))
    folder = out or export_folder(run)
    single = None if depth == "all" else depth
    result = network.do(
        "export", folder, format=format, depth=single, int8=int8, cascade=cascade, data=data
    )
    if json:
        print_json(result | {"folder": str(folder)})
    else:
        shown = result | {"noun": network.noun}
        kind_module(network.kind).show_export(f"exported {run} to {folder}", shown)


def _export_delta(
    run: Path, depth: str, beyond: str, out: Path | None, others: object, *, json: bool
) -> None:
    """Write the weights that one depth needs in addition to another."""
    if depth == "all":
        raise ValueError("--beyond needs --depth: the deeper depth that the delta leads to")
    if out is None:
        raise ValueError("--beyond needs --out: the file to write")
    check_place("--out", out, ".safetensors")
    if others:
        raise ValueError(
            "--beyond writes plain weights: leave --int8, --cascade, --data, --module and --format out"
        )
    delta = open_network(run, to="delta").do("delta", depth, beyond, out)
    if json:
        print_json({"depth": depth, "beyond": beyond} | delta | {"path": str(delta["path"])})
    else:
        show_delta(depth, beyond, delta)
