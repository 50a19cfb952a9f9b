"""Training runs: each is a function whose signature is its configuration.

`RECIPES` maps a name to where the function is and one line of help, so that listing them imports
nothing.
"""

import importlib
from typing import Any

RECIPES: dict[str, tuple[str, str]] = {
    "ekd": (
        "stepwell.recipes.ekd:ekd",
        "a nested network: all depths in one run, the full net teaching (DDNN + EKD)",
    ),
    "supervised": ("stepwell.recipes.supervised:supervised", "one network on labels alone"),
    "drnet": (
        "stepwell.recipes.drnet:drnet",
        "a network that chooses the resolution of each image, and maybe its depth",
    ),
    "netgraft": (
        "stepwell.recipes.netgraft:netgraft",
        "a student from a trained teacher and a few images without labels, block by block",
    ),
    "dkge": (
        "stepwell.recipes.dkge:dkge",
        "vectors of a knowledge graph, which `stepwell kg` updates as it changes",
    ),
    "distill": ("stepwell.recipes.distill:distill", "a student from a trained teacher, offline"),
}


def load_object(path: str) -> Any:
    """What "module:name" names."""
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)
