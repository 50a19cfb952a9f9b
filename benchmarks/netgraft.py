"""Grafting with what the teacher makes of every image kept, against running it at each step."""

import statistics
from typing import Any

import torch

from benchmarks.batches import random_batches
from benchmarks.timing import ratio, side_by_side
from stepwell.data import Batches
from stepwell.methods import Graft
from stepwell.nets import build
from stepwell.nets.grafting.surgery import Grafting

IMAGES, SIZE, BATCH, ROUNDS = 640, 16, 64, 3
#: Passes over the images in each phase: 40 steps. `train netgraft` takes 600 by default.
EPOCHS = 4


def measure() -> dict[str, Any]:
    """ResNet-14 teaches a student with half the channels in its last two stages, at 16 pixels.

    Seconds of each phase, in the order of training; computing what is kept is in them.
    """
    torch.manual_seed(0)
    batches = random_batches(IMAGES, SIZE, BATCH, None)
    teacher = build("resnet14", num_classes=10).eval()
    student = build("resnet14_slimmer", num_classes=10)
    grafting = Grafting(student, teacher, input_shape=(3, SIZE, SIZE))
    first, *others = grafting.grafted
    spans = [(i, i) for i in grafting.grafted] + [(first, i) for i in others]
    names = [f"graft {grafting.names[i]}" for i in grafting.grafted]
    names += [f"join {grafting.names[i]}" for i in others]

    def train(span: tuple[int, int], known: Batches | None) -> None:
        objective = Graft(grafting, *span, images=known).train()
        objective.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        trained = [p for p in objective.parameters() if p.requires_grad]
        optimizer = torch.optim.Adam(trained, 1e-3)
        for _ in range(EPOCHS):
            for batch in batches:
                optimizer.zero_grad()
                objective.training_step(batch).loss.backward()
                optimizer.step()

    calls = {
        f"{name}, {kind}": lambda span=span, known=known: train(span, known)
        for span, name in zip(spans, names, strict=True)
        for kind, known in (("kept", batches), ("each step", None))
    }
    times = side_by_side(calls, rounds=ROUNDS)
    for kind in ("kept", "each step"):
        times[kind] = [
            sum(parts) for parts in zip(*(times[f"{name}, {kind}"] for name in names), strict=True)
        ]
    return {
        "seconds": {name: statistics.median(values) for name, values in times.items()},
        "kept / each step": ratio(times, "kept", "each step"),
        **{
            f"{name}, kept / each step": ratio(times, f"{name}, kept", f"{name}, each step")
            for name in names
        },
    }
