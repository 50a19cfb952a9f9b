"""Train a network whose gates skip blocks."""

from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

import torch

from stepwell.data.image_flags import TrainingImages
from stepwell.flags import Flags, Hidden, Together, checked, flag
from stepwell.methods.skipping import Skipping
from stepwell.nets.build import refuse_adders
from stepwell.recipes import flags
from stepwell.tasks import classification, gating
from stepwell.training import Loop, check_resumes, fit
from stepwell.training.optimisation import Smoothed

Method = Literal["aig", "skipnet"]
KIND = "skipping"
#: Share of the learning rate in SkipNet's second phase.
POLICY_RATE = 1e-3


@dataclass(frozen=True, kw_only=True)
class SkippingAblation(Together):
    """Options for studies.

    Attributes:
        estimator, temperature: of the gates, with `aig`: see `Draw`.
        rate_weight: weight of the open rates, with `aig`.
        reward, policy_weight: with `skipnet`: see `Skipping`.
    """

    estimator: str = "gumbel"
    temperature: float = 1.0
    rate_weight: float = 2.0
    reward: float = 0.1
    policy_weight: float = 0.01


@dataclass(frozen=True, kw_only=True)
class Gates:
    """Gates of the network's blocks.

    Attributes:
        method: aig: gates are drawn and kept near an open rate (ConvNet-AIG); skipnet: labels alone
            teach them, then a reward for each skipped block (two phases, SkipNet).
        target: open rate, with aig: of every gate in training, and on average in use.
    """

    TITLE: ClassVar = "gate"
    method: Annotated[Method, flag("NAME")] = "aig"
    target: float = 0.6


def skipping(
    *,
    data: flags.Data,
    out: flags.Out,
    net: flags.Net = "resnet20",
    stem: flags.Stem = "auto",
    init: flags.Init = None,
    gates: Flags[Gates] = Gates(),
    images: Flags[TrainingImages] = TrainingImages(),
    training: Flags[Smoothed] = Smoothed(),
    loop: Flags[Loop] = Loop(),
    ablation: Hidden[SkippingAblation] = SkippingAblation(),
) -> dict[str, Any]:
    """Train a ResNet whose gates decide which blocks an image runs (ConvNet-AIG, SkipNet).

    With --init RUN of a plain ResNet, its weights are the start and the gates are fresh.

    Examples:
        stepwell train skipping --data digits --out runs/skipping
        stepwell train skipping --data photos/ --out runs/half --net resnet34 --target 0.5
    """
    init = flags.file_of(init)
    training = classification.settled(training)
    arguments = checked(locals())
    check_resumes("skipping", arguments)
    if gates.method == "skipnet" and gates.target != Gates().target:
        raise ValueError("--target is for --method aig: SkipNet's reward decides how many blocks run")
    refuse_adders(net, "networks with gates")
    flags.require_resnet(net, "gates are for residual blocks")
    torch.manual_seed(training.seed)
    splits = classification.read_splits(data, out, images, net)
    nested, start = classification.start_network(splits, net, stem=stem, init=init, gates=True)
    inputs = classification.prepare(splits, images, training, start=start, init=init)
    method = partial(Skipping, nested, target=gates.target, label_smoothing=training.label_smoothing)
    own_options = vars(ablation)
    aig = gates.method == "aig"
    target = gating.Target(gates.target) if aig else None
    first = method(**own_options) if aig else method(estimator="straight-through", rate_weight=0.0)
    with classification.open_task("skipping", out, loop, arguments, inputs, nested) as task:
        learn = partial(
            fit, run=task.run, epochs=training.epochs, loop=loop, patience=training.patience,
            validate=gating.validator(nested, task, target),
        )  # fmt: skip
        learn(first, task.train, training.optim(), phase="gates" if aig else "supervised")
        if not aig:
            policy = method(**own_options | {"estimator": "reinforce", "temperature": 1.0})
            batches = task.train.reseeded("policy")
            learn(policy, batches, training.optim(POLICY_RATE), phase="policy")
        return gating.finish(task, nested, target, kind=KIND)
