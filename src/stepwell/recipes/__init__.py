"""Training runs: each is a function whose signature is its configuration.

`RECIPES` maps a name to the function's place and one line of help, so that a list imports nothing.
"""

from pkgutil import resolve_name
from typing import Any

RECIPES: dict[str, tuple[str, str]] = {
    name: (f"stepwell.recipes.{name}:{name}", line)
    for name, line in {
        "ekd": "a nested network: all depths in one run, the full net teaching (DDNN + EKD)",
        "supervised": "one network on labels alone",
        "exits": "a network with early exits, and a cascade that stops where it is sure",
        "skipping": "a ResNet whose gates decide which blocks an image runs",
        "pixels": "a ResNet whose blocks run at the positions of an image that need them",
        "glance": "a ResNet that glances at the whole image, then at the parts that it chooses",
        "frames": "a ResNet that sees all frames of a clip small, then those that it chooses",
        "sequences": "a recurrent network for texts whose gate decides how many tokens to skip",
        "widths": "a ResNet of several widths, and a gate that chooses one for each image",
        "experts": "a vision transformer whose MLPs are experts, of which a token runs one or a few",
        "kernels": "a ResNet that mixes the kernels of its convolutions for each image",
        "pkkd": "an adder network, whose convolutions only add, by its convolutional twin",
        "drnet": "a network that chooses the resolution of each image, and maybe its depth",
        "netgraft": "a student from a trained teacher and a few images without labels, block by block",
        "detect": "a detector from images with boxes, at one depth or several",
        "pseudo": "a detector from the boxes that other detectors predict, and then labels, if any",
        "dkge": "vectors of a knowledge graph, which `stepwell kg` updates as it changes",
        "bert": "a shallow text encoder from a deep one, by its attention and [CLS] states",
        "cnc": "a small CNN that classifies whole complex networks by their pictures",
        "distill": "a student from a trained teacher, offline",
    }.items()
}


def train(recipe: str, **flags: Any) -> dict[str, Any]:
    """Run a recipe with its flags as arguments, like `stepwell train RECIPE`; returns its results.

    `train("ekd", data="digits", out="runs/digits", epochs=10)`

    It also takes what only studies set (a recipe's `ablation`), by name: `norms="shared"`. ValueError
    for a wrong value, TypeError for an unknown flag.
    """
    from stepwell.flags import call

    if recipe not in RECIPES:
        raise ValueError(f"no recipe {recipe!r}; there are {', '.join(RECIPES)}")
    results: dict[str, Any] = call(resolve_name(RECIPES[recipe][0]), **flags)
    return results
