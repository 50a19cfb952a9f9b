"""Check of an exported network, and the images for it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from stepwell.data import Batches, normalise
from stepwell.nets import NestedNet
from stepwell.nets.nested.cascade import Answer
from stepwell.types import Images, Logits

#: Largest difference of logits allowed, as a share of the largest logit.
TOLERANCE = 1e-4


class Sample(NamedTuple):
    """Normalised images (n, 3, size, size), or token ids (n, tokens), and their origin.

    part: "validation" or "test" part of the data, or "noise".
    """

    images: Tensor
    part: str


class Parity(NamedTuple):
    """Comparison of an exported depth with the network on the images of the check."""

    difference: float  # largest, of logits
    same_class: float  # share of images
    images: int


def take(batches: Batches, count: int) -> Images:
    """`count` images of a set (all, if it has fewer), evenly spaced over it, normalised."""
    chosen = torch.linspace(0, len(batches.images) - 1, min(count, len(batches.images))).long()
    return normalise(batches.images.pixels[chosen], batches.mean, batches.std)


def check_images(net: NestedNet, run: Path) -> Sample:
    """Images to check a network without its data: those of its run's report, or noise without a run."""
    file = run / "predictions.npz"
    if not file.exists():
        generator = torch.Generator().manual_seed(0)
        size = net.card.size
        return Sample(torch.randn(8, 3, size, size, generator=generator), "noise")
    with np.load(file, allow_pickle=False) as arrays:
        pixels = torch.from_numpy(arrays["images"]).permute(0, 3, 1, 2)
    return Sample(normalise(pixels, net.card.mean, net.card.std), "test")


@torch.inference_mode()
def compare(
    plain: nn.Module, exported: Callable[[Tensor], Logits], images: Tensor, name: str
) -> Parity:
    """Compare the exported program with the network, on a batch and on its first image alone.

    ValueError if there are fewer than two images, or a logit differs by more than `TOLERANCE` allows.
    """
    if len(images) < 2:
        raise ValueError("checking an export takes at least two images")
    expected, whole = plain(images), exported(images)
    alone = exported(images[:1]) - plain(images[:1])
    difference = max(float((whole - expected).abs().max()), float(alone.abs().max()))
    allowed = TOLERANCE * max(1.0, float(expected.abs().max()))
    if not difference <= allowed:  # not a number is no parity either
        raise ValueError(
            f"{name} differs from the network by {difference:.2g} in a logit (allowed: "
            f"{allowed:.2g}); nothing was written"
        )
    same_class = (whole.argmax(1) == expected.argmax(1)).double().mean().item()
    return Parity(difference, same_class, len(images))


@torch.inference_mode()
def compare_answers(
    network: Callable[[Tensor], Answer], exported: Callable[[Tensor], Answer], sample: Sample, name: str
) -> dict[str, Any]:
    """Compare exported graphs that decide with their network, in one batch and image by image.

    One image of a batch may have another choice, as scores may tie to the last digit.

    Returns:
        "difference", the largest of logits; "same_choice", the share of images; their number and part.

    Raises:
        ValueError: a logit differs by more than `TOLERANCE` allows, or more choices differ.
    """
    expected, answers = network(sample.images), exported(sample.images)
    alone = torch.cat([exported(image).logits for image in sample.images.split(1)])
    agree = expected.depth == answers.depth
    differences = torch.stack([answers.logits - expected.logits, alone - answers.logits])[:, agree]
    difference = float(differences.abs().max()) if agree.any() else torch.inf
    allowed = TOLERANCE * max(1.0, float(expected.logits.abs().max()))
    if not difference <= allowed or int((~agree).sum()) > 1:
        raise ValueError(
            f"{name} differ from the network by {difference:.2g} in a logit (allowed: {allowed:.2g}), "
            f"and {int((~agree).sum())} of {len(agree)} choices differ; nothing was written"
        )
    share = float(agree.double().mean())
    return {"difference": difference, "same_choice": share, "images": len(agree), "part": sample.part}
