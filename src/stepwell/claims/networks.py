"""Nested depths of other networks: a pretrained EfficientNet-Lite0, and a vision transformer.

Each has one sub-net. All arms of a network have the same data, augmentation, optimizer and epochs, and
keep their last epoch. The nested net starts from the full net trained alone, which also teaches both
depths by offline distillation, each as a network of its own. EfficientNet's full net alone and both of
its distilled networks start from the weights that timm publishes; the shallow one takes the blocks that
it keeps.
"""

from collections.abc import Mapping
from typing import Any

from stepwell.claims.ablation import UNTAUGHT, depths_of, offline
from stepwell.claims.ekd import (
    ACCURACY,
    AS_LONG_UNTAUGHT,
    PRIMARY,
    SECONDS,
    Rivals,
    cost,
    labels_only,
    nest,
)
from stepwell.claims.kit.figure import Axis, Plot
from stepwell.claims.kit.measures import accuracy, alone, more, times
from stepwell.claims.kit.study import Arm, Question, Study, image_fingerprint


def _study(
    key: str, name: str, sub: tuple[int, ...], full: str, common: Mapping[str, Any],
    quick: Mapping[str, Any],
) -> Study:  # fmt: skip
    """The study of a network and one of its depths.

    Args:
        key: of `CLAIMS`.
        name: of the network.
        sub: blocks per stage of the sub-net.
        full: the full net's depth by name.
        common, quick: as for `Study`.
    """
    small, kept = "-".join(map(str, sub)), ",".join(map(str, sub))
    best, untaught = nest((small,), full), labels_only((small,), full)
    network = {"net": name, "depths": (f"{small}={kept}",)}
    start, teacher = {"init": alone(full)}, {"teacher": (alone(full),)}
    arms = {
        alone(full): Arm("supervised", {"net": name}),
        offline(small): Arm("distill", {"student": f"{name}@{kept}"}, teacher),
        offline(full): Arm("distill", {"student": name}, teacher),
        best: Arm("ekd", network, start, {"nest_epochs": 1.0}),
        untaught: Arm("ekd", network | UNTAUGHT, start, {"nest_epochs": AS_LONG_UNTAUGHT}),
    }
    by_offline = Rivals(best, {d: offline(d) for d in (small, full)})
    by_labels = Rivals(best, dict.fromkeys((small, full), untaught))
    claims = [
        more(PRIMARY[0], "The sub-net is above the same network alone, taught by the full net",
             "sub-nets outperform the same networks trained alone (abstract)",
             (best, accuracy(best, small)), (offline(small), accuracy(offline(small), small)),
             unit=ACCURACY, expected=0.5),
        more(PRIMARY[1], "The full net is at most half a point below itself alone",
             "preserves the full net's performance (abstract)",
             (best, accuracy(best, full)), (alone(full), accuracy(alone(full), full)), -0.5, ACCURACY,
             expected=0.5),
        more(PRIMARY[2], "Teaching pays: the sub-net is above itself on labels only, of "
             f"{AS_LONG_UNTAUGHT:g} times as many epochs",
             "EKD improves the sub-nets' generalisation (abstract)",
             (best, accuracy(best, small)), (untaught, accuracy(untaught, small)),
             unit=ACCURACY, expected=0.5),
        times("cost", "It takes at most 0.9 of the seconds of offline distillation",
              "one run costs less than training each", SECONDS,
              {best: cost([best], arms),
               "offline, born again included": cost(map(offline, (small, full)), arms)}, 0.9,
              below=True),
        *by_offline.claims("offline", "The nested net is above offline distillation"),
        *by_labels.claims("labels", "The nested net is above itself on labels only"),
    ]  # fmt: skip
    return Study(
        key=key, arms=arms, claims=claims, primary=PRIMARY,
        note="The recipe is the default of `train ekd`; nothing was tuned here.",
        common=common, quick=quick, fingerprint=image_fingerprint,
        questions=[
            Question(f"Two depths of {name}", (alone("*"), offline("*"), f"{best}*"),
                     ("cost", "offline/*", "labels/*")),
        ],
        plot=Plot(Axis("million MACs an image", 1e-6), Axis("test accuracy, %", 100), {
            "the full network alone": depths_of(alone(full), full),
            "separate networks, distilled":
                [point for d in (small, full) for point in depths_of(offline(d), d)],
            "one nested network on labels only": depths_of(untaught, small, full),
            "one nested network (default)": depths_of(best, small, full),
        }),
    )  # fmt: skip


#: Pretrained weights are gone after a few steps at rates for random ones.
PRETRAINED = _study(
    "pretrained", "timm/tf_efficientnet_lite0", (1, 1, 1, 2, 2, 2, 1), "full",
    {"data": "cifar10", "size": 96, "epochs": 5, "batch_size": 64, "val_fraction": 0.0,
     "init": "pretrained", "lr": 0.01},
    {"data": "digits", "size": 32, "epochs": 1, "batch_size": 256, "init": None},
)  # fmt: skip
VIT = _study(
    "vit", "vit6", (3,), "6",
    {"data": "cifar10", "size": 16, "epochs": 40, "batch_size": 128, "val_fraction": 0.0,
     "optimizer": "adamw", "lr": 0.001, "weight_decay": 0.05},
    {"data": "digits", "size": None, "epochs": 1, "batch_size": 256},
)  # fmt: skip
