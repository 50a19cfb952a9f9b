"""Fixtures that several parts share."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

# Small networks are no work to share, and threads that wait for a busy core cost much.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def image_folder(tmp_path: Path):
    """Writes class folders of random images and gives their root."""

    def write(classes=("cat", "dog"), count=6, size=(16, 16), root: Path | None = None) -> Path:
        root = root or tmp_path / "images"
        rng = np.random.default_rng(0)
        for shade, name in enumerate(classes):
            folder = root / name
            folder.mkdir(parents=True, exist_ok=True)
            for i in range(count):
                pixels = rng.integers(0, 60, (*size[::-1], 3)) + 150 * (shade % 2)
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.png")
        return root

    return write
