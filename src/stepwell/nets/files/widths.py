"""The file of a network that chooses widths: that of its slimmable network, with the gate beside it."""

from collections.abc import Callable
from pathlib import Path

from torch import nn

from stepwell.device import device_name
from stepwell.nets.decisions.widths import WidthNet
from stepwell.nets.files.choosing import budgets_for_file, chooser_tensors, restore_chooser
from stepwell.nets.files.container import structure_of
from stepwell.nets.files.nested import Beside, check_finite, load_both, save
from stepwell.types import not_finite

KIND = "widths"


def save_widths(net: WidthNet, path: str | Path) -> Path:
    """Write a network that chooses widths to one safetensors file; errors as for `save`.

    `load` reads the slimmable network from it. Shared weights are stored once.
    """
    about = {"gate_at": net.gate_at, "budgets": budgets_for_file(net)}
    return save(net.nested, path, beside=Beside(KIND, about, chooser_tensors(net)))


def load_widths(path: str | Path, module: Callable[[], nn.Module] | None = None) -> WidthNet:
    """Read a network that chooses widths, in eval mode, from a run directory or a file.

    `module` and errors are those of `load`. ValueError for a file of another kind.
    """
    nested, beside = load_both(path, module)
    if beside is None or beside.kind != KIND:
        raise ValueError(
            f"{path} holds a network that chooses no width: `stepwell train widths` trains one"
        )
    with structure_of(Path(path)):
        check_finite(Path(path), not_finite(beside.tensors))
        net = WidthNet(nested, beside.about["gate_at"])
        restore_chooser(net, beside.about, beside.tensors)
        use_group_times(net)
        return net.eval()


def use_group_times(net: WidthNet) -> None:
    """Use the times of groups that the card has for this device, if it has some."""
    device = device_name(next(net.parameters()).device)
    table = net.card.group_ms.get(device, {})
    whole = all(table.get(name) for name in net.names)
    times = {name: {int(n): ms for n, ms in table[name].items()} for name in net.names if whole}
    net.times = times
