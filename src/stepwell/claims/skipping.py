"""Layer skipping: do gates that decide for each image gain over static networks of their cost?

ResNet-20 is trained alone; then gates are added and trained with it for as long (ConvNet-AIG), with
every gate near an open rate of 0.6. Rivals take as many epochs in all: the network alone, and smaller
networks alone. A static network at a cost between two of them is their mixture on a straight line.

Controls: each block run for as many images, drawn at random; gates from the first step on, for as many
epochs in all; SkipNet's two phases. An oracle would try every set of blocks, and is left out.
"""

from typing import Any

from stepwell.claims.kit.figure import Axis, Plot, Point
from stepwell.claims.kit.measures import (
    accuracy,
    alone,
    less,
    of_speed,
    static_at,
    times,
    versus,
)
from stepwell.claims.kit.study import Arm, Claim, Measure, Question, Study, image_fingerprint

STATIC = SMALLEST, SMALL, FULL = "8", "14", "20"
FIRST, AIG = "20, first half", "gates"
TIGHT, FRESH, SKIPNET = "gates, open rate 0.4", "gates from the start", "SkipNet"
TARGET = 0.6


def gates(**arguments: Any) -> Arm:
    """Gates on the network that the first half of the epochs trained."""
    settings = {"net": f"resnet{FULL}", "target": TARGET} | arguments
    return Arm("skipping", settings, {"init": FIRST}, {"epochs": 0.5})


ARMS: dict[str, Arm] = {
    FIRST: Arm("supervised", {"net": f"resnet{FULL}"}, scaled={"epochs": 0.5}),
    AIG: gates(),
    **{alone(d): Arm("supervised", {"net": f"resnet{d}"}) for d in (FULL, SMALL, SMALLEST)},
    TIGHT: gates(target=0.4),
    # two phases of as many epochs each
    SKIPNET: Arm(
        "skipping", {"net": f"resnet{FULL}", "method": "skipnet"}, {"init": FIRST}, {"epochs": 0.25}
    ),
    FRESH: Arm("skipping", {"net": f"resnet{FULL}", "target": TARGET}),
}


def record(arm: str, key: str) -> Measure:
    """A number of the measurement of gates."""
    return lambda results: float(results[arm]["skipping"][key])


def percent(measure: Measure) -> Measure:
    """100 times a number."""
    return lambda results: 100 * measure(results)


#: Named before the runs: gates keep the network's accuracy, beat a static network of their cost, and
#: what they decide matters.
PRIMARY = ("keeps-accuracy", "better-than-static", "better-than-chance")
CLAIMS = [
    versus(PRIMARY[0], "Gates keep the accuracy of the network, of as many epochs, within 1 point",
           "above ResNet-50 with 20 % less computation (abstract of ConvNet-AIG)", AIG,
           accuracy(alone(FULL), FULL), alone(FULL), -1.0, expected=0.0),
    versus(PRIMARY[1], "Gates are better than static networks of their mean cost, of as many epochs",
           "as above", AIG, static_at(STATIC, AIG),
           "static networks at its cost", expected=0.8),
    versus(PRIMARY[2], "Which images skip a block matters: gates are more than half a point above "
           "blocks that run for as many images, drawn at random", "not asked", AIG,
           percent(record(AIG, "random_accuracy")), "random images", 0.5, expected=1.5),
    times("saves/time", "In batches of 64, the speed-up is at least 0.9 of that by MACs", "not asked",
          "×", {"by the clock": of_speed(AIG, "skipping", "speed_up"),
           "by MACs": of_speed(AIG, "skipping", "by_macs")}, 0.9),
    versus("tight/static", "At open rates of 0.4, gates are better than static networks of their cost",
           "not asked", TIGHT, static_at(STATIC, TIGHT), "static networks at its cost"),
    versus("skipnet/static", "SkipNet is better than static networks of its mean cost",
           "not asked", SKIPNET, static_at(STATIC, SKIPNET),
           "static networks at its cost"),
    Claim("skipnet/cost", "SkipNet's reward lets images skip more than a tenth of the blocks",
          "70 to 50 % of the computation (SkipNet's code)", "% of the blocks",
          {SKIPNET: percent(record(SKIPNET, "mean"))},
          less(lambda r: 100.0, percent(record(SKIPNET, "mean"))), 10.0),
    versus("fresh", "Gates from the start are as good as on a trained network, within half a point",
           "from the start (ConvNet-AIG, 350 epochs)", FRESH, accuracy(AIG, "chosen"), AIG, -0.5),
]  # fmt: skip

STUDY = Study(
    key="skipping", arms=ARMS, claims=CLAIMS, primary=PRIMARY,
    note=("The papers train for 350 epochs and more on 32 pixels. Here gates start from a trained "
          "network, because 20 epochs from the start cost 8 points in a trial; the arm is there."),
    common={"data": "cifar10", "size": 16, "epochs": 40, "batch_size": 128, "val_fraction": 0.0},
    quick={"data": "digits", "part": "1/4", "size": None, "epochs": 2, "batch_size": 128},
    fingerprint=image_fingerprint,
    questions=[
        Question("Are gates better than static networks?", (alone("*"), f"{AIG}*"),
                 ("saves/*", "tight/*")),
        Question("Other ways to train gates", (AIG, FRESH, SKIPNET), ("skipnet/*", "fresh")),
    ],
    plot=Plot(Axis("million MACs an image", 1e-6), Axis("test accuracy, %", 100), {
        "networks alone": [Point(alone(d), f"{d}/macs", f"{d}/accuracy")
                           for d in (SMALLEST, SMALL, FULL)],
        "gates": [Point(arm, "chosen/macs", "chosen/accuracy") for arm in (TIGHT, AIG)],
        "SkipNet": [Point(SKIPNET, "chosen/macs", "chosen/accuracy")],
    }),
)  # fmt: skip
