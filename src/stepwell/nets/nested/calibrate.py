"""Norm statistics from data, for depths that nobody trained."""

from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from stepwell.nets.nested.net import NestedNet
from stepwell.nets.nested.steps import each
from stepwell.train_mode import in_eval_mode


@torch.no_grad()
def calibrate(net: NestedNet, batches: Iterable[tuple[Any, Any]]) -> None:
    """Give every fresh depth of `net` norm statistics from `batches`, in one pass for all depths.

    Statistics are averages over the images (no labels, no gradients). Norms that a trained depth uses
    do not change. The depths are marked "calibrated". A fresh exit stays fresh, because its head needs
    training, not statistics.

    Only BatchNorm has statistics. If the fresh depths have no BatchNorm of their own (networks of
    LayerNorms, or `norms="shared"`), no tensor changes and `batches` is not read: the private norms
    remain copies of the full net's.

    Args:
        batches: pairs (images, labels), such as a `DataLoader`'s, of some thousand training images
            without augmentation. If the steps take constants of the batch (see `NestedNet.forward`,
            `given`), pairs ((inputs, given), labels).

    Raises:
        ValueError: no depth was ever trained, so there are no weights to calibrate for; there is no
            batch, or an item is no pair; no step names a constant.
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
    unsettled = (n for d in fresh for n in net.norms(d) if id(n) not in settled)
    norms = [n for n in unsettled if isinstance(n, _NormBase)]
    if norms:
        estimate(net, norms, batches, lambda x, given: net.forward_all(x, fresh, given=given))
    net.mark("calibrated", *fresh)


def estimate_all(net: nn.Module, batches: Iterable[tuple[Any, Any]]) -> None:
    """Apply `estimate` to every BatchNorm in `net`, at every depth of a nested one.

    Without BatchNorm, `batches` is not read.
    """
    run = net.forward_all if isinstance(net, NestedNet) else net
    norms = [m for m in net.modules() if isinstance(m, _NormBase) and m.running_mean is not None]
    if norms:
        estimate(
            net, norms, batches, lambda x, given: run(x, **(given if run is net else {"given": given}))
        )


@torch.no_grad()
def estimate(
    net: nn.Module,
    norms: Sequence[_NormBase],
    batches: Iterable[tuple[Any, Any]],
    run: Callable[[Tensor, Mapping[str, Any]], object],
) -> None:
    """Replace the statistics of `norms`, modules of `net`, by averages over the images of `batches`.

    Means and (unbiased) variances are taken within each batch and weighted by its number of images.

    Args:
        run: runs the network on images and constants of the batch; the other norms are in eval mode.

    Raises:
        ValueError: there is no batch, one that is no pair, or one with numbers that are not finite; the
            norms are unchanged.
    """
    device = next(net.parameters()).device
    momenta = [n.momentum for n in norms]
    before = [{name: value.clone() for name, value in n.state_dict().items()} for n in norms]
    count = 0
    try:
        with in_eval_mode(net):
            for batch in batches:
                images, given = _inputs_of(batch)
                if not images.isfinite().all():
                    raise ValueError("images to calibrate with have numbers that are not finite")
                count += len(images)
                for norm in norms:
                    if count == len(images):
                        norm.reset_running_stats()
                        norm.train()
                    norm.momentum = len(images) / count  # a plain average over all images
                run(images.to(device), each(lambda tensor: tensor.to(device), given))
    except BaseException:
        for norm, state in zip(norms, before, strict=True):
            norm.load_state_dict(state)
        raise
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
    if not count:
        raise ValueError("norm statistics need at least one batch of images")


def _inputs_of(batch: object) -> tuple[Tensor, Mapping[str, Any]]:
    """The inputs and constants of a batch; a lone tensor of two images would unpack like a pair."""
    if isinstance(batch, tuple | list) and len(batch) == 2:
        pair = batch[0] if isinstance(batch[0], tuple | list) else (batch[0], {})
        if len(pair) == 2 and isinstance(pair[0], Tensor) and isinstance(pair[1], Mapping):
            return pair[0], pair[1]
    kind = type(batch).__name__
    if isinstance(batch, Tensor):
        kind = f"tensor of shape {tuple(batch.shape)}"
    elif isinstance(batch, Sized):
        kind = f"{kind} of {len(batch)}"
    raise ValueError(
        f"norm statistics come from batches of (images, labels), and this is a {kind}: give a list of "
        "such pairs, or a DataLoader (the labels are not looked at, and may be None)"
    )
