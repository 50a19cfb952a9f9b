"""An epoch of distillation with the teacher's logits from a warm cache, against running the teacher."""

import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.batches import random_batches
from benchmarks.timing import ratio, side_by_side
from stepwell.data import Augment
from stepwell.methods import Distill
from stepwell.nets import build
from stepwell.teachers import CachedLogits, Frozen, LogitCache
from stepwell.teachers.teacher import Teacher
from stepwell.training import sgd

IMAGES, BATCH, ROUNDS = 1280, 128, 7


def measure() -> dict[str, Any]:
    """ResNet-56 teaches ResNet-20 on 1,280 images of 8×8 pixels, the first epoch again and again.

    "cold" fills an empty cache; "warm" reads it.
    """
    torch.manual_seed(0)
    batches = random_batches(IMAGES, 8, BATCH, Augment.standard(8, flip=False))
    teacher = Frozen(build("resnet56", num_classes=10).to(memory_format=torch.channels_last))
    student = build("resnet20", num_classes=10).to(memory_format=torch.channels_last).train()

    def epoch(source: Teacher) -> None:
        objective = Distill(student, source)
        optimizer = sgd(0.01).make(objective)
        for batch in batches:
            optimizer.zero_grad()
            objective.training_step(batch).loss.backward()
            optimizer.step()

    def cold() -> None:
        with (
            tempfile.TemporaryDirectory() as folder,
            LogitCache(Path(folder), 10, {}) as empty,
        ):
            epoch(CachedLogits(teacher, empty))

    with tempfile.TemporaryDirectory() as folder, LogitCache(Path(folder), 10, {}) as cache:
        cached = CachedLogits(teacher, cache)
        epoch(cached)
        calls = {"teacher": lambda: epoch(teacher), "cold": cold, "warm": lambda: epoch(cached)}
        times = side_by_side(calls, rounds=ROUNDS)
        assert cached.computed == IMAGES  # once, and never after
    return {
        "seconds an epoch": {name: statistics.median(times[name]) for name in times},
        "warm / teacher": ratio(times, "warm", "teacher"),
        "cold / teacher": ratio(times, "cold", "teacher"),
    }
