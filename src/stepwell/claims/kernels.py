"""Conditional kernels: do kernels that are mixed for each image gain over one kernel of the same width?

ResNet-14 whose convolutions mix four kernels (DY-CNN), or eight in the last stage (CondConv), beside
ResNet-14 and ResNet-20 with one. All arms have as many epochs.

Control: a deeper network, which takes more time, as mixing does. Whether the gain comes from the
decisions or from the number of parameters, no arm tells.
"""

from typing import Any

from stepwell.claims.kit.figure import Axis, Plot, Point
from stepwell.claims.kit.measures import ACCURACY, alone, correct, less, macs_of, more, of_speed, times
from stepwell.claims.kit.study import Arm, Claim, Measure, Question, Study, image_fingerprint

DEPTH, DEEPER = "14", "20"
DYNAMIC, COND, EIGHT = "dynamic kernels", "CondConv", "dynamic kernels, eight"


def kernels(**arguments: Any) -> Arm:
    """ResNet-14 with mixed kernels."""
    return Arm("kernels", {"net": f"resnet{DEPTH}"} | arguments)


ARMS: dict[str, Arm] = {
    **{alone(d): Arm("supervised", {"net": f"resnet{d}"}) for d in (DEPTH, DEEPER)},
    DYNAMIC: kernels(),
    COND: kernels(method="condconv", kernels=8),
    EIGHT: kernels(kernels=8),
}


def by_class(arm: str, layer: int) -> Measure:
    """Share of the variance of the kernels' weights that classes explain, in a layer, in percent."""

    def measure(results: Any) -> float:
        layers = [*results[arm]["kernels"]["layers"].values()]
        return 100 * float(layers[layer]["by_class"])

    return measure


#: Named before the runs: mixed kernels gain at equal width, their weights depend on what is seen, and
#: they take little more time.
PRIMARY = ("better-at-equal-width", "by-content", "costs-little")
CLAIMS = [
    more(PRIMARY[0], "Dynamic kernels are better than one kernel at equal width and depth",
         "70.4 to 72.7 % for ResNet-18 (ImageNet; a third party's table)",
         correct(DYNAMIC, DEPTH), correct(alone(DEPTH), DEPTH), 0.0, ACCURACY, expected=1.0),
    Claim(PRIMARY[1], "The weights of the last layer's kernels depend on the class more than those of "
          "the first, by 5 points", "not read",
          "% of the variance by class",
          {"last layer": by_class(DYNAMIC, -1), "first layer": by_class(DYNAMIC, 0)},
          less(by_class(DYNAMIC, -1), by_class(DYNAMIC, 0)), 5.0, expected=15.0),
    times(PRIMARY[2], "In batches of 64, mixing takes at most 1.6 of the time of one kernel",
          "not asked", "images a second",
          {"one kernel": of_speed(DYNAMIC, "kernels", "fixed"),
           "mixed": of_speed(DYNAMIC, "kernels", "chosen")}, 1.6, below=True, expected=1.4),
    times("cost", "Mixing adds at most 5 % of MACs", "not read", "MACs",
          {DYNAMIC: macs_of(DYNAMIC, DEPTH), alone(DEPTH): macs_of(alone(DEPTH), DEPTH)}, 1.05,
          below=True),
    more("deeper", "Dynamic kernels are as good as the deeper network, within half a point",
         "not asked", correct(DYNAMIC, DEPTH), correct(alone(DEEPER), DEEPER), -0.5, ACCURACY),
    more("condconv", "CondConv is better than one kernel",
         "77.2 to 78.3 % (EfficientNet-B0; a third party's note)",
         correct(COND, DEPTH), correct(alone(DEPTH), DEPTH), 0.0, ACCURACY),
    more("eight", "Eight kernels are better than four", "91.77, 91.81 % (a reproduction of CondConv)",
         correct(EIGHT, DEPTH), correct(DYNAMIC, DEPTH), 0.0, ACCURACY),
]  # fmt: skip

STUDY = Study(
    key="kernels", arms=ARMS, claims=CLAIMS, primary=PRIMARY,
    note="Numbers of the papers are of other networks and data, and stand for the direction only.",
    common={"data": "cifar10", "size": 16, "epochs": 30, "batch_size": 128, "val_fraction": 0.0},
    quick={"data": "digits", "part": "1/4", "size": None, "epochs": 1, "batch_size": 128},
    fingerprint=image_fingerprint,
    questions=[
        Question("Do mixed kernels gain over one?", (alone("*"), DYNAMIC, COND, EIGHT),
                 ("cost", "deeper", "condconv", "eight")),
    ],
    plot=Plot(Axis("million MACs an image", 1e-6), Axis("test accuracy, %", 100), {
        "one kernel": [Point(alone(d), f"{d}/macs", f"{d}/accuracy") for d in (DEPTH, DEEPER)],
        "mixed kernels": [Point(arm, f"{DEPTH}/macs", f"{DEPTH}/accuracy")
                          for arm in (DYNAMIC, EIGHT, COND)],
    }),
)  # fmt: skip
