"""The file of a resolution network: the file of its nested net, with the other parts beside it."""

from collections.abc import Callable
from pathlib import Path

from torch import nn

from stepwell.nets.decisions.choosing import Always
from stepwell.nets.decisions.path_gate import PathGate
from stepwell.nets.files.choosing import budgets_for_file, chooser_tensors, restore_chooser
from stepwell.nets.files.container import structure_of
from stepwell.nets.files.nested import Beside, check_finite, load_both, save
from stepwell.nets.resolution.chooser import Choice, Chooser, ResolutionNet, doubt_gate
from stepwell.nets.resolution.resolutions import Resolutions
from stepwell.types import not_finite

KIND = "resolution"


def save_resolution(net: ResolutionNet, path: str | Path) -> Path:
    """Write a resolution network to one safetensors file; errors as for `save`.

    `load` reads the nested net at the largest resolution from it. Shared weights are stored once.
    """
    nested, chooser = net.net, net.chooser
    about = {
        "sizes": list(nested.sizes),
        "norms": nested.norm_sharing,
        "choices": [list(choice) for choice in net.choices],
        "chooser": chooser.size if isinstance(chooser, Chooser) else None,
        "always": chooser.choice if isinstance(chooser, Always) else None,
        "budgets": budgets_for_file(net),
    }
    if isinstance(chooser, PathGate):  # older versions know no such chooser, and need no such key
        about["doubt"] = True
    tensors = nested.own_tensors() | chooser_tensors(net)
    return save(nested.net, path, beside=Beside(KIND, about, tensors))


def load_resolution(
    path: str | Path,
    module: Callable[[], nn.Module] | None = None,
    *,
    made_for: Callable[[int], nn.Module] | None = None,
) -> ResolutionNet:
    """Read a resolution network, in eval mode, from a run directory or a file of `save_resolution`.

    `module` and errors are those of `load`, `made_for` is that of `Resolutions`. ValueError for a file
    of one resolution.
    """
    net, beside = load_both(path, module)
    if beside is None or beside.kind != KIND:
        raise ValueError(
            f"{path} holds a network of one resolution: `stepwell train drnet` trains one of several"
        )
    with structure_of(Path(path)):
        _, about, tensors = beside
        check_finite(Path(path), not_finite(tensors))
        nested = Resolutions(net, about["sizes"], norms=about["norms"], made_for=made_for)
        choices = [Choice(*choice) for choice in about["choices"]]
        count, always, size = len(choices), about.get("always") or 0, about["chooser"]
        by_size = Always(count, always) if size is None else Chooser(count, size)
        chooser = doubt_gate(nested, choices) if about.get("doubt") else by_size
        whole = ResolutionNet(nested, choices, chooser)
        restore_chooser(whole, about, tensors)
        nested.load_own(tensors)
        return whole.eval()
