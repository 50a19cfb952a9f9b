"""Norm statistics from data, for depths that nobody trained."""

from collections.abc import Callable, Iterable, Sequence, Sized

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from stepwell.nets.nested.net import NestedNet
from stepwell.train_mode import in_eval_mode
from stepwell.types import Batch


@torch.no_grad()
def calibrate(net: NestedNet, batches: Iterable[Batch]) -> None:
    """Give every fresh depth of `net` norm statistics from `batches`, in one pass for all of them.

    Statistics are averages over the images (no labels, no gradients). Norms that a trained depth uses
    stay as they are. The depths are marked "calibrated". A fresh exit stays fresh: its head needs
    training, not statistics.

    Only BatchNorm keeps statistics. Where a fresh depth has no BatchNorm of its own (networks of
    LayerNorms, or `norms="shared"`), no tensor changes and `batches` is not read. Its private norms
    stay copies of the full net's; "calibrated" then says only that it runs on trained weights.

    Args:
        batches: of (images, labels), such as a `DataLoader`'s: training images without augmentation.
            Some thousands suffice.

    Raises:
        ValueError: no depth was ever trained, so there are no weights to calibrate for; there is no
            batch, or an item is no pair.
    """
    status, exits = net.status, net.exits
    fresh = [depth for depth in status if status[depth] == "fresh" and depth not in exits]
    if not fresh:
        return
    if "trained" not in status.values():
        raise ValueError(
            "calibrate needs a trained depth, and this network has none: train it first, or, if its "
            f"weights were trained elsewhere, say so with net.mark('trained', {net.full!r})"
        )
    settled = {id(n) for d in net.depths if d not in fresh for n in net.norms(d)}
    own = (n for d in fresh for n in net.norms(d) if id(n) not in settled)
    norms = [n for n in own if isinstance(n, _NormBase)]
    if norms:
        estimate(net, norms, batches, lambda images: net.forward_all(images, fresh))
    net.mark("calibrated", *fresh)


def estimate_all(net: nn.Module, batches: Iterable[Batch]) -> None:
    """Apply `estimate` to every BatchNorm in `net`; without any, `batches` is not read."""
    norms = [m for m in net.modules() if isinstance(m, _NormBase) and m.running_mean is not None]
    if norms:
        estimate(net, norms, batches, net)


@torch.no_grad()
def estimate(
    net: nn.Module,
    norms: Sequence[_NormBase],
    batches: Iterable[Batch],
    run: Callable[[Tensor], object],
) -> None:
    """Replace the statistics of `norms`, modules of `net`, by averages over the images of `batches`.

    Means and (unbiased) variances are those within the batches; a smaller last one counts for less.

    Args:
        run: runs the network on images; the other norms are in eval mode.

    Raises:
        ValueError: there is no batch, one that is no pair, or one with numbers that are not finite; the
            norms are as before.
    """
    device = next(net.parameters()).device
    momenta = [n.momentum for n in norms]
    before = [{name: value.clone() for name, value in n.state_dict().items()} for n in norms]
    count = 0
    try:
        with in_eval_mode(net):
            for batch in batches:
                images = _images_of(batch)
                if not images.isfinite().all():
                    raise ValueError("images to calibrate with have numbers that are not finite")
                count += len(images)
                for norm in norms:
                    if count == len(images):
                        norm.reset_running_stats()
                        norm.train()
                    norm.momentum = len(images) / count  # each image counts for as much
                run(images.to(device))
    except BaseException:
        for norm, state in zip(norms, before, strict=True):
            norm.load_state_dict(state)
        raise
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
    if not count:
        raise ValueError("norm statistics need at least one batch of images")


def _images_of(batch: object) -> Tensor:
    """The images of a batch; a lone tensor of two images would unpack like a pair."""
    if isinstance(batch, tuple | list) and len(batch) == 2 and isinstance(batch[0], Tensor):
        return batch[0]
    given = type(batch).__name__
    if isinstance(batch, Tensor):
        given = f"tensor of shape {tuple(batch.shape)}"
    elif isinstance(batch, Sized):
        given = f"{given} of {len(batch)}"
    raise ValueError(
        f"norm statistics come from batches of (images, labels), and this is a {given}: give a list of "
        "such pairs, or a DataLoader (the labels are not looked at, and may be None)"
    )
