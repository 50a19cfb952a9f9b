"""The file of a dynamic network: that of its nested net, with the rest beside it."""

from collections.abc import Callable
from pathlib import Path

from torch import nn

from stepwell.nets.files.nested import Beside, load, read_beside, save
from stepwell.nets.resolution.chooser import Always, Budget, Choice, Chooser, ResolutionNet
from stepwell.nets.resolution.resolutions import Resolutions

KIND = "resolutions"


def save_resolution(net: ResolutionNet, path: str | Path) -> Path:
    """Write a dynamic network to one safetensors file, whole or not at all.

    The file is that of the nested net at the largest resolution, which `load` reads; weights that the
    resolutions share stand in it once.

    Raises:
        OSError: the folder does not exist or the disk is full.
    """
    nested, chooser = net.net, net.chooser
    about = {
        "kind": KIND,
        "sizes": list(nested.sizes),
        "norms": nested.norm_sharing,
        "choices": [list(choice) for choice in net.choices],
        "chooser": chooser.size if isinstance(chooser, Chooser) else None,
        "always": chooser.choice if isinstance(chooser, Always) else None,
        "budgets": [list(budget) for budget in net.budgets],
    }
    tensors = nested.own_tensors() | {"price": net.price, "costs": net.costs}
    tensors |= {f"chooser/{name}": value for name, value in chooser.state_dict().items()}
    return save(nested.net, path, beside=Beside(about, tensors))


def load_resolution(
    path: str | Path,
    module: Callable[[], nn.Module] | None = None,
    *,
    made_for: Callable[[int], nn.Module] | None = None,
) -> ResolutionNet:
    """Read a dynamic network, in eval mode, from a file that `save_resolution` wrote.

    Args:
        module: as for `load`: makes the full net anew, where it is a module of the caller's own.
        made_for: as for `Resolutions`.

    Raises:
        FileNotFoundError, ValueError: as for `load`; or the file holds one resolution only.
    """
    beside = read_beside(path)
    if beside is None or beside.about.get("kind") != KIND:
        raise ValueError(
            f"{path} holds a network of one resolution: `stepwell train drnet` trains one of several"
        )
    about, tensors = beside
    nested = Resolutions(
        load(path, module), about["sizes"], norms=about["norms"], made_for=made_for
    )
    choices = [Choice(*choice) for choice in about["choices"]]
    few = len(choices)
    held, looks_at = about.get("always") or 0, about["chooser"]
    chooser = Always(few, held) if looks_at is None else Chooser(few, looks_at)
    net = ResolutionNet(nested, choices, chooser)
    known = ("chooser/", "price", "costs")
    nested.load_own({k: v for k, v in tensors.items() if not k.startswith(known)})
    chooser.load_state_dict(
        {k.removeprefix("chooser/"): v for k, v in tensors.items() if k.startswith("chooser/")}
    )
    net.price.copy_(tensors["price"])
    net.costs.copy_(tensors["costs"])
    net.budgets = tuple(
        Budget(price, macs, accuracy, tuple(*shares))
        for price, macs, accuracy, *shares in about.get("budgets", ())
    )
    return net.eval()


def is_resolution(path: str | Path) -> bool:
    """Whether a file of Stepwell's holds a network of several resolutions.

    Raises:
        FileNotFoundError, ValueError: as for `load`.
    """
    beside = read_beside(path)
    return beside is not None and beside.about.get("kind") == KIND
