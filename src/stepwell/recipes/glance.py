"""Train a network that looks at a small view of an image, then at crops of its choice."""

from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, ClassVar

import torch

from stepwell.data.image_flags import TrainingImages
from stepwell.evaluation import evaluate
from stepwell.flags import Flags, Hidden, Together, checked, flag
from stepwell.measure.glances import glances_at, measure_glances
from stepwell.methods.glance import GlancePolicy, Glances
from stepwell.nets.decisions.glances import Where, policy_of
from stepwell.nets.families.glance import PREFIX
from stepwell.nets.nested.net import NestedNet
from stepwell.recipes import flags
from stepwell.tasks import classification
from stepwell.tasks.classification import Measured
from stepwell.training import Loop, fit
from stepwell.training.optim import optimizer_of
from stepwell.training.optimisation import Smoothed

#: Learning rates: the policy's, and the share of the network's own in the last phase.
POLICY_RATE, TUNE_SHARE = 3e-4, 0.1


@dataclass(frozen=True, kw_only=True)
class GlanceAblation(Together):
    """Options for studies.

    Attributes:
        where: who places the crops: without the policy there is no phase for it.
    """

    where: Where = "policy"


@dataclass(frozen=True, kw_only=True)
class Looking:
    """Glances, and the policy that places them.

    Attributes:
        glances: number of glances; the first sees the whole image.
        glance_size: height and width of a glance, a divisor of the image's.
        policy_epochs: passes for the policy alone.
        tune_epochs: last passes for the network, with crops where the policy looks.
        discount: weight of what the next glance gains, beside what this one does.
        spread: standard deviation of places in training.
    """

    TITLE: ClassVar = "glance"
    glances: int = 4
    glance_size: Annotated[int | None, flag("PIXELS", "a third")] = None
    policy_epochs: Annotated[int | None, flag("N", "a quarter of --epochs")] = None
    tune_epochs: Annotated[int | None, flag("N", "a sixth of --epochs")] = None
    discount: float = 0.7
    spread: float = 0.1


def glance(
    *,
    data: flags.Data,
    out: flags.Out,
    net: flags.Net = "resnet20",
    looking: Flags[Looking] = Looking(),
    images: Flags[TrainingImages] = TrainingImages(),
    training: Flags[Smoothed] = Smoothed(),
    loop: Flags[Loop] = Loop(),
    ablation: Hidden[GlanceAblation] = GlanceAblation(),
) -> dict[str, Any]:
    """Train a network that looks at an image, then at parts of it, until it is sure (Glance and Focus).

    Every number of glances is a depth, so `eval --cascade`, budgets, `export` and `serve` work as for
    depths. The network learns from crops at random places, then a policy learns where to look, and
    last the network learns from what the policy looks at.

    Examples:
        stepwell train glance --data photos/ --size 96 --out runs/glances
        stepwell train glance --data photos/ --size 224 --net resnet18 --glances 5 --out runs/glances
    """
    training = classification.settled(training)
    arguments = checked(locals())
    if not net.startswith("resnet"):
        raise ValueError(f"--net {net}: the encoder of glances is a ResNet (resnet20)")
    torch.manual_seed(training.seed)
    name = f"{PREFIX}{net}/{looking.glances}"
    splits = classification.read_splits(data, out, images, name)
    own: dict[str, Any] = {} if looking.glance_size is None else {"side": looking.glance_size}
    counts = [str(i) for i in range(1, looking.glances)]
    nested, _ = classification.start_network(splits, name, counts, **own)
    inputs = classification.prepare(splits, images, training)
    assert training.epochs is not None
    policy_epochs = looking.policy_epochs or max(1, training.epochs // 4)
    tune_epochs = looking.tune_epochs or max(1, training.epochs // 6)
    chosen = ablation.where
    objective = partial(Glances, nested, label_smoothing=training.label_smoothing)
    begin: Where = "centre" if chosen == "centre" else "random"
    with classification.open_task("glance", out, loop, arguments, inputs, nested) as task:

        def validate(where: Where) -> Any:
            part = task.validation
            return None if part is None else lambda: evaluate(glances_at(nested, where), part)

        learn = partial(fit, run=task.run, loop=loop, patience=training.patience)
        learn(
            objective(where=begin), task.train, training.optim(), phase="random",
            epochs=training.epochs, validate=validate(begin),
        )  # fmt: skip
        if chosen == "policy":
            policy = GlancePolicy(nested, discount=looking.discount, spread=looking.spread)
            adam = optimizer_of("adam", POLICY_RATE, weight_decay=0.0)
            learn(policy, task.train.reseeded("policy"), adam, phase="policy",
                  epochs=policy_epochs, validate=validate(chosen))  # fmt: skip
            nested.requires_grad_(True)
        learn(
            objective(where=chosen), task.train.reseeded("tune"), training.optim(TUNE_SHARE),
            phase="tune", epochs=tune_epochs, validate=validate(chosen),
        )  # fmt: skip
        policy_of(nested.module).requires_grad_(True)

        def measure(net: NestedNet, test: Any) -> Measured:
            results, logits, labels, places = measure_glances(net, test, chosen)
            more = {} if places is None else {"places": places.numpy()}
            return Measured(results, logits, labels, results["costs"], more)

        cascade = {"criterion": "confidence"} if chosen == "policy" else None
        return classification.finish(task, nested, cascade=cascade, measure=measure)
