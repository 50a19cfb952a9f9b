"""Networks on the straight line between two others of one architecture."""

from copy import deepcopy

import torch
from torch import nn


@torch.no_grad()
def between(a: nn.Module, b: nn.Module, share: float) -> nn.Module:
    """A copy of `a` whose weights are (1 - share) · a + share · b, at 0 and 1 to the bit.

    Floating buffers are mixed, too. Those of BatchNorm are then no statistics of anything, as the maps
    they describe are not mixed alike: measure them again (`torch.optim.swa_utils.update_bn`). Other
    buffers are those of `a`.

    Raises:
        ValueError: the two differ in the names or shapes of their tensors.
    """
    mixed = deepcopy(a)
    ours, theirs = mixed.state_dict(), b.state_dict()
    if (odd := differing(a, b)) is not None:
        raise ValueError(
            f"no line between two architectures: {odd} is in one only, or has another shape"
        )
    for name, value in ours.items():
        if value.is_floating_point():
            # lerp is exact at both ends, which a sum of products is not
            value.copy_(torch.lerp(value, theirs[name], share))
    return mixed


def differing(a: nn.Module, b: nn.Module) -> str | None:
    """A tensor that two modules do not have in common, by name and shape; none where they do."""
    ours, theirs = ({k: v.shape for k, v in m.state_dict().items()} for m in (a, b))
    return next((k for k in {**ours, **theirs} if ours.get(k) != theirs.get(k)), None)
