"""Check that an image size survives the network's strides."""

from collections.abc import Sequence
from copy import deepcopy

import torch

from stepwell.nets import builder_of
from stepwell.nets.nested.net import NestedNet


def check_size(net: NestedNet, size: int) -> None:
    """Raise ValueError for a size of images on which the network cannot run.

    Such sizes are smaller than the product of the strides, or no multiple of a ViT's patches. Networks
    of other inputs pass.
    """
    if net.card.input != "image":
        return
    patch = patch_of(net)
    if size % patch:
        below = max(patch, size // patch * patch)
        raise ValueError(
            f"images of {size} pixels are no multiple of the patches' {patch}, so a border would be "
            f"left out: use {below} or {below + patch}"
        )
    twin = deepcopy(net).to("meta").eval()  # shapes without arithmetic

    @torch.no_grad()
    def shape(pixels: int, depths: Sequence[str]) -> tuple[int, ...]:
        x = torch.empty(1, 3, pixels, pixels, device="meta")
        return tuple(twin.forward_all(x, depths)[net.full].features[-1].shape)

    def error_at(pixels: int, depths: Sequence[str]) -> Exception | None:
        try:
            shape(pixels, depths)
        except (RuntimeError, AssertionError) as error:
            return error
        return None

    error = error_at(size, [*net.depths])
    probe = 256
    one_size = net.builder and builder_of(net.builder[0]).size_argument
    if not (one_size or error_at(probe, [net.full])):
        stride = max(1, probe // shape(probe, [net.full])[2])
        if error:  # steps after the stages may have strides, too
            strides = (stride, 2 * stride, 4 * stride)
            stride = next((s for s in strides if not error_at(s, [net.full])), stride)
        if size < stride:
            raise ValueError(
                f"images of {size} pixels are smaller than the network's stride of {stride}: "
                f"use --size {stride} or more, or a network with a smaller stem"
            )
    if error:
        fails = f"the network does not run on images of {size} pixels"
        raise ValueError(f"{fails}: {str(error).splitlines()[0]}") from error


def patch_of(net: NestedNet) -> int:
    """Height and width of a network's patches; 1 where it has none."""
    if not (net.builder and builder_of(net.builder[0]).size_argument):
        return 1  # convolutions may pad the border
    sizes = (getattr(module, "patch_size", 1) for module in net.module.modules())
    return max(max(size) if isinstance(size, tuple) else int(size) for size in sizes)
