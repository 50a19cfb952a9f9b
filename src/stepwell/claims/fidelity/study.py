"""Does knowledge distillation really work? The findings of Stanton et al. 2021, and their test.

`arms` has the trainings and comparisons. The paper's networks and data sets are larger, so claims test
order and gaps, not values. Each margin was set before its arms were run.
"""

from collections.abc import Callable
from typing import Any

from stepwell.claims.fidelity.arms import (
    ADAM,
    AGAINST_SUBNETS,
    ARMS,
    COLD,
    COMBINED,
    COMPOSITES,
    CUTMIX,
    DEEP,
    EASY,
    FAR,
    FIVE,
    GENERATED,
    LABELS,
    LONG,
    MIXUP,
    NEAR,
    NESTED,
    NOISE,
    OF_ANOTHER,
    OF_OTHERS,
    OFFLINE_OWN,
    OTHER,
    OTHER_DOMAIN,
    SELF,
    SHARED_ONLY,
    SHARED_START,
    SLOW,
    STARTS,
    THREE,
    THREE_WHOLE,
    WHOLE,
    start,
)
from stepwell.claims.kit import measures
from stepwell.claims.kit.columns import Column
from stepwell.claims.kit.figure import Axis, Plot, Point
from stepwell.claims.kit.measures import greatest, least, less, of_test
from stepwell.claims.kit.study import Claim, Measure, Question, Study, image_fingerprint

#: A measure of an arm, by its name.
Of = Callable[[str], Measure]


def agreement(arm: str, images: str = "test") -> Measure:
    """Top-1 agreement of an arm's student with its teacher in percent."""
    return of_test(arm, f"{images}/agreement", 100)


def accuracy(arm: str, whose: str = "") -> Measure:
    """Test accuracy of an arm's student, or of its teacher, in percent."""
    return of_test(arm, f"test/{whose}accuracy", 100)


def transfer(arm: str) -> Measure:
    """Test agreement minus the control's, in points."""
    return of_test(arm, "test/transfer", 100)


def each(of: Of, *arms: str) -> dict[str, Measure]:
    """One measure of several arms, by their names."""
    return {arm: of(arm) for arm in arms}


def seen(arm: str) -> Measure:
    """Agreement on the student's training images, augmented as it saw them."""
    return agreement(arm, "seen")


def more(
    id: str, text: str, paper: str, of: Of, a: str, b: str, margin: float = 0.0, **options: Any
) -> Claim:
    """A claim about the difference of one measure between two arms."""
    return measures.more(id, text, paper, (a, of(a)), (b, of(b)), margin, **options)


def up_and_down(a: str, b: str, up: bool) -> tuple[dict[str, Measure], Measure]:
    """Agreement and accuracy of two arms, and the lesser of two gains of `a` over `b`.

    Args:
        up: the second gain is in accuracy; else it is the loss in accuracy.
    """
    measured = {f"{arm}: {n}": of(arm) for arm in (a, b)
                for n, of in (("agreement", agreement), ("accuracy", accuracy))}  # fmt: skip
    gain = less(accuracy(a), accuracy(b)) if up else less(accuracy(b), accuracy(a))
    return measured, least([less(agreement(a), agreement(b)), gain])


def ece(arm: str) -> Measure:
    """Expected calibration error of an arm's student on test images."""
    return of_test(arm, "test/ece")


def of_most_faithful(*arms: str) -> Measure:
    """Calibration error of the student that agrees most with its teacher, minus the others' least."""

    def measure(results: Any) -> float:
        best = max(arms, key=lambda arm: agreement(arm)(results))
        return ece(best)(results) - min(ece(arm)(results) for arm in arms if arm != best)

    return measure


FIG3 = "an ensemble of 5 ResNet-56, CIFAR-100 (Fig 3, read off)"
SINGLE = "The paper's teacher is an ensemble of 5, this one a single network."
COOLER = "The paper's numbers are of temperature 1, ours of 4."
NORMS = "The paper's net has LayerNorm and no weight decay there, ours BatchNorm and decay 5e-4"
#: Findings a, b and c of the paper's abstract: distillation can improve a student; it agrees with its
#: teacher on far from all images; optimisation is a key reason.
PRIMARY = ("student-beats-teacher", "test-agreement", "train-agreement")

CLAIMS = [
    Claim("student-beats-teacher", "A self-distilled student is more accurate than its teacher on "
          "test images", "ResNet-56, CIFAR-100: about 74.0, teacher 71.0 (Fig 10, read off); "
          "ImageNet 75.3, teacher 74.8; IMDB 80.35, teacher 79.36 (Table 2)", "%",
          {"student": accuracy(SELF), "teacher": accuracy(SELF, "teacher/")},
          of_test(SELF, "test/gain", 100), 0.0, note="Fig 10 is of temperature 1, ours of 4.",
          expected=3.0),
    Claim("test-agreement", "A self-distilled student, which has capacity enough, agrees with its "
          "teacher on far from all test images", "ResNet-20: 77.17 ± .35 (Table 1); ImageNet 85.5; "
          "IMDB 86.5 (Table 2)", "%", each(agreement, SELF), agreement(SELF), 90.0, below=True,
          expected=77.2, judged_in="%"),
    Claim("little-transfer", "A self-distilled student agrees with its teacher little more than a "
          "student of another teacher does: the difference, in points",
          "near that of an independent student", "%",
          {SELF: agreement(SELF), OF_ANOTHER: of_test(SELF, "test/control/agreement", 100)},
          transfer(SELF), 5.0, pool="transfer", below=True),
    Claim("some-transfer", "A self-distilled student agrees with its teacher more than a student "
          "of another teacher does: the difference, in points", "only the difference is evidence "
          "of transfer", "%",
          {SELF: agreement(SELF), OF_ANOTHER: of_test(SELF, "test/control/agreement", 100)},
          transfer(SELF), 0.0, pool="transfer"),
    Claim("easy-task", "Where the teacher knows 200 digits and the student sees all, the student "
          "matches it", "MNIST, LeNet-5: above 99 (Fig 2)", "%", each(agreement, EASY),
          agreement(EASY), 97.0, judged_in="%"),
    Claim("easy-task/no-gain", "Where it matches a teacher of 200 digits, a student is no more "
          "accurate: the gain, in points", "no accuracy gain (Fig 2)", "%",
          {"student": accuracy(EASY), "teacher": accuracy(EASY, "teacher/")},
          of_test(EASY, "test/gain", 100), 1.0, below=True),
    Claim("train-agreement", "A self-distilled student does not match its teacher on the very "
          "images that it was taught on", "ResNet-20 with LayerNorm: 78.95 after 300 epochs (Sec "
          "6.2)", "%", each(seen, SELF), seen(SELF), 95.0, below=True, expected=79.0,
          note=f"{NORMS}.", judged_in="%"),
    Claim("longer", "A student trained three times as long does not match its teacher on what it "
          "is taught on, either", "83.3 after 5,000 epochs, 78.95 after 300 (Sec 6.2)", "%",
          each(seen, LONG, SELF), seen(LONG), 95.0, below=True, note=f"{NORMS}.", judged_in="%"),
    more("adam", "A student trained by Adam agrees less on what it is taught on than one by SGD",
         "lower (Sec 6.2)", seen, ADAM, SELF, below=True,
         note=f"{NORMS}, for Adam as L2 in the gradient."),
    more("combined/train", "Heavy augmentation makes it harder to agree on what it is taught on",
         "about 60, other heavy augmentations 80 to 90 (Fig 5)", seen, COMBINED, SELF, below=True),
    Claim("basin", "Students that start at 0.375 or more of their teacher's weights agree more on "
          "what they are taught on than those that start further off, at whatever rate: the least "
          "less the greatest", "about 80 from 0, a jump between 0.25 and 0.375, about 100 above "
          "(Fig 6b, read off)", "%",
          {**each(seen, *map(start, STARTS)), **each(seen, *(start(0.0, r) for r in SLOW))},
          less(least([seen(start(share)) for share in NEAR]),
               greatest([*(seen(start(s)) for s in FAR), *(seen(start(0.0, r)) for r in SLOW)])),
          5.0, pool="starts"),
    Claim("basin/near", "Students that start at 0.375 or more of their teacher's weights match it "
          "on what they are taught on: the least", "about 100 (Fig 6b, read off)", "%",
          each(seen, *map(start, NEAR)), least([seen(start(share)) for share in NEAR]), 98.0,
          judged_in="%"),
    Claim("basin/far", "Students that start at 0.25 or less of their teacher's weights do not "
          "match it on what they are taught on: the greatest", "about 80 (Fig 6b, read off)", "%",
          each(seen, *map(start, FAR)), greatest([seen(start(share)) for share in FAR]), 95.0,
          below=True, judged_in="%"),
    Claim("basin/at-the-teacher", "A student that starts as its teacher stays so",
          "about 100 (Fig 6b, read off)", "%", each(seen, start(1.0)), seen(start(1.0)), 99.5,
          note="But for rounding it must: equal predictions give no gradient, and nothing decays.",
          judged_in="%"),
    more("basin/rate", "It is not the smaller rate alone that brings a student nearer",
         "not asked", seen, start(0.375), start(0.0, 0.375), 5.0, pool="starts"),
    more("shared-start", "To start from the teacher's own initial weights does not help agreement",
         "77.10 ± .24, from others 77.17 ± .35 (Table 1)", agreement, SHARED_START, SELF, 1.0,
         below=True,
         note="Student and teacher have one seed then, and so see one order of images, too."),
    Claim("shared-start/kl", "To start from the teacher's own initial weights does not bring the "
          "student nearer: what the mean KL from the teacher falls by, in nats",
          ".838 ± .020, from others .836 ± .016 (Table 1)", "nats",
          {arm: of_test(arm, "test/kl") for arm in (SHARED_START, SELF)},
          less(of_test(SELF, "test/kl"), of_test(SHARED_START, "test/kl")), 0.05, below=True,
          judged_in="nats"),
    more("mixup", "MixUp makes the student more faithful on test images", "86, without 84.5 (text); "
         f"{FIG3}", agreement, MIXUP, SELF, note=SINGLE),
    more("temperature", "Temperature 4 makes the student more faithful on test images than 1",
         f"83.5, at 1 79: {FIG3}", agreement, SELF, COLD, note=SINGLE),
    more("combined/test", "Combined augmentation makes the student more faithful on test images",
         f"83.5, without 79: {FIG3}", agreement, COMBINED, SELF, note=f"{SINGLE} {COOLER}"),
    more("noise", "Noise images do not make the student more faithful on test images",
         f"78.5, without 79: {FIG3}", agreement, NOISE, SELF, 0.5, below=True,
         note=f"{SINGLE} {COOLER}"),
    more("other-domain", "Images of another domain do not make the student more faithful on test "
         "images", f"79.5, without 79: {FIG3}", agreement, OTHER_DOMAIN, SELF, 1.0, below=True,
         note=f"{SINGLE} {COOLER} Its images are of house numbers, ours of handwritten digits."),
    more("composites", "Composites of training images make the student more faithful on test images",
         "not asked", agreement, COMPOSITES, SELF, note=SINGLE),
    more("generator", "A generator's images make the student more faithful on test images",
         f"72.5 to 74.5 with 50,000 of them (Fig 1a, read off); 83.5 with a fifth of every batch, and "
         f"without: {FIG3}", agreement, GENERATED, SELF,
         note="The paper's generator is an SN-GAN taught on all images, ours flow matching on half."),
    more("cutmix", "CutMix makes the student more faithful on test images", "not asked",
         agreement, CUTMIX, SELF, note=SINGLE),
    more("recycling/fidelity", "A student of images that its teacher has not seen is more faithful "
         "than one of the teacher's own", "higher (Fig 4)", agreement, OTHER, SELF),
    more("recycling/accuracy", "A student of the teacher's own images is more accurate",
         "higher (Fig 4)", accuracy, SELF, OTHER),
    Claim("recycling/both", "A student of both halves has the best of both: the lesser of its "
          "leads in agreement over the one and in accuracy over the other", "best of both (Fig 4)",
          "%",
          {**{f"{arm}: agreement": agreement(arm) for arm in (WHOLE, OTHER)},
           **{f"{arm}: accuracy": accuracy(arm) for arm in (WHOLE, SELF)}},
          least([less(agreement(WHOLE), agreement(OTHER)), less(accuracy(WHOLE), accuracy(SELF))]),
          -0.5),
    Claim("closer-is-not-better", "With more images a self-distilled student is closer to its "
          "teacher and less accurate: the lesser of what agreement gains and accuracy loses",
          "agreement 72.5 to 74.5, accuracy 72.0 to 71.0 (Fig 1a, read off)", "%",
          *up_and_down(WHOLE, SELF, up=False), 0.0, note="The paper's images are a generator's; "
          "ours are real ones, unlabelled."),
    Claim("closer-is-not-better/other-images", "On other images, as many, a student is closer to "
          "its teacher and less accurate", "Fig 4", "%", *up_and_down(OTHER, SELF, up=False), 0.0),
    Claim("closer-is-better/ensemble", "With more images a student of an ensemble is both closer "
          "and more accurate", "agreement 77 to 80 (Fig 1b, read off)", "%",
          *up_and_down(THREE_WHOLE, THREE, up=True), 0.0),
    more("ensemble/3", "An ensemble of 3 is easier to match than a single network",
         "82.5 and 77.5 (Fig 10, read off)", agreement, THREE, SELF, note=COOLER),
    more("ensemble/5", "An ensemble of 5 is easier to match than one of 3",
         "84.5 and 82.5 (Fig 10, read off)", agreement, FIVE, THREE, note=COOLER),
    Claim("ensemble/transfer", "A student of an ensemble of 3 agrees with it more than a student "
          "of 3 others does: the difference, in points", "not asked", "%",
          {THREE: agreement(THREE), OF_OTHERS: of_test(THREE, "test/control/agreement", 100)},
          transfer(THREE), 0.0, pool="transfer"),
    more("capacity", "A student of 2.5 × the blocks gains only a few points", "2 to 3 (C.1)",
         agreement, DEEP, SELF, 5.0, below=True),
    more("labels", "Labels do not help fidelity", "78.0 at 0.5, 78.5 without (ensemble of 5; Fig 14, "
         "read off)", agreement, LABELS, SELF, 0.5, below=True, note=f"{SINGLE} {COOLER}"),
    Claim("calibration", "Of the students of ensembles the most faithful is calibrated best: its "
          "ECE less the least of the others", "best calibrated, not always the most accurate (Sec "
          "7)", "",
          {f"{arm}: {n}": of(arm)
           for arm in (THREE, FIVE, THREE_WHOLE)
           for n, of in (("agreement, %", agreement), ("ECE", ece))},
          of_most_faithful(THREE, FIVE, THREE_WHOLE), 0.0, below=True, judged_in=""),
    more("sharing/agreement", "A sub-net agrees more with the net that holds it than an offline "
         "student of the same losses with its teacher", "not asked", agreement, NESTED, OFFLINE_OWN,
         note="They share weights; whether teaching adds to that is another claim."),
    Claim("sharing/transfer", "A sub-net agrees more with the net that holds it than the same "
          "sub-net of another nested net does", "not asked", "%",
          {"own sub-net": agreement(AGAINST_SUBNETS),
           "another net's sub-net": of_test(AGAINST_SUBNETS, "test/control/agreement", 100)},
          transfer(AGAINST_SUBNETS), 0.0, pool="transfer"),
    more("sharing/transfer-beyond-offline", "Beyond its control, a sub-net agrees more with the net "
         "that holds it than an offline student of the same losses does with its teacher", "not asked",
         transfer, AGAINST_SUBNETS, OFFLINE_OWN, unit="points", pool="transfer"),
    more("sharing/teaching", "A sub-net that is taught agrees more with the net that holds it than one "
         "that only shares its weights", "not asked", agreement, NESTED, SHARED_ONLY),
    Claim("ekd/disagreement", "A sub-net does not match the net that holds it", "not asked", "%",
          each(agreement, NESTED), agreement(NESTED), 95.0, below=True, judged_in="%"),
]  # fmt: skip

FIDELITY = [
    Column("test/agreement", "test agreement"), Column("test/transfer", "beyond control"),
    Column("train/agreement", "train agreement"), Column("seen/agreement", "agreement as seen"),
    Column("test/kl", "test KL", 1.0, ".3f"), Column("test/accuracy", "accuracy"),
    Column("test/teacher/accuracy", "teacher's"), Column("test/ece", "ECE", 1.0, ".3f"),
    Column("test/teacher/ece", "teacher's ECE", 1.0, ".3f")
]  # fmt: skip

STUDY = Study(
    key="fidelity", arms=ARMS, claims=CLAIMS, primary=PRIMARY,
    note=("The primary claims are the first three findings of the paper's abstract. They were "
          "reduced to three after these runs. Agreement of a sub-net with its full net comes from "
          "*sharing* weights first: `stepwell verify ekd` measures 93.9 % for a net nested with "
          "labels only, and 92.9 % for one that teaches. The arms `EKD, 8 in 14` and `offline KD, "
          "8 by 14` have an unfair control and rival, offline nets without labels. No claim "
          "compares them. The fair arms (sub-nets of another seed, an offline student with EKD's "
          "own losses) are in the study, and are not run yet."),
    common={"data": "cifar10", "size": 16, "epochs": 30, "batch_size": 128, "val_fraction": 0.0},
    quick={"data": "digits", "size": None, "epochs": 1, "batch_size": 256},
    fingerprint=image_fingerprint,
    questions=[Question("Does a student match its teacher, and is it better?",
                        (SELF, "student of*", LONG, ADAM, DEEP, LABELS, COLD, "easy task"),
                        ("little-transfer", "some-transfer", "easy-task*", "longer", "adam",
                         "capacity", "labels", "temperature"), FIDELITY),
               Question("Is there a basin around the teacher?", (SELF, SHARED_START, "start at*"),
                        ("basin*", "shared-start*"), FIDELITY),
               Question("What should the student see?",
                        (SELF, MIXUP, CUTMIX, COMBINED, NOISE, OTHER_DOMAIN, COMPOSITES, GENERATED,
                         OTHER, WHOLE),
                        ("mixup", "cutmix", "combined*", "noise", "other-domain", "composites",
                         "generator", "recycling*", "closer-is-not-better*"), FIDELITY),
               Question("Are ensembles easier to match?", (SELF, "ensemble*"),
                        ("ensemble*", "closer-is-better*", "calibration"), FIDELITY),
               Question("Do sub-nets answer like the net that holds them? (sharing)",
                        ("EKD*", "nested*", "offline KD*"), ("sharing/*", "ekd/*"),
                        [column for column in FIDELITY if column.key != "test/transfer"])],
    plot=Plot(Axis("share of the teacher's weights at the start"), Axis("agreement, %", 100),
              {f"{name}": [Point(start(share), share, f"{key}/agreement") for share in STARTS]
               for name, key in (("on images as the student saw them", "seen"),
                                 ("on test images", "test"))}),
)  # fmt: skip
