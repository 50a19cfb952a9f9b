"""Losses of decisions: how often a block runs, and the policy gradient."""

import math
from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from stepwell.losses.precision import in_full_precision


@in_full_precision
def open_rate_loss(
    open: Float[Tensor, "gates batch"], target: float | Sequence[float]
) -> Float[Tensor, ""]:
    """The mean squared distance of each gate's open rate from its target (Veit and Belongie 2018).

        mean over gates l of (target_l - mean over the batch of open_l)^2

    Args:
        open: 1 where an image runs the gate's block, else 0; with the gradient of its estimator.
        target: one rate for all gates, or one for each.
    """
    return (open.new_tensor(target) - open.mean(1)).square().mean()


#: Share of the training in which the bounds of `sparsity_loss` for single blocks widen to [0, 1].
WIDENING = 1 / 3


@in_full_precision
def sparsity_loss(
    shares: Float[Tensor, " blocks"], costs: Float[Tensor, " blocks"], target: float, progress: float
) -> Float[Tensor, ""]:
    """The distance of the executed work from a target: of the network, and of each block (DynConv).

        (sum of costs_b · shares_b / sum of costs_b - target)^2
        + mean over blocks of max(0, shares_b - upper)^2 + max(0, lower - shares_b)^2

    The bounds of a block begin at the target and widen to [0, 1] in the first third of the training:
    lower = p · target, upper = 1 - p · (1 - target), p = cos(π/2 · min(1, 3 · progress))^2 (Verelst and
    Tuytelaars 2020, section 3.2).

    Args:
        shares: of each block's work that runs, a mean over the batch.
        costs: MACs of each whole block.
        progress: of the training, in [0, 1].
    """
    tight = math.cos(math.pi / 2 * min(1.0, max(0.0, progress) / WIDENING)) ** 2
    lower, upper = tight * target, 1 - tight * (1 - target)
    network = ((shares * costs).sum() / costs.sum() - target).square()
    return network + ((shares - upper).relu().square() + (lower - shares).relu().square()).mean()


@in_full_precision
def reinforce_loss(
    log_probability: Float[Tensor, "*decisions batch"], reward: Float[Tensor, "*decisions batch"]
) -> Float[Tensor, ""]:
    """REINFORCE (Williams 1992): its gradient is that of the expected reward, with the sign of a loss.

        - mean over images i of (reward_i - mean over the other images of reward) · log_probability_i

    The mean of the other images is a baseline that does not depend on the image's own draw, so the
    estimate stays unbiased. Decisions are summed. No gradient reaches `reward`.

    Args:
        log_probability: of the choice that was drawn.

    Raises:
        ValueError: a batch of one image has no others.
    """
    count = reward.shape[-1]
    if count < 2:
        raise ValueError("a baseline of the other images needs a batch of two or more")
    # reward - (sum - reward) / (n - 1) = (reward - mean) · n / (n - 1)
    advantage = (reward - reward.mean(-1, keepdim=True)).detach() * (count / (count - 1))
    return -(advantage * log_probability).sum() / count


@in_full_precision
def load_balance_loss(
    gates: Float[Tensor, "rows experts"], load: Float[Tensor, "rows experts"]
) -> Float[Tensor, ""]:
    """The importance and the load loss of a noisy mixture of experts (Shazeer et al. 2017, section 4).

        CV(sum over rows of gates)^2 + CV(sum over rows of load)^2,  CV^2 = variance / (mean^2 + 1e-10)

    Args:
        gates: weights of the experts, zero for those that do not run.
        load: probability that an expert would run if its noise were drawn again.
    """

    def variation(total: Tensor) -> Tensor:
        return total.var(correction=0) / (total.mean().square() + 1e-10)

    return variation(gates.sum(0)) + variation(load.sum(0))


@in_full_precision
def switch_balance_loss(
    shares: Float[Tensor, "images experts"], probability: Float[Tensor, "rows experts"]
) -> Float[Tensor, ""]:
    """The balance loss of Switch transformers (Fedus et al. 2021, section 2.2): 1 where all is even.

        E · sum over experts i of f_i · p_i

    Args:
        shares: f, the share of each expert in the choices of an image's tokens; without gradient.
        probability: p, the router's probabilities of a token.
    """
    return shares.shape[1] * (shares.mean(0).detach() * probability.mean(0)).sum()
