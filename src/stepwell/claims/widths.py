"""Dynamic width: does a gate that picks the width of each image gain over static networks and chance?

ResNet-20 of four widths (slimmable), and a gate that learns on images that the network has not seen.
A tenth of the training images sets the cost penalty, another tenth teaches the gate; networks alone
leave out the first tenth only. So the arm whose gate learns on the network's own images tells what four
widths cost the widest.

Controls: networks of one width and fewer blocks, at the mean cost; as many images at each width, drawn
at random; the cheapest width that is right (an oracle).
"""

from typing import Any

from stepwell.claims.kit.figure import Axis, Plot, Point
from stepwell.claims.kit.measures import (
    ACCURACY,
    accuracy,
    alone,
    more,
    of_speed,
    static_at,
    times,
    versus,
)
from stepwell.claims.kit.study import Arm, Measure, Question, Study, image_fingerprint

STATIC = SMALLEST, SMALL, FULL = "8", "14", "20"
DOUBT, STEM, TIGHT = "gate by doubt", "gate on the stem", "gate by doubt, target 0.3"
SANDWICH, SEEN = "gate by doubt, sandwich", "gate by doubt, on images of the network"
TARGET = 0.5


def widths(**arguments: Any) -> Arm:
    """ResNet-20 of four widths, and a gate."""
    return Arm("widths", {"net": f"resnet{FULL}", "target_cost": TARGET} | arguments)


ARMS: dict[str, Arm] = {
    **{alone(d): Arm("supervised", {"net": f"resnet{d}"}) for d in (FULL, SMALL, SMALLEST)},
    DOUBT: widths(),
    STEM: widths(gate="stem"),
    TIGHT: widths(target_cost=0.3),
    SANDWICH: widths(sandwich=True),
    SEEN: widths(gate_fraction=0.0),
}


def control(arm: str, key: str) -> Measure:
    """Accuracy in percent of another way to choose widths at the arm's mean cost."""
    return lambda results: 100 * float(results[arm]["widths"]["controls"][key])


#: Named before the runs: widths and gate beat static networks of their cost, the gate's choices
#: matter, and the network of all widths is as good as one of full width.
PRIMARY = ("better-than-static", "better-than-chance", "network-unharmed")
CLAIMS = [
    versus(PRIMARY[0], "Widths and gate are better than static networks of their mean cost",
           "a figure (DS-Net)", DOUBT, static_at(STATIC, DOUBT), "static networks at its cost",
           expected=1.0),
    versus(PRIMARY[1], "Which image runs at which width matters: the gate is better than as many "
           "images at each width, drawn at random", "not asked", DOUBT, control(DOUBT, "random"),
           "random images", expected=0.6),
    more(PRIMARY[2], "Four widths in one network do not harm the widest by more than 1.5 points",
         "24.0 % error of ResNet-50 at full width (README of slimmable networks)",
         (f"{SEEN}: 1", accuracy(SEEN, "1")), (alone(FULL), accuracy(alone(FULL), FULL)), -1.5,
         ACCURACY, expected=0.0),
    times("saves/time", "In batches of 64, the speed-up is at least 0.8 of that by MACs", "not asked",
          "×", {"by the clock": of_speed(DOUBT, "widths", "speed_up"),
                "by MACs": of_speed(DOUBT, "widths", "by_macs")}, 0.8),
    versus("line", "The gate is better than the best mixture of two widths at its cost", "not asked",
           DOUBT, control(DOUBT, "line"), "mixture of two widths"),
    versus("tight/static", "At a target of 0.3, it is better than static networks of its cost",
           "not asked", TIGHT, static_at(STATIC, TIGHT), "static networks at its cost"),
    versus("tight/chance", "At a target of 0.3, it is better than random images", "not asked", TIGHT,
           control(TIGHT, "random"), "random images"),
    versus("stem/chance", "A gate on the stem is better than random images",
           "a gate in the network (DS-Net)", STEM, control(STEM, "random"), "random images"),
    versus("seen/chance", "A gate that learns on the network's own images is better than random images",
           "not asked", SEEN, control(SEEN, "random"), "random images"),
    more("sandwich", "The sandwich rule helps the narrowest width", "part of the method (US-Nets)",
         (SANDWICH, accuracy(SANDWICH, "0.25")), (DOUBT, accuracy(DOUBT, "0.25")), 0.0, ACCURACY),
    more("oracle", "The cheapest right width, an oracle, is more than 3 points above the gate: better "
         "decisions would pay", "not asked", ("oracle", control(DOUBT, "oracle")),
         (DOUBT, accuracy(DOUBT, "chosen")), 3.0, ACCURACY, pool="oracle"),
]  # fmt: skip

STUDY = Study(
    key="widths", arms=ARMS, claims=CLAIMS, primary=PRIMARY,
    note="The papers train on ImageNet; none of their numbers is beside ours but where it says so.",
    common={"data": "cifar10", "size": 16, "epochs": 30, "batch_size": 128, "val_fraction": 0.1},
    quick={"data": "digits", "part": "1/4", "size": None, "epochs": 1, "batch_size": 128},
    fingerprint=image_fingerprint,
    questions=[
        Question("Are widths and a gate better than static networks?", (alone("*"), DOUBT, TIGHT),
                 ("saves/*", "line", "tight/*", "oracle")),
        Question("Which gate, and which training?", ("gate *",), ("stem/*", "seen/*", "sandwich")),
    ],
    plot=Plot(Axis("million MACs an image", 1e-6), Axis("test accuracy, %", 100), {
        "networks alone": [Point(alone(d), f"{d}/macs", f"{d}/accuracy")
                           for d in (SMALLEST, SMALL, FULL)],
        "widths, for all images": [Point(DOUBT, f"{w}/macs", f"{w}/accuracy")
                                   for w in ("0.25", "0.5", "0.75", "1")],
        "gates by doubt": [Point(arm, "chosen/macs", "chosen/accuracy") for arm in (TIGHT, DOUBT)],
        "gate on the stem": [Point(STEM, "chosen/macs", "chosen/accuracy")],
    }),
)  # fmt: skip
