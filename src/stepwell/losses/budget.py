"""The cost of choices above a budget."""

import torch
from jaxtyping import Float
from torch import Tensor

from stepwell.losses.precision import in_full_precision


@in_full_precision
def cost_above_target(
    choice: Float[Tensor, "batch choices"], costs: Float[Tensor, " choices"], target: float
) -> Float[Tensor, ""]:
    """The mean cost of a batch above its target (Zhu et al. 2021, section 3.2).

        max(0, (mean over i of sum over j of costs_j · choice_ij - target) / (max costs - min costs))

    Loss and gradient are 0 below the target.

    Args:
        choice: (batch, choices), each image's share of each choice; rows sum to 1.
        costs: cost of each choice, in the unit of `target`, such as MACs.

    Raises:
        ValueError: all choices cost the same.
    """
    spread = costs.max() - costs.min()
    if not spread > 0:
        raise ValueError(f"all choices cost the same, {costs.tolist()}: a target has no effect")
    return torch.relu(((choice @ costs).mean() - target) / spread)
