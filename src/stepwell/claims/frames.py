"""Frames: does it pay to choose the frames of a clip that a network looks at?

A network of two ResNet-8 (one for all frames, small; one for single frames) looks at up to three of 16
frames; see `benchmarks/clips.py`. Rivals take as many passes: the same network with frames spread
evenly over the clip, or drawn at random, and the same network on 15 of the frames.

Controls on the trained network itself: the frames of another clip, random ones, evenly spread ones.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from stepwell.claims.exits import of_cascade, one_by_one
from stepwell.claims.glance import GLANCES, NET, POLICY, control, looking
from stepwell.claims.kit.figure import Axis, Plot, Point
from stepwell.claims.kit.measures import ACCURACY, accuracy, correct, macs_of, more, times
from stepwell.claims.kit.study import Arm, Question, Study
from stepwell.data import load_images
from stepwell.data.clips import Frames
from stepwell.nets import builder_of
from stepwell.nets.families.glance import FRAMES

#: The network from which every encoder starts.
ENCODER = "ResNet-8 on plain digits"
EVEN, RANDOM, ALL = "frames spread evenly", "random frames", "all frames"


def frames(where: str, glances: str = GLANCES) -> Arm:
    """A network that looks at frames, chosen as `where` says."""
    return looking(where, "frames", glances, ENCODER)


#: The last arm looks at 15 frames of 16 in full size, one after the other.
ARMS: dict[str, Arm] = {
    ENCODER: Arm("supervised", {"net": NET, "data": "digits", "size": 32}, scaled={"epochs": 2}),
    POLICY: frames("policy"), EVEN: frames("fixed"), RANDOM: frames("random"),
    ALL: frames("fixed", "16"),
}  # fmt: skip


def clip_fingerprint(arguments: Mapping[str, Any]) -> str:
    """Hash of the clips that an arm with these arguments trains and tests on."""
    usual = builder_of(f"{FRAMES}{NET}/{GLANCES}").size
    splits = load_images(arguments["data"], None, usual, Frames().record)
    return f"{splits.train.fingerprint}/{splits.test.fingerprint}"


def small_clips(folder: Path) -> dict[str, object]:
    """Write clips of two digits, which show in two of 16 frames; gives the study's arguments."""
    digits, rng = load_digits(), np.random.default_rng(0)
    for name in (0, 1):
        for i, values in enumerate(digits.images[digits.target == name][:60]):
            shown, begin = Image.fromarray((values * 15.9).astype(np.uint8)), int(rng.integers(15))
            blank = Image.new("L", shown.size, 60)
            clip = [shown if begin <= frame < begin + 2 else blank for frame in range(16)]
            place = folder / "clips" / ("train" if i < 40 else "test") / str(name)
            place.mkdir(parents=True, exist_ok=True)
            clip[0].save(place / f"{i}.tif", save_all=True, append_images=clip[1:])
    return {"data": str(folder / "clips"), "epochs": 1, "batch_size": 32}


#: Named before the runs: the choice pays against an even one, it fits the clip, and it saves work.
PRIMARY = ("better-than-even", "better-than-chance", "saves")
CLAIMS = [
    more(PRIMARY[0], "With three frames, a policy is more than 3 points above frames that are spread "
         "evenly", "not asked",
         correct(POLICY, GLANCES), correct(EVEN, GLANCES), 3.0, ACCURACY, expected=8.0),
    more(PRIMARY[1], "Which frames are looked at fits the clip: more than 1 point above the frames of "
         "another clip", "not asked", correct(POLICY, GLANCES),
         ("frames of others", control("others")), 1.0, ACCURACY, expected=8.0),
    more(PRIMARY[2], "Three chosen frames of 16 are as accurate as 15 of them, within 2 points",
         "8.2 frames on average match all frames (abstract of AdaFrame)", correct(POLICY, GLANCES),
         (ALL, accuracy(ALL, "16")), -2.0, ACCURACY, expected=0.0),
    times("saves/macs", "Three chosen frames take at most 0.4 of the MACs of 15", "not asked", "MACs",
          {"policy": macs_of(POLICY, GLANCES), "all frames": macs_of(ALL, "16")}, 0.4, below=True),
    times("cascade/macs", "Set to the network's accuracy on validation clips, the cascade takes at "
          "most 0.75 of its MACs", "not asked", "MACs",
          {"cascade": of_cascade("macs", POLICY), "three frames": of_cascade("full_macs", POLICY)},
          0.75, below=True),
    one_by_one("cascade/ms", POLICY, 0.9),
    more("random", "A policy is above random frames, trained and tested", "not asked",
         correct(POLICY, GLANCES), correct(RANDOM, GLANCES), 0.0, ACCURACY),
    more("own/even", "On the policy's network, its frames are above evenly spread ones", "not asked",
         correct(POLICY, GLANCES), ("frames spread evenly", control("fixed")), 0.0, ACCURACY),
    more("small", "Frames help: three are more than 3 points above the small view of all frames alone",
         "not asked", ("three frames", accuracy(POLICY, GLANCES)),
         ("small view", accuracy(POLICY, "1")), 3.0, ACCURACY),
]  # fmt: skip

STUDY = Study(
    key="frames", arms=ARMS, claims=CLAIMS, primary=PRIMARY,
    note=("The paper's results are of videos (FCVID, ActivityNet). Ours are of clips made from real "
          "digits and photographs (`python -m benchmarks.clips`), in which the digit shows in two "
          "to four of 16 frames."),
    common={"data": "clips", "epochs": 20, "batch_size": 64, "val_fraction": 0.1},
    quick=small_clips,
    fingerprint=clip_fingerprint,
    questions=[
        Question("Does it pay to choose frames?", (POLICY, EVEN, RANDOM), ("own/*", "random", "small")),
        Question("Against all frames", (POLICY, ALL), ("saves/*", "cascade/*")),
    ],
    plot=Plot(Axis("million MACs a clip", 1e-6), Axis("test accuracy, %", 100), {
        arm: [Point(arm, f"{i}/macs", f"{i}/accuracy") for i in range(1, last + 1)]
        for arm, last in ((POLICY, 4), (EVEN, 4), (RANDOM, 4), (ALL, 16))
    }),
)  # fmt: skip
