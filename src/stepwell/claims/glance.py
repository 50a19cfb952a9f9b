"""Glances: does it pay to choose where to look?

A network of two ResNet-8 (one for the first glance, one for the crops) looks three or four times at
scenes with one small digit somewhere; see `benchmarks/scenes.py`. Rivals take as many passes: the
same network with crops at random places, or all in the middle, and ResNet-8 on the whole image at
about the cost of all glances.

Controls on the trained network itself: the places of another image, so that the places are spread
alike; random places; the first correct glance (an oracle).
"""

from pathlib import Path
from typing import Any

from stepwell.claims.exits import of_cascade, one_by_one
from stepwell.claims.kit.figure import Axis, Plot, Point
from stepwell.claims.kit.measures import ACCURACY, accuracy, correct, more, times
from stepwell.claims.kit.study import Arm, Measure, Question, Study, image_fingerprint
from stepwell.flags import call

GLANCES, EARLY, NET = "4", "3", "resnet8"
#: The folder of close-ups in the folder of scenes.
CLOSE = "close"
POLICY, RANDOM, CENTRE = "policy", "random places", "crops in the middle"
#: Sides of the whole image for static networks, as shares of a scene.
STATIC = {"whole, half the size": 48, "whole, two thirds of the size": 64}
#: The network from which every encoder starts: most random places show nothing that the label says, so
#: from random weights the crops teach nothing.
ENCODER = "ResNet-8 on close-ups"
#: Passes of all three phases, and of the first and the last, in epochs of the first.
ALL_PHASES, WITHOUT_POLICY = 1 + 1 / 4 + 1 / 6, 1 + 1 / 6


def on_close_ups(
    *, out: Path, data: str, epochs: int, batch_size: int, val_fraction: float, seed: int = 0,
    precision: str = "32",
) -> dict[str, Any]:  # fmt: skip
    """ResNet-8 on the images in the folder `CLOSE` of the data, or on the data without one."""
    from stepwell.recipes.supervised import supervised

    close = Path(data) / CLOSE
    return call(
        supervised, data=str(close) if close.is_dir() else data, out=out, net=NET, epochs=epochs,
        batch_size=batch_size, val_fraction=val_fraction, seed=seed, precision=precision,
    )  # fmt: skip


def looking(where: str, recipe: str = "glance", glances: str = GLANCES, encoder: str = ENCODER) -> Arm:
    """A network that looks where `where` says; without a policy's phase, the others are longer."""
    settings: dict[str, Any] = {"net": NET, "glances": int(glances), "where": where}
    epochs = 1.0 if where == "policy" else ALL_PHASES / WITHOUT_POLICY
    return Arm(recipe, settings, {"init": encoder}, {"epochs": epochs})


ARMS: dict[str, Arm] = {
    ENCODER: Arm("stepwell.claims.glance:on_close_ups", scaled={"epochs": 1.4}),
    POLICY: looking("policy"), RANDOM: looking("random"), CENTRE: looking("fixed"),
    **{name: Arm("supervised", {"net": NET, "size": side}, {"init": ENCODER}, {"epochs": ALL_PHASES})
       for name, side in STATIC.items()},
}  # fmt: skip
WHOLE = [*STATIC][1]


def control(name: str) -> Measure:
    """Accuracy in percent of the policy's own network with its crops, or frames, elsewhere."""
    return lambda results: 100 * float(results[POLICY]["glance"][name][GLANCES])


#: Named before the runs: to choose where to look pays against random looks, the choice fits the image,
#: and looking beats a static network of the cost.
PRIMARY = ("better-than-random", "better-than-chance", "better-than-static")
CLAIMS = [
    more(PRIMARY[0], f"After {EARLY} glances, a policy is more than 3 points above a network trained "
         "and tested with random places", "figures only",
         correct(POLICY, EARLY), correct(RANDOM, EARLY), 3.0, ACCURACY, expected=6.0),
    more(PRIMARY[1], "Where a glance looks fits its image: more than 1 point above the places of "
         "another image", "not asked", correct(POLICY, GLANCES),
         ("places of others", control("others")), 1.0, ACCURACY, expected=5.0),
    more(PRIMARY[2], f"{GLANCES} glances are more accurate than ResNet-8 on the whole image at about "
         "their MACs", "figures only", correct(POLICY, GLANCES),
         correct(WHOLE, "8"), 0.0, ACCURACY, expected=3.0),
    times("saves/macs", "Set to the network's accuracy on validation images, the cascade of glances "
          "takes at most 0.75 of its MACs", "1.3 times as fast at equal accuracy (abstract)", "MACs",
          {"cascade": of_cascade("macs", POLICY), "all glances": of_cascade("full_macs", POLICY)}, 0.75,
          below=True),
    one_by_one("saves/ms", POLICY, 0.9),
    more("glances", "Later glances help: four are more than 1 point above two", "figures only",
         ("four glances", accuracy(POLICY, GLANCES)), ("two glances", accuracy(POLICY, "2")), 1.0,
         ACCURACY),
    more("centre", "A policy is above crops in the middle", "not asked", correct(POLICY, GLANCES),
         correct(CENTRE, GLANCES), 0.0, ACCURACY),
    more("own/random", "On the policy's network, its places are above random ones", "not asked",
         correct(POLICY, GLANCES), ("random places", control("random")), 0.0, ACCURACY),
    more("oracle", "The first right glance, an oracle, is more than 3 points above the last one",
         "not asked", ("oracle", lambda results: 100 * float(results[POLICY]["glance"]["oracle"])),
         correct(POLICY, GLANCES), 3.0, ACCURACY, pool="oracle"),
]  # fmt: skip

STUDY = Study(
    key="glance", arms=ARMS, claims=CLAIMS, primary=PRIMARY,
    note=("The paper's results are of ImageNet. Ours are of scenes made from real digits and "
          "photographs (`python -m benchmarks.scenes`), where most of an image is background. All "
          "networks start from one that was trained on close-ups, as the paper's start from ImageNet. "
          "A tenth of the training images sets the thresholds."),
    common={"data": "scenes", "size": 96, "epochs": 10, "batch_size": 64, "lr": 0.03,
            "val_fraction": 0.1},
    quick={"data": "digits", "part": "1/4", "size": 32, "epochs": 1, "batch_size": 128},
    fingerprint=image_fingerprint,
    questions=[
        Question("Does it pay to choose where to look?", (POLICY, RANDOM, CENTRE),
                 ("own/*", "centre", "glances", "oracle")),
        Question("Against the whole image at once", (POLICY, *STATIC), ("saves/*",)),
    ],
    plot=Plot(Axis("million MACs an image", 1e-6), Axis("test accuracy, %", 100), {
        **{arm: [Point(arm, f"{i}/macs", f"{i}/accuracy") for i in range(1, int(GLANCES) + 1)]
           for arm in (POLICY, RANDOM, CENTRE)},
        "ResNet-8 on the whole image": [Point(arm, "8/macs", "8/accuracy") for arm in STATIC],
    }),
)  # fmt: skip
