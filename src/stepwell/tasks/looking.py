"""The task of learning where to look: the network, then its policy, then the network again."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from stepwell.data import Batches, Splits
from stepwell.evaluation import evaluate
from stepwell.flags import Together, flag
from stepwell.measure.glances import glances_at, measure_glances
from stepwell.methods.glance import GlancePolicy, Glances
from stepwell.nets import build
from stepwell.nets.decisions.glances import Where, policy_of
from stepwell.nets.families.glance import is_glance, start_encoders
from stepwell.nets.files.initial_weights import Start, start_pretrained
from stepwell.nets.files.nested import load_both
from stepwell.nets.nested.net import NestedNet
from stepwell.tasks import classification
from stepwell.tasks.measuring import Measured
from stepwell.tasks.task import Inputs
from stepwell.training import Loop, fit
from stepwell.training.optim import optimizer_of
from stepwell.training.optimisation import Smoothed

#: Learning rates: the policy's, and the share of the network's own in the last phase.
POLICY_RATE, TUNE_SHARE = 3e-4, 0.1


@dataclass(frozen=True, kw_only=True)
class LookingAblation(Together):
    """Options for studies.

    Attributes:
        where: who chooses the places: without the policy there is no phase for it.
    """

    where: Where = "policy"


@dataclass(frozen=True, kw_only=True)
class Looking:
    """Glances, and the policy that places them.

    Attributes:
        glances: number of glances; the first sees everything, scaled down.
        policy_epochs: passes for the policy alone.
        tune_epochs: last passes for the network, which sees what the policy looks at.
        discount: weight of the gain of the next glance; the gain of this one has weight 1.
        spread: standard deviation of places in training.
    """

    TITLE: ClassVar = "glance"
    glances: int = 4
    policy_epochs: Annotated[int | None, flag("N", "a quarter of --epochs")] = None
    tune_epochs: Annotated[int | None, flag("N", "a sixth of --epochs")] = None
    discount: float = 0.7
    spread: float = 0.1

    @property
    def fewer(self) -> list[str]:
        """The names of all numbers of glances but the last."""
        return [str(i) for i in range(1, self.glances)]


def start_glances(
    splits: Splits, name: str, fewer: Sequence[str], encoder: str,
    init: Literal["pretrained"] | Path | None, **own: Any,
) -> tuple[NestedNet, Start | None]:  # fmt: skip
    """Build a network that glances, with its initial weights, and a record of these.

    Args:
        name, fewer, encoder: of the network, of its numbers of glances but the last, and of its ResNet.
        init: a run of such a network; or a run of its ResNet, or the "pretrained" one, for encoders.
        own: arguments of the network.

    Raises:
        ValueError: no such network, glances that do not fit the images, or weights that do not fit.
    """
    size, classes = splits.train.size, splits.train.classes
    net = build(name, fewer, num_classes=len(classes), image_size=size, **own)
    classification.start_network(splits, net)
    if init is None:
        return net, None
    if init == "pretrained":
        theirs = build(encoder)
        card = start_pretrained(theirs).card
    else:
        theirs, _ = load_both(init)
        card = theirs.card
        own_name = theirs.builder[0] if theirs.builder is not None else ""
        if own_name == name:
            return classification.start_network(splits, net, init=init)
        if is_glance(own_name):
            raise ValueError(
                f"{init} holds {own_name}, and this network is {name}: name a run with as many glances "
                "of the same kind, or one of its ResNet"
            )
    start_encoders(net.module, theirs.module, init)
    return net, Start(card, ())


def learn_to_look(
    recipe: str, out: Path, loop: Loop, arguments: Mapping[str, Any], inputs: Inputs[Batches],
    net: NestedNet, looking: Looking, training: Smoothed, where: Where,
) -> dict[str, Any]:  # fmt: skip
    """Train a network that glances, measure it, and return the results of its run.

    Args:
        recipe, out, loop, arguments, inputs, net: as for `open_task`.
        where: who chooses the places; without the policy, there is no phase for it.
    """
    assert training.epochs is not None
    objective = partial(Glances, net, label_smoothing=training.label_smoothing)
    begin: Where = "random" if where == "policy" else where
    with classification.open_task(recipe, out, loop, arguments, inputs, net) as task:

        def validate(where: Where) -> Any:
            part = task.validation
            return None if part is None else lambda: evaluate(glances_at(net, where), part)

        learn = partial(fit, run=task.run, loop=loop, patience=training.patience)
        learn(
            objective(where=begin), task.train, training.optim(), phase="random",
            epochs=training.epochs, validate=validate(begin),
        )  # fmt: skip
        if where == "policy":
            policy = GlancePolicy(net, discount=looking.discount, spread=looking.spread)
            learn(
                policy, task.train.reseeded("policy"),
                optimizer_of("adam", POLICY_RATE, weight_decay=0.0), phase="policy",
                epochs=looking.policy_epochs or max(1, training.epochs // 4), validate=validate(where),
            )  # fmt: skip
            net.requires_grad_(True)
        learn(
            objective(where=where), task.train.reseeded("tune"), training.optim(TUNE_SHARE),
            phase="tune", epochs=looking.tune_epochs or max(1, training.epochs // 6),
            validate=validate(where),
        )  # fmt: skip
        policy_of(net.module).requires_grad_(True)

        def measure(net: NestedNet, test: Any) -> Measured:
            results, logits, labels, places = measure_glances(net, test, where)
            more = {} if places is None else {"places": places.numpy()}
            return Measured(results, logits, labels, results["costs"], more)

        cascade = {"criterion": "confidence"} if where == "policy" else None
        return classification.finish(task, net, cascade=cascade, measure=measure)
