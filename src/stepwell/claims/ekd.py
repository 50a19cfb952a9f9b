"""Nested depths with embedded distillation: does one nested network gain over networks of one depth?

ResNet-32 with sub-nets of 8, 14 and 20 layers, and with 20 alone. All arms have the same data,
augmentation and optimizer, and each keeps its last epoch. The nested nets start from the full net
trained alone and train as long again, at half the rate (the default of `train ekd`); offline
distillation trains every depth from random weights by the same full net, which is also distilled into
itself ("born again"). Seconds include the training of the full net.

Controls: the same nested net on labels only, for as many seconds and with the same weights; separate
networks that together train for as many seconds as the nested net, with one schedule each.
`claims.ablation` asks which parts of the method matter.
"""

from collections.abc import Iterable, Mapping
from statistics import fmean
from typing import Any, NamedTuple

from stepwell.claims.ablation import (
    BLOCKS,
    FOUR,
    FULL,
    TWO,
    UNTAUGHT,
    depths_of,
    offline,
)
from stepwell.claims.kit.figure import Axis, Plot
from stepwell.claims.kit.measures import accuracy, alone, least, less, more, seconds, times
from stepwell.claims.kit.study import Arm, Claim, Measure, Question, Study, image_fingerprint

ALL = (*FOUR, FULL)
ACCURACY, SECONDS = "% accuracy", "processor seconds"


def nest(subs: tuple[str, ...], full: str = FULL) -> str:
    """The arm of the default recipe with these sub-nets."""
    return f"{' < '.join((*subs, full))}, nested"


def labels_only(subs: tuple[str, ...], full: str = FULL) -> str:
    """Its control, which no teacher teaches."""
    return f"{nest(subs, full)}, labels only"


def equal_seconds(depth: str) -> str:
    """One of the separate networks that take as many seconds as the nested net together."""
    return f"{depth} alone, equal seconds"


def nested(subs: tuple[str, ...], share: float, full: str = FULL, **arguments: Any) -> Arm:
    """A nested net that starts from the full net trained alone.

    share: epochs of its own training, over the full net's.
    """
    network = {"net": f"resnet{full}", "depths": tuple(f"{d}={BLOCKS[d]}" for d in subs)}
    return Arm("ekd", network | arguments, {"init": alone(full)}, {"nest_epochs": share})


def distilled(depths: Iterable[str], full: str = FULL) -> dict[str, Arm]:
    """The arms that distil the full net trained alone into networks of these depths."""
    teacher = {"teacher": (alone(full),)}
    return {offline(d): Arm("distill", {"student": f"resnet{d}"}, teacher) for d in depths}


def separate(depth: str, share: float = 1.0) -> Arm:
    """One network on labels alone."""
    return Arm("supervised", {"net": f"resnet{depth}"}, scaled={"epochs": share})


#: Epochs over the full net's that make arms take equal seconds, from single trainings of each kind.
AS_LONG_UNTAUGHT, AS_LONG_APART = 1.2, 1.35

ARMS: dict[str, Arm] = {
    alone(FULL): separate(FULL),
    **distilled(ALL),
    nest(FOUR): nested(FOUR, 1.0),
    labels_only(FOUR): nested(FOUR, AS_LONG_UNTAUGHT, **UNTAUGHT),
    nest(TWO): nested(TWO, 1.0),
    **{alone(d): separate(d) for d in FOUR},
    **{equal_seconds(d): separate(d, AS_LONG_APART) for d in ALL},
}  # fmt: skip


def cost(arms: Iterable[str], known: Mapping[str, Arm] = ARMS) -> Measure:
    """Processor seconds of several of the `known` arms, and of the full net that they learn from."""
    return seconds(*dict.fromkeys(need for arm in arms for need in (arm, *known[arm].needed)))


def mean(measures: Iterable[Measure]) -> Measure:
    """The mean of several numbers."""
    measures = list(measures)
    return lambda results: fmean(m(results) for m in measures)


class Rivals(NamedTuple):
    """A nested net and what it is compared with.

    rivals: by depth, the arm that gives the other network of that depth.
    """

    arm: str
    rivals: Mapping[str, str]

    def gain(self, depth: str) -> Measure:
        """Accuracy of the nested net at a depth minus that of its rival, in points."""
        return less(accuracy(self.arm, depth), accuracy(self.rivals[depth], depth))

    @property
    def mean_gain(self) -> Measure:
        """The mean over the depths."""
        return mean(map(self.gain, self.rivals))

    @property
    def shown(self) -> dict[str, Measure]:
        """The accuracies of both, by depth."""
        ours = {f"{self.arm}: {d}": accuracy(self.arm, d) for d in self.rivals}
        return ours | {f"{arm}: {d}": accuracy(arm, d) for d, arm in self.rivals.items()}

    def claims(self, slug: str, text: str) -> list[Claim]:
        """Exploratory claims: the mean, and every depth within half a point."""
        mean = Claim(f"{slug}/mean", f"{text}, on average over its depths", "not asked", ACCURACY,
                     self.shown, self.mean_gain, pool=f"{slug}/mean")  # fmt: skip
        by_depth = [
            more(f"{slug}/{d}", f"{text}, at depth {d}, within half a point", "not asked",
                 (self.arm, accuracy(self.arm, d)), (arm, accuracy(arm, d)), -0.5, ACCURACY,
                 pool="depths")
            for d, arm in self.rivals.items()
        ]  # fmt: skip
        return [mean, *by_depth]


def minus(measure: Measure, number: float) -> Measure:
    """A measure less a margin of its own."""
    return lambda results: measure(results) - number


BEST, UNTAUGHT_BEST = nest(FOUR), labels_only(FOUR)
OFFLINE = Rivals(BEST, {d: offline(d) for d in ALL})
LABELS = Rivals(BEST, dict.fromkeys(ALL, UNTAUGHT_BEST))
APART = Rivals(BEST, {d: equal_seconds(d) for d in ALL})
ALONE = Rivals(BEST, {d: alone(d) for d in ALL})
TWO_OFFLINE = Rivals(nest(TWO), {d: offline(d) for d in (*TWO, FULL)})

#: Named from the abstract before the runs: sub-nets gain, the full net keeps its performance, and
#: embedded distillation is why.
PRIMARY = ("better-than-offline", "full-net-unharmed", "teaching-pays")


def primary_claims(offline: Rivals, labels: Rivals, full: str) -> list[Claim]:
    """The claims of `PRIMARY`.

    Args:
        offline, labels: a nested net against offline distillation, and against labels only.
        full: its full net.
    """
    return [
        Claim(PRIMARY[0], "One nested net of four depths is above offline distillation of all "
              "four: the mean over the depths by more than 0 and depth 8 by more than 0.5 points "
              "(the lesser, after its margin)",
              "sub-nets outperform the same networks trained alone (abstract)", ACCURACY, offline.shown,
              least([offline.mean_gain, minus(offline.gain("8"), 0.5)]), expected=0.5),
        Claim(PRIMARY[1], "Its full net is at most half a point below labels only from the same start, "
              "and more than 1 point above the full net alone (the lesser, after its margin)",
              "preserves the full net's performance (abstract)", ACCURACY,
              {a: accuracy(a, full) for a in (offline.arm, labels.rivals[full], alone(full))},
              least([minus(labels.gain(full), -0.5),
                     minus(Rivals(offline.arm, {full: alone(full)}).gain(full), 1.0)]), expected=0.5),
        Claim(PRIMARY[2], "Teaching pays: against the same net on labels only, of as many seconds, the "
              "mean over the depths gains more than 0 and depth 8 more than 0.5 points (the lesser, "
              "after its margin)", "EKD improves the sub-nets' generalisation (abstract)",
              ACCURACY, labels.shown, least([labels.mean_gain, minus(labels.gain("8"), 0.5)]),
              expected=0.5),
    ]  # fmt: skip


CLAIMS = [
    *primary_claims(OFFLINE, LABELS, FULL),
    times("cost/4-depths", "It takes at most 0.8 of the seconds of offline distillation",
          "one run costs less than training each", SECONDS,
          {BEST: cost([BEST]), "offline, born again included": cost(map(offline, ALL))}, 0.8,
          below=True),
    times("cost/2-depths", "Two depths take at most 0.9 of the seconds of offline distillation",
          "one run costs less than training each", SECONDS,
          {nest(TWO): cost([nest(TWO)]),
           "offline, born again included": cost(map(offline, (*TWO, FULL)))}, 0.9, below=True),
    *OFFLINE.claims("offline", "The nested net is above offline distillation"),
    *LABELS.claims("labels", "The nested net is above itself on labels only, of as many seconds"),
    *ALONE.claims("alone", "The nested net is above networks trained alone"),
    *APART.claims("apart", "The nested net is above separate networks that take as many seconds"),
    *TWO_OFFLINE.claims("two-offline", "Two nested depths are above offline distillation"),
]  # fmt: skip

STUDY = Study(
    key="ekd", arms=ARMS, claims=CLAIMS, primary=PRIMARY,
    note=("The default recipe was chosen on validation images that no arm trains or is tested on "
          "(`benchmarks/ekd_trials.py`), the claims before the runs."),
    common={"data": "cifar10", "size": 16, "epochs": 40, "batch_size": 128, "val_fraction": 0.0},
    quick={"data": "digits", "size": None, "epochs": 1, "batch_size": 256},
    fingerprint=image_fingerprint,
    questions=[
        Question("Four depths (32 > 20 > 14 > 8)", (alone("*"), offline("*"), f"{BEST}*"),
                 ("cost/4-depths", "offline/*", "labels/*", "alone/*")),
        Question("Separate networks of as many seconds", (equal_seconds("*"), BEST), ("apart/*",)),
        Question("Two depths (32 > 20)", (alone(FULL), *map(offline, (*TWO, FULL)), nest(TWO)),
                 ("cost/2-depths", "two-offline/*")),
    ],
    plot=Plot(Axis("million MACs an image", 1e-6), Axis("test accuracy, %", 100), {
        "separate networks, each alone": [p for d in ALL for p in depths_of(alone(d), d)],
        "... distilled one by one": [p for d in ALL for p in depths_of(offline(d), d)],
        "one nested network on labels only": depths_of(UNTAUGHT_BEST, *ALL),
        "one nested network (default)": depths_of(BEST, *ALL),
    }),
)  # fmt: skip
