"""Early exits: does a network that stops where it is sure gain over static networks of its cost?

ResNet-20 with an exit behind each of its first two stages, trained jointly (the sum of all cross
entropies, as MSDNet is), and cascades of its exits by confidence. Thresholds are set on validation
images; every accuracy is of test images. A cascade at a cost between two measured ones is a mixture of
both: the measured curve is joined by straight lines, which random choices between two cascades reach.

Controls: networks without exits, of about the mean cost and of the full one; as many images at each
exit, drawn at random; the cheapest exit that is right (an oracle).
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from stepwell.claims.kit.figure import Axis, Plot, Point
from stepwell.claims.kit.measures import ACCURACY, accuracy, alone, macs_of, more, on_lines, times
from stepwell.claims.kit.measuring import Clock, open_nested
from stepwell.claims.kit.study import Absent, Arm, Claim, Measure, Question, Study, image_fingerprint
from stepwell.evaluation import gather_logits
from stepwell.measure.cascade import cascade_curve
from stepwell.measure.depths import logits_where_it_is

FULL, SMALL, SMALLEST = "20", "14", "8"
EXITS, TAUGHT, FROZEN, MSDNET = (
    "exits", "exits, the last one teaches", "exits on a frozen network", "MSDNet"
)  # fmt: skip
#: Cascades within as many budgets, cheap to costly, are called "1" to "5".
BUDGETS = 5


def cascades(
    *, out: Path, exits: Path, data: str, criterion: str = "confidence", search: str = "best",
    temper: bool = False, seed: int = 0,
) -> dict[str, Any]:  # fmt: skip
    """Set cascades of a trained network to budgets on its validation images.

    Args:
        exits: file of the network.
        criterion, search, temper: as for `calibrate_cascade`.

    Returns:
        Under "test", by budget: "1/accuracy", "1/random_accuracy" and "1/mean_macs" on test images.

    Raises:
        ValueError: the run has no validation part.
    """
    clock = Clock()
    net, validation, tests = open_nested(exits, data)
    known = gather_logits(logits_where_it_is(net), tests)
    how: dict[str, Any] = {"criterion": criterion, "search": search, "temper": temper}
    curve = cascade_curve(net, validation, *known, points=BUDGETS, **how)
    test = {
        f"{i}/{name}": value
        for i, point in enumerate(curve, start=1)
        for name, value in {**point, "mean_macs": point["macs"]}.items()
        if name != "macs"
    }
    return clock.result(test)


def cascaded(arm: str, how: str = "confidence") -> str:
    """The arm of the cascades of another arm's network."""
    return f"{arm}, by {how}"


def exits(**arguments: Any) -> Arm:
    """ResNet-20 with its usual exits."""
    return Arm("exits", {"net": f"resnet{FULL}"} | arguments)


def cascades_of(arm: str, **how: Any) -> Arm:
    """Cascades of the network of an arm."""
    return Arm("stepwell.claims.exits:cascades", how, {"exits": arm})


#: Ways to set cascades, by name.
HOW: dict[str, dict[str, Any]] = {
    "entropy": {"criterion": "entropy"},
    "a learned criterion": {"criterion": "learned"},
    "confidence, a temperature an exit": {"temper": True},
    "geometric shares": {"search": "geometric"},
}
ARMS: dict[str, Arm] = {
    **{alone(d): Arm("supervised", {"net": f"resnet{d}"}) for d in (FULL, SMALL)},
    EXITS: exits(),
    cascaded(EXITS): cascades_of(EXITS),
    **{cascaded(EXITS, name): cascades_of(EXITS, **how) for name, how in HOW.items()},
    TAUGHT: exits(kl=1.0),
    FROZEN: Arm("exits", {"net": f"resnet{FULL}", "schedule": "frozen"}, scaled={"epochs": 0.5}),
    MSDNET: exits(net="msdnet10"),
    **{cascaded(arm): cascades_of(arm) for arm in (TAUGHT, FROZEN, MSDNET)},
    alone(SMALLEST): Arm("supervised", {"net": f"resnet{SMALLEST}"}),
}


def within(arm: str, macs: Measure) -> Measure:
    """Accuracy in percent of an arm's cascades at a mean cost, on straight lines between them.

    `Absent` for a cost below that of every cascade: none is as cheap.
    """

    def measure(results: Any) -> float:
        curve = [
            *zip(*(budgets_of(results[arm], key) for key in ("mean_macs", "accuracy")), strict=True)
        ]
        if macs(results) < min(curve)[0]:
            raise Absent(arm)
        return 100 * on_lines(sorted(curve), macs(results))

    return measure


def budgets_of(result: Mapping[str, Any], key: str) -> list[float]:
    """A measure of an arm's cascades, of those budgets that one keeps to; `Absent` if none does."""
    test = result["test"]
    values = [test[name] for i in range(1, BUDGETS + 1) if (name := f"{i}/{key}") in test]
    if not values:
        raise Absent(key)
    return values


def over_budgets(arm: str, key: str) -> Measure:
    """A measure of an arm's cascades in percent, a mean over budgets."""
    return lambda results: 100 * fmean(budgets_of(results[arm], key))


def of_cascade(key: str, arm: str = EXITS) -> Measure:
    """A number of an arm's saved cascade, set to the network's accuracy on validation examples."""
    return lambda results: float(results[arm]["cascade"]["test"][key])


def ratio(a: str, b: str, arm: str = EXITS) -> Measure:
    """A ratio of two numbers of an arm's saved cascade."""
    return lambda results: of_cascade(a, arm)(results) / of_cascade(b, arm)(results)


def beyond_chance(id: str, noun: str) -> Claim:
    """The claim that confidence decides better than chance."""
    return more(
        id, "Confidence decides better than chance: over all budgets, the cascades are more than half "
        f"a point above as many {noun} at each exit, drawn at random", "not asked",
        ("by confidence", over_budgets(cascaded(EXITS), "accuracy")),
        ("by chance", over_budgets(cascaded(EXITS), "random_accuracy")), 0.5, ACCURACY, expected=1.2,
    )  # fmt: skip


def one_by_one(id: str = "saves/ms", arm: str = EXITS, least: float = 0.8) -> Claim:
    """The claim about the time that an arm's saved cascade takes for single examples."""
    return times(
        id, f"One by one, its speed-up is at least {least} of that by MACs", "not asked", "×",
        {"by the clock": ratio("full_ms", "ms", arm), "by MACs": ratio("full_macs", "macs", arm)},
        least,
    )  # fmt: skip


def others(cases: Iterable[tuple[str, str, str, str]], cost: Measure) -> list[Claim]:
    """Claims that cascades (id, arm, text, paper) are better at a cost than those by confidence."""
    usual = cascaded(EXITS), within(cascaded(EXITS), cost)
    return [
        more(f"other/{id}", text, paper, (arm, within(arm, cost)), usual, 0.0, ACCURACY)
        for id, arm, text, paper in cases
    ]


COST = macs_of(alone(SMALL), SMALL)
BY_CONFIDENCE = within(cascaded(EXITS), COST)
COSTLIEST = accuracy(cascaded(EXITS), str(BUDGETS))
#: Named before the runs: a dynamic network is better than a static one of its cost, by its decisions,
#: and exits do not harm the network.
PRIMARY = ("better-than-static", "better-than-chance", "network-unharmed")
CLAIMS = [
    more(PRIMARY[0], f"At the cost of ResNet-{SMALL}, the cascade of exits is more accurate than "
         f"ResNet-{SMALL} trained alone", "above networks of the same budget (Fig. 7 of MSDNet)",
         (EXITS, BY_CONFIDENCE), (alone(SMALL), accuracy(alone(SMALL), SMALL)), 0.0, ACCURACY,
         expected=1.0),
    beyond_chance(PRIMARY[1], "images"),
    more(PRIMARY[2], "Exits do not harm the network: its last exit is at most 1 point below it trained "
         "alone", "exits harm ResNets, and MSDNet mends it (section 3 of MSDNet)",
         (f"{EXITS}: {FULL}", accuracy(EXITS, FULL)), (alone(FULL), accuracy(alone(FULL), FULL)), -1.0,
         ACCURACY, expected=0.5),
    times("saves/macs", "Set to the network's accuracy on validation images, the cascade takes at most "
          "0.75 of its MACs", "not asked", "MACs",
          {"cascade": of_cascade("macs"), "network": of_cascade("full_macs")}, 0.75, below=True),
    one_by_one(),
    more("static", "The costliest cascade is as accurate as the network trained alone, within half a "
         "point", "not asked", (cascaded(EXITS), COSTLIEST), (alone(FULL), accuracy(alone(FULL), FULL)),
         -0.5, ACCURACY),
    more("exit1", f"The first exit is as accurate as ResNet-{SMALLEST} alone, within half a point",
         "not asked", (EXITS, accuracy(EXITS, "exit1")),
         (alone(SMALLEST), accuracy(alone(SMALLEST), SMALLEST)), -0.5, ACCURACY),
    more("oracle", "The first right exit of the saved cascade, an oracle, is more than 3 points above "
         "the costliest cascade: better decisions would pay", "not asked",
         ("oracle", lambda results: 100 * of_cascade("oracle_accuracy")(results)),
         (cascaded(EXITS), COSTLIEST), 3.0, ACCURACY, pool="oracle"),
    *others((
          ("taught", cascaded(TAUGHT), "Soft targets of the last exit help cascades", "not asked"),
          ("frozen", cascaded(FROZEN), "Exits trained on a frozen network give better cascades than "
           "joint ones", "keeps the network as it is (DeeBERT)"),
          ("msdnet", cascaded(MSDNET), "MSDNet gives better cascades than ResNet-20 at this cost",
           "far above ResNets with exits (Fig. 7 of MSDNet)"),
          *((f"by/{i}", cascaded(EXITS, name), f"Cascades by {name} are better than by confidence",
             "not asked") for i, name in enumerate(HOW, start=1))), COST),
]  # fmt: skip

STUDY = Study(
    key="exits", arms=ARMS, claims=CLAIMS, primary=PRIMARY,
    note=("The paper's curves are figures (ImageNet, CIFAR-100): none of its numbers is beside ours. "
          "A tenth of the training images sets the thresholds; all arms leave it out."),
    common={"data": "cifar10", "size": 16, "epochs": 30, "batch_size": 128, "val_fraction": 0.1},
    quick={"data": "digits", "part": "1/4", "size": None, "epochs": 1, "batch_size": 128},
    fingerprint=image_fingerprint,
    questions=[
        Question("Are cascades of exits better than static networks?",
                 (alone("*"), EXITS, cascaded(EXITS)), ("saves/*", "static", "exit1", "oracle")),
        Question("Which exits, and which criterion?", (f"{EXITS}*", f"{MSDNET}*"), ("other/*",)),
    ],
    plot=Plot(Axis("million MACs an image", 1e-6), Axis("test accuracy, %", 100), {
        "networks trained alone": [Point(alone(d), f"{d}/macs", f"{d}/accuracy")
                                   for d in (SMALLEST, SMALL, FULL)],
        "exits": [Point(EXITS, f"{d}/macs", f"{d}/accuracy") for d in ("exit1", "exit2", FULL)],
        "cascades by confidence": [Point(cascaded(EXITS), f"{i}/mean_macs", f"{i}/accuracy")
                                   for i in range(1, BUDGETS + 1)],
        "cascades of MSDNet": [Point(cascaded(MSDNET), f"{i}/mean_macs", f"{i}/accuracy")
                               for i in range(1, BUDGETS + 1)],
    }),
)  # fmt: skip
