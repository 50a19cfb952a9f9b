"""The chooser and its budgets in a file, which all networks that choose have beside the nested net."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from stepwell.nets.decisions.budgets import Budget
from stepwell.nets.decisions.choosing import ChoosingNet


def budgets_for_file(net: ChoosingNet) -> list[list[Any]]:
    """The budgets of a network, ready for JSON."""
    return [list(budget) for budget in net.budgets]


def chooser_tensors(net: ChoosingNet) -> dict[str, Tensor]:
    """The tensors of the chooser, and of the cost penalty, by their names in the file."""
    chooser = {f"chooser/{name}": value for name, value in net.chooser.state_dict().items()}
    return {"price": net.price, "costs": net.costs} | chooser


def restore_chooser(net: ChoosingNet, about: Mapping[str, Any], tensors: dict[str, Tensor]) -> None:
    """Load what the two functions above gave; `tensors` keeps the others."""
    net.price.copy_(tensors.pop("price"))
    net.costs.copy_(tensors.pop("costs"))
    names = [name for name in tensors if name.startswith("chooser/")]
    net.chooser.load_state_dict({k.removeprefix("chooser/"): tensors.pop(k) for k in names})
    net.budgets = tuple(
        Budget(price, macs, accuracy, tuple(*shares))
        for price, macs, accuracy, *shares in about.get("budgets", ())
    )
