"""Dynamic resolution: what Zhu et al. 2021 claim, and its test on images of 32 pixels at 32, 24 and 16.

All arms take as many image passes; a pass is one image at one resolution, and a pass without gradient
counts a third. With E epochs the first phase takes 3 E (at three resolutions) and the second E.
Training at one size takes 4 E epochs, and at all sizes 4/3 E. A step has as many passes in every arm:
128 images at one resolution, or 43 at all three. A pass at full size costs most, so that arm computes
most.

The arms of the planted task take equal epochs instead. The arms "longer" have as many *images* as the
arm at full size alone, as in the paper: 2.6 times the passes, or 3 times without choices. They were
added after a pilot of one seed, in which training at all resolutions lost six points to full size.

The paper lacks two arms. "all resolutions, full size" does not choose: it separates the gain of
choosing from the gain of training at several resolutions. "random" is trained like the network that
chooses, with random choices at the same mean cost. Every margin was set before the study was run.
"""

from typing import Any

from stepwell.claims.drnet.arms import COSTS
from stepwell.claims.kit.figure import Axis, Plot, Point
from stepwell.claims.kit.measures import Named, less, level, more, of_test, of_test_if_any
from stepwell.claims.kit.study import Arm, Claim, Column, Measure, Question, Study, image_fingerprint
from stepwell.recipes.drnet import SHARES

LEARNED, ALONE = "stepwell.claims.drnet.arms:learned", "stepwell.claims.drnet.arms:alone"
TARGETS = (0.4, 0.55, 0.7)
MIDDLE = 0.55
#: In the place of a target: the middle target, with as many images as full size alone.
LONGER = "longer"
#: Of depth and resolution together, and of depth alone, whose cheapest choice costs more.
TOGETHER = (0.4, 0.55)
FULL, STATIC, EVERY = "full size alone", "three quarters alone", "all resolutions, full size"
EVERY_LONGER = "all resolutions, longer"
FREE = "dynamic, no target"
TEXT, CODE = "dynamic, paper's text", "dynamic, paper's code"
SHARED, IMITATE = "dynamic, shared norms", "imitation"
FRONTS = "fronts"
#: The network's confidence at the cheapest resolution decides. The chooser learns from images that the
#: network has not seen, or from those it trained on.
DOUBT, SEEN = "doubt", "doubt, seen images"
PLANTED = "planted"
#: Ways to the chooser on the planted task, by arm.
PLANTED_ARMS: dict[str, dict[str, Any]] = {
    PLANTED: {},
    f"{PLANTED}, paper's text": {"mixing": "chosen"},
    f"{PLANTED}, paper's code": {"mixing": "all"},
    f"{PLANTED}, imitation": {"schedule": "imitate"},
}
#: Epochs of the second phase over the first's, at equal passes: of the default, whose chooser learns
#: from a quarter of the images at three resolutions without gradient; of images at all resolutions.
EXPECTED, EVERYWHERE = 7 / 9, 1 / 3
#: Images of a step that runs each at three resolutions, for as many passes as in other steps.
THIRD: dict[str, Any] = {"batch_size": 43}


def dynamic(target: float | str) -> str:
    """The arm that chooses resolutions at this target."""
    return f"dynamic, {target}"


def random(target: float | str) -> str:
    """The arm whose choices in training are drawn by chance, at this mean cost."""
    return f"random, {target}"


def control(target: float | str) -> str:
    """The arm of the other ways to choose, at the same cost."""
    return f"controls, {target}"


def both(target: float) -> str:
    """The arm that chooses depth and resolution."""
    return f"depth and resolution, {target:g}"


def depth(target: float) -> str:
    """The arm that chooses the depth alone."""
    return f"depth alone, {target:g}"


def first(**options: Any) -> Arm:
    """The first phase, which arms that choose start from."""
    return Arm(LEARNED, {"schedule": "resolutions"} | THIRD | options, {}, {"epochs": 1})


def choosing(target: float, start: str = "start", epochs: float = EXPECTED, **options: Any) -> Arm:
    """The second phase behind a first one."""
    return Arm(LEARNED, {"target": target} | options, {"init": start}, {"choose_epochs": epochs})


def by_doubt(held_out: float, epochs: float, choose_epochs: float) -> Arm:
    """Both phases, with a share of the images that only the chooser learns on."""
    options = {"schedule": "doubt", "target": MIDDLE, "gate_fraction": held_out}
    return Arm(LEARNED, options | THIRD, {}, {"epochs": epochs, "choose_epochs": choose_epochs})


DEEP = {"nested": True}
ONE = {"nested": True, "resized": False}
ARMS: dict[str, Arm] = {
    FULL: Arm(ALONE, {}, {}, {"epochs": 4}),
    STATIC: Arm(ALONE, {"share": 0.75}, {}, {"epochs": 4}),
    EVERY: Arm(LEARNED, {"schedule": "resolutions"} | THIRD, {}, {"epochs": 4 / 3}),
    "start": first(),
    **{dynamic(t): choosing(t) for t in TARGETS},
    **{random(t): choosing(t, epochs=1, mixing="random") for t in TARGETS},
    EVERY_LONGER: Arm(LEARNED, {"schedule": "resolutions"}, {}, {"epochs": 4}),
    "start, longer": Arm(LEARNED, {"schedule": "resolutions"}, {}, {"epochs": 3}),
    dynamic(LONGER): choosing(MIDDLE, "start, longer", epochs=1),
    random(LONGER): choosing(MIDDLE, "start, longer", epochs=1, mixing="random"),
    **{control(t): Arm("stepwell.claims.drnet.arms:controls", {},
                       {"fixed": every, "dynamic": dynamic(t), "random": random(t)})
       for every, targets in ((EVERY, TARGETS), (EVERY_LONGER, (LONGER,))) for t in targets},
    control(IMITATE): Arm("stepwell.claims.drnet.arms:controls", {},
                          {"fixed": IMITATE, "dynamic": IMITATE, "random": random(MIDDLE)}),
    # a tenth of the images is the chooser's: nine tenths for ten ninths of the epochs are as many steps
    DOUBT: by_doubt(0.1, 4 / 3, 4),
    SEEN: by_doubt(0.0, 1.2, 0.4),
    FREE: choosing(1.0),
    TEXT: choosing(MIDDLE, epochs=1, mixing="chosen"),
    CODE: choosing(MIDDLE, epochs=EVERYWHERE, mixing="all", **THIRD),
    "start, shared norms": first(norms="shared"),
    SHARED: choosing(MIDDLE, "start, shared norms", norms="shared"),
    # three passes without gradient an image and epoch, of the chooser alone
    IMITATE: choosing(MIDDLE, epochs=1, schedule="imitate"),
    "start, depths": first(**DEEP),
    **{both(t): choosing(t, "start, depths", **DEEP) for t in TOGETHER},
    # three epochs at one resolution are as many passes as one at three
    "start, depths alone": Arm(LEARNED, {"schedule": "resolutions"} | ONE, {}, {"epochs": 3}),
    **{depth(t): choosing(t, "start, depths alone", epochs=8 / 9, **ONE) for t in TOGETHER},
    FRONTS: Arm("stepwell.claims.drnet.arms:fronts", {},
                {"resolution": dynamic(MIDDLE), "depth": depth(MIDDLE), "both": both(MIDDLE)}),
    **{arm: Arm("stepwell.claims.drnet.arms:planted", options, {},
                {"epochs": 4 / 3, "choose_epochs": 4 / 3})
       for arm, options in PLANTED_ARMS.items()},
}  # fmt: skip


def accuracy(arm: str, key: str = "accuracy") -> Measure:
    """Test accuracy in percent."""
    return of_test(arm, key, 100)


#: Name of the claims that compare choices within one network, whose spread is smaller.
WITHIN = "within one network"


def correct(arm: str) -> Named:
    """An arm as it runs."""
    return arm, accuracy(arm)


def rival(target: float | str, key: str) -> Named:
    """A control at the cost of the dynamic network of this target."""
    return key, accuracy(control(target), key)


def gain(arm: str) -> Named:
    """Points by which an arm's choices are better than random ones of the same shares."""
    return f"{arm}: gain", less(accuracy(arm), accuracy(arm, "random, own"))


def at(target: float | str) -> str:
    """A target, in the words of a claim."""
    if target == LONGER:
        return f"With as many images as full size alone, at a target of {MIDDLE:g}"
    return f"At a target of {target}"


#: Named from the paper's abstract: similar accuracy with a third less work, more accuracy with a little
#: less, and a resolution chosen for each image.
PRIMARY = ("cheaper", "gain/alone", f"random/{MIDDLE:g}")
LACKS = "not compared"
#: Mean cost of choices drawn as in training.
DRAWN = of_test(dynamic(MIDDLE), "sampled cost")

CLAIMS = [
    *(more(f"random/{t}", f"{at(t)}, learned choices gain more than 0.5 points on random choices "
           "of the same shares, by a network trained with random choices",
           "76.2 at 2.7 G against 74.65 ± 0.04 at 2.6 G", correct(dynamic(t)), rival(t, "random"), 0.5,
           expected=1.5) for t in (MIDDLE, LONGER)),
    more("own", f"{at(MIDDLE)}, learned choices beat random choices of the same shares in the same "
         "network", LACKS, correct(dynamic(MIDDLE)), rival(MIDDLE, "random, own"), pool=WITHIN),
    *(more(f"fixed-line/{t}", f"{at(t)}, learned choices beat the best mixture by chance of the "
           "resolutions of the network that never chooses", LACKS, correct(dynamic(t)),
           rival(t, "line")) for t in (MIDDLE, LONGER)),
    *(more(f"cascade/{t}", f"{at(t)}, learned choices beat the best cascade of the network that "
           "never chooses (a small resolution first, a larger one where unsure)", LACKS,
           correct(dynamic(t)), rival(t, "cascade"), note="The cascade needs no chooser, and pays for "
           "every resolution it runs.") for t in (MIDDLE, LONGER)),
    *(more(id, f"{at(t)}, the dynamic network loses less than 1 point to training at full size "
           "alone", "76.2 at 2.7 G against 76.1 at 4.1 G (abstract: similar at 34 % less)",
           correct(dynamic(t)), correct(FULL), -1.0, note=note, expected=0.0)
      for id, t, note in (("cheaper", MIDDLE, ""),
                          ("cheaper/longer", LONGER, "It takes 2.6 times the passes to train."))),
    more("static", f"At a target of {MIDDLE:g}, the dynamic network beats training at three "
         "quarters of the size (a cost of 0.56)", "192 × 192: 74.3 at 3.0 G",
         correct(dynamic(MIDDLE)), correct(STATIC)),
    *(more(id, f"Training at several resolutions, without a choice, gains at full size{when}",
           LACKS, (arm, accuracy(arm, "at 1")), correct(FULL), note=note)
      for id, arm, when, note in (("several", EVERY, "", ""),
                                  ("several/longer", EVERY_LONGER, ", if it has as many images",
                                   "It takes three times the passes to train."))),
    more("gain", "Choosing without a target gains on always running at full size",
         "not compared: the paper's rival is trained at one size", correct(FREE),
         (EVERY, accuracy(EVERY, "at 1"))),
    more("gain/alone", "Choosing without a target gains on a network trained at full size alone",
         "77.5 at 3.7 G against 76.1 at 4.1 G (abstract: +1.4 with 10 % less)", correct(FREE),
         correct(FULL), expected=1.4),
    more("norms", "Private norms for each resolution gain more than 0.5 points",
         "81.4 at 2.8 G against 80.3 at 2.9 G (ImageNet-100)", correct(dynamic(MIDDLE)),
         correct(SHARED), 0.5, note="Shared norms run with one mean for all resolutions, and train "
         "with each batch's own."),
    *(more(f"expected/{what}",
           f"A chooser that learns from the expected loss beats one by the paper's {what}", LACKS,
           correct(dynamic(MIDDLE)), correct(arm)) for what, arm in (("text", TEXT), ("code", CODE))),
    more("joint", "Learning the choice jointly beats imitating the cheapest good choice", LACKS,
         correct(dynamic(MIDDLE)), correct(IMITATE)),
    more("doubt/random", f"{at(MIDDLE)}, choices by doubt beat random choices of the same shares "
         "in the same network", LACKS, correct(DOUBT),
         (f"{DOUBT}: random", accuracy(DOUBT, "random, own")), pool=WITHIN),
    more("doubt/line", f"{at(MIDDLE)}, choices by doubt beat the best mixture by chance of its "
         "resolutions at their cost", LACKS, correct(DOUBT),
         (f"{DOUBT}: line", accuracy(DOUBT, "line, own")), pool=WITHIN,
         note="The smallest resolution runs for every image, and counts."),
    more("doubt/seen", "Images that the network has not seen teach the chooser better than those it "
         "trained on: its gain on random choices is larger", LACKS, gain(DOUBT), gain(SEEN),
         pool=WITHIN),
    level("useful", "The chooser's scores tell the images that need full size: their AUC", LACKS,
          (control(MIDDLE), of_test(control(MIDDLE), "auc", 1)), 0.55, "AUC"),
    level("useful/doubt", "A small copy tells the images that need full size: the AUC of the same "
          "network's doubt at half the size, on the pixels that the chooser sees", LACKS,
          (f"{control(MIDDLE)}, doubt", of_test_if_any(control(MIDDLE), "auc of doubt")), 0.55,
          "AUC"),
    more("planted/line", "Where half of the images visibly need full size, learned choices gain "
         "more than 5 points on mixing resolutions by chance", LACKS, correct(PLANTED),
         (f"{PLANTED}: line", accuracy(PLANTED, "line, own")), 5.0, pool=WITHIN,
         note="Digits, at full or a quarter of the picture's width, at 32, 16 and 8 pixels."),
    *(more(f"planted/{arm.removeprefix(PLANTED + ', ')}",
           f"There the default beats {arm.removeprefix(PLANTED + ', ')}", LACKS, correct(PLANTED),
           correct(arm)) for arm in PLANTED_ARMS if arm != PLANTED),
    Claim("cost", "The loss controls the cost: choices drawn as in training cost less than 5 % off a "
          f"target of {MIDDLE:g} in the mean",
          "targets of 2.0, 2.5, 3.0 and 3.5 G give 2.3, 2.8, 3.3 and 3.5 G (weight 0.2; 4.1 G in full)",
          "of the full cost", {"as drawn": DRAWN,
                               "of the likeliest choices": of_test(dynamic(MIDDLE), "unpriced cost")},
          lambda results: abs(DRAWN(results) / MIDDLE - 1), 0.05, below=True, judged_in="of the target",
          note="The likeliest choices, which the paper runs, cost another amount; a penalty mends it."),
    *(more(f"both/{what}", f"At a target of {MIDDLE:g}, choosing depth and resolution beats choosing "
           f"the {what} alone", LACKS, correct(both(MIDDLE)), correct(arm(MIDDLE)))
      for what, arm in (("resolution", dynamic), ("depth", depth))),
]  # fmt: skip

COLUMNS = [
    Column("accuracy", "accuracy"), Column("cost", "cost"),
    Column("unpriced accuracy", "accuracy, no penalty"),
    Column("unpriced cost", "cost, no penalty"), Column("sampled cost", "cost, drawn"),
    Column("at 1", "at full size"), Column("at 0.75", "at 3/4"), Column("at 0.5", "at 1/2"),
    Column("cpu_seconds", "seconds", 1.0, ".0f")
]  # fmt: skip
CONTROLS = [
    Column("random", "random"), Column("random, own", "random, own network"),
    Column("line", "line"), Column("line, own", "line, own network"), Column("cascade", "cascade"),
    Column("cascade cost", "cascade's cost"), Column("oracle", "oracle"),
    Column("oracle cost", "oracle's cost"), Column("auc", "AUC", 1.0, ".3f"),
    Column("auc of doubt", "AUC of doubt", 1.0, ".3f")
]  # fmt: skip

STUDY = Study(
    key="drnet", arms=ARMS, claims=CLAIMS, primary=PRIMARY,
    common={"data": "cifar10", "size": None, "net": "resnet20", "subnets": ("8", "14"), "epochs": 9,
            "val_fraction": 0.1},
    quick={"data": "digits", "epochs": 1},
    fingerprint=image_fingerprint,
    note=("The primary claims are named from the paper's abstract, and were reduced to three after "
          "these runs. Costs are shares of the MACs at full size. Costs of arms that choose include "
          "the chooser; costs of controls do not. Costs of the arms by doubt are shares of full size "
          "after half size, which is 1.25 times full size. A cascade pays for every resolution that "
          "it runs. Arms with random choices are judged in the controls: their own chooser learns "
          "nothing. An arm may cost less than its target, where no cost penalty improves its scores: "
          "compare accuracies together with costs. The small copy that the chooser sees does say "
          "which images need full size: the network's own doubt at that size tells them (claim "
          "`useful/doubt`). The chooser does not learn it."),
    questions=[Question("Is choosing a resolution worth its cost?",
                        ("full size alone", "three quarters alone", "all resolutions*",
                         "dynamic, [0-9n]*", "dynamic, longer"),
                        ("cheaper*", "static", "several*", "gain", "cost"), COLUMNS),
               Question("Do the choices beat controls at the same cost?", ("controls*",),
                        ("random/*", "own", "fixed-line/*", "cascade/*", "useful*"), CONTROLS),
               Question("Which parts of the method matter?",
                        (f"dynamic, {MIDDLE:g}", "dynamic, *", IMITATE),
                        ("norms", "expected/*", "joint"), COLUMNS),
               Question("A chooser by the network's own doubt?", (f"{DOUBT}*",), ("doubt/*",),
                        [*COLUMNS, CONTROLS[1], CONTROLS[3]]),
               Question("Depth and resolution together?",
                        ("depth*", f"dynamic, {TARGETS[0]:g}", f"dynamic, {MIDDLE:g}"),
                        ("both/*",), COLUMNS[:2]),
               Question("Where the needed resolution is visible: the planted task",
                        (f"{PLANTED}*",), ("planted/*",), [*COLUMNS[:2], *CONTROLS])],
    plot=Plot(Axis("share of the MACs at full depth and size"), Axis("test accuracy, %", 100),
              {"trained at one size": [Point(arm, "cost", "accuracy") for arm in (STATIC, FULL)],
               "one resolution for all images": [
                   Point(EVERY, share**2, f"at {share:g}") for share in SHARES],
               "chooses the resolution": [Point(dynamic(t), "cost", "accuracy") for t in TARGETS],
               **{f"chooses {what}": [Point(FRONTS, f"cost of {name} at {cost:g}",
                                            f"{name} at {cost:g}") for cost in COSTS]
                  for name, what in (("depth", "the depth"), ("both", "depth and resolution"))}}),
)  # fmt: skip
