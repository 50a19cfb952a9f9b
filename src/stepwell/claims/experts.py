"""Mixture of experts: do experts of each token gain over one MLP of the same cost?

A vision transformer of six blocks, trained for the first half of the epochs, goes on with four experts
in place of each MLP, of which each token runs one, or as it is. So all arms take as many steps, and a
token costs as many MACs, but for the router's.

Controls: the transformer without experts; experts without the loss that keeps them all in use; two
experts a token, which cost more.
"""

from statistics import fmean
from typing import Any

from stepwell.claims.kit.figure import Axis, Plot, Point
from stepwell.claims.kit.measures import ACCURACY, correct, level, macs_of, more, of_speed, times
from stepwell.claims.kit.study import Arm, Measure, Question, Study, image_fingerprint

DEPTH = "6"
FIRST, DENSE = "first half", "no experts"
SWITCH, NOISY, TWO = "Switch", "noisy scores", "Switch, two experts a token"
UNBALANCED, EIGHT = "Switch, no balance", "Switch, eight experts"
#: AdamW's, as is usual for transformers.
COMMON: dict[str, Any] = {"net": "vit6", "optimizer": "adamw", "lr": 5e-4}


def second_half(recipe: str, **arguments: Any) -> Arm:
    """The second half of the epochs, from the network of the first."""
    return Arm(recipe, COMMON | arguments, {"init": FIRST}, {"epochs": 0.5})


def experts(**arguments: Any) -> Arm:
    """Four experts, each a copy of the MLP at first."""
    return second_half("experts", **({"router": "switch"} | arguments))


ARMS: dict[str, Arm] = {
    FIRST: Arm("supervised", COMMON, scaled={"epochs": 0.5}),
    DENSE: second_half("supervised"),
    SWITCH: experts(),
    NOISY: experts(router="noisy"),
    TWO: experts(top_k=2),
    UNBALANCED: experts(balance_weight=0.0),
    EIGHT: experts(experts=8),
}


def spread_of_use(arm: str) -> Measure:
    """Coefficient of variation of the experts' shares of tokens, a mean over layers."""
    return lambda results: fmean(layer["cv"] for layer in results[arm]["experts"]["layers"].values())


#: Named before the runs: experts gain at equal cost, all are used, and they save time.
PRIMARY = ("better-at-equal-cost", "all-are-used", "saves-time")
CLAIMS = [
    more(PRIMARY[0], "Four experts, one a token, are better than one MLP of as many MACs, in as many "
         "steps", "better at equal computation, in language models (not read)", correct(SWITCH, DEPTH),
         correct(DENSE, DEPTH), 0.0, ACCURACY, expected=1.5),
    level(PRIMARY[1], "All experts are used: the coefficient of variation of their shares is below 0.5",
          "the balance loss is for it (Shazeer et al.)",
          (SWITCH, spread_of_use(SWITCH)), 0.5, "of the mean share", below=True, expected=0.3),
    times(PRIMARY[2], "In batches of 64, the speed-up over running all experts is at least 0.8 of that "
          "by MACs", "not asked", "×",
          {"by the clock": of_speed(SWITCH, "experts", "speed_up"),
           "by MACs": of_speed(SWITCH, "experts", "by_macs")}, 0.8, expected=0.9),
    times("cost", "The router adds at most 3 % of MACs", "not asked", "MACs",
          {SWITCH: macs_of(SWITCH, DEPTH), DENSE: macs_of(DENSE, DEPTH)}, 1.03, below=True),
    more("noisy", "Noisy scores are as good as Switch, within half a point", "not compared",
         correct(NOISY, DEPTH), correct(SWITCH, DEPTH), -0.5, ACCURACY),
    more("two", "Two experts a token are better than one", "not compared", correct(TWO, DEPTH),
         correct(SWITCH, DEPTH), 0.0, ACCURACY),
    more("eight", "Eight experts are better than four", "not read",
         correct(EIGHT, DEPTH), correct(SWITCH, DEPTH), 0.0, ACCURACY),
    more("balance", "The balance loss keeps experts in use: without it their shares vary more",
         "not read",
         (UNBALANCED, spread_of_use(UNBALANCED)), (SWITCH, spread_of_use(SWITCH)), 0.0,
         "of the mean share", judged_in="of the mean share"),
]  # fmt: skip

STUDY = Study(
    key="experts", arms=ARMS, claims=CLAIMS, primary=PRIMARY,
    note="The papers train language models; none of their numbers is beside ours.",
    common={"data": "cifar10", "size": 16, "epochs": 16, "batch_size": 128, "val_fraction": 0.0},
    quick={"data": "digits", "part": "1/4", "size": None, "epochs": 2, "batch_size": 128},
    fingerprint=image_fingerprint,
    questions=[
        Question("Do experts gain at equal cost?", (FIRST, DENSE, SWITCH, TWO), ("cost", "two")),
        Question("Which router, and how many experts?", (SWITCH, NOISY, UNBALANCED, EIGHT),
                 ("noisy", "eight", "balance")),
    ],
    plot=Plot(Axis("million MACs an image", 1e-6), Axis("test accuracy, %", 100), {
        "no experts": [Point(DENSE, f"{DEPTH}/macs", f"{DEPTH}/accuracy")],
        "experts": [Point(arm, f"{DEPTH}/macs", f"{DEPTH}/accuracy") for arm in (SWITCH, TWO)],
    }),
)  # fmt: skip
