"""A task in which the needed resolution is visible: digits at two scales."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from stepwell.claims.drnet.arms import at_its_cost, auc_of_need, preference
from stepwell.files import config_of
from stepwell.flags import call
from stepwell.measure.data_parts import parts_for
from stepwell.measure.resolution import CHOSEN, observe_choices
from stepwell.methods.resolution import Mixing
from stepwell.nets.files.resolution import load_resolution
from stepwell.recipes.drnet import Schedule, drnet
from stepwell.training import Loop

#: Resolutions of the planted task, and the mean cost at which half of its images have full size, and
#: half the smallest.
PLANTED, PLANTED_TARGET = (32, 16, 8), 0.53


def planted(
    *, out: Path, mixing: Mixing = "expected", schedule: Schedule = "joint", epochs: int = 10,
    choose_epochs: int = 10, seed: int = 0, loop: Loop = Loop(),
) -> dict[str, Any]:  # fmt: skip
    """Train by the recipe `drnet` where the needed resolution is visible.

    Half of the images are small digits in large pictures, which only full size shows; in the others
    the digit fills the picture, and a quarter of the size shows it as well.

    Returns:
        Under "test": "accuracy" and "cost"; "line, own", as `controls` has it; and "auc": the area
        under the ROC of the chooser's preference for full size over the cheapest choice, for the images
        that the network itself has right at full size alone.
    """
    data = two_scales(out.with_name("data"))
    result = call(
        drnet, out=out, data=str(data), net="resnet8", sizes=PLANTED, target=PLANTED_TARGET,
        mixing=mixing, schedule=schedule, epochs=epochs,
        choose_epochs=choose_epochs, flip=False, seed=seed, loop=loop,
    )  # fmt: skip
    net = load_resolution(out / "net.safetensors")
    fingerprint = config_of(out / "net.safetensors", "train it again")["data"]["fingerprint"]
    parts = parts_for(net.net.net, str(data), fingerprint)
    order = list(reversed(net.names))
    seen = observe_choices(net, parts.test, order)
    found = at_its_cost(seen, seen, seen, order, net.costs.double().flip(0))
    numbers = {
        "accuracy": result["test"][f"{CHOSEN}/accuracy"],
        "unpriced cost": result["drnet"]["unpriced"]["cost"],
        "auc": auc_of_need(preference(net, parts.test), seen, order),
    } | {name: found[name] for name in ("cost", "line, own")}
    return {"test": numbers} | {k: result[k] for k in ("seconds", "cpu_seconds")}


def two_scales(folder: Path) -> Path:
    """Write scikit-learn's digits at two scales, as class folders; a digit's two are in one part.

    Images are of 32 pixels: the digit's 8 × 8 at a random place on black, or enlarged to all of it.
    """
    digits = load_digits()
    generator = np.random.default_rng(0)
    side = PLANTED[0]
    for turn, i in enumerate(generator.permutation(len(digits.images)).tolist()):
        digit = Image.fromarray((digits.images[i] * 15.9).astype("uint8"))
        small = Image.new("L", (side, side))
        small.paste(digit, tuple(generator.integers(0, side - digit.width, 2).tolist()))
        part = "test" if turn < len(digits.images) // 3 else "train"
        place = folder / part / str(digits.target[i])
        place.mkdir(parents=True, exist_ok=True)
        for name, image in {"small": small, "large": digit.resize((side, side))}.items():
            image.convert("RGB").save(place / f"{i}-{name}.png")
    return folder
