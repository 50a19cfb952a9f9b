"""Images to check an exported network on."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from stepwell.data import normalise
from stepwell.nets import NestedNet


def check_images(net: NestedNet, run: Path) -> tuple[Tensor, bool]:
    """Normalised images (n, 3, size, size), and whether they are real.

    Real ones are the test images that a run keeps for its report; a network that has left its run is
    checked on noise.
    """
    file = run / "predictions.npz"
    if not file.exists():
        generator = torch.Generator().manual_seed(0)
        return torch.randn(8, 3, net.card.size, net.card.size, generator=generator), False
    with np.load(file, allow_pickle=False) as arrays:
        pixels = torch.from_numpy(arrays["images"]).permute(0, 3, 1, 2)
    return normalise(pixels, net.card.mean, net.card.std), True
