"""Masks of positions: does a network that runs where an image needs it gain over static networks?

ResNet-20 is trained alone; then masks are added and trained with it for as long (DynConv), so that half
of the blocks' MACs run. Rivals take as many epochs in all: the network alone, and smaller networks
alone. A static network at a cost between two of them is their mixture on a straight line.

Controls: each image with all masks of another image of a random batch, as that image has them by
itself, so that the work is the same; masks without noise; masks from the first step on. An oracle would
try every mask, and is left out.
"""

from typing import Any

from stepwell.claims.kit.figure import Axis, Plot, Point
from stepwell.claims.kit.measures import (
    accuracy,
    alone,
    level,
    of_speed,
    static_at,
    times,
    versus,
)
from stepwell.claims.kit.study import Arm, Measure, Question, Study, image_fingerprint

STATIC = SMALLEST, SMALL, FULL = "8", "14", "20"
FIRST, MASKS = "20, first half", "masks"
TIGHT, WIDE, CERTAIN, FRESH = (
    "masks, 0.3", "masks, 0.7", "masks without noise", "masks from the start"
)  # fmt: skip
TARGET = 0.5


def masks(**arguments: Any) -> Arm:
    """Masks on the network that the first half of the epochs trained."""
    settings = {"net": f"resnet{FULL}", "target": TARGET} | arguments
    return Arm("pixels", settings, {"init": FIRST}, {"epochs": 0.5})


ARMS: dict[str, Arm] = {
    FIRST: Arm("supervised", {"net": f"resnet{FULL}"}, scaled={"epochs": 0.5}),
    MASKS: masks(),
    **{alone(d): Arm("supervised", {"net": f"resnet{d}"}) for d in (FULL, SMALL, SMALLEST)},
    TIGHT: masks(target=0.3),
    WIDE: masks(target=0.7),
    CERTAIN: masks(estimator="straight-through"),
    FRESH: Arm("pixels", {"net": f"resnet{FULL}", "target": TARGET}),
}


def record(arm: str, key: str) -> Measure:
    """A number of the measurement of masks, in percent."""
    return lambda results: 100 * float(results[arm]["pixels"][key])


#: Named before the runs: masks keep the accuracy, beat a static network of their cost, and lie where
#: the image needs them.
PRIMARY = ("keeps-accuracy", "better-than-static", "better-than-chance")
CLAIMS = [
    versus(PRIMARY[0], "Masks keep the accuracy of the network, of as many epochs, within 1 point",
           "93.58 % with 0.7 of the MACs (ResNet-32, 350 epochs, its code)", MASKS,
           accuracy(alone(FULL), FULL), alone(FULL), -1.0, expected=0.0),
    versus(PRIMARY[1], "Masks are better than static networks of their mean cost, of as many epochs",
           "not asked", MASKS, static_at(STATIC, MASKS), "static networks at its cost", expected=0.8),
    versus(PRIMARY[2], "Where a block runs matters: masks are more than 1 point above the masks of "
           "another image, of the same work", "not asked", MASKS, record(MASKS, "random_accuracy"),
           "masks of another image", 1.0, expected=3.0),
    times("saves/time", "In batches of 64, the speed-up is at least 0.5 of that by MACs",
          "1.6 times as fast (abstract, poses, depthwise convolutions on a GPU)", "×",
          {"by the clock": of_speed(MASKS, "pixels", "speed_up"),
           "by MACs": of_speed(MASKS, "pixels", "by_macs")}, 0.5),
    level("saves/clock", "In batches of 64, masks are faster than the network that runs everywhere",
          "not measured for classification", (MASKS, of_speed(MASKS, "pixels", "speed_up")), 1.0, "×"),
    versus("tight/static", "At 0.3 of the work, masks are better than static networks of their cost",
           "not asked", TIGHT, static_at(STATIC, TIGHT), "static networks at its cost"),
    versus("wide/static", "At 0.7 of the work, masks are better than static networks of their cost",
           "not asked", WIDE, static_at(STATIC, WIDE), "static networks at its cost"),
    versus("noise", "Drawn masks are better than masks without noise", "not asked", MASKS,
           accuracy(CERTAIN, "chosen"), CERTAIN),
    versus("fresh", "Masks from the start are as good as on a trained network, within half a point",
           "from the start, 350 epochs (its code)", FRESH, accuracy(MASKS, "chosen"), MASKS, -0.5),
]  # fmt: skip

STUDY = Study(
    key="pixels", arms=ARMS, claims=CLAIMS, primary=PRIMARY,
    note=("The paper trains for 350 epochs on 32 pixels. Here masks start from a trained network, as "
          "gates do in the study of layer skipping. Blocks of 16 to 64 channels are too narrow to save "
          "time by positions; the benchmark has wider ones."),
    common={"data": "cifar10", "size": 16, "epochs": 40, "batch_size": 128, "val_fraction": 0.0},
    quick={"data": "digits", "part": "1/4", "size": None, "epochs": 2, "batch_size": 128},
    fingerprint=image_fingerprint,
    questions=[
        Question("Are masks better than static networks?", (alone("*"), MASKS, TIGHT, WIDE),
                 ("saves/*", "tight/*", "wide/*")),
        Question("Other ways to train masks", (MASKS, CERTAIN, FRESH), ("noise", "fresh")),
    ],
    plot=Plot(Axis("million MACs an image", 1e-6), Axis("test accuracy, %", 100), {
        "networks alone": [Point(alone(d), f"{d}/macs", f"{d}/accuracy")
                           for d in (SMALLEST, SMALL, FULL)],
        "masks": [Point(arm, "chosen/macs", "chosen/accuracy") for arm in (TIGHT, MASKS, WIDE)],
    }),
)  # fmt: skip
