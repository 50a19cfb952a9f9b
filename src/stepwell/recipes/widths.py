"""Train a slimmable network, and a gate that chooses the width of each image."""

from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, ClassVar

import torch

from stepwell.data.image_flags import TrainingImages
from stepwell.flags import Flags, Hidden, Together, checked, flag, naming
from stepwell.measure.choices import WIDTHS, macs_of_choices
from stepwell.measure.widths import with_group_times
from stepwell.methods.resolution import check_target
from stepwell.methods.widths import GATE_RATE, ChooserAlone, Slimmable
from stepwell.nets.build import build, refuse_adders
from stepwell.nets.decisions.estimators import Draw
from stepwell.nets.decisions.widths import GateAt, WidthNet
from stepwell.nets.files.widths import load_widths, save_widths
from stepwell.nets.nested.widths import width_name
from stepwell.recipes import flags
from stepwell.tasks import choices, classification
from stepwell.training import Loop, check_resumes, fit, optimizer_of
from stepwell.training.optimisation import Smoothed


@dataclass(frozen=True, kw_only=True)
class WidthsAblation(Together):
    """Options for studies.

    Attributes:
        estimator, temperature, cost_weight: of the gate: see `ChooserAlone`.
    """

    estimator: str = "straight-through"
    temperature: float = 1.0
    cost_weight: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Widths:
    """Widths of the network, and the gate that chooses one.

    Attributes:
        widths: shares of the channels; the largest is 1.
        sandwich: a step trains the widest, the narrowest and two drawn widths, and the widest teaches
            the others (US-Nets); otherwise all widths learn from the labels.
        target_cost: mean MACs of an image, as a share of one at full width, gate included. A cost
            penalty that keeps to it is set on the validation part.
        gate: what the gate sees: doubt: how sure the narrowest width is, which runs for every image;
            stem: the stem's output (DS-Net).
        gate_fraction: share of the training images that only the gate learns on; 0: it learns on those
            of the network.
    """

    TITLE: ClassVar = "width"
    widths: Annotated[tuple[float, ...], flag("SHARE ...")] = (0.25, 0.5, 0.75, 1.0)
    sandwich: Annotated[bool, flag()] = False
    target_cost: float = 0.5
    gate: Annotated[GateAt, flag("NAME")] = "doubt"
    gate_fraction: float = 0.1


@dataclass(frozen=True, kw_only=True)
class Training(Smoothed):
    """Training of the network, and of the gate.

    Attributes:
        gate_epochs: passes of the gate over its own images.
    """

    gate_epochs: Annotated[int | None, flag("N", "as --epochs")] = None


def widths(
    *,
    data: flags.Data,
    out: flags.Out,
    net: flags.Net = "resnet20",
    stem: flags.Stem = "auto",
    init: flags.Init = None,
    width: Flags[Widths] = Widths(),
    images: Flags[TrainingImages] = TrainingImages(),
    training: Flags[Training] = Training(),
    loop: Flags[Loop] = Loop(),
    ablation: Hidden[WidthsAblation] = WidthsAblation(),
) -> dict[str, Any]:
    """Train a ResNet of several widths, and a gate that chooses the width of each image.

    First the network learns at all widths (slimmable networks); then the gate learns alone, on images
    that were kept from the network, under a target of the mean cost.

    Examples:
        stepwell train widths --data digits --out runs/widths
        stepwell train widths --data photos/ --out runs/half --net resnet34 --widths 0.5 1
    """
    init = flags.file_of(init)
    training = classification.settled(training)
    arguments = checked(locals())
    check_resumes("widths", arguments)
    torch.manual_seed(training.seed)
    splits = classification.read_splits(data, out, images, net)
    size, classes = splits.train.size, splits.train.classes
    options = classification.input_arguments(net, size, stem)
    refuse_adders(net, "networks of several widths")
    with naming(f"--net {net} --widths {' '.join(map(width_name, width.widths))}"):
        slimmable = build(net, num_classes=len(classes), multipliers=width.widths, **options)
    nested, start = classification.start_network(splits, slimmable, init=init)
    inputs = classification.prepare(splits, images, training, start=start, init=init)
    model = WidthNet(nested, width.gate)
    costs = macs_of_choices(model, size)
    with naming("--target-cost"):
        check_target(costs, width.target_cost)
    of_network, of_gate = choices.parts_for_chooser(inputs.train, width.gate_fraction, init)
    method = Slimmable(nested, sandwich=width.sandwich, label_smoothing=training.label_smoothing)
    Draw(ablation.estimator, ablation.temperature).check(training=True)
    with classification.open_task("widths", out, loop, arguments, inputs, nested) as task:
        learn = partial(fit, run=task.run, loop=loop, patience=training.patience)
        learn(
            method, of_network, training.optim(), phase="widths", epochs=training.epochs,
            validate=choices.validate_choices(model, task.validation),
        )  # fmt: skip
        gate = ChooserAlone(model, costs, target=width.target_cost, **vars(ablation))
        learn(
            gate, of_gate, optimizer_of("adam", GATE_RATE, weight_decay=training.weight_decay),
            phase="gate", epochs=training.gate_epochs or training.epochs,
            validate=choices.validate_chosen(model, task.validation, width.target_cost),
        )  # fmt: skip
        model.requires_grad_(True)
        choices.set_price(model, task, width.target_cost, max(costs))
        return choices.finish_choices(
            task, model, width.target_cost, load=load_widths, save=save_widths, system=WIDTHS,
            complete=with_group_times,
        )  # fmt: skip
