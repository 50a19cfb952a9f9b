"""Network grafting: what Shen et al. 2021 claim, and its test on images of 16 pixels.

A teacher sees all training images. Students see K images of each class without labels, a draw of its
own for each seed, and begin with two initial values; a number of one seed is their mean. They are the
teacher with half the channels in its last stage ("slim": its first two stages are the teacher's own) or
in its last two ("slimmer"). No checkpoint is chosen on test images, which the authors' code does.

The baseline that the paper lacks is "direct": the same copied blocks, and all others trained at once,
by the same loss, in as many steps.

The numbers of the full-data KD in the paper's table could not be read, so that claim's margin is ours.
Every margin was set before the study was run.
"""

from collections.abc import Mapping
from typing import Any

from stepwell.claims.measures import less, of_test
from stepwell.claims.shown import Column
from stepwell.claims.study import Arm, Claim, Measure, Study, image_fingerprint

TEACHER, SLIM, SLIMMER = "resnet14", "resnet14_slim", "resnet14_slimmer"
SHOTS = (1, 2, 5, 10)
#: Schedules and baselines, by what they are called here. Networks from scratch take four times as
#: long a step and come out far below, so of these there is one initial value.
WAYS: dict[str, dict[str, Any]] = {
    "NetGraft": {"trace": True},
    "stage 2 only": {"schedule": "join"},
    "direct": {"schedule": "direct"},
    "direct with hints": {"schedule": "direct", "loss": "features"},
    "few-shot KD": {"method": "kd", "inits": 1},
    "few labels": {"method": "labels", "inits": 1},
}
NETGRAFT, SECOND, DIRECT, HINTS, KD, LABELS = WAYS
FULL, FULL_SLIMMER = "full-data KD", "full-data KD, slimmer"
MSE, FRESH = "mean squared error", "nothing copied"
#: Shots with which the slimmer student, and single changes of the method, are tried.
MOST = SHOTS[-1]


def at(way: str, shots: int, slimmer: bool = False) -> str:
    """The arm of a way with so many shots."""
    return f"{way}, K = {shots}" + ", slimmer" * slimmer


def few(shots: int, student: str = SLIM, **options: Any) -> Arm:
    """An arm that sees a few images."""
    own = {"student": student, "shots": shots} | options
    return Arm("stepwell.claims.few_shots:few_shots", own, {"teacher": "teacher"})


def full(student: str) -> Arm:
    """Distillation on all images, with their labels; as long as its teacher trained."""
    own = {"student": student, "temperature": 4.0}
    return Arm("distill", own, {"teacher": ("teacher",)}, {"epochs": 1}, seed_shift=1)


ARMS: dict[str, Arm] = {
    # a seed of its own, so that no student begins with its initial weights
    "teacher": Arm("supervised", {"net": TEACHER}, {}, {"epochs": 1}, seed_shift=500),
    FULL: full(SLIM),
    FULL_SLIMMER: full(SLIMMER),
    **{at(way, k): few(k, **options) for k in SHOTS for way, options in WAYS.items()},
    **{at(way, MOST, True): few(MOST, SLIMMER, **WAYS[way]) for way in (NETGRAFT, DIRECT)},
    at(MSE, MOST): few(MOST, loss="mse"),
    at(FRESH, MOST): few(MOST, start="fresh", inits=1),
}


def accuracy(arm: str) -> Measure:
    """Test accuracy in percent."""
    return of_test(arm, "14/accuracy", 100)


def untuned(shots: int) -> Measure:
    """Test accuracy of the blocks of stage 1, joined as they are, in percent."""
    return of_test(at(NETGRAFT, shots), "untuned", 100)


def beats(
    id: str, text: str, paper: str, a: str, b: str, margin: float = 0.0, note: str = ""
) -> Claim:
    """A claim about how much more accurate one arm is than another."""
    measured = {a: accuracy(a), b: accuracy(b)}
    return points(id, text, paper, measured, less(accuracy(a), accuracy(b)), margin, note)


def points(
    id: str,
    text: str,
    paper: str,
    measured: Mapping[str, Measure],
    judged: Measure,
    margin: float,
    note: str = "",
) -> Claim:
    """A claim that holds where the interval of the judged number lies above the margin."""
    rule = f"{text}: the 90 % interval lies above {margin:g} points."
    return Claim(id, rule, paper, "%", measured, judged, margin, note=note)


UNREAD = "said to be on par (its table could not be read)"
ON_CIFAR = "CIFAR-10, VGG-16: 90.74 ± .49 (K = 1), 92.60 (2), 92.88 ± .07 (5), 92.89 ± .06 (10)"
LACKS = "not compared"
PRIMARY = {f"par/{k}" for k in (5, 10)} | {f"kd/{k}" for k in SHOTS} | {
    f"{kind}/{k}" for kind in ("direct", "stage-1", "stage-2") for k in SHOTS
}  # fmt: skip

CLAIMS = [
    *(
        beats(
            f"par/{k}",
            f"With K = {k}, NetGraft loses less than 2 points to KD with all images and their labels",
            UNREAD, at(NETGRAFT, k), FULL, -2.0,
        )
        for k in SHOTS
    ),
    *(
        beats(
            f"kd/{k}",
            f"With K = {k}, NetGraft gains more than 10 points on KD of a student from scratch",
            "far above few-shot KD (its table could not be read)", at(NETGRAFT, k), at(KD, k), 10.0,
        )
        for k in SHOTS
    ),
    *(
        beats(
            f"labels/{k}",
            f"With K = {k}, NetGraft gains more than 10 points on training with the images' labels",
            LACKS, at(NETGRAFT, k), at(LABELS, k), 10.0,
        )
        for k in SHOTS
    ),
    *(
        points(
            f"stage-1/{k}", f"With K = {k}, stage 2 is needed: the gain on stage 1 alone",
            "both stages are needed (its ablation could not be read)",
            {NETGRAFT: accuracy(at(NETGRAFT, k)), "stage 1 only": untuned(k)},
            less(accuracy(at(NETGRAFT, k)), untuned(k)), 0.0,
        )
        for k in SHOTS
    ),
    *(
        beats(
            f"stage-2/{k}", f"With K = {k}, stage 1 is needed: the gain on stage 2 alone",
            "both stages are needed (its ablation could not be read)",
            at(NETGRAFT, k), at(SECOND, k), 0.0, "Stage 2 alone takes a third of the steps.",
        )
        for k in SHOTS
    ),
    *(
        beats(
            f"direct/{k}",
            f"With K = {k}, NetGraft gains on the same blocks copied and trained directly, as long",
            LACKS, at(NETGRAFT, k), at(DIRECT, k),
        )
        for k in SHOTS
    ),
    *(
        beats(
            f"hints/{k}",
            f"With K = {k}, NetGraft gains on direct training with hints of every block, too",
            LACKS, at(NETGRAFT, k), at(HINTS, k),
        )
        for k in SHOTS
    ),
    beats(
        "slimmer/direct",
        f"With K = {MOST} and two stages to graft, NetGraft gains on direct training, in as many steps",
        LACKS, at(NETGRAFT, MOST, True), at(DIRECT, MOST, True),
    ),
    beats(
        "slimmer/par",
        f"With K = {MOST} and two stages to graft, NetGraft loses less than 2 points to full-data KD",
        LACKS, at(NETGRAFT, MOST, True), FULL_SLIMMER, -2.0,
    ),
    beats(
        "saturation", "5 images a class lose less than 1 point to 10", ON_CIFAR,
        at(NETGRAFT, 5), at(NETGRAFT, 10), -1.0,
    ),
    beats(
        "one-shot", "1 image a class loses less than 5 points to 10", ON_CIFAR,
        at(NETGRAFT, 1), at(NETGRAFT, 10), -5.0,
    ),
    beats(
        "teacher", "The student is wide enough: full-data KD loses less than 5 points to the teacher",
        LACKS, FULL, "teacher", -5.0,
    ),
    beats(
        "loss", "The direction of the logits is a better target than their mean squared error",
        "the authors' default", at(NETGRAFT, MOST), at(MSE, MOST),
    ),
    beats(
        "copied", "Copied blocks help: the gain on a student of which nothing is copied",
        "blocks 1 to 3 of 5 are copies", at(NETGRAFT, MOST), at(FRESH, MOST),
    ),
]  # fmt: skip

STUDY = Study(
    key="netgraft",
    arms=ARMS,
    claims=CLAIMS,
    primary=PRIMARY,
    common={
        "data": "cifar10", "size": 16, "epochs": 20, "val_fraction": 0.0, "per_class": 1000,
        "graft_steps": 300, "join_steps": 300,
    },
    quick={
        "data": "digits", "size": None, "epochs": 1, "per_class": 130, "graft_steps": 1,
        "join_steps": 1, "views": 1, "inits": 1,
    },
    fingerprint=image_fingerprint,
    note=(
        "Of one seed: a teacher, a draw of images, and two initial values of each student (one of "
        "those from scratch). The spread over these two stands beside the spread over draws."
    ),
    table=[
        Column("14/accuracy", "accuracy"),
        Column("spread", "spread over initial values"),
        Column("grafted layer3", "last stage grafted"),
        Column("grafted head", "head grafted"),
        Column("untuned", "joined untuned"),
        Column("14/nll", "NLL", 1.0, ".3f"),
        Column("cpu_seconds", "seconds", 1.0, ".0f"),
    ],
    panels=[Column("14/accuracy", "accuracy", unit="test accuracy, %")],
)  # fmt: skip
