"""Nested depths with embedded distillation: the claims of the paper's abstract, and their test.

Two nets: ResNet-32 with the 20-layer sub-net, and ResNet-32 with 8, 14 and 20. Arms have equal data,
augmentation and optimizer; no arm selects on test data (each keeps its last epoch). Two budgets:

- equal epochs: every arm trains for as many, but for those that start from the trained full net: they
  go on for half as many at half the rate, and their seconds are those of both trainings;
- equal seconds: offline KD costs the teacher and each student; the arms named so train for as long.

Controls say what a gain comes of: a network trained as much longer (`32 alone, longer`), taught by
itself (`born again`, offline; `self-taught`, by a moving average in the same run).
"""

from collections.abc import Mapping
from functools import cache
from typing import Any

import torch

from stepwell.claims.kit.measures import least, less, of_test, ratio
from stepwell.claims.kit.study import Absent, Arm, Claim, Measure, Study, image_fingerprint
from stepwell.cost import count_joint_macs, count_macs
from stepwell.nets import build
from stepwell.recipes.ekd import SCHEDULES

FULL = "32"
BLOCKS = {"8": "1,1,1", "14": "2,2,2", "20": "3,3,3"}
TWO, FOUR = ("20",), ("8", "14", "20")


def alone(depth: str) -> str:
    """The arm that trains one network on labels alone."""
    return f"{depth} alone"


def offline(depth: str) -> str:
    """The arm that trains one network by the full net, trained before."""
    return f"{depth}, offline KD"


def nest(subs: tuple[str, ...], kind: str) -> str:
    """An arm that trains a nested net."""
    return f"{' < '.join((*subs, FULL))}, {kind}"


def nested(subs: tuple[str, ...], calibrated: tuple[str, ...] = (), **arguments: Any) -> Arm:
    """A nested net trained from scratch."""
    named = [tuple(f"{d}={BLOCKS[d]}" for d in ds) for ds in (subs, calibrated)]
    own = {"net": "resnet32", "depths": named[0], "calibrated": named[1]}
    return Arm("ekd", own | arguments)


def two_phase(subs: tuple[str, ...], share: float = 0.5, **arguments: Any) -> Arm:
    """A nested net that starts from the full net trained alone; a moving average of it teaches."""
    made = nested(subs, **{"schedule": "two-phase", **arguments})
    return Arm("ekd", made.arguments, {"init": alone(FULL)}, {"nest_epochs": share})


def taught(subs: tuple[str, ...]) -> Arm:
    """A nested net from scratch; the full net trained alone teaches every depth, as offline."""
    made = nested(subs, schedule="taught")
    return Arm("ekd", made.arguments, {"teacher": (alone(FULL),)})


LONGER, BORN_AGAIN = "32 alone, longer", "32, born again"
LABELS, PLAIN, ONE_RUN, TWO_PHASE = "labels only", "EKD plain", "EKD one run", "EKD two phases"
EQUAL, FROZEN = "equal seconds", "EKD two phases, frozen teacher"
TAUGHT = "EKD taught by 32 alone"

#: No teacher: the labels alone, from the start of the arm it is a control of.
UNTAUGHT: dict[str, Any] = {
    "kl": 0.0, "attention": 0.0, "ema_teacher": 0.0, "teach_full": False
}  # fmt: skip

#: What an ADN-like recipe trains: the deepest and the shallowest depth, the latter on the former's
#: soft targets and features alone.
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
    "20 alone, longer": Arm(
        "supervised", {"net": "resnet20", "lr": 0.05}, {"init": alone("20")}, {"epochs": 0.5}
    ),
    "20, offline KD, longer": Arm(
        "distill",
        {"student": "resnet20", "lr": 0.05},
        {"teacher": (alone(FULL),), "init": offline("20")},
        {"epochs": 0.5},
    ),
    nest(TWO, f"{TWO_PHASE}, no KL"): two_phase(TWO, **UNTAUGHT | {"attention": 2.0}),
    nest(TWO, f"{TWO_PHASE}, no attention"): two_phase(TWO, attention=0.0),
    nest(TWO, f"{TWO_PHASE}, shared norms"): two_phase(TWO, norms="shared"),
    nest(TWO, PLAIN): nested(TWO, schedule="plain"),
    BORN_AGAIN: Arm("distill", {"student": "resnet32"}, {"teacher": (alone(FULL),)}),
    "32, self-taught": Arm("supervised", {"net": "resnet32", "ema_teacher": 0.99}),
    "20, self-taught": Arm("supervised", {"net": "resnet20", "ema_teacher": 0.99}),
    nest(TWO, f"{ONE_RUN}, {EQUAL}"): Arm(
        "ekd", nested(TWO, schedule="one-run").arguments, scaled={"epochs": 1.35}
    ),
    nest(TWO, f"{ONE_RUN}, from the first step"): nested(TWO, schedule="one-run", distill_from=0.0),
    nest(TWO, "ADN-like"): nested(TWO, **ADN),
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
    nest(FOUR, "ADN-like"): nested(("8",), ("14", "20"), **ADN),
}  # fmt: skip


def accuracy(arm: str, depth: str) -> Measure:
    """Test accuracy of a depth in percent."""
    return of_test(arm, f"{depth}/accuracy", 100)


def seconds(*arms: str) -> Measure:
    """Processor seconds of training, of several arms together; absent if they are not comparable."""

    def measure(results: Mapping[str, Mapping[str, Any]]) -> float:
        found = [results[arm] for arm in arms]
        if any("cpu_seconds" not in result for result in found):
            raise Absent("cpu_seconds")
        return float(sum(result["cpu_seconds"] for result in found))

    return measure


def of_depth(arm: str, depth: str, name: str) -> Measure:
    """A depth's cost, such as its MACs."""
    return lambda results: results[arm]["costs"][depth][name]


def file_bytes(arm: str) -> Measure:
    """Size of the file of all depths."""
    return lambda results: results[arm]["file_bytes"]


def cost(arm: str) -> Measure:
    """Seconds of an arm and of the trainings that it starts from."""
    return seconds(arm, *ARMS[arm].needed)


def bound(subs: tuple[str, ...], arm: str) -> Measure:
    """Seconds of an arm if a joint step took as much longer than the full net's as its MACs say.

    Those of labels only: every common prefix once, no teacher, and the full net alone until the
    sub-nets join it.
    """
    own = SCHEDULES[ARMS[arm].arguments["schedule"]] | dict(ARMS[arm].arguments)
    full_alone = own["distill_from"]
    macs = full_alone + (1 - full_alone) * joint_macs(subs)
    passes = sum(ARMS[arm].scaled.values()) or 1.0
    before = seconds(*ARMS[arm].needed)
    return lambda results: before(results) + passes * macs * seconds(alone(FULL))(results)


@cache
def joint_macs(subs: tuple[str, ...]) -> float:
    """MACs of one pass of all depths over those of the full net's."""
    net = build("resnet32", [f"{d}={BLOCKS[d]}" for d in subs])
    x = torch.zeros(1, 3, 32, 32)
    return count_joint_macs(net, x) / count_macs(net.module, x)


def gains(subs: tuple[str, ...], arm: str, baseline: Any) -> tuple[dict[str, Measure], Measure]:
    """Accuracies of an arm's sub-nets and of their baselines, and the least difference."""
    shown = {f"{arm}: {d}": accuracy(arm, d) for d in subs}
    shown |= {baseline(d): accuracy(baseline(d), d) for d in subs}
    pairs = [less(accuracy(arm, d), accuracy(baseline(d), d)) for d in subs]
    return shown, least(pairs)


def compared(a: str, b: str, depth: str) -> tuple[dict[str, Measure], Measure]:
    """The accuracies of one depth in two arms, and their difference."""
    shown = {a: accuracy(a, depth), b: accuracy(b, depth)}
    return shown, less(shown[a], shown[b])


def at_most(
    id: str,
    text: str,
    paper: str,
    unit: str,
    shown: Mapping[str, Measure],
    margin: float,
    note: str = "",
) -> Claim:
    """A claim that the first of the numbers `shown` is less than `margin` times the second."""
    first, second, *_ = shown.values()
    return Claim(id, text, paper, unit, shown, ratio(first, second), margin, True, note, "×")


def about_arm(subs: tuple[str, ...], kind: str) -> list[Claim]:
    """Claims 1, 2, 3 and 5 of one way to train a nested net."""
    arm, depths = nest(subs, kind), " and ".join(subs)
    students = [offline(d) for d in subs]
    apart, taught = seconds(alone(FULL), *map(alone, subs)), seconds(alone(FULL), *students)
    slug = f"{len(subs) + 1}-depths/{kind.lower().replace(',', '').replace(' ', '-')}"
    judged = "the 90 % interval of the paired difference lies above"
    return [
        Claim(
            f"sub-nets-gain/{slug}",
            f"Every sub-net ({depths}) of {arm} beats the same network trained alone: {judged} 0 "
            "(of the sub-net that gains least).",
            "outperforms the same network trained alone (abstract; reference +1.1)",
            "% accuracy",
            *gains(subs, arm, alone),
            0.0,
        ),
        Claim(
            f"offline-kd/{slug}",
            f"Every sub-net ({depths}) of {arm} is at least as good as by offline KD: {judged} -0.5 "
            "(of the sub-net that fares worst).",
            "at least offline KD (goal: above)",
            "% accuracy",
            *gains(subs, arm, offline),
            -0.5,
        ),
        at_most(
            f"offline-kd-cost/{slug}",
            f"{arm} costs as many seconds as offline KD, teacher included, or less: the 90 % interval "
            "of the ratio lies below 1.05.",
            "at less cost (here: at equal cost, within 5 %)",
            "processor seconds",
            {arm: cost(arm), "offline KD, teacher included": taught},
            1.05,
        ),
        Claim(
            f"full-net-unharmed/{slug}",
            f"The full net is not harmed by {arm}: {judged} -0.5.",
            "not harmed (reference and goal +0.9)",
            "% accuracy",
            *compared(arm, alone(FULL), FULL),
            -0.5,
        ),
        at_most(
            f"cost/{slug}",
            f"{arm} costs less than training its nets one by one: the 90 % interval of the ratio lies "
            "below 1.",
            "one run costs less than training each",
            "processor seconds",
            {arm: cost(arm), "each alone": apart, "bound: as the MACs say": bound(subs, arm)},
            1.0,
        ),
    ]


def better(id: str, text: str, paper: str, a: str, b: str, depth: str) -> Claim:
    """A claim that arm `a` gives a depth more accuracy than arm `b`."""
    rule = f"{text}: the 90 % interval of the paired difference lies above 0."
    return Claim(id, rule, paper, "% accuracy", *compared(a, b, depth), 0.0)


BEST = nest(TWO, TWO_PHASE)
#: What other papers found, and the method's reconstruction took for granted.
SHARED_NORMS = "not said; a norm shared by several sub-nets fails (slimmable networks)"

#: The claims that decide: the specification's six, for the default recipe, and what the schedule that
#: is one run costs.
PRIMARY = (
    *(f"{what}/{count}-depths/{kind}"
      for what in ("sub-nets-gain", "offline-kd", "offline-kd-cost", "full-net-unharmed")
      for count, kind in (("2", "ekd-two-phases"), ("4", "ekd-two-phases-equal-seconds"))),
    "cost/2-depths/ekd-two-phases", "cost/2-depths/ekd-one-run", "kl-helps", "attention-helps",
    "plain/macs", "plain/file",
)  # fmt: skip
TWO_KINDS = (TWO_PHASE, TAUGHT, ONE_RUN, f"{ONE_RUN}, {EQUAL}", FROZEN, PLAIN)
FOUR_KINDS = (TWO_PHASE, f"{TWO_PHASE}, {EQUAL}", TAUGHT, ONE_RUN)
CLAIMS = [
    *(c for kind in TWO_KINDS for c in about_arm(TWO, kind)),
    *(c for kind in FOUR_KINDS for c in about_arm(FOUR, kind)),
    better("kl-helps", "Soft targets, of both depths, help the sub-net (two phases)",
           "KL helps (in the plain loss, of which no part was left out here)",
           BEST, f"{BEST}, no KL", "20"),
    better("attention-helps", "Attention helps the sub-net (two phases)",
           "attention helps (in the plain loss, of which no part was left out here)",
           BEST, f"{BEST}, no attention", "20"),
    *(better(f"private-norms/{d}", f"Private norms help depth {d} (two phases)", SHARED_NORMS,
             BEST, f"{BEST}, shared norms", d) for d in ("20", FULL)),
    *(better(f"ekd-helps/{d}", f"Teaching helps depth {d} beyond nesting with labels only, from the "
             "same start and as long (two phases)", "EKD helps",
             BEST, nest(TWO, f"{TWO_PHASE}, labels only"), d) for d in ("20", FULL)),
    *(better(f"one-run-helps/{d}", f"One run's teaching gives depth {d} more than nesting with labels "
             "only, as many epochs", "EKD helps", nest(TWO, ONE_RUN), nest(TWO, LABELS), d)
      for d in ("20", FULL)),
    *(better(f"plain-helps/{d}", f"The paper's loss gives depth {d} more than nesting with labels "
             "only, as many epochs", "EKD helps", nest(TWO, PLAIN), nest(TWO, LABELS), d)
      for d in ("20", FULL)),
    *(better(f"taught-helps/{d}", f"The trained full net's teaching gives depth {d} of a fresh nested "
             "net more than labels only, as many epochs", "EKD helps",
             nest(TWO, TAUGHT), nest(TWO, LABELS), d) for d in ("20", FULL)),
    better("taught-beyond-born-again", "The full net gains more, taught with a sub-net in it, than by "
           "offline KD into itself", "not asked", nest(TWO, TAUGHT), BORN_AGAIN, FULL),
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
    better("beyond-self-taught/32", "One run gives the full net more than a moving average of its own",
           "not asked", nest(TWO, ONE_RUN), "32, self-taught", FULL),
    *(at_most(
        f"taught-cost/{len(subs) + 1}-depths",
        f"{nest(subs, TAUGHT)} costs less than offline KD into each of its depths, the full net "
        "included: the 90 % interval of the ratio lies below 1.",
        "not asked",
        "processor seconds",
        {
            nest(subs, TAUGHT): seconds(nest(subs, TAUGHT)),
            "offline KD into each": seconds(BORN_AGAIN, *map(offline, subs)),
        },
        1.0,
    ) for subs in (TWO, FOUR)),
    *(better(f"moving-teacher/{d}", f"A moving teacher gives depth {d} more than a frozen one",
             "not asked", BEST, nest(TWO, FROZEN), d) for d in ("20", FULL)),
    *(better(f"delayed-start/{d}", f"A delayed start gives depth {d} more than the first step",
             "not asked", nest(TWO, ONE_RUN), nest(TWO, f"{ONE_RUN}, from the first step"), d)
      for d in ("20", FULL)),
    *(better(f"all-depths-a-step/{d}", f"All depths a step give depth {d} more than one drawn",
             "not asked", nest(FOUR, TWO_PHASE), nest(FOUR, f"{TWO_PHASE}, sampled"), d)
      for d in (*FOUR, FULL)),
    *(better(f"beyond-adn/{len(subs) + 1}-depths/{d}", f"One run gives depth {d} of {len(subs) + 1} "
             "more than an ADN-like one", "not asked",
             nest(subs, ONE_RUN), nest(subs, "ADN-like"), d)
      for subs in (TWO, FOUR) for d in (*subs, FULL)),
    at_most(
        "plain/macs",
        "The sub-net is an ordinary network: its MACs over those of the network trained alone are 1.",
        "sub-nets stay plain",
        "MACs",
        {BEST: of_depth(BEST, "20", "macs"), alone("20"): of_depth(alone("20"), "20", "macs")},
        1.0001,
        note="Latency is timed side by side in benchmarks/subnet_latency.py.",
    ),
    at_most(
        "plain/file",
        "The file of all depths is at most 1.02 × the full net's.",
        "weights stored once",
        "bytes",
        {BEST: file_bytes(BEST), alone(FULL): file_bytes(alone(FULL))},
        1.02,
    ),
]  # fmt: skip

STUDY = Study(
    key="ekd",
    arms=ARMS,
    claims=CLAIMS,
    primary=PRIMARY,
    note=(
        "Which claims are primary was settled when the accuracies of the first arms were known, of the "
        "same seeds; the default recipe was chosen by then, on validation images."
    ),
    common={"data": "cifar10", "size": 16, "epochs": 40, "batch_size": 128, "val_fraction": 0.0},
    quick={"data": "digits", "size": None, "epochs": 1, "batch_size": 256},
    fingerprint=image_fingerprint,
)
