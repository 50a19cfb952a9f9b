"""What choosing resolutions gains by the clock, of what the MACs promise."""

from typing import Any

import torch
from torch import Tensor

from stepwell.measure.choices import measure_speed
from stepwell.nets import build
from stepwell.nets.resolution.chooser import Choice, Chooser, ResolutionNet
from stepwell.nets.resolution.resolutions import Resolutions

#: Of eight images, which choice each makes: half of them run at the smallest size.
PATTERN = (0, 2, 1, 2, 0, 2, 1, 2)
SECONDS = 20.0
CASES: dict[str, tuple[str, dict[str, Any], tuple[int, ...], int]] = {
    "ResNet-20, 32 pixels": ("resnet20", {"num_classes": 10}, (32, 24, 16), 512),
    "ResNet-18, 96 pixels": ("resnet18", {"num_classes": 100}, (96, 72, 48), 128),
    "ResNet-18, 224 pixels": ("resnet18", {}, (224, 168, 112), 64),
}


class Patterned(Chooser):
    """A chooser that takes the time of one, and whose choices the images say in their first pixel."""

    def forward(self, x: Tensor) -> Tensor:
        """Scores that prefer one choice by far."""
        who = x[:, 0, 0, 0].round().long()
        return super().forward(x) + 100 * torch.nn.functional.one_hot(who, self.scores.out_features)


def measure() -> dict[str, Any]:
    """Images a second in batches of 64 and one by one, against the same network at full size."""
    torch.manual_seed(0)
    results: dict[str, Any] = {"goal": "speed_up / by_macs of 0.9, in batches of 64"}
    for name, (net, arguments, sizes, count) in CASES.items():
        nested = Resolutions(build(net, **arguments), sizes)
        choices = [Choice(nested.net.full, size) for size in sizes]
        made = ResolutionNet(nested, choices, Patterned(len(sizes), sizes[0] // 2)).eval()
        images = torch.randn(count, 3, sizes[0], sizes[0])
        images[:, 0, 0, 0] = torch.tensor(PATTERN).repeat(count // len(PATTERN)).float()
        for row in measure_speed(made, images, seconds=SECONDS):
            row["of the MACs' promise"] = row["speed_up"] / row["by_macs"]
            results[f"{name}, batch {row['batch']}"] = row
    return results
