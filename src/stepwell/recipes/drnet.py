"""Train a network that chooses the resolution of each image, and maybe its depth, too."""

import warnings
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import nn

from stepwell.data.image_flags import TrainingImages
from stepwell.flags import Flags, Hidden, Together, checked, flag, naming
from stepwell.measure.choices import RESOLUTION, macs_of_choices
from stepwell.methods.resolution import (
    EveryResolution,
    ImitateBest,
    JointResolution,
    Mixing,
    check_target,
)
from stepwell.methods.widths import GATE_RATE, ChooserAlone
from stepwell.nets import NestedNet
from stepwell.nets.build import refuse_adders
from stepwell.nets.decisions.choosing import Always
from stepwell.nets.files.initial_weights import Start
from stepwell.nets.files.nested import read_beside
from stepwell.nets.files.resolution import load_resolution, save_resolution
from stepwell.nets.nested.input_size import check_size, patch_of
from stepwell.nets.nested.net import NormSharing
from stepwell.nets.resolution.chooser import Choice, Chooser, ResolutionNet, doubt_gate
from stepwell.nets.resolution.resolutions import Resolutions, check_sizes
from stepwell.recipes import flags
from stepwell.tasks import choices, classification
from stepwell.training import Loop, check_resumes, fit, optimizer_of
from stepwell.training.optim import Optim
from stepwell.training.optimisation import Smoothed

Schedule = Literal["joint", "imitate", "doubt", "resolutions"]
#: Share of the training images that only the chooser learns on, in `doubt`.
FRACTION = 0.1
#: Shares of the images' size that are the default resolutions.
SHARES = (1.0, 0.75, 0.5)


@dataclass(frozen=True, kw_only=True)
class DrnetAblation(Together):
    """Options for studies.

    Attributes:
        mixing, explore, temperature, cost_weight: of a step in the schedule `joint`: see
            `JointResolution`.
        slack: in `imitate`: nats that a choice's loss may lie above the best one's.
        norms: of each resolution and depth: private or shared.
        chooser_rate: share of the learning rate that the chooser has in `joint`.
    """

    mixing: Mixing = "expected"
    explore: float = 0.25
    temperature: float = 1.0
    cost_weight: float = 1.0
    slack: float = 0.1
    norms: NormSharing = "private"
    chooser_rate: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Choosing:
    """Resolutions to choose from, and the way to the chooser.

    Attributes:
        sizes: resolutions in pixels; the largest is the images' size.
        schedule: joint: network and chooser train together; imitate: the chooser alone learns
            the cheapest choice that is nearly as good as the best one; doubt: the cheapest choice runs
            for every image, and how sure it is decides; resolutions: no chooser, always full size.
        target: mean cost of an image, as a share of the MACs at full size. A cost penalty that
            keeps to it is set on the validation part.
        gate_fraction: share of the training images that only the chooser learns on, in doubt.
    """

    TITLE: ClassVar = "resolution"
    sizes: Annotated[tuple[int, ...], flag("PIXELS ...", "the images' size, 3/4 and 1/2 of it")] = ()
    schedule: Annotated[Schedule, flag("SCHEDULE")] = "joint"
    target: float = 0.6
    gate_fraction: Annotated[float | None, flag("X", f"{FRACTION:g} in doubt")] = None

    def check(self) -> None:
        """Refuse images of the chooser's own where it has none."""
        if self.gate_fraction is not None and self.schedule != "doubt":
            raise ValueError(
                f"--gate-fraction is for --schedule doubt, not {self.schedule}: leave it out"
            )

    @property
    def held_out(self) -> float:
        """The share of the training images that only the chooser learns on."""
        if self.schedule != "doubt":
            return 0.0
        return FRACTION if self.gate_fraction is None else self.gate_fraction

    def image_size(self, size: int | None) -> int | None:
        """The size of the images: the largest resolution, else `size`; ValueError if they disagree."""
        if not self.sizes:
            return size
        check_sizes(self.sizes)
        if size not in (None, max(self.sizes)):
            raise ValueError(
                f"--size {size}: the largest of --sizes is {max(self.sizes)}, and that is the images' "
                "size: leave --size out"
            )
        return max(self.sizes)


@dataclass(frozen=True, kw_only=True)
class Training(Smoothed):
    """Training of the network, and of the chooser.

    Attributes:
        choose_epochs: passes of the second phase.
    """

    epochs: int | None = 20
    choose_epochs: Annotated[int | None, flag("N", "as --epochs")] = None


def drnet(
    *,
    data: flags.Data,
    out: flags.Out,
    net: flags.Net = "resnet20",
    depths: flags.SubNets = (),
    stem: flags.Stem = "auto",
    init: flags.Init = None,
    choosing: Flags[Choosing] = Choosing(),
    images: Flags[TrainingImages] = TrainingImages(),
    training: Flags[Training] = Training(),
    loop: Flags[Loop] = Loop(),
    ablation: Hidden[DrnetAblation] = DrnetAblation(),
) -> dict[str, Any]:
    """Train a network that looks at each image at a resolution of its own (DRNet, Zhu et al. 2021).

    First every image trains the network at all resolutions; then a tiny network that chooses one for
    each image trains with it, under a target of the mean cost. With --depths it chooses a depth, too.
    With --init RUN of this recipe and the same resolutions, the first phase is left out.

    Examples:
        stepwell train drnet --data digits --out runs/chosen
        stepwell train drnet --data photos/ --out runs/photos --net resnet18 --sizes 96 72 48
        stepwell train drnet --data photos/ --out runs/both --net resnet34 --depths 18 --size 64
    """
    init = flags.file_of(init)
    training = classification.settled(training)
    arguments = checked(locals())
    images = replace(images, size=choosing.image_size(images.size))
    arguments["size"] = images.size
    check_resumes("drnet", arguments)
    torch.manual_seed(training.seed)
    refuse_adders(net, "networks that choose resolutions")
    splits = classification.read_splits(data, out, images, net)
    nested, start = classification.start_network(splits, net, depths, stem=stem, init=init)
    inputs = classification.prepare(splits, images, training, start=start, init=init)
    model, costs = _with_chooser(nested, splits.train.size, choosing, ablation.norms)
    target, smoothing = choosing.target, training.label_smoothing
    network, apart = inputs.train, inputs.train
    if choosing.held_out:
        network, apart = choices.parts_for_chooser(inputs.train, choosing.held_out, init)
    with classification.open_task("drnet", out, loop, arguments, inputs, nested) as task:
        if not _take_norms(model, init, start):
            fit(
                EveryResolution(model.net, label_smoothing=smoothing), network,
                training.optim(), task.run, phase="resolutions", epochs=training.epochs,
                validate=choices.validate_choices(model, task.validation), loop=loop,
                patience=training.patience,
            )  # fmt: skip
        learn = partial(
            fit, run=task.run, epochs=training.choose_epochs or training.epochs,
            validate=choices.validate_chosen(model, task.validation, target), loop=loop,
            patience=training.patience,
        )  # fmt: skip
        if choosing.schedule == "joint":
            joint = JointResolution(
                model, costs, target=target, cost_weight=ablation.cost_weight,
                temperature=ablation.temperature, mixing=ablation.mixing,
                explore=ablation.explore, label_smoothing=smoothing,
            )  # fmt: skip
            optim = _both(training.optim(), training.optim(ablation.chooser_rate))
            # other batches than the first phase saw, here or in the run that is the start
            learn(joint, task.train.reseeded("joint"), optim, phase="joint")
        if choosing.schedule == "imitate":
            imitate = ImitateBest(model, costs, slack=ablation.slack)
            adam = optimizer_of("adam", weight_decay=training.weight_decay)
            learn(imitate, task.train.reseeded("imitate"), adam, phase="imitate")
            model.requires_grad_(True)
        if choosing.schedule == "doubt":
            gate = ChooserAlone(model, costs, target=target, cost_weight=ablation.cost_weight)
            adam = optimizer_of("adam", GATE_RATE, weight_decay=training.weight_decay)
            learn(gate, apart, adam, phase="doubt")
            model.requires_grad_(True)
        finish = partial(
            choices.finish_choices, task, model, load=load_resolution, save=save_resolution,
            system=RESOLUTION,
        )  # fmt: skip
        if choosing.schedule == "resolutions":
            return finish(None)
        choices.set_price(model, task, target, max(costs))
        return finish(target)


def _with_chooser(
    nested: NestedNet, full: int, choosing: Choosing, norms: NormSharing
) -> tuple[ResolutionNet, list[int]]:
    """The network of several resolutions with a fresh chooser, and the MACs of its choices."""
    patch = patch_of(nested)
    shares = dict.fromkeys(patch * max(1, round(share * full / patch)) for share in SHARES)
    net = Resolutions(nested, choosing.sizes or tuple(shares), norms=norms)
    for size in net.sizes:
        with naming(f"--sizes {size}"):
            check_size(net.at(size), size)
    choices = [Choice(depth, size) for size in net.sizes for depth in reversed(nested.depths)]
    count, alone = len(choices), choosing.schedule == "resolutions"
    chooser: nn.Module = Always(count) if alone else Chooser(count, max(1, full // 2))
    if choosing.schedule == "doubt":
        chooser = doubt_gate(net, choices)
    model = ResolutionNet(net, choices, chooser)
    macs = macs_of_choices(model, full)
    if not alone:
        with naming("--target"):
            check_target(macs, choosing.target)
    return model, macs


def _take_norms(net: ResolutionNet, init: object, start: Start | None) -> bool:
    """Load the norms of each resolution from `init`, if its resolutions and classes are these."""
    if not isinstance(init, Path) or start is None or start.fresh or read_beside(init) is None:
        return False
    theirs = load_resolution(init).net
    ours = net.net
    same = (theirs.sizes, theirs.norm_sharing) == (ours.sizes, ours.norm_sharing)
    if not same or theirs.net.subnets != ours.net.subnets:
        warnings.warn(
            f"{init} has other resolutions, depths or norms: the weights start from it, and the first "
            "phase runs",
            stacklevel=3,
        )
        return False
    ours.load_own(theirs.own_tensors())
    return True


def _both(network: Optim, chooser: Optim) -> Optim:
    """One optimizer of both, each with its own learning rate."""

    def make(objective: nn.Module) -> torch.optim.Optimizer:
        net = objective.get_submodule("net")
        optimizer = network.make(net.get_submodule("net"))
        for group in chooser.make(net.get_submodule("chooser")).param_groups:
            optimizer.add_param_group(group)
        return optimizer

    return Optim(make, network.factor)
