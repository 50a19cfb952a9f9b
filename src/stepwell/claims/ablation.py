"""Schedules and parts of embedded distillation: the first study of nested depths.

Its arms have the weights that were the default then (`FIRST`); `claims.ekd` tests the present default.

Two nets: ResNet-32 with the 20-layer sub-net, and ResNet-32 with 8, 14 and 20. All arms have the same
data, augmentation, optimizer and epochs, and each keeps its last epoch. Arms that start from the
trained full net train for half as many epochs more, at half the rate; their seconds include the first
training. Arms of "equal seconds" train as long as offline distillation with its teacher.

Controls explain a gain: longer training (`32 alone, longer`), a network that teaches itself (offline
`born again`; `self-taught` by a moving average).
"""

from dataclasses import replace
from functools import cache
from typing import Any

import torch

from stepwell.claims.kit.figure import Axis, Plot, Point
from stepwell.claims.kit.measures import (
    Named,
    accuracy,
    alone,
    least,
    less,
    more,
    of_test,
    seconds,
    times,
)
from stepwell.claims.kit.study import Arm, Claim, Column, Measure, Question, Study, image_fingerprint
from stepwell.cost import count_joint_macs, count_macs
from stepwell.nets import build
from stepwell.recipes.ekd import SCHEDULES

FULL = "32"
BLOCKS = {"8": "1,1,1", "14": "2,2,2", "20": "3,3,3", "32": "5,5,5"}
TWO, FOUR = ("20",), ("8", "14", "20")


#: Weights that every arm has, unless it says otherwise.
FIRST: dict[str, Any] = {"attention": 2.0}


def offline(depth: str) -> str:
    """The arm that distils the trained full net into one network."""
    return f"{depth}, offline KD"


def nest(subs: tuple[str, ...], kind: str) -> str:
    """An arm that trains a nested net."""
    return f"{' < '.join((*subs, FULL))}, {kind}"


def nested(subs: tuple[str, ...], calibrated: tuple[str, ...] = (), **arguments: Any) -> Arm:
    """A nested net trained from scratch."""
    named = [tuple(f"{d}={BLOCKS[d]}" for d in ds) for ds in (subs, calibrated)]
    network = {"net": "resnet32", "depths": named[0], "calibrated": named[1]}
    return Arm("ekd", FIRST | network | arguments)


def two_phase(subs: tuple[str, ...], share: float = 0.5, **arguments: Any) -> Arm:
    """A nested net that starts from the full net trained alone; a moving average of it teaches."""
    made = nested(subs, **{"schedule": "two-phase", "full_weight": 1.0, **arguments})
    return replace(made, needs={"init": alone(FULL)}, scaled={"nest_epochs": share})


def taught(subs: tuple[str, ...]) -> Arm:
    """A nested net from scratch; the full net trained alone teaches every depth, as offline."""
    return replace(nested(subs, schedule="taught"), needs={"teacher": (alone(FULL),)})


LONGER, BORN_AGAIN = "32 alone, longer", "32, born again"
LABELS, PLAIN, ONE_RUN, TWO_PHASE = "labels only", "EKD plain", "EKD one run", "EKD two phases"
EQUAL, FROZEN = "equal seconds", "EKD two phases, frozen teacher"
TAUGHT = "EKD taught by 32 alone"

#: The title of the arms with the recipe `ADN`.
UNLABELED = "sub-net without labels"
#: No teacher: the labels alone, from the start of the arm it is a control of.
UNTAUGHT: dict[str, Any] = {
    "kl": 0.0, "attention": 0.0, "ema_teacher": 0.0, "teach_full": False
}  # fmt: skip

#: A recipe in the manner of adaptive depth networks, no reproduction: the deepest and the shallowest
#: depth train, the latter on the former's soft targets and features without labels.
ADN: dict[str, Any] = {"schedule": "plain", "ce": 0.0, "kl": 1.0, "temperature": 1.0}

ARMS: dict[str, Arm] = {
    alone(FULL): Arm("supervised", {"net": "resnet32"}),
    alone("20"): Arm("supervised", {"net": "resnet20"}),
    offline("20"): Arm("distill", {"student": "resnet20"}, {"teacher": (alone(FULL),)}),
    nest(TWO, TWO_PHASE): two_phase(TWO),
    nest(TWO, ONE_RUN): nested(TWO, schedule="one-run"),
    nest(TWO, LABELS): nested(TWO, schedule="plain", kl=0.0, attention=0.0),
    LONGER: Arm("supervised", {"net": "resnet32", "lr": 0.05}, {"init": alone(FULL)}, {"epochs": 0.5}),
    nest(TWO, FROZEN): two_phase(TWO, ema_teacher=0.0),
    nest(TWO, TAUGHT): taught(TWO),
    nest(TWO, f"{TWO_PHASE}, labels only"): two_phase(TWO, **UNTAUGHT),
    "20 alone, longer": Arm("supervised", {"net": "resnet20", "lr": 0.05}, {"init": alone("20")},
                            {"epochs": 0.5}),
    "20, offline KD, longer": Arm("distill", {"student": "resnet20", "lr": 0.05},
                                  {"teacher": (alone(FULL),), "init": offline("20")},
                                  {"epochs": 0.5}),
    nest(TWO, f"{TWO_PHASE}, no KL"): two_phase(TWO, **UNTAUGHT | {"attention": 2.0}),
    nest(TWO, f"{TWO_PHASE}, no attention"): two_phase(TWO, attention=0.0),
    nest(TWO, f"{TWO_PHASE}, shared norms"): two_phase(TWO, norms="shared"),
    nest(TWO, PLAIN): nested(TWO, schedule="plain"),
    BORN_AGAIN: Arm("distill", {"student": "resnet32"}, {"teacher": (alone(FULL),)}),
    "32, self-taught": Arm("supervised", {"net": "resnet32", "ema_teacher": 0.99}),
    "20, self-taught": Arm("supervised", {"net": "resnet20", "ema_teacher": 0.99}),
    nest(TWO, f"{ONE_RUN}, {EQUAL}"): Arm("ekd", nested(TWO, schedule="one-run").arguments,
                                          scaled={"epochs": 1.35}),
    nest(TWO, f"{ONE_RUN}, from the first step"): nested(TWO, schedule="one-run", distill_from=0.0),
    nest(TWO, "ADN-like"): replace(nested(TWO, **ADN), title=nest(TWO, UNLABELED)),
    alone("14"): Arm("supervised", {"net": "resnet14"}),
    alone("8"): Arm("supervised", {"net": "resnet8"}),
    offline("14"): Arm("distill", {"student": "resnet14"}, {"teacher": (alone(FULL),)}),
    offline("8"): Arm("distill", {"student": "resnet8"}, {"teacher": (alone(FULL),)}),
    nest(FOUR, TWO_PHASE): two_phase(FOUR),
    nest(FOUR, f"{TWO_PHASE}, {EQUAL}"): two_phase(FOUR, share=0.95),
    nest(FOUR, TAUGHT): taught(FOUR),
    nest(FOUR, f"{TWO_PHASE}, sampled"): two_phase(FOUR, sample=True),
    nest(FOUR, ONE_RUN): nested(FOUR, schedule="one-run"),
    nest(FOUR, LABELS): nested(FOUR, schedule="plain", kl=0.0, attention=0.0),
    nest(FOUR, "ADN-like"): replace(nested(("8",), ("14", "20"), **ADN),
                                    title=nest(FOUR, f"{UNLABELED}; 14 and 20 not trained")),
}  # fmt: skip


def agreement(arm: str) -> Measure:
    """Agreement of sub-net 20 with the full net on test images in percent."""
    return of_test(arm, "20/agreement", 100)


def pair(a: str, b: str, depth: str) -> tuple[Named, Named]:
    """The accuracies of one depth in two arms."""
    return (a, accuracy(a, depth)), (b, accuracy(b, depth))


def cost(arm: str) -> Measure:
    """Seconds of an arm and of the trainings that it starts from."""
    return seconds(arm, *ARMS[arm].needed)


def bound(subs: tuple[str, ...], arm: str) -> Measure:
    """Seconds of an arm whose joint step costs its MACs over the full net's.

    With labels only: every common prefix runs once, without a teacher, and the full net alone until
    the sub-nets join it.
    """
    arguments = SCHEDULES[ARMS[arm].arguments["schedule"]] | dict(ARMS[arm].arguments)
    full_alone = arguments["distill_from"]
    macs = full_alone + (1 - full_alone) * joint_macs(subs)
    passes = sum(ARMS[arm].scaled.values()) or 1.0
    before = seconds(*ARMS[arm].needed)
    return lambda results: before(results) + passes * macs * seconds(alone(FULL))(results)


@cache
def joint_macs(subs: tuple[str, ...]) -> float:
    """MACs of one pass of all depths over the MACs of the full net."""
    net = build("resnet32", [f"{d}={BLOCKS[d]}" for d in subs])
    x = torch.zeros(1, 3, 32, 32)
    return count_joint_macs(net, x) / count_macs(net.module, x)


def gains(subs: tuple[str, ...], arm: str, baseline: Any) -> tuple[dict[str, Measure], Measure]:
    """Accuracies of an arm's sub-nets and of their baselines, and the least difference."""
    shown = {f"{arm}: {d}": accuracy(arm, d) for d in subs}
    shown |= {baseline(d): accuracy(baseline(d), d) for d in subs}
    pairs = [less(accuracy(arm, d), accuracy(baseline(d), d)) for d in subs]
    return shown, least(pairs)


def about_arm(subs: tuple[str, ...], kind: str) -> list[Claim]:
    """The claims about one way to train a nested net."""
    arm, depths = nest(subs, kind), " and ".join(subs)
    one_by_one = {kind: seconds(alone(FULL), *map(kind, subs)) for kind in (alone, offline)}
    teach = {arm: cost(arm), "offline KD, teacher included": one_by_one[offline]}
    apart = {arm: cost(arm), "each alone": one_by_one[alone]}
    apart["bound: as the MACs say"] = bound(subs, arm)
    slug = f"{len(subs) + 1}-depths/{kind.lower().replace(' ', '-')}"
    accuracies = "% accuracy"
    return [
        Claim(f"sub-nets-gain/{slug}", f"Every sub-net ({depths}) of {arm} beats the same network "
              "trained alone (the sub-net that gains least)",
              "outperforms the same network trained alone (abstract; reference +1.1)", accuracies,
              *gains(subs, arm, alone), expected=1.1),
        Claim(f"offline-kd/{slug}", f"Every sub-net ({depths}) of {arm} is as good as by offline "
              "KD, within half a point (the sub-net that fares worst)",
              "at least offline KD (goal: above)", accuracies, *gains(subs, arm, offline),
              margin=-0.5),
        more(f"full-net-unharmed/{slug}", f"{arm} does not harm the full net",
             "preserves the full net's performance (abstract; reference and goal +0.9)",
             *pair(arm, alone(FULL), FULL), -0.5, accuracies, expected=0.0),
        times(f"offline-kd-cost/{slug}", f"{arm} costs no more seconds than offline KD with its "
              "teacher, within 5 %", "at less cost (here: at equal cost, within 5 %)",
              "processor seconds", teach, 1.05, below=True),
        times(f"cost/{slug}", f"{arm} costs less than training its nets one by one",
              "one run costs less than training each", "processor seconds", apart, 1.0, below=True),
    ]  # fmt: skip


def better(
    id: str, text: str, paper: str, a: str, b: str, depth: str, expected: float | None = None
) -> Claim:
    """A claim that arm `a` gives a depth more accuracy than arm `b`."""
    return more(id, text, paper, *pair(a, b, depth), 0.0, "% accuracy", expected=expected)


BEST = nest(TWO, TWO_PHASE)
#: The paper says nothing of shared norms.
SHARED_NORMS = "not said; a norm shared by several sub-nets fails (slimmable networks)"

#: Named from the paper's abstract: sub-nets beat the same networks trained alone, the full net
#: keeps its performance, and embedded distillation is why. Of the default recipe.
PRIMARY = (
    "sub-nets-gain/2-depths/ekd-two-phases", "full-net-unharmed/2-depths/ekd-two-phases",
    "ekd-helps/20"
)  # fmt: skip
TEACHES = "EKD improves the sub-nets' generalisation (abstract)"
#: Arms that teach, each with its control: nesting with labels only, as many epochs.
TEACHING = (
    ("ekd-helps", "two phases against labels only from the same start", BEST,
     nest(TWO, f"{TWO_PHASE}, labels only")),
    ("one-run-helps", "one run against labels only", nest(TWO, ONE_RUN), nest(TWO, LABELS)),
    ("plain-helps", "the paper's loss from the first step against labels only", nest(TWO, PLAIN),
     nest(TWO, LABELS)),
    ("taught-helps", "taught by the trained full net, against labels only", nest(TWO, TAUGHT),
     nest(TWO, LABELS)),
)  # fmt: skip
CLAIMS = [
    *(c for kind in (TWO_PHASE, TAUGHT, ONE_RUN, PLAIN) for c in about_arm(TWO, kind)),
    *about_arm(FOUR, TAUGHT),
    better("kl-helps", "Soft targets, of both depths, help the sub-net (two phases)",
           "KL helps (in the plain loss, of which no part was left out here)",
           BEST, f"{BEST}, no KL", "20"),
    better("attention-helps", "Attention helps the sub-net (two phases)",
           "attention helps (in the plain loss, of which no part was left out here)",
           BEST, f"{BEST}, no attention", "20"),
    *(better(f"private-norms/{d}", f"Private norms help depth {d} (two phases)", SHARED_NORMS,
             BEST, f"{BEST}, shared norms", d) for d in ("20", FULL)),
    *(better(f"{id}/20", f"Teaching helps depth 20: {text}", TEACHES, arm, control, "20", 1.1)
      for id, text, arm, control in TEACHING),
    better("ekd-helps/32", f"Teaching helps depth 32: {TEACHING[0][1]}", TEACHES, *TEACHING[0][2:],
           FULL),
    *(more(f"sharing/{id.removesuffix('-helps')}", "Teaching makes the sub-net agree with its full "
           f"net more than sharing weights does: {text}", "not asked", (arm, agreement(arm)),
           (control, agreement(control)), 0.0, "% agreement")
      for id, text, arm, control in TEACHING),
    better("beyond-longer/20", "The sub-net gains more than by longer training alone", "not asked",
           BEST, "20 alone, longer", "20"),
    better("beyond-longer-offline/20", "The sub-net gains more than by longer offline KD", "not asked",
           BEST, "20, offline KD, longer", "20"),
    better("beyond-longer/32", "The full net gains more than by longer training alone", "not asked",
           BEST, LONGER, FULL),
    better("beyond-born-again", "The full net gains more than by offline KD into itself", "not asked",
           BEST, BORN_AGAIN, FULL),
    better("beyond-self-taught/20", "One run gives the sub-net more than a moving average of its own",
           "not asked", nest(TWO, ONE_RUN), "20, self-taught", "20"),
    better("moving-teacher/20", "A moving teacher gives the sub-net more than a frozen one",
           "not asked", BEST, nest(TWO, FROZEN), "20"),
    better("delayed-start/20", "A delayed start gives the sub-net more than the first step",
           "not asked", nest(TWO, ONE_RUN), nest(TWO, f"{ONE_RUN}, from the first step"), "20"),
    better("all-depths-a-step/8", "All depths a step give the shallowest one more than a drawn depth",
           "not asked", nest(FOUR, TWO_PHASE), nest(FOUR, f"{TWO_PHASE}, sampled"), "8"),
]  # fmt: skip


def depths_of(arm: str, *depths: str) -> list[Point]:
    """The points of an arm's depths, over their MACs."""
    return [Point(arm, f"{d}/macs", f"{d}/accuracy") for d in depths]


STUDY = Study(
    key="ablation", arms=ARMS, claims=CLAIMS, primary=PRIMARY,
    note=("The primary claims are named from the paper's abstract, and are about the "
          "default recipe of that time, which was chosen on validation images; the paper's loss "
          'from the first step is the arm "EKD plain". They were reduced to three after these '
          "runs. A sub-net agrees with its full net first because they *share* weights: nested "
          "with labels only, it agrees on "
          "93.9 % of the test images, after one run of EKD on 92.9 %. Teaching adds to that from "
          "the same start, and with a trained teacher (claims `sharing/*`). The arms whose sub-net "
          "sees no labels resemble adaptive depth networks (ADN), and reproduce none."),
    common={"data": "cifar10", "size": 16, "epochs": 40, "batch_size": 128, "val_fraction": 0.0},
    quick={"data": "digits", "size": None, "epochs": 1, "batch_size": 256},
    fingerprint=image_fingerprint,
    questions=[Question("One sub-net (32 > 20): does nesting with teaching pay?",
                        ("20 alone", "32 alone", "20, offline KD", "32, born again",
                         *(nest(TWO, kind)
                           for kind in (LABELS, PLAIN, ONE_RUN, TWO_PHASE, TAUGHT))),
                        ("*/2-depths/*", "*-helps/*", "beyond-born-again")),
               Question("Four depths (32 > 20 > 14 > 8)", ("* alone", "*, offline KD", "8 < 14*"),
                        ("*/4-depths/*", "all-depths-a-step/*")),
               Question("Is it longer training, or a teacher of one's own?",
                        ("20 alone", "32 alone", "*, longer", "32, born again", "*self-taught",
                         BEST, nest(TWO, ONE_RUN)), ("beyond-longer*", "beyond-self-taught*")),
               Question("Which parts of the method matter? (32 > 20)", ("20 < 32*",),
                        ("kl-helps", "attention-helps", "private-norms/*", "moving-teacher/*",
                         "delayed-start/*")),
               Question("Do sub-nets answer like their full net?", ("20 < 32*",), ("sharing/*",),
                        (Column("20/agreement", "20 agrees with 32", 100.0, ".1f"),
                         Column("20/accuracy", "20 accuracy"),
                         Column("32/accuracy", "32 accuracy")))],
    plot=Plot(Axis("million MACs an image", 1e-6), Axis("test accuracy, %", 100),
              {"separate nets, each alone": [
                   p for d in (*FOUR, FULL) for p in depths_of(alone(d), d)],
               "separate nets, distilled one by one": [
                   p for d in FOUR for p in depths_of(offline(d), d)],
               "one nested net, taught by 32 alone": depths_of(nest(FOUR, TAUGHT), *FOUR, FULL),
               "nested 32 > 20, two phases": depths_of(BEST, "20", FULL),
               "nested 32 > 20, one run": depths_of(nest(TWO, ONE_RUN), "20", FULL)}),
)  # fmt: skip
