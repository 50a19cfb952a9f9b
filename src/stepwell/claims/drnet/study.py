"""Dynamic resolution: what Zhu et al. 2021 claim, and its test on images of 32 pixels at 32, 24 and 16.

The arms see as many image passes, a pass being one image at one resolution; one without gradient
counts a third. With E epochs the first phase takes 3 E (at three resolutions) and the second E, so
training at one size takes 4 E epochs, and at all of them 4/3 E. A step has as many passes in every arm,
too: 128 images at one resolution, or 43 at all three. A pass at full size costs most, so the arm at
full size computes most.

Two kinds of arms are exceptions. Those of the planted task take equal epochs. In the paper the network
that chooses takes several times the passes of the one at full size, and the arms "longer" have as many
*images* as the arm at full size alone, each at all resolutions in the first phase: 2.6 times the passes
where resolutions are chosen, 3 times where they never are. They were added after a pilot of one seed,
in which training at all resolutions lost six points to full size alone.

What chooses may cost less than its target, where no price of its scores makes it better: the page has
the cost of every arm.

Two arms the paper lacks. "all resolutions, full size" is trained at all resolutions and never chooses:
it tells the gain of choosing from that of training at several resolutions. "random" is trained like the
network that chooses, but for its choices, which are drawn by chance at the same mean cost. Every margin
was set before the study was run.
"""

from stepwell.claims.drnet.plan import (
    ARMS,
    CODE,
    EVERY,
    EVERY_LONGER,
    EVERY_TARGET,
    FREE,
    FRONTS,
    FULL,
    IMITATE,
    LONGER,
    MIDDLE,
    PLANTED,
    PLANTED_ARMS,
    SHARED,
    STATIC,
    TARGETS,
    TEXT,
    TOGETHER,
    both,
    control,
    depth,
    dynamic,
)
from stepwell.claims.kit.columns import Column
from stepwell.claims.kit.measures import less, of_test
from stepwell.claims.kit.study import Claim, Measure, Study, image_fingerprint


def accuracy(arm: str, key: str = "accuracy") -> Measure:
    """Test accuracy in percent."""
    return of_test(arm, key, 100)


def beats(
    id: str,
    text: str,
    paper: str,
    a: tuple[str, Measure],
    b: tuple[str, Measure],
    margin: float = 0.0,
    note: str = "",
) -> Claim:
    """A claim about how much more accurate one thing is than another."""
    rule = f"{text}: the 90 % interval lies above {margin:g} points."
    return Claim(id, rule, paper, "%", dict([a, b]), less(a[1], b[1]), margin, note=note)


def whole(arm: str) -> tuple[str, Measure]:
    """An arm as it runs."""
    return arm, accuracy(arm)


def of(target: float | str, what: str) -> tuple[str, Measure]:
    """A control at the cost of the dynamic network of this target."""
    return what, accuracy(control(target), what)


def at(target: float | str) -> str:
    """A target, in the words of a claim."""
    if target == LONGER:
        return f"With as many images as full size alone, at a target of {MIDDLE:g}"
    return f"At a target of {target}"


def off_target(target: float) -> Claim:
    """How far the mean cost that the loss sees ends from its target."""
    drawn, best = (of_test(dynamic(target), key, 1) for key in ("sampled cost", "unpriced cost"))
    return Claim(
        f"cost/{target:g}",
        "The loss controls the cost: choices drawn as in training cost less than 5 % off a target of "
        f"{target:g} in the mean: the 90 % interval lies below 0.05.",
        "targets of 2.0, 2.5, 3.0 and 3.5 G give 2.3, 2.8, 3.3 and 3.5 G (weight 0.2; 4.1 G in full)",
        "of the full cost",
        {"as drawn": drawn, "of the likeliest choices": best},
        lambda results: abs(drawn(results) / target - 1),
        0.05,
        below=True,
        note="The likeliest choices, which the paper runs, cost something else: a price mends that.",
        judged_in="of the target",
    )


def at_full(arm: str) -> tuple[str, Measure]:
    """An arm at full size for all images."""
    return arm, accuracy(arm, "at 1")


PRIMARY = {"norms", "several", "gain", "useful", "planted/line", "planted/useful"} | {
    f"{kind}/{t:g}" for kind in ("random", "own", "line") for t in TARGETS
}
LACKS = "not compared"

CLAIMS = [
    *(
        beats(
            f"random/{t}",
            f"{at(t)}, it gains more than 0.5 points on random choices, as many of each, "
            "by a network that was trained with random ones",
            "76.2 at 2.7 G against 74.65 ± 0.04 at 2.6 G", whole(dynamic(t)), of(t, "random"), 0.5,
        )
        for t in EVERY_TARGET
    ),
    *(
        beats(
            f"own/{t}",
            f"{at(t)}, its own choices beat random ones, as many of each, by itself",
            LACKS, whole(dynamic(t)), of(t, "random, own"),
        )
        for t in EVERY_TARGET
    ),
    *(
        beats(
            f"line/{t}",
            f"{at(t)}, it lies above its own line between resolutions for all images",
            LACKS, whole(dynamic(t)), of(t, "line, own"),
            note="The line may leave a resolution out: it is the best mixture of them by chance.",
        )
        for t in EVERY_TARGET
    ),
    *(
        beats(
            f"fixed-line/{t}",
            f"{at(t)}, it lies above the line between resolutions for all images, of the "
            "network that was trained at all of them",
            LACKS, whole(dynamic(t)), of(t, "line"),
        )
        for t in EVERY_TARGET
    ),
    *(
        beats(
            f"cascade/{t}",
            f"{at(t)}, it beats the best cascade of the network that was trained at all "
            "resolutions: a small one first, a larger one where unsure",
            LACKS, whole(dynamic(t)), of(t, "cascade"),
            note="The cascade needs no chooser, and pays for every resolution it runs.",
        )
        for t in EVERY_TARGET
    ),
    *(
        beats(
            id, f"{at(t)}, it loses less than 1 point to training at full size alone",
            "76.2 at 2.7 G against 76.1 at 4.1 G", whole(dynamic(t)), whole(FULL), -1.0, note,
        )
        for id, t, note in (
            ("cheaper", MIDDLE, ""),
            ("cheaper/longer", LONGER, "It takes 2.6 times the passes to train."),
        )
    ),
    beats(
        "static",
        f"At a target of {MIDDLE:g}, it beats training at three quarters of the size (a cost of 0.56)",
        "192 × 192: 74.3 at 3.0 G", whole(dynamic(MIDDLE)), whole(STATIC),
    ),
    *(
        beats(
            id, f"Training at several resolutions by itself gives more accuracy at full size{when}",
            LACKS, at_full(arm), whole(FULL), note=note,
        )
        for id, arm, when, note in (
            ("several", EVERY, "", ""),
            (
                "several/longer", EVERY_LONGER, ", if it has as many images",
                "It takes three times the passes to train.",
            ),
        )
    ),
    beats(
        "gain", "Choosing without a target gains on always running at full size",
        "77.5 at 3.7 G against 76.1, of a network that was trained at one size",
        whole(FREE), at_full(EVERY),
    ),
    beats(
        "norms", "Norms of its own for each resolution gain more than 0.5 points",
        "81.4 at 2.8 G against 80.3 at 2.9 G (ImageNet-100)",
        whole(dynamic(MIDDLE)), whole(SHARED), 0.5,
        note="Shared norms run with one mean for all resolutions, and train with each batch's own.",
    ),
    *(
        beats(
            f"expected/{what}",
            f"A chooser that learns from the expectation does better than by the paper's {what}",
            LACKS, whole(dynamic(MIDDLE)), whole(arm),
        )
        for what, arm in (("text", TEXT), ("code", CODE))
    ),
    beats(
        "joint", "Learning the choice jointly beats imitating the cheapest good choice",
        LACKS, whole(dynamic(MIDDLE)), whole(IMITATE),
    ),
    Claim(
        "useful",
        "The chooser knows which images need the full size: its scores tell them by an AUC of more "
        "than 0.55: the 90 % interval lies above it.",
        LACKS, "AUC", {control(MIDDLE): of_test(control(MIDDLE), "auc", 1)},
        of_test(control(MIDDLE), "auc", 1), 0.55, judged_in="AUC",
    ),
    Claim(
        "doubt",
        "A chooser that learns by imitation, from labels, tells the images that need full size better "
        "than the doubt of the network itself at half the size does: the 90 % interval of the "
        "difference lies above 0.",
        LACKS, "AUC",
        {
            control(IMITATE): of_test(control(IMITATE), "auc", 1),
            "doubt": of_test(control(IMITATE), "auc of doubt", 1),
        },
        less(
            of_test(control(IMITATE), "auc", 1), of_test(control(IMITATE), "auc of doubt", 1)
        ),
        0.0,
        note="Doubt takes a run at half the size, which a cascade pays.", judged_in="AUC",
    ),
    beats(
        "planted/line",
        "Where half of the images visibly need full size, it gains more than 5 points on mixing its "
        "resolutions by chance",
        LACKS, whole(PLANTED), (f"{PLANTED}: line", accuracy(PLANTED, "line, own")), 5.0,
        note="Digits, at full or a quarter of the picture's width, at 32, 16 and 8 pixels.",
    ),
    Claim(
        "planted/useful",
        "There its scores tell the images that need full size by an AUC of more than 0.8: the 90 % "
        "interval lies above it.",
        LACKS, "AUC", {PLANTED: of_test(PLANTED, "auc", 1)},
        of_test(PLANTED, "auc", 1), 0.8, judged_in="AUC",
    ),
    *(
        beats(
            f"planted/{arm.removeprefix(PLANTED + ', ')}",
            f"There it does better than by {arm.removeprefix(PLANTED + ', ')}",
            LACKS, whole(PLANTED), whole(arm),
        )
        for arm in PLANTED_ARMS if arm != PLANTED
    ),
    *(off_target(t) for t in TARGETS),
    *(
        beats(
            f"both/{what}/{t:g}",
            f"At a target of {t:g}, choosing depth and resolution beats choosing the {what} alone",
            LACKS, whole(both(t)), whole(arm(t)),
        )
        for what, arm in (("resolution", dynamic), ("depth", depth)) for t in TOGETHER
    ),
    *(
        beats(
            f"front/{what}/{cost:g}",
            f"Of networks trained at a target of {MIDDLE:g} and held to a mean cost of {cost:g} by a "
            f"price, that of depth and resolution is better than that of {what} alone",
            LACKS, ("both", accuracy(FRONTS, f"both at {cost:g}")),
            (what, accuracy(FRONTS, f"{what} at {cost:g}")),
        )
        for what in ("resolution", "depth") for cost in TARGETS
    ),
]  # fmt: skip

STUDY = Study(
    key="drnet",
    arms=ARMS,
    claims=CLAIMS,
    primary=PRIMARY,
    common={
        "data": "cifar10", "size": None, "net": "resnet20", "subnets": ("8", "14"), "epochs": 9,
        "val_fraction": 0.1,
    },
    quick={"data": "digits", "epochs": 1},
    fingerprint=image_fingerprint,
    note=(
        "Costs are shares of the MACs at full size. Those of arms that choose have the chooser in "
        "them, those of the controls do not; a cascade pays for every resolution that it runs. Arms "
        "with random choices are judged in the controls: their own chooser learns nothing. An arm may "
        "cost less than its target, where no price of its scores makes it better: accuracies of two "
        "arms go with their costs."
    ),
    table=[
        Column("accuracy", "accuracy"),
        Column("cost", "cost"),
        Column("unpriced accuracy", "accuracy, no price"),
        Column("unpriced cost", "cost, no price"),
        Column("sampled cost", "cost, drawn"),
        Column("at 1", "at full size"),
        Column("at 0.75", "at 3/4"),
        Column("at 0.5", "at 1/2"),
        Column("random", "random"),
        Column("random, own", "random, own network"),
        Column("line", "line"),
        Column("line, own", "line, own network"),
        Column("cascade", "cascade"),
        Column("cascade cost", "cascade's cost"),
        Column("oracle", "oracle"),
        Column("oracle cost", "oracle's cost"),
        Column("auc", "AUC", 1.0, ".3f"),
        Column("auc of doubt", "AUC of doubt", 1.0, ".3f"),
        Column("cpu_seconds", "seconds", 1.0, ".0f"),
    ],
    panels=[
        Column("accuracy", "accuracy", unit="test accuracy, %"),
        Column("cost", "cost", unit="% of the MACs at full size"),
    ],
)  # fmt: skip
