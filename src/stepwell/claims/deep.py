"""Nested depths where depth matters: ResNet-56 with sub-nets of 8, 20 and 32 layers, trained for long.

The claims and the recipe are those of `claims.ekd`, on a deeper network, more images and more epochs.
All arms have the same views and MixUp. Its depths lie further apart, so teaching may have more to give.
"""

from stepwell.claims.ablation import UNTAUGHT, depths_of, offline
from stepwell.claims.ekd import (
    AS_LONG_UNTAUGHT,
    PRIMARY,
    SECONDS,
    Rivals,
    cost,
    distilled,
    labels_only,
    nest,
    nested,
    primary_claims,
    separate,
)
from stepwell.claims.kit.figure import Axis, Plot
from stepwell.claims.kit.measures import alone, times
from stepwell.claims.kit.study import Arm, Question, Study, image_fingerprint

FULL, SUBS = "56", ("8", "20", "32")
ALL = (*SUBS, FULL)
BEST, UNTAUGHT_BEST = nest(SUBS, FULL), labels_only(SUBS, FULL)

ARMS: dict[str, Arm] = {
    alone(FULL): separate(FULL),
    **distilled(ALL, FULL),
    BEST: nested(SUBS, 1.0, FULL),
    UNTAUGHT_BEST: nested(SUBS, AS_LONG_UNTAUGHT, FULL, **UNTAUGHT),
}  # fmt: skip
OFFLINE = Rivals(BEST, {d: offline(d) for d in ALL})
LABELS = Rivals(BEST, dict.fromkeys(ALL, UNTAUGHT_BEST))

STUDY = Study(
    key="deep", arms=ARMS, primary=PRIMARY,
    claims=[
        *primary_claims(OFFLINE, LABELS, FULL),
        times("cost", "It takes at most 0.8 of the seconds of offline distillation",
              "one run costs less than training each", SECONDS,
              {BEST: cost([BEST], ARMS),
               "offline, born again included": cost(map(offline, ALL), ARMS)}, 0.8, below=True),
        *OFFLINE.claims("offline", "The nested net is above offline distillation"),
        *LABELS.claims("labels", "The nested net is above itself on labels only, of as many seconds"),
    ],
    note="The recipe, its settings and the claims are those of `verify ekd`; nothing was tuned here.",
    common={"data": "cifar10", "size": 16, "epochs": 120, "batch_size": 128, "val_fraction": 0.0,
            "mix": "mixup"},
    quick={"data": "digits", "size": None, "epochs": 1, "batch_size": 256},
    fingerprint=image_fingerprint,
    questions=[
        Question("Four depths (56 > 32 > 20 > 8)", (alone("*"), offline("*"), f"{BEST}*"),
                 ("cost", "offline/*", "labels/*")),
    ],
    plot=Plot(Axis("million MACs an image", 1e-6), Axis("test accuracy, %", 100), {
        "the full network alone": depths_of(alone(FULL), FULL),
        "separate networks, distilled one by one": [p for d in ALL for p in depths_of(offline(d), d)],
        "one nested network on labels only": depths_of(UNTAUGHT_BEST, *ALL),
        "one nested network (default)": depths_of(BEST, *ALL),
    }),
)  # fmt: skip
