"""Train a network that chooses the resolution of each image, and maybe its depth, too."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import tyro
from torch import Tensor, nn

from stepwell.data import Batches
from stepwell.device import device_name
from stepwell.evaluation import evaluate, gather_logits
from stepwell.evaluation.cost_penalty import Priced, best_within, front, outcomes
from stepwell.measure.depths import cost_table
from stepwell.measure.resolution import (
    CHOSEN,
    Observed,
    choice_table,
    macs_of_choices,
    measure_resolution,
    measure_speed,
    timed_images,
)
from stepwell.methods import Objective
from stepwell.methods.resolution import (
    EveryResolution,
    ImitateBest,
    JointResolution,
    Mixing,
    check_target,
)
from stepwell.nets import Card, NestedNet
from stepwell.nets.files.nested import Start, read_beside
from stepwell.nets.files.resolution import load_resolution, save_resolution
from stepwell.nets.nested.input_size import check_size, patch_of
from stepwell.nets.nested.net import NormSharing
from stepwell.nets.resolution.chooser import Always, Budget, Choice, Chooser, ResolutionNet
from stepwell.nets.resolution.resolutions import Resolutions, check_sizes
from stepwell.tasks.classification import (
    Task,
    finished,
    open_classifier,
    spent,
    tell_measuring,
    write_predictions,
)
from stepwell.train_mode import in_eval_mode
from stepwell.training import Loop, fit, optimizer_of, sgd
from stepwell.training.optim import Optim

Schedule = Literal["joint", "imitate", "resolutions"]
#: Shares of the images' size that are the resolutions where nobody names them.
SHARES = (1.0, 0.75, 0.5)
#: Pictures kept for the report, of each choice.
PICTURES = 12
#: Prices that the file keeps, at most.
BUDGETS = 32


def drnet(
    *,
    data: str,
    out: Path,
    net: str = "resnet20",
    depths: tuple[str, ...] = (),
    sizes: tuple[int, ...] = (),
    stem: Literal["auto", "imagenet", "small"] = "auto",
    init: Literal["pretrained"] | Path | None = None,
    schedule: Schedule = "joint",
    target: float = 0.6,
    cost_weight: float = 1.0,
    mixing: Mixing = "expected",
    explore: float = 0.25,
    temperature: float = 1.0,
    slack: float = 0.1,
    norms: NormSharing = "private",
    epochs: int = 20,
    choose_epochs: int | None = None,
    batch_size: int = 128,
    lr: float = 0.1,
    chooser_rate: float = 1.0,
    weight_decay: float = 5e-4,
    label_smoothing: float = 0.0,
    size: int | None = None,
    flip: bool | None = None,
    part: str | None = None,
    val_fraction: float = 0.1,
    seed: int = 0,
    loop: Annotated[Loop, tyro.conf.OmitArgPrefixes] = Loop(),
) -> dict[str, Any]:
    """Train a network that looks at each image at a resolution of its own (DRNet, Zhu et al. 2021).

    First every image trains the network at all resolutions; then a tiny network that chooses one for
    each image trains with it, under a target of the mean cost. With --depths it chooses a depth, too.

    Examples:
        stepwell train drnet --data digits --out runs/dynamic
        stepwell train drnet --data photos/ --out runs/photos --net resnet18 --sizes 96 72 48
        stepwell train drnet --data photos/ --out runs/both --net resnet34 --depths 18 --size 64

    Args:
        data: a folder of class folders, or a name (`stepwell list`).
        out: the run directory; if it holds this run already, training goes on where it stopped.
        net: the network (`stepwell list`).
        depths: sub-nets, by the family's names (20) or as NAME=BLOCKS,BLOCKS,... a stage; then depth
            and resolution are chosen together.
        sizes: the resolutions in pixels; the largest is the images' own. By default their size, three
            quarters and half of it.
        stem: first layers, where there is a choice; `auto` takes the small ones below 64 pixels.
        init: a run or a file to start from, or `pretrained` weights (see `train ekd`). A run of this
            recipe with the same resolutions brings its norms, and the first phase is left out; the
            chooser and the price are learnt anew.
        schedule: `joint`: network and chooser together; `imitate`: the chooser
            alone learns to name the cheapest choice that is nearly as good as the best one;
            `resolutions`: the first phase alone, and always full size.
        target: mean cost of an image, as a share of the MACs at full size. After training, a price of
            cost is found that keeps to it on the validation part.
        cost_weight: weight of the cost above the target.
        mixing: of a training step in `joint`: each image runs at its choice, and a share of them at
            all, for the chooser (`expected`); at its choice alone, as the paper's text has it
            (`chosen`); at all resolutions, as its code does (`all`); or at a choice by chance, which
            is a control (`random`).
        explore: that share, of `expected`.
        temperature: of the softmax that the chooser's gradient flows through in `chosen` and `all`.
        slack: in `imitate`: nats that a choice's loss may lie above the best one's.
        norms: of each resolution and depth; `shared` is an ablation.
        epochs: passes over the training part at all resolutions, of the first phase.
        choose_epochs: passes of the second phase; as many as `epochs` by default.
        lr: the highest learning rate, of both phases (in `imitate`, whose network rests, of the first).
        chooser_rate: share of it that the chooser has in `joint`.
        size: height and width of the images; by default their own.
        flip: mirror training images; by default where the data allows it.
        part: train on a part of the training images, I/N: 1/2 and 2/2 are halves that share none.
        val_fraction: share of the training part set aside to choose the best epoch; 0: keep the last.
        seed: of weights, order, augmentation and steps.
    """
    arguments = dict(locals())
    arguments["size"] = _image_size(sizes, size)
    if isinstance(init, Path) and init.is_dir():
        arguments["init"] = init / "net.safetensors"
    torch.manual_seed(seed)

    made: list[tuple[ResolutionNet, list[int]]] = []

    def check(nested: NestedNet, _: object, size: int, __: object) -> None:
        made.append(_dynamic(nested, size, arguments))

    with open_classifier("drnet", arguments, net, depths, check=check) as (task, _, start):
        ((net_, costs),) = made
        known = _take_norms(net_, arguments["init"], start)

        def train(phase: str, objective: Objective, epochs: int, optim: Optim, **how: Any) -> None:
            # other batches than those that a first phase saw, here or in the run that is the start
            batches = task.train if phase == "resolutions" else task.train.reseeded(phase)
            fit(objective, batches, optim, task.run, phase=phase, epochs=epochs, loop=loop, **how)

        plain = sgd(lr, weight_decay=weight_decay)
        if not known:
            every = EveryResolution(net_.net, label_smoothing=label_smoothing)
            train("resolutions", every, epochs, plain, validate=_at_all(net_, task.validation))
        choose_epochs = epochs if choose_epochs is None else choose_epochs
        if schedule == "joint":
            joint = JointResolution(
                net_, costs, target=target, cost_weight=cost_weight, temperature=temperature,
                mixing=mixing, explore=explore, label_smoothing=label_smoothing,
            )  # fmt: skip
            optim = _both(plain, sgd(lr * chooser_rate, weight_decay=weight_decay))
            validate = _as_chosen(net_, task.validation, target)
            train("joint", joint, choose_epochs, optim, validate=validate)
        if schedule == "imitate":
            imitate = ImitateBest(net_, costs, slack=slack)
            validate = _as_chosen(net_, task.validation, target)
            alone = optimizer_of("adam", weight_decay=weight_decay)
            train("imitate", imitate, choose_epochs, alone, validate=validate)
            net_.requires_grad_(True)
        if schedule != "resolutions":
            _set_price(net_, task, target, max(costs))
        return finish_resolution(task, net_, None if schedule == "resolutions" else target)


def _image_size(sizes: Sequence[int], size: int | None) -> int | None:
    """The size of the images, if anything says it: that of the largest resolution.

    Raises:
        ValueError: a resolution is none or named twice; `size` is another.
    """
    if not sizes:
        return size
    check_sizes(sizes)
    if size not in (None, max(sizes)):
        raise ValueError(
            f"--size {size}: the largest of --sizes is {max(sizes)}, and that is the images' size: "
            "leave --size out"
        )
    return max(sizes)


def _dynamic(
    nested: NestedNet, full: int, arguments: Mapping[str, Any]
) -> tuple[ResolutionNet, list[int]]:
    """The network of several resolutions with a fresh chooser, and the MACs of its choices.

    Args:
        full: size of the images.

    Raises:
        ValueError: a resolution that the network does not take; one choice only; a target out of reach.
    """
    patch = patch_of(nested)
    shares = dict.fromkeys(patch * max(1, round(share * full / patch)) for share in SHARES)
    sizes = arguments["sizes"] or tuple(shares)
    net = Resolutions(nested, sizes, norms=arguments["norms"])
    for size in net.sizes:
        try:
            check_size(net.at(size), size)
        except ValueError as error:
            raise ValueError(f"--sizes {size}: {error}") from error
    choices = [Choice(depth, size) for size in net.sizes for depth in reversed(nested.depths)]
    few, alone = len(choices), arguments["schedule"] == "resolutions"
    chooser = Always(few) if alone else Chooser(few, max(1, full // 2))
    made = ResolutionNet(net, choices, chooser)
    macs = macs_of_choices(made, full)
    if not alone:
        check_target(macs, arguments["target"])
    return made, macs


def _take_norms(net: ResolutionNet, init: str | Path | None, start: Start | None) -> bool:
    """Take what `init` has for each resolution, if its resolutions and its classes are these."""
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


def _at_all(net: ResolutionNet, batches: Batches | None) -> Callable[[], dict[str, float]] | None:
    """A call that measures every choice on the validation part, or none where there is none."""
    if batches is None:
        return None

    def validate() -> dict[str, float]:
        device = next(net.parameters()).device
        with in_eval_mode(net):
            return evaluate(lambda images: net.logits_by_choice(images.to(device)), batches)

    return validate


def _as_chosen(
    net: ResolutionNet, batches: Batches | None, target: float
) -> Callable[[], dict[str, float]] | None:
    """A call that measures what the chooser makes of the validation part, at the best price."""
    if batches is None:
        return None

    def validate() -> dict[str, float]:
        found = _priced(net, batches)
        free, best = found[0], best_within(found, target, len(batches.images))
        costs = {"mean_cost": best.cost, "unpriced_cost": free.cost}
        return {f"{CHOSEN}/accuracy": best.accuracy} | costs

    return validate


def _priced(net: ResolutionNet, batches: Batches) -> list[Priced]:
    """What the choices come to on these images, first without a price, then at every other."""
    device = next(net.parameters()).device

    def predict(images: Tensor) -> dict[str, Tensor]:
        images = images.to(device)
        return {"scores": net.chooser(images)} | net.logits_by_choice(images)

    with in_eval_mode(net):
        found, labels = gather_logits(predict, batches)
    scores = found.pop("scores")
    right = torch.stack([logits.argmax(1) == labels for logits in found.values()], 1)
    return outcomes(scores, right, net.costs.cpu())


def _set_price(net: ResolutionNet, task: Task, target: float, most: float) -> None:
    """Set the price that spends the target, and what other prices come to, on the validation part.

    Args:
        most: the costliest choice's MACs.
    """
    seen = task.validation
    if seen is None:
        warnings.warn(
            "there is no validation part: the price of cost is set on training images, which look "
            "easier than new ones: set --val-fraction above 0",
            stacklevel=3,
        )
        seen = task.train.with_images(task.train.images)
    found = _priced(net, seen)
    net.price.fill_(best_within(found, target, len(seen.images)).price)
    kept = front(found, BUDGETS)
    net.budgets = tuple(Budget(o.price, o.cost * most, o.accuracy, o.shares) for o in kept)


def finish_resolution(task: Task, net: ResolutionNet, target: float | None) -> dict[str, Any]:
    """Measure the trained `net`, of a `target` if it chooses, once on the test part; write the results.

    Writes net.safetensors, predictions.npz and, last, results.json; returns its content. A run that
    has all three keeps them; where one of the last two is missing or damaged, what is in the file is
    measured again.
    """
    run = task.run
    file = run.path / "net.safetensors"
    kept, results = finished(run, load_resolution)
    if results is not None:
        return results
    if kept is None:
        net.cpu().eval()
        for size in net.net.sizes:
            net.net.at(size).mark("trained")
        card = Card(
            task.train.images.classes, task.train.images.size, task.train.mean, task.train.std
        )
        nested = net.net.net
        nested.card = card
        nested.card = card.with_costs(cost_table(nested, card.size), device_name())
        if run.writes:
            save_resolution(net, file)
    else:
        net = kept
    tell_measuring(task)
    size = net.net.net.card.size
    costs = choice_table(net, size)
    found, seen = measure_resolution(net, task.test, costs)
    found["drnet"]["speed"] = measure_speed(net, timed_images(task.test))
    if target is not None:
        found["drnet"]["target"] = target
    results = found | spent(run)
    if run.writes:
        results["file_bytes"] = file.stat().st_size
        write_predictions(
            run.path / "predictions.npz", seen.logits, seen.labels, task.test,
            _pictures(task.test, seen),
        )  # fmt: skip
        run.write_json("results.json", results)
    return results


def _pictures(test: Batches, seen: Observed) -> dict[str, np.ndarray]:
    """Each test image's choice, and for the report some images of every choice.

    They are spread over all that made it: images often stand in the order of their classes.
    """
    indices = [(seen.who == i).nonzero().flatten() for i in seen.who.unique().tolist()]
    spread = [torch.linspace(0, len(i) - 1, min(len(i), PICTURES)).round().long() for i in indices]
    chosen = torch.cat([i[kept] for i, kept in zip(indices, spread, strict=True)])
    return {
        "choice": seen.who.numpy(),
        "choice_index": chosen.numpy(),
        "choice_images": test.images.pixels[chosen].permute(0, 2, 3, 1).numpy(),
    }
