"""Pseudo labels for detectors: what Banitalebi-Dehkordi 2021 claims, and its test on blood cells.

Only the abstract of the paper could be read: the recipe is a reconstruction.

Split: the images of the training and validation parts are drawn apart by the seed. Of BCCD's 292, 20
choose epochs and thresholds, the same in all arms; 136 teach teachers; 136 are the students'. So no
teacher has seen an image that it labels. "20 % of the labels" are those of 27 of the students' images;
the other 109 have none. The labels of the 20 validation images are used in all arms but one, whose
epoch is chosen by its teacher's boxes.

All arms take as many optimizer steps. Students of a teacher have two phases: all images of the
students, then a fifth of the steps on the labelled ones at a fifth of the rate. A baseline of features
imitates its teacher on the images without labels, too, and half of each batch has labels; the weight of
PKD is 10 a level, as in mmrazor's published settings for RetinaNet; of 1, 3, 10 and 30 it was the best
on the validation images of a seed that the study does not have.

Left out, for their cost: 1 and 2 times as many images without labels; 5, 10 and 50 % of the labels;
another domain; a class that no teacher covers, without its mask; and plain fusion, whose halved scores
thresholds by class undo. Teachers of disjoint classes are the two architectures, each with a part of
its classes left out.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stepwell.claims.kit.figure import Axis, Plot, Point
from stepwell.claims.kit.measures import greatest, least, less, more, of_test, times
from stepwell.claims.kit.study import Arm, Claim, Column, Measure, Question, Study
from stepwell.claims.pseudo.composites import small_study
from stepwell.data.box_files import read_parts

DEEP, SHALLOW = "14", "8"
NETS = {depth: f"fcos/resnet{depth}_s4" for depth in (DEEP, SHALLOW)}
TEACHER, PSEUDO, PKD = "teacher", "pseudo labels, then 20 % of the labels", "PKD and 20 % of the labels"
ALONE, DEEP_ALONE, NESTED = "8 alone, all labels", "14 alone, all labels", "nested 8 < 14, all labels"
FEW, IMITATION = "8 alone, 20 % of the labels", "imitation and 20 % of the labels"
UNLABELLED, SAME = "pseudo labels without labels", "pseudo labels of the labelled images, then labels"
OTHER, SECOND = "teacher, RetinaNet", "pseudo labels of RetinaNet, then 20 %"
FUSED, UNION = "pseudo labels of both, then 20 %", "pseudo labels of disjoint classes, then 20 %"
#: The arms of the primary claims; the others are exploratory.
PRIMARY_ARMS = (TEACHER, PSEUDO, PKD, ALONE, DEEP_ALONE, NESTED)

_ON_LABELS = "stepwell.claims.pseudo.arms:labels_alone"
_ON_FEATURES = "stepwell.claims.pseudo.arms:features_taught"
_TAUGHT = "stepwell.claims.pseudo.arms:taught"
FEW_LABELS = {"net": NETS[SHALLOW], "label_fraction": 0.2}


def on_labels(**arguments: Any) -> Arm:
    """A detector trained on labels."""
    return Arm(_ON_LABELS, arguments)


def student(*teachers: str, **arguments: Any) -> Arm:
    """A student of other arms' detectors."""
    return Arm(_TAUGHT, FEW_LABELS | arguments, {"teacher": teachers})


def imitator(features: str, weight: float) -> Arm:
    """A student that imitates the teacher's features."""
    return Arm(_ON_FEATURES, FEW_LABELS | {"features": features, "weight": weight},
               {"teacher": TEACHER})  # fmt: skip


ARMS: dict[str, Arm] = {
    TEACHER: on_labels(net=NETS[DEEP], teachers=True),
    PSEUDO: student(TEACHER),
    PKD: imitator("pkd", 10.0),
    ALONE: on_labels(net=NETS[SHALLOW]),
    DEEP_ALONE: on_labels(net=NETS[DEEP]),
    NESTED: on_labels(net=NETS[DEEP], depths=(SHALLOW,)),
    FEW: on_labels(**FEW_LABELS),
    IMITATION: imitator("imitation", 1.0),
    UNLABELLED: student(TEACHER, labels=False),
    SAME: student(TEACHER, unlabelled=False),
    OTHER: on_labels(net=f"retinanet/resnet{DEEP}_s4", teachers=True),
    SECOND: student(OTHER),
    FUSED: student(TEACHER, OTHER),
    UNION: student(TEACHER, OTHER, disjoint=True),
}


def ap(arm: str, depth: str = SHALLOW) -> Measure:
    """Average precision on test images in percent."""
    return of_test(arm, f"{depth}/ap", 100)


def beats(
    id: str, text: str, paper: str, a: str, b: str, margin: float = 0.0, expected: float | None = None
) -> Claim:
    """A claim that the student of arm `a` has a higher AP than that of arm `b`."""
    return more(id, text, paper, (a, ap(a)), (b, ap(b)), margin, "% AP", expected=expected)


#: Named before the runs: two of the paper's abstract, and one for nested detectors.
PRIMARY = ("better-than-features", "few-labels", "nested")
_METHODS = "improves over existing methods (abstract)"
CLAIMS = [
    beats(PRIMARY[0], "With 20 % of the labels, pseudo labels first are better than imitated features "
          "(PKD) on the same images", _METHODS, PSEUDO, PKD, expected=3.0),
    beats(PRIMARY[1], "Pseudo labels, then 20 % of the student's labels, are as good as all of them "
          "alone, within a point (the teacher had labels of other images)",
          "equal with 20 % of COCO's labels (abstract)", PSEUDO, ALONE, -1.0, expected=0.5),
    Claim(PRIMARY[2], "Every depth of a nested detector is as good as the same detector trained alone, "
          "within a point (the depth that fares worst)", "not asked", "% AP",
          {f"{NESTED}: {SHALLOW}": ap(NESTED), ALONE: ap(ALONE),
           f"{NESTED}: {DEEP}": ap(NESTED, DEEP), DEEP_ALONE: ap(DEEP_ALONE, DEEP)},
          least([less(ap(NESTED), ap(ALONE)), less(ap(NESTED, DEEP), ap(DEEP_ALONE, DEEP))]),
          margin=-1.0, expected=0.5),
    beats("against/labels", "With 20 % of the labels, pseudo labels first are better than labels alone",
          _METHODS, PSEUDO, FEW),
    beats("against/imitation", "Pseudo labels are better than imitated features inside of boxes",
          _METHODS, PSEUDO, IMITATION),
    beats("against/labels-later", "With 20 % of the labels, to set thresholds and to learn from at the "
          "end, the student is better than without any",
          "fine-tuned if there are any labels (abstract)", PSEUDO, UNLABELLED),
    beats("unlabelled", "Four times as many images without labels help",
          "unlabelled data improves the student further (abstract)", PSEUDO, SAME),
    Claim("fused", "Two architectures, fused, teach more than the better of them",
          "several architectures can be combined (abstract)", "% AP",
          {FUSED: ap(FUSED), PSEUDO: ap(PSEUDO), SECOND: ap(SECOND)},
          less(ap(FUSED), greatest([ap(PSEUDO), ap(SECOND)]))),
    times("disjoint", "The student of two teachers with different classes reaches 0.9 of the AP of the "
          "student of both with all classes", "different categories can be combined (abstract)", "% AP",
          {UNION: ap(UNION), FUSED: ap(FUSED)}, 0.9),
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
          "reconstruction where the paper could not be read. No teacher has seen an image of the "
          "students. 20 validation images have labels in all arms but one."),
    common={"data": "bccd", "size": 160, "epochs": 50},
    quick=small_study,
    fingerprint=fingerprint,
    questions=[
        Question("Are pseudo labels better than labels alone and than features?",
                 (TEACHER, PSEUDO, PKD, IMITATION, FEW, ALONE, UNLABELLED, SAME),
                 ("against/*", "unlabelled"), _COLUMNS),
        Question("Do several teachers teach more?", (TEACHER, OTHER, PSEUDO, SECOND, FUSED, UNION),
                 ("fused", "disjoint"), _COLUMNS),
        Question("Is a nested detector as good?", (ALONE, DEEP_ALONE, NESTED), (), _COLUMNS),
    ],
    plot=Plot(Axis("million MACs an image", 1e-6), Axis("test AP, %", 100), {
        "all labels alone": [Point(ALONE, f"{SHALLOW}/macs", f"{SHALLOW}/ap"),
                             Point(DEEP_ALONE, f"{DEEP}/macs", f"{DEEP}/ap")],
        "nested, all labels": [Point(NESTED, f"{d}/macs", f"{d}/ap") for d in (SHALLOW, DEEP)],
        "pseudo labels, then 20 %": [Point(PSEUDO, f"{SHALLOW}/macs", f"{SHALLOW}/ap")],
        "PKD and 20 %": [Point(PKD, f"{SHALLOW}/macs", f"{SHALLOW}/ap")],
        "20 % of the labels alone": [Point(FEW, f"{SHALLOW}/macs", f"{SHALLOW}/ap")],
    }),
)  # fmt: skip
