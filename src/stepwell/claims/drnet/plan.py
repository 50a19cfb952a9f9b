"""The arms of the study of dynamic resolution, and the length of their training."""

from typing import Any

from stepwell.claims.kit.study import Arm

LEARNED, ALONE = "stepwell.claims.drnet.arms:learned", "stepwell.claims.drnet.arms:alone"
TARGETS = (0.4, 0.55, 0.7)
MIDDLE = 0.55
#: In the place of a target: the middle target, with as many images as full size alone.
LONGER = "longer"
EVERY_TARGET: tuple[float | str, ...] = (*TARGETS, LONGER)
#: Of depth and resolution together, and of depth alone, whose cheapest choice costs more.
TOGETHER = (0.4, 0.55)
FULL, STATIC, EVERY = "full size alone", "three quarters alone", "all resolutions, full size"
EVERY_LONGER = "all resolutions, longer"
FREE = "dynamic, no target"
TEXT, CODE = "dynamic, paper's text", "dynamic, paper's code"
SHARED, IMITATE = "dynamic, shared norms", "imitation"
FRONTS = "fronts"
PLANTED = "planted"
#: Ways to the chooser on the planted task, by arm.
PLANTED_ARMS: dict[str, dict[str, Any]] = {
    PLANTED: {},
    f"{PLANTED}, paper's text": {"mixing": "chosen"},
    f"{PLANTED}, paper's code": {"mixing": "all"},
    f"{PLANTED}, imitation": {"schedule": "imitate"},
}
#: Epochs of the second phase over the first's, at equal passes: of the default, whose chooser learns
#: from a quarter of the images at three resolutions without gradient; of one image at all resolutions.
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


def every(target: float | str) -> str:
    """The arm that is trained at all resolutions and never chooses, to compare with."""
    return EVERY_LONGER if target == LONGER else EVERY


def choosing(target: float, start: str = "start", epochs: float = EXPECTED, **options: Any) -> Arm:
    """The second phase behind a first one."""
    return Arm(LEARNED, {"target": target} | options, {"init": start}, {"choose_epochs": epochs})


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
                       {"fixed": every(t), "dynamic": dynamic(t), "random": random(t)})
       for t in EVERY_TARGET},
    control(IMITATE): Arm("stepwell.claims.drnet.arms:controls", {},
                          {"fixed": IMITATE, "dynamic": IMITATE, "random": random(MIDDLE)}),
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
    **{arm: Arm("stepwell.claims.drnet.planted:planted", options, {},
                {"epochs": 4 / 3, "choose_epochs": 4 / 3})
       for arm, options in PLANTED_ARMS.items()},
}  # fmt: skip
