"""The arms of the study of fidelity: teachers, students and comparisons of both, by name.

Teachers see one half of the training images, one fixed draw for all seeds. Their students see the same
half, the other half, or both, and no label, except in the arms about labels. So the students of the
other half, and of both halves, learn from unlabeled images that no teacher has seen. A student trains
for 1.5 times its teacher's epochs, at temperature 4. Students of both halves take as many steps as the
others, in half the passes.

Each training of a student is an arm "NAME, student". The arm NAME compares it with its teacher: on test
images, on its training images, and on its training images as it saw them, augmented. Controls are
students of other teachers. All students of one seed and one architecture, controls among them, begin
with the same weights and see one order of images. Neither is any teacher's, except in the arm of the
teacher's initial weights. The nested nets have the students' seed, and so their order of images.

A nested net's teacher is its own full net. The control of its sub-net is the same sub-net of another
nested net, and its rival is an offline student with the same losses. The arms `EKD, 8 in 14` and
`offline KD, 8 by 14` were run before these: their control and the latter's losses lack labels.

As a rule an arm changes one thing of self-distillation. The arms that start between random weights and
the teacher's change four more: the norm (of the teacher, too), the weight decay, the rate and the
length.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stepwell.claims.ekd import UNTAUGHT
from stepwell.claims.kit.study import Arm
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
    by: tuple[str, ...], *, epochs: float = STUDENT, scaled: Mapping[str, float] | None = None,
    shift: int = 0, **arguments: Any,
) -> Arm:  # fmt: skip
    """A student of these teachers, by soft targets of temperature 4 alone, on the teachers' half."""
    own = {"student": NET, "ce": 0.0, "temperature": 4.0, "part": TAUGHT_HALF} | arguments
    return Arm("distill", own, {"teacher": by}, {"epochs": epochs} | dict(scaled or {}), shift)


def compared(kind: str, by: tuple[str, ...], control: str = "", **arguments: Any) -> Arm:
    """The student of `kind` against teachers, and against a student of others."""
    needs: dict[str, str | tuple[str, ...]] = {"student": student(kind), "teacher": by}
    if control:
        needs["control"] = student(control)
    return Arm(COMPARE, arguments, needs)


def nested(shift: int = 0, **arguments: Any) -> Arm:
    """A nested net with a small sub-net, by the default recipe, on the teachers' half."""
    own = {"net": NET, "depths": (SMALLER,), "part": TAUGHT_HALF} | arguments
    return Arm("ekd", own, {}, {"nest_epochs": 0.5}, shift)


def both(kind: str, by: tuple[str, ...], control: str = "", **arguments: Any) -> dict[str, Arm]:
    """The two arms of `kind`: a student's training, and its comparison with its teachers."""
    return {student(kind): taught(by, **arguments), kind: compared(kind, by, control)}


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
#: The losses of the default recipe of `train ekd`, for an offline student.
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
    own = f"start at {share:g} of the teacher"
    return own if rate_of is None else f"{own}, rate of {rate_of:g}"


def started(share: float, rate_of: float | None = None) -> dict[str, Arm]:
    """The two arms of a start; networks have LayerNorm, so that equal weights predict alike."""
    rate = STARTS[share if rate_of is None else rate_of]
    own: dict[str, Any] = {"student": "resnet14_ln", "start_from_teacher": share, "lr": rate}
    # weight decay would pull a student away that is its teacher already
    return both(start(share, rate_of), (LN_TEACHER,), weight_decay=0.0, epochs=0.5, **own)


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
