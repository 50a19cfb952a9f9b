"""`fit` against a hand-written loop that does the same work on the same batches."""

import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.batches import random_batches
from benchmarks.timing import ratio, side_by_side
from stepwell.data import Augment
from stepwell.methods import EmbeddedKD
from stepwell.nets import build
from stepwell.training import Loop, Run, fit, sgd
from stepwell.training.optim import cosine

EPOCHS, IMAGES, BATCH = 2, 1280, 64


def measure() -> dict[str, Any]:
    """Two epochs of R32 > 20 at 16 pixels; the set-up of both (network, optimizer) is included."""
    os.environ["STEPWELL_QUIET"] = "1"
    torch.manual_seed(0)
    batches = random_batches(IMAGES, 16, BATCH, Augment(pad=2))

    def objective() -> EmbeddedKD:
        return EmbeddedKD(build("resnet32", ["20"], num_classes=10), distill_from=0.0)

    def ours() -> None:
        with (
            tempfile.TemporaryDirectory() as folder,
            Run.start(Path(folder), "b", {}, data={}) as run,
        ):
            fit(
                objective(), batches, sgd(0.1), run, phase="t", epochs=EPOCHS,
                loop=Loop(device="cpu"),
            )  # fmt: skip

    def by_hand() -> None:
        method = objective().to(memory_format=torch.channels_last).train()
        optimizer = sgd(0.1).make(method)
        total = EPOCHS * len(batches)
        for position in range(total):
            for group in optimizer.param_groups:
                group["lr"] = 0.1 * cosine(position / total, 0.05)
            optimizer.zero_grad()
            method.training_step(batches.at(position)).loss.backward()
            nn.utils.clip_grad_norm_(method.parameters(), 5.0)
            optimizer.step()

    times = side_by_side({"fit": ours, "by hand": by_hand}, rounds=5)
    return {
        "steps": EPOCHS * len(batches),
        "seconds by hand": statistics.median(times["by hand"]),
        "fit / by hand": ratio(times, "fit", "by hand"),
        "goal": 1.05,
    }
