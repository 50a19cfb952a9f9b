"""Does knowledge distillation really work? The findings of Stanton et al. 2021, and their test.

The paper's networks and data sets are larger, so claims test order and gaps, not values. Each margin
was set before its arms were run.

Teachers see one half of the training images, one fixed draw for all seeds. Their students see the same
half, the other half, or both, and no label, except in the arms about labels. A student trains for 1.5
times its teacher's epochs, at temperature 4; a student of both halves takes as many steps.

The arm "NAME, student" trains a student. The arm NAME compares it with its teacher: on test images, on
its training images, and on these as it saw them, augmented. Controls are students of other teachers.
All students of one seed and one architecture begin with the same weights and see one order of images.
Neither is any teacher's, except in the arm of the teacher's initial weights. Nested nets have the
students' seed.

A nested net's teacher is its own full net. The control of its sub-net is the same sub-net of another
nested net, and its rival is an offline student with the same losses. The arms `EKD, 8 in 14` and
`offline KD, 8 by 14` were run before these: their control and the latter's losses lack labels.

As a rule an arm changes one thing of self-distillation. The arms that start between random weights and
the teacher's change four more: the norm (of the teacher, too), the weight decay, the rate and the
length.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from stepwell.claims.ablation import FIRST, UNTAUGHT
from stepwell.claims.kit import measures
from stepwell.claims.kit.figure import Axis, Plot, Point
from stepwell.claims.kit.measures import greatest, least, less, of_test
from stepwell.claims.kit.study import Arm, Claim, Column, Measure, Question, Study, image_fingerprint
from stepwell.data.distill_data import DistillData

NET, DEEPER, SMALLER = "resnet14", "resnet32", "8"
TAUGHT_HALF, OTHER_HALF = "1/2", "2/2"
COMPARE = "stepwell.claims.fidelity.compare:compare"
#: Distance between the seeds of teachers, and of a teacher and its students.
APART = 1000
#: A student's passes over a teacher's.
STUDENT = 1.5
#: Share of every batch that is not from the training images. An arm with more images takes as many
#: steps as the others, in fewer passes.
SHARE = DistillData.synthetic_share


def teacher(i: int) -> str:
    """The arm that trains the i-th teacher."""
    return f"teacher {i}"


def student(kind: str) -> str:
    """The arm that trains the student of a comparison."""
    return f"{kind}, student"


def taught(
    teachers: tuple[str, ...], *, epochs: float = STUDENT, scaled: Mapping[str, float] | None = None,
    shift: int = 0, **arguments: Any,
) -> Arm:  # fmt: skip
    """A student of these teachers, by soft targets of temperature 4 alone, on the teachers' half."""
    settings = {"student": NET, "ce": 0.0, "temperature": 4.0, "part": TAUGHT_HALF} | arguments
    return Arm(
        "distill", settings, {"teacher": teachers}, {"epochs": epochs} | dict(scaled or {}), shift
    )


def compared(kind: str, teachers: tuple[str, ...], control: str = "", **arguments: Any) -> Arm:
    """The student of `kind` against teachers, and against a student of others."""
    needs: dict[str, str | tuple[str, ...]] = {"student": student(kind), "teacher": teachers}
    if control:
        needs["control"] = student(control)
    return Arm(COMPARE, arguments, needs)


def nested(shift: int = 0, **arguments: Any) -> Arm:
    """A nested net with a small sub-net, by the first default recipe, on the teachers' half."""
    defaults = {"net": NET, "depths": (SMALLER,), "part": TAUGHT_HALF, "full_weight": 1.0}
    return Arm("ekd", FIRST | defaults | arguments, {}, {"nest_epochs": 0.5}, shift)


def both(kind: str, teachers: tuple[str, ...], control: str = "", **arguments: Any) -> dict[str, Arm]:
    """The two arms of `kind`: a student's training, and its comparison with its teachers."""
    return {student(kind): taught(teachers, **arguments), kind: compared(kind, teachers, control)}


SELF, THREE, FIVE = "self-distillation", "ensemble of 3", "ensemble of 5"
OF_ANOTHER, OF_OTHERS = "student of another teacher", "student of 3 other teachers"
OTHER, WHOLE, THREE_WHOLE = "other half", "both halves", "ensemble of 3, both halves"
COLD, MIXUP, CUTMIX = "temperature 1", "MixUp", "CutMix"
COMBINED, NOISE, LABELS = "combined augmentation", "noise", "labels at 0.5"
OTHER_DOMAIN, COMPOSITES, GENERATED = "images of another domain", "composites", "generator"
DEEP, LONG, ADAM = "deeper student", "three times as long", "Adam"
SHARED_START, EASY = "teacher's initial weights", "easy task"
NESTED, OFFLINE = "EKD, 8 in 14", "offline KD, 8 by 14"
NESTED_OTHER, OFFLINE_OTHER = "EKD of another seed", "offline KD of another teacher"
AGAINST_SUBNETS, SHARED_ONLY = "EKD, 8 in 14, against sub-nets", "nested with labels only, 8 in 14"
OFFLINE_OWN = "offline KD, 8 by 14, EKD's losses"
OFFLINE_OWN_OTHER = "offline KD of another teacher, EKD's losses"
#: The losses of these nested nets, for an offline student.
EKD_LOSSES: dict[str, Any] = {
    "student": "resnet8", "ce": 1.0, "kl": 1.0, "attention": 2.0, "temperature": 3.0
}  # fmt: skip

ONE, FIRST_THREE = (teacher(1),), (teacher(1), teacher(2), teacher(3))
ANOTHER, LAST_THREE = (teacher(4),), (teacher(4), teacher(5), teacher(6))
FIRST_FIVE = tuple(teacher(i) for i in range(1, 6))

#: The share of the teacher's weights that a student starts with, and its rate: smaller the nearer it
#: is, as in the paper's code, but never 0.
STARTS = {0.0: 0.1, 0.25: 0.075, 0.375: 0.0625, 0.5: 0.05, 0.75: 0.025, 1.0: 0.025}
NEAR, FAR = (0.375, 0.5, 0.75, 1.0), (0.0, 0.25)
#: Controls of the rate: from random weights at that of a nearer start.
SLOW = (0.375, 0.75)
LN_TEACHER = "teacher, LayerNorm"
#: Steps of the generator, in a teacher's passes: 1,500 of the study's 30, few of a quick run's one.
GENERATOR = {"distill_data.generator_steps": 50}


def start(share: float, rate_of: float | None = None) -> str:
    """The arm of a student that starts at a share of its teacher's weights."""
    name = f"start at {share:g} of the teacher"
    return name if rate_of is None else f"{name}, rate of {rate_of:g}"


def started(share: float, rate_of: float | None = None) -> dict[str, Arm]:
    """The two arms of a start; networks have LayerNorm, so that equal weights predict alike."""
    rate = STARTS[share if rate_of is None else rate_of]
    arguments: dict[str, Any] = {"student": "resnet14_ln", "start_from_teacher": share, "lr": rate}
    # weight decay would pull a student away that is its teacher already
    return both(start(share, rate_of), (LN_TEACHER,), weight_decay=0.0, epochs=0.5, **arguments)


def shown(**options: Any) -> dict[str, Any]:
    """The argument that names a student's training images."""
    return {"distill_data": DistillData(**options)}


DIGITS: dict[str, Any] = {"data": "digits", "size": None}

ARMS: dict[str, Arm] = {
    **{teacher(i): Arm("supervised", {"net": NET, "part": TAUGHT_HALF}, seed_shift=APART * i)
       for i in range(1, 7)},
    student(OF_ANOTHER): taught(ANOTHER),
    **both(SELF, ONE, OF_ANOTHER),
    student(OF_OTHERS): taught(LAST_THREE),
    **both(THREE, FIRST_THREE, OF_OTHERS),
    **both(FIVE, FIRST_FIVE),
    **both(OTHER, ONE, part=OTHER_HALF),
    **both(WHOLE, ONE, part=None, epochs=STUDENT / 2),
    **both(THREE_WHOLE, FIRST_THREE, part=None, epochs=STUDENT / 2),
    **both(COLD, ONE, temperature=1.0),
    **both(MIXUP, ONE, **shown(mix="mixup")),
    **both(CUTMIX, ONE, **shown(mix="cutmix")),
    **both(COMBINED, ONE, **shown(augment="combined")),
    **both(NOISE, ONE, **shown(synthetic="noise")),
    **both(OTHER_DOMAIN, ONE, epochs=STUDENT * (1 - SHARE),
           **shown(unlabeled=Path("digits"), unlabeled_share=SHARE)),
    **both(COMPOSITES, ONE, **shown(synthetic="composites")),
    **both(GENERATED, ONE, epochs=STUDENT * (1 - SHARE), scaled=GENERATOR,
           **shown(synthetic="generator")),
    **both(LABELS, ONE, ce=0.5, kl=0.5),
    **both(DEEP, ONE, student=DEEPER),
    **both(LONG, ONE, epochs=3 * STUDENT),
    **both(ADAM, ONE, optimizer="adam"),
    **both(SHARED_START, ONE, shift=APART),
    LN_TEACHER: Arm("supervised", {"net": "resnet14_ln", "part": TAUGHT_HALF}, seed_shift=APART),
    **{name: arm for share in STARTS for name, arm in started(share).items()},
    **{name: arm for rate_of in SLOW for name, arm in started(0.0, rate_of).items()},
    "teacher, easy task": Arm("supervised", {"net": "resnet8", "part": "1/7"} | DIGITS,
                              scaled={"epochs": 3}, seed_shift=APART),
    **both(EASY, ("teacher, easy task",), student="resnet8", part=None, epochs=3, **DIGITS),
    student(NESTED): nested(),
    student(NESTED_OTHER): nested(shift=APART),
    AGAINST_SUBNETS: Arm(COMPARE, {"depth": SMALLER, "control_depth": SMALLER},
                         {"student": student(NESTED), "teacher": (student(NESTED),),
                          "control": student(NESTED_OTHER)}),
    student(SHARED_ONLY): nested(**UNTAUGHT),
    SHARED_ONLY: compared(SHARED_ONLY, (student(SHARED_ONLY),), depth=SMALLER),
    student(OFFLINE_OWN_OTHER): taught(ANOTHER, **EKD_LOSSES),
    **both(OFFLINE_OWN, ONE, OFFLINE_OWN_OTHER, **EKD_LOSSES),
    student(OFFLINE_OTHER): taught(ANOTHER, student="resnet8"),
    NESTED: compared(NESTED, (student(NESTED),), OFFLINE_OTHER, depth=SMALLER),
    **both(OFFLINE, ONE, OFFLINE_OTHER, student="resnet8"),
}  # fmt: skip


#: A measure of an arm, by its name.
MeasureOf = Callable[[str], Measure]


def agreement(arm: str, images: str = "test") -> Measure:
    """Top-1 agreement of an arm's student with its teacher in percent."""
    return of_test(arm, f"{images}/agreement", 100)


def accuracy(arm: str, whose: str = "") -> Measure:
    """Test accuracy of an arm's student, or of its teacher, in percent."""
    return of_test(arm, f"test/{whose}accuracy", 100)


def transfer(arm: str) -> Measure:
    """Test agreement minus the control's, in points."""
    return of_test(arm, "test/transfer", 100)


def each(measure_of: MeasureOf, *arms: str) -> dict[str, Measure]:
    """One measure of several arms, by their names."""
    return {arm: measure_of(arm) for arm in arms}


def seen(arm: str) -> Measure:
    """Agreement on the student's training images, augmented as it saw them."""
    return agreement(arm, "seen")


def more(
    id: str, text: str, paper: str, measure_of: MeasureOf, a: str, b: str, margin: float = 0.0,
    **options: Any,
) -> Claim:  # fmt: skip
    """A claim about the difference of one measure between two arms."""
    return measures.more(id, text, paper, (a, measure_of(a)), (b, measure_of(b)), margin, **options)


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
    Claim("easy-task", "Where the teacher knows 200 digits and the student sees all, the student "
          "matches it", "MNIST, LeNet-5: above 99 (Fig 2)", "%", each(agreement, EASY),
          agreement(EASY), 97.0, judged_in="%"),
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
    more("basin/rate", "It is not the smaller rate alone that brings a student nearer",
         "not asked", seen, start(0.375), start(0.0, 0.375), 5.0, pool="starts"),
    more("shared-start", "To start from the teacher's own initial weights does not help agreement",
         "77.10 ± .24, from others 77.17 ± .35 (Table 1)", agreement, SHARED_START, SELF, 1.0,
         below=True,
         note="Student and teacher have one seed then, and so see one order of images, too."),
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
    more("generator", "A generator's images make the student more faithful on test images",
         f"72.5 to 74.5 with 50,000 of them (Fig 1a, read off); 83.5 with a fifth of every batch, and "
         f"without: {FIG3}", agreement, GENERATED, SELF,
         note="The paper's generator is an SN-GAN taught on all images, ours flow matching on half."),
    more("recycling/fidelity", "A student of images that its teacher has not seen is more faithful "
         "than one of the teacher's own", "higher (Fig 4)", agreement, OTHER, SELF),
    more("recycling/accuracy", "A student of the teacher's own images is more accurate",
         "higher (Fig 4)", accuracy, SELF, OTHER),
    Claim("closer-is-not-better", "With more images a self-distilled student is closer to its "
          "teacher and less accurate: the lesser of what agreement gains and accuracy loses",
          "agreement 72.5 to 74.5, accuracy 72.0 to 71.0 (Fig 1a, read off)", "%",
          {f"{arm}: {name}": measure_of(arm) for arm in (WHOLE, SELF)
           for name, measure_of in (("agreement", agreement), ("accuracy", accuracy))},
          least([less(agreement(WHOLE), agreement(SELF)), less(accuracy(SELF), accuracy(WHOLE))]), 0.0,
          note="The paper's images are a generator's; ours are real ones, unlabelled."),
    more("ensemble/3", "An ensemble of 3 is easier to match than a single network",
         "82.5 and 77.5 (Fig 10, read off)", agreement, THREE, SELF, note=COOLER),
    more("ensemble/5", "An ensemble of 5 is easier to match than one of 3",
         "84.5 and 82.5 (Fig 10, read off)", agreement, FIVE, THREE, note=COOLER),
    more("capacity", "A student of 2.5 × the blocks gains only a few points", "2 to 3 (C.1)",
         agreement, DEEP, SELF, 5.0, below=True),
    more("labels", "Labels do not help fidelity", "78.0 at 0.5, 78.5 without (ensemble of 5; Fig 14, "
         "read off)", agreement, LABELS, SELF, 0.5, below=True, note=f"{SINGLE} {COOLER}"),
    more("sharing/agreement", "A sub-net agrees more with the net that holds it than an offline "
         "student of the same losses with its teacher", "not asked", agreement, NESTED, OFFLINE_OWN,
         note="They share weights; whether teaching adds to that is another claim."),
    Claim("sharing/transfer", "A sub-net agrees more with the net that holds it than the same "
          "sub-net of another nested net does", "not asked", "%",
          {"own sub-net": agreement(AGAINST_SUBNETS),
           "another net's sub-net": of_test(AGAINST_SUBNETS, "test/control/agreement", 100)},
          transfer(AGAINST_SUBNETS), 0.0, pool="transfer"),
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
          "*sharing* weights first: `stepwell verify ablation` measures 93.9 % for a net nested with "
          "labels only, and 92.9 % for one that teaches. The arms `EKD, 8 in 14` and `offline KD, "
          "8 by 14` have an unfair control and rival, offline nets without labels. No claim "
          "compares them. The fair arms (sub-nets of another seed, an offline student with EKD's "
          "own losses) are in the study, and are not run yet."),
    common={"data": "cifar10", "size": 16, "epochs": 30, "batch_size": 128, "val_fraction": 0.0},
    quick={"data": "digits", "size": None, "epochs": 1, "batch_size": 256},
    fingerprint=image_fingerprint,
    questions=[Question("Does a student match its teacher, and is it better?",
                        (SELF, "student of*", LONG, ADAM, DEEP, LABELS, COLD, "easy task"),
                        ("little-transfer", "easy-task", "longer", "adam", "capacity", "labels",
                         "temperature"), FIDELITY),
               Question("Is there a basin around the teacher?", (SELF, SHARED_START, "start at*"),
                        ("basin*", "shared-start"), FIDELITY),
               Question("What should the student see?",
                        (SELF, MIXUP, CUTMIX, COMBINED, NOISE, OTHER_DOMAIN, COMPOSITES, GENERATED,
                         OTHER, WHOLE),
                        ("mixup", "combined*", "noise", "other-domain", "generator", "recycling/*",
                         "closer-is-not-better"), FIDELITY),
               Question("Are ensembles easier to match?", (SELF, "ensemble*"),
                        ("ensemble/*",), FIDELITY),
               Question("Do sub-nets answer like the net that holds them? (sharing)",
                        ("EKD*", "nested*", "offline KD*"), ("sharing/*", "ekd/*"),
                        [column for column in FIDELITY if column.key != "test/transfer"])],
    plot=Plot(Axis("share of the teacher's weights at the start"), Axis("agreement, %", 100),
              {f"{name}": [Point(start(share), share, f"{key}/agreement") for share in STARTS]
               for name, key in (("on images as the student saw them", "seen"),
                                 ("on test images", "test"))}),
)  # fmt: skip
