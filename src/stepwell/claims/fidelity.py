"""Does knowledge distillation really work? The findings of Stanton et al. 2021, and their test.

What is trained and compared is in `fidelity_arms`. The paper's networks are larger and their data more,
so that order and gaps are tested, not values. Each margin was set before the study was run.
"""

from collections.abc import Callable
from typing import Any

from stepwell.claims.fidelity_arms import (
    ADAM,
    ARMS,
    COLD,
    COMBINED,
    CUTMIX,
    DEEP,
    EASY,
    FAR,
    FIVE,
    LABELS,
    LONG,
    MIXUP,
    NEAR,
    NESTED,
    NOISE,
    OF_ANOTHER,
    OF_OTHERS,
    OFFLINE,
    OFFLINE_OTHER,
    OTHER,
    SELF,
    SHARED_START,
    SLOW,
    STARTS,
    THREE,
    THREE_WHOLE,
    WHOLE,
    start,
)
from stepwell.claims.measures import greatest, least, less, of_test
from stepwell.claims.shown import Column
from stepwell.claims.study import Claim, Measure, Study, image_fingerprint

#: A measure of an arm, by its name.
Of = Callable[[str], Measure]


def agreement(arm: str, images: str = "test") -> Measure:
    """Top-1 agreement of an arm's student with its teacher in percent."""
    return of_test(arm, f"{images}/agreement", 100)


def accuracy(arm: str, whose: str = "") -> Measure:
    """Test accuracy of an arm's student, or of its teacher, in percent."""
    return of_test(arm, f"test/{whose}accuracy", 100)


def transfer(arm: str) -> Measure:
    """Test agreement less the control's, in points."""
    return of_test(arm, "test/transfer", 100)


def minus(a: Measure) -> Measure:
    """The number's negative."""
    return lambda results: -a(results)


def each(of: Of, *arms: str) -> dict[str, Measure]:
    """One measure of several arms, by their names."""
    return {arm: of(arm) for arm in arms}


def seen(arm: str) -> Measure:
    """Agreement on the images that the student was taught on, changed as it saw them."""
    return agreement(arm, "seen")


def more(
    id: str,
    text: str,
    paper: str,
    of: Of,
    a: str,
    b: str,
    margin: float = 0.0,
    *,
    below: bool = False,
    note: str = "",
) -> Claim:
    """A claim about how much more one arm has of a measure than another."""
    return points(id, text, paper, each(of, a, b), less(of(a), of(b)), margin, below, note)


def points(
    id: str,
    text: str,
    paper: str,
    measured: dict[str, Measure],
    judged: Measure,
    margin: float,
    below: bool = False,
    note: str = "",
    unit: str = "%",
    judged_in: str = "points",
) -> Claim:
    """A claim whose rule is on which side of the margin the judged number's interval lies."""
    side = "below" if below else "above"
    rule = f"{text}: the 90 % interval lies {side} {margin:g}."
    return Claim(id, rule, paper, unit, measured, judged, margin, below, note, judged_in)


def up_and_down(a: str, b: str, up: bool) -> tuple[dict[str, Measure], Measure]:
    """Agreement and accuracy of two arms; the lesser of a's gain in agreement and, if not `up`, its
    loss in accuracy, else its gain.
    """
    measured = {f"{arm}: {n}": of(arm) for arm in (a, b)
                for n, of in (("agreement", agreement), ("accuracy", accuracy))}  # fmt: skip
    gain = less(accuracy(a), accuracy(b))
    closer = less(agreement(a), agreement(b))
    return measured, least([closer, gain if up else minus(gain)])


def ece(arm: str) -> Measure:
    """Expected calibration error of an arm's student on test images."""
    return of_test(arm, "test/ece")


def of_most_faithful(*arms: str) -> Measure:
    """Calibration error of the student that agrees most with its teacher, less the others' least."""

    def measure(results: Any) -> float:
        best = max(arms, key=lambda arm: agreement(arm)(results))
        return ece(best)(results) - min(ece(arm)(results) for arm in arms if arm != best)

    return measure


FIG3 = "an ensemble of 5 ResNet-56, CIFAR-100 (Fig 3, read off)"
SINGLE = "The paper's teacher is an ensemble of 5, this one a single network."
COOLER = "The paper's numbers are of temperature 1, ours of 4."
NORMS = "The paper's net has LayerNorm and no weight decay there, ours BatchNorm and decay 5e-4"
PRIMARY = {
    "student-beats-teacher", "test-agreement", "little-transfer", "train-agreement", "longer", "basin",
    "mixup", "recycling/fidelity", "recycling/accuracy", "closer-is-not-better",
}  # fmt: skip

CLAIMS = [
    points(
        "student-beats-teacher",
        "A self-distilled student is more accurate than its teacher on test images",
        "ResNet-56, CIFAR-100: about 74.0, teacher 71.0 (Fig 10, read off); ImageNet 75.3, teacher "
        "74.8; IMDB 80.35, teacher 79.36 (Table 2)",
        {"student": accuracy(SELF), "teacher": accuracy(SELF, "teacher/")},
        of_test(SELF, "test/gain", 100),
        0.0,
        note="Fig 10 is of temperature 1, ours of 4.",
    ),
    points(
        "test-agreement",
        "A self-distilled student, which has capacity enough, agrees with its teacher on far from all "
        "test images",
        "ResNet-20: 77.17 ± .35 (Table 1); ImageNet 85.5; IMDB 86.5 (Table 2)",
        each(agreement, SELF),
        agreement(SELF),
        90.0,
        below=True,
        judged_in="%",
    ),
    points(
        "little-transfer",
        "It agrees little more than a student of another teacher: the difference, in points",
        "near that of an independent student",
        {SELF: agreement(SELF), OF_ANOTHER: of_test(SELF, "test/control/agreement", 100)},
        transfer(SELF),
        5.0,
        below=True,
    ),
    points(
        "some-transfer",
        "But it does agree more than a student of another teacher: the difference, in points",
        "only the difference is evidence of transfer",
        {SELF: agreement(SELF), OF_ANOTHER: of_test(SELF, "test/control/agreement", 100)},
        transfer(SELF),
        0.0,
    ),
    points(
        "easy-task",
        "Where the teacher knows 200 digits and the student sees all, it does match",
        "MNIST, LeNet-5: above 99 (Fig 2)",
        each(agreement, EASY),
        agreement(EASY),
        97.0,
        judged_in="%",
    ),
    points(
        "easy-task/no-gain",
        "And then is no more accurate than its teacher: the gain, in points",
        "no accuracy gain (Fig 2)",
        {"student": accuracy(EASY), "teacher": accuracy(EASY, "teacher/")},
        of_test(EASY, "test/gain", 100),
        1.0,
        below=True,
    ),
    points(
        "train-agreement",
        "The student does not match its teacher on the very images that it was taught on",
        "ResNet-20 with LayerNorm: 78.95 after 300 epochs (Sec 6.2)",
        each(seen, SELF),
        seen(SELF),
        95.0,
        below=True,
        note=f"{NORMS}.",
        judged_in="%",
    ),
    points(
        "longer",
        "Training three times as long does not change this",
        "83.3 after 5,000 epochs, 78.95 after 300 (Sec 6.2)",
        each(seen, LONG, SELF),
        seen(LONG),
        95.0,
        below=True,
        note=f"{NORMS}.",
        judged_in="%",
    ),
    more("adam", "Nor does Adam, which agrees less there", "lower (Sec 6.2)", seen, ADAM, SELF,
         below=True, note=f"{NORMS}, for Adam as L2 in the gradient."),
    more("combined/train", "Heavy augmentation makes it harder to agree on what it is taught on",
         "about 60, other heavy augmentations 80 to 90 (Fig 5)", seen, COMBINED, SELF, below=True),
    points(
        "basin",
        "Students that start at 0.375 or more of their teacher's weights agree more on what they are "
        "taught on than those that start further off, at whatever rate: the least less the greatest",
        "about 80 from 0, a jump between 0.25 and 0.375, about 100 above (Fig 6b, read off)",
        {**each(seen, *map(start, STARTS)), **each(seen, *(start(0.0, r) for r in SLOW))},
        less(
            least([seen(start(share)) for share in NEAR]),
            greatest([*(seen(start(s)) for s in FAR), *(seen(start(0.0, r)) for r in SLOW)]),
        ),
        5.0,
    ),
    points(
        "basin/near",
        "Students that start at 0.375 or more match their teacher there: the least",
        "about 100 (Fig 6b, read off)",
        each(seen, *map(start, NEAR)),
        least([seen(start(share)) for share in NEAR]),
        98.0,
        judged_in="%",
    ),
    points(
        "basin/far",
        "Those that start at 0.25 or less do not: the greatest",
        "about 80 (Fig 6b, read off)",
        each(seen, *map(start, FAR)),
        greatest([seen(start(share)) for share in FAR]),
        95.0,
        below=True,
        judged_in="%",
    ),
    points(
        "basin/at-the-teacher",
        "A student that starts as its teacher stays so",
        "about 100 (Fig 6b, read off)",
        each(seen, start(1.0)),
        seen(start(1.0)),
        99.5,
        note="But for rounding it must: equal predictions give no gradient, and nothing decays.",
        judged_in="%",
    ),
    more("basin/rate", "It is not the smaller rate alone that brings a student nearer",
         "not asked", seen, start(0.375), start(0.0, 0.375), 5.0),
    more("shared-start", "The teacher's own initial weights do not help", "77.10 ± .24, from others "
         "77.17 ± .35 (Table 1)", agreement, SHARED_START, SELF, 1.0, below=True,
         note="Student and teacher have one seed then, and so see one order of images, too."),
    points(
        "shared-start/kl",
        "Nor in KL(teacher || student): what it falls by, in nats",
        ".838 ± .020, from others .836 ± .016 (Table 1)",
        {arm: of_test(arm, "test/kl") for arm in (SHARED_START, SELF)},
        less(of_test(SELF, "test/kl"), of_test(SHARED_START, "test/kl")),
        0.05,
        below=True,
        unit="nats",
        judged_in="nats",
    ),
    more("mixup", "MixUp makes the student more faithful on test images", "86, without 84.5 (text); "
         f"{FIG3}", agreement, MIXUP, SELF, note=SINGLE),
    more("temperature", "So does temperature 4, compared with 1", f"83.5, at 1 79: {FIG3}",
         agreement, SELF, COLD, note=SINGLE),
    more("combined/test", "So does combined augmentation", f"83.5, without 79: {FIG3}",
         agreement, COMBINED, SELF, note=f"{SINGLE} {COOLER}"),
    more("noise", "Noise images do not", f"78.5, without 79: {FIG3}", agreement, NOISE, SELF, 0.5,
         below=True, note=f"{SINGLE} {COOLER}"),
    more("cutmix", "CutMix makes the student more faithful on test images", "not asked",
         agreement, CUTMIX, SELF, note=SINGLE),
    more("recycling/fidelity", "A student of images that its teacher has not seen is more faithful "
         "than one of the teacher's own", "higher (Fig 4)", agreement, OTHER, SELF),
    more("recycling/accuracy", "A student of the teacher's own images is more accurate",
         "higher (Fig 4)", accuracy, SELF, OTHER),
    points(
        "recycling/both",
        "A student of both halves has the best of both: the lesser of its leads in agreement over the "
        "one and in accuracy over the other",
        "best of both (Fig 4)",
        {**{f"{arm}: agreement": agreement(arm) for arm in (WHOLE, OTHER)},
         **{f"{arm}: accuracy": accuracy(arm) for arm in (WHOLE, SELF)}},
        least([less(agreement(WHOLE), agreement(OTHER)), less(accuracy(WHOLE), accuracy(SELF))]),
        -0.5,
    ),
    points(
        "closer-is-not-better",
        "With more images a self-distilled student is closer to its teacher and less accurate: the "
        "lesser of what agreement gains and accuracy loses",
        "agreement 72.5 to 74.5, accuracy 72.0 to 71.0 (Fig 1a, read off)",
        *up_and_down(WHOLE, SELF, up=False),
        0.0,
        note="The paper's images are a generator's; ours are real ones, unlabelled.",
    ),
    points(
        "closer-is-not-better/other-images",
        "On other images, as many, a student is closer to its teacher and less accurate",
        "Fig 4",
        *up_and_down(OTHER, SELF, up=False),
        0.0,
    ),
    points(
        "closer-is-better/ensemble",
        "With more images a student of an ensemble is both closer and more accurate",
        "agreement 77 to 80 (Fig 1b, read off)",
        *up_and_down(THREE_WHOLE, THREE, up=True),
        0.0,
    ),
    more("ensemble/3", "An ensemble of 3 is easier to match than a single network",
         "82.5 and 77.5 (Fig 10, read off)", agreement, THREE, SELF, note=COOLER),
    more("ensemble/5", "One of 5 is easier to match than one of 3",
         "84.5 and 82.5 (Fig 10, read off)", agreement, FIVE, THREE, note=COOLER),
    points(
        "ensemble/transfer",
        "Its student agrees more than a student of another ensemble: the difference, in points",
        "not asked",
        {THREE: agreement(THREE), OF_OTHERS: of_test(THREE, "test/control/agreement", 100)},
        transfer(THREE),
        0.0,
    ),
    more("capacity", "A student of 2.5 × the blocks gains only a few points", "2 to 3 (C.1)",
         agreement, DEEP, SELF, 5.0, below=True),
    more("labels", "Labels do not help fidelity", "78.0 at 0.5, 78.5 without (ensemble of 5; Fig 14, "
         "read off)", agreement, LABELS, SELF, 0.5, below=True, note=f"{SINGLE} {COOLER}"),
    points(
        "calibration",
        "Of the students of ensembles the most faithful is calibrated best: its ECE less the least of "
        "the others",
        "best calibrated, not always the most accurate (Sec 7)",
        {f"{arm}: {n}": of(arm) for arm in (THREE, FIVE, THREE_WHOLE)
         for n, of in (("agreement, %", agreement), ("ECE", ece))},
        of_most_faithful(THREE, FIVE, THREE_WHOLE),
        0.0,
        below=True,
        unit="",
        judged_in="",
    ),
    more("ekd/agreement", "A sub-net agrees more with the net that holds it than an offline student "
         "with its teacher", "not asked", agreement, NESTED, OFFLINE,
         note="EKD has labels, attention, a third of the passes for the sub-net: its default recipe."),
    points(
        "ekd/transfer",
        "A sub-net agrees more with the net that holds it than a network of its depth that never met "
        "it: the difference, in points",
        "not asked",
        {NESTED: agreement(NESTED), OFFLINE_OTHER: of_test(NESTED, "test/control/agreement", 100)},
        transfer(NESTED),
        0.0,
    ),
    points(
        "ekd/transfer-beyond-offline",
        "And by more than an offline student does with its teacher, in points",
        "not asked",
        {f"{arm}: transfer": transfer(arm) for arm in (NESTED, OFFLINE)},
        less(transfer(NESTED), transfer(OFFLINE)),
        0.0,
        unit="points",
    ),
    points(
        "ekd/disagreement",
        "But it does not match it, either",
        "not asked",
        each(agreement, NESTED),
        agreement(NESTED),
        95.0,
        below=True,
        judged_in="%",
    ),
]  # fmt: skip

STUDY = Study(
    key="fidelity",
    arms=ARMS,
    claims=CLAIMS,
    primary=PRIMARY,
    common={"data": "cifar10", "size": 16, "epochs": 30, "batch_size": 128, "val_fraction": 0.0},
    quick={"data": "digits", "size": None, "epochs": 1, "batch_size": 256},
    fingerprint=image_fingerprint,
    table=[
        Column("test/agreement", "test agreement"),
        Column("test/transfer", "beyond control"),
        Column("train/agreement", "train agreement"),
        Column("seen/agreement", "agreement as seen"),
        Column("test/kl", "test KL", 1.0, ".3f"),
        Column("test/accuracy", "accuracy"),
        Column("test/teacher/accuracy", "teacher's"),
        Column("test/ece", "ECE", 1.0, ".3f"),
        Column("test/teacher/ece", "teacher's ECE", 1.0, ".3f"),
    ],
    panels=[
        Column("test/agreement", "agreement on test images", unit="top-1 agreement, %"),
        Column("seen/agreement", "on images as the student saw them", unit="top-1 agreement, %"),
        Column("test/accuracy", "accuracy", unit="test accuracy, %"),
    ],
)
