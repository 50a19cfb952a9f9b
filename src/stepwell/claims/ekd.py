"""Nested depths with embedded distillation: the claims of the paper's abstract, and their test.

Arms have equal data, augmentation and optimizer; no arm selects on test data (each keeps its last
epoch). All train for the same epochs but `two phases`: it starts from the full net trained alone, which
is its first phase, and goes on for half as many epochs at half the rate. Its seconds are those of both;
part of what it gains for the full net may come of the longer training.
"""

from collections.abc import Mapping
from typing import Any

from stepwell.claims.study import Arm, Claim, Measure, Study
from stepwell.data import load_images

SUB, FULL = "20", "32"
ALONE_SUB, ALONE_FULL = "sub-net alone", "full net alone"
OFFLINE, CE_ONLY = "offline KD", "nest, CE only"
PLAIN, ONE_RUN, TWO_PHASE = "EKD, plain", "EKD, one run", "EKD, two phases"

NESTED = {"net": "resnet32", "depths": (f"{SUB}=3,3,3",)}

ARMS = {
    ALONE_FULL: Arm("supervised", {"net": "resnet32"}),
    ALONE_SUB: Arm("supervised", {"net": "resnet20"}),
    OFFLINE: Arm("distill", {"student": "resnet20"}, needs={"teacher": ALONE_FULL}),
    CE_ONLY: Arm("ekd", NESTED | {"schedule": "plain", "kl": 0.0, "attention": 0.0}),
    PLAIN: Arm("ekd", NESTED | {"schedule": "plain"}),
    ONE_RUN: Arm("ekd", NESTED | {"schedule": "one-run"}),
    TWO_PHASE: Arm("ekd", NESTED | {"schedule": "two-phase"}, needs={"init": ALONE_FULL}),
}


def accuracy(arm: str, depth: str) -> Measure:
    """Test accuracy of a depth in percent."""
    return lambda results: 100 * results[arm]["test"][f"{depth}/accuracy"]


def seconds(*arms: str) -> Measure:
    """Processor seconds of training, of several arms together."""
    return lambda results: sum(results[arm]["cpu_seconds"] for arm in arms)


def less(a: Measure, b: Measure) -> Measure:
    """The difference a - b."""
    return lambda results: a(results) - b(results)


def ratio(a: Measure, b: Measure) -> Measure:
    """The quotient a / b."""
    return lambda results: a(results) / b(results)


COST = {
    ALONE_SUB: seconds(ALONE_SUB),
    ALONE_FULL: seconds(ALONE_FULL),
    OFFLINE: seconds(ALONE_FULL, OFFLINE),
    CE_ONLY: seconds(CE_ONLY),
    PLAIN: seconds(PLAIN),
    ONE_RUN: seconds(ONE_RUN),
    TWO_PHASE: seconds(ALONE_FULL, TWO_PHASE),
}
APART = seconds(ALONE_SUB, ALONE_FULL)
SUB_ACCURACY = {arm: accuracy(arm, SUB) for arm in ARMS if arm != ALONE_FULL}
FULL_ACCURACY = {arm: accuracy(arm, FULL) for arm in ARMS if arm not in (ALONE_SUB, OFFLINE)}

CLAIMS = []
for _arm in (PLAIN, ONE_RUN, TWO_PHASE):
    _id = _arm.removeprefix("EKD, ").replace(" ", "-")
    CLAIMS += [
        Claim(
            f"sub-net-gains/{_id}",
            f"Every sub-net trained with {_arm} beats the same network trained alone: the 90 % "
            "interval of the paired difference lies above 0.",
            "outperforms the same network trained alone (abstract; reference +1.1)",
            "% accuracy",
            SUB_ACCURACY,
            less(accuracy(_arm, SUB), accuracy(ALONE_SUB, SUB)),
            0.0,
        ),
        Claim(
            f"offline-kd/{_id}",
            f"{_arm} is at least as good as offline KD for the sub-net: the 90 % interval of the "
            "paired difference lies above -0.5.",
            "at least offline KD, at less cost",
            "% accuracy",
            SUB_ACCURACY,
            less(accuracy(_arm, SUB), accuracy(OFFLINE, SUB)),
            -0.5,
        ),
        Claim(
            f"full-net-unharmed/{_id}",
            f"The full net is not harmed by {_arm}: the 90 % interval of the paired difference from "
            "the full net trained alone lies above -0.5.",
            "not harmed (reference +0.9)",
            "% accuracy",
            FULL_ACCURACY,
            less(accuracy(_arm, FULL), accuracy(ALONE_FULL, FULL)),
            -0.5,
        ),
        Claim(
            f"cost/{_id}",
            f"{_arm} costs less than training the two nets one by one: the 90 % interval of the "
            "ratio of seconds lies below 1.",
            "one run costs less than two",
            "processor seconds",
            COST,
            ratio(COST[_arm], APART),
            1.0,
            below=True,
        ),
    ]


def fingerprint(common: Mapping[str, Any]) -> str:
    """Hash of the data that the arms train and test on."""
    splits = load_images(common["data"], common["size"])
    return f"{splits.train.fingerprint}/{splits.test.fingerprint}"


STUDY = Study(
    key="ekd",
    arms=ARMS,
    claims=CLAIMS,
    common={"data": "cifar10", "size": 16, "epochs": 40, "batch_size": 128, "val_fraction": 0.0},
    quick={"data": "digits", "size": None, "epochs": 1, "batch_size": 256},
    fingerprint=fingerprint,
)
