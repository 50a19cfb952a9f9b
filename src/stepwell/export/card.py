"""The metadata in an exported file that its user needs."""

from typing import Any

from stepwell.nets import NestedNet


def about(net: NestedNet, depth: str) -> dict[str, Any]:
    """Depth, blocks per stage, class names, input size, mean, std and licence, ready for JSON."""
    card = net.card
    return {
        "depth": depth, "blocks": list(net.depths[depth]), "classes": list(card.classes),
        "size": card.size, "mean": list(card.mean), "std": list(card.std), "licence": card.licence,
    }  # fmt: skip
