"""Pseudo labels for detectors: what Banitalebi-Dehkordi 2021 claims, and its test on blood cells.

A detector of resnet14_s4, trained on all labels, teaches one of resnet8_s4. All arms take as many
optimizer steps, at one rate; the best epoch is chosen on validation images. A fifth of the training
images keeps its labels in the arms of 20 %; the teachers label all of them. Only the abstract of the
paper could be read: the recipe is a reconstruction.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stepwell.claims.kit.figure import Axis, Plot, Point
from stepwell.claims.kit.measures import least, less, more, of_test, times
from stepwell.claims.kit.study import Arm, Claim, Column, Measure, Question, Study
from stepwell.claims.pseudo.composites import small_study
from stepwell.data.box_files import read_parts

DEEP, SHALLOW = "14", "8"
NETS = {depth: f"fcos/resnet{depth}_s4" for depth in (DEEP, SHALLOW)}
ALONE, FEW, NESTED = "labels alone", "20 % of the labels alone", "nested 8 < 14"
TEACHER, PSEUDO = "teacher", "pseudo labels, then 20 % of the labels"
UNLABELLED = "pseudo labels without labels"
PKD, IMITATION = "20 % of the labels and PKD", "20 % of the labels and feature imitation"
OTHER, FUSED = "teacher, RetinaNet", "pseudo labels of two architectures, then 20 %"
FIRST, SECOND = "teacher of the first class", "teacher of the other classes"
UNION = "pseudo labels of disjoint teachers, then 20 %"

_ON_LABELS = "stepwell.claims.pseudo.arms:labels_alone"
_TAUGHT = "stepwell.claims.pseudo.arms:taught"
FEW_LABELS = {"net": NETS[SHALLOW], "label_fraction": 0.2}


def on_labels(**arguments: Any) -> Arm:
    """A detector trained on labels."""
    return Arm(_ON_LABELS, arguments)


def student(*teachers: str, **arguments: Any) -> Arm:
    """A student of other arms' detectors."""
    return Arm(_TAUGHT, FEW_LABELS | arguments, {"teacher": teachers})


ARMS: dict[str, Arm] = {
    TEACHER: on_labels(net=NETS[DEEP]),
    ALONE: on_labels(net=NETS[SHALLOW]),
    FEW: on_labels(**FEW_LABELS),
    PSEUDO: student(TEACHER),
    NESTED: on_labels(net=NETS[DEEP], depths=(SHALLOW,)),
    UNLABELLED: student(TEACHER, labels=False),
    PKD: Arm(_ON_LABELS, FEW_LABELS | {"features": "pkd"}, {"teacher": TEACHER}),
    IMITATION: Arm(_ON_LABELS, FEW_LABELS | {"features": "imitation"}, {"teacher": TEACHER}),
    OTHER: on_labels(net=f"retinanet/resnet{DEEP}_s4"),
    FUSED: student(TEACHER, OTHER),
    FIRST: on_labels(net=NETS[DEEP], classes=(0,)),
    SECOND: on_labels(net=NETS[DEEP], classes=(1, 2)),
    UNION: student(FIRST, SECOND),
}


def ap(arm: str, depth: str = SHALLOW) -> Measure:
    """Average precision on test images in percent."""
    return of_test(arm, f"{depth}/ap", 100)


def beats(
    id: str, text: str, paper: str, a: str, b: str, margin: float = 0.0, expected: float | None = None
) -> Claim:
    """A claim that the student of arm `a` has a higher AP than that of arm `b`."""
    return more(id, text, paper, (a, ap(a)), (b, ap(b)), margin, "% AP", expected=expected)


#: Named before the runs: from the paper's abstract, and for nested detectors.
PRIMARY = ("pseudo-helps", "few-labels", "nested")
CLAIMS = [
    beats(PRIMARY[0], "With 20 % of the labels, pseudo labels first are better than the labels alone",
          "improves over existing methods (abstract)", PSEUDO, FEW, expected=5.0),
    beats(PRIMARY[1], "Pseudo labels, then 20 % of the labels, are as good as all labels alone, within "
          "a point", "equal with 20 % of COCO's labels (abstract)", PSEUDO, ALONE, -1.0, expected=0.5),
    Claim(PRIMARY[2], "Every depth of a nested detector is as good as the same detector trained alone, "
          "within a point (the depth that fares worst)", "not asked", "% AP",
          {f"{NESTED}: {SHALLOW}": ap(NESTED), f"{ALONE}: {SHALLOW}": ap(ALONE),
           f"{NESTED}: {DEEP}": ap(NESTED, DEEP), f"{TEACHER}: {DEEP}": ap(TEACHER, DEEP)},
          least([less(ap(NESTED), ap(ALONE)), less(ap(NESTED, DEEP), ap(TEACHER, DEEP))]),
          margin=-1.0, expected=0.5),
    beats("against/pkd", "Pseudo labels are better than the correlation of features (PKD)",
          "improves over existing methods (abstract)", PSEUDO, PKD),
    beats("against/imitation", "Pseudo labels are better than imitated features inside of true boxes",
          "improves over existing methods (abstract)", PSEUDO, IMITATION),
    beats("labels-help", "Labels after the pseudo labels help", "fine-tuned if there are any labels",
          PSEUDO, UNLABELLED),
    beats("fused", "Two architectures, fused, teach more than the better of them",
          "several architectures can be combined (abstract)", FUSED, PSEUDO),
    times("disjoint", "The student of two teachers with different classes reaches 0.9 of the AP of the "
          "student of one teacher", "different categories can be combined (abstract)", "% AP",
          {UNION: ap(UNION), PSEUDO: ap(PSEUDO)}, 0.9),
]  # fmt: skip


def fingerprint(arguments: Mapping[str, Any]) -> str:
    """Hash of the images and boxes; errors as for `read_parts`."""
    parts = read_parts(Path(arguments["data"]))
    return f"{parts.train.fingerprint}/{parts.test.fingerprint}"


_COLUMNS = [Column(f"{d}/{key}", f"{title} {d}") for d in (SHALLOW, DEEP)
            for key, title in (("ap", "AP"), ("ap50", "AP50"))]  # fmt: skip
STUDY = Study(
    key="pseudo", arms=ARMS, claims=CLAIMS, primary=PRIMARY,
    note=("Real images: blood cells under the microscope (BCCD), three classes. The recipe is a "
          "reconstruction where the paper could not be read."),
    common={"data": "bccd", "size": 160, "epochs": 50},
    quick=small_study,
    fingerprint=fingerprint,
    questions=[
        Question("Are pseudo labels better than labels alone and than features?",
                 (TEACHER, ALONE, FEW, PSEUDO, UNLABELLED, PKD, IMITATION),
                 ("against/*", "labels-help"), _COLUMNS),
        Question("Do several teachers teach more?", (PSEUDO, OTHER, FUSED, FIRST, SECOND, UNION),
                 ("fused", "disjoint"), _COLUMNS),
        Question("Is a nested detector as good?", (TEACHER, ALONE, NESTED), (), _COLUMNS),
    ],
    plot=Plot(Axis("million MACs an image", 1e-6), Axis("test AP, %", 100), {
        "labels alone": [Point(ALONE, f"{SHALLOW}/macs", f"{SHALLOW}/ap"),
                         Point(TEACHER, f"{DEEP}/macs", f"{DEEP}/ap")],
        "nested": [Point(NESTED, f"{d}/macs", f"{d}/ap") for d in (SHALLOW, DEEP)],
        "pseudo labels, then 20 %": [Point(PSEUDO, f"{SHALLOW}/macs", f"{SHALLOW}/ap")],
        "20 % of the labels alone": [Point(FEW, f"{SHALLOW}/macs", f"{SHALLOW}/ap")],
    }),
)  # fmt: skip
