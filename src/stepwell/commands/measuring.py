"""Commands that measure networks: `eval`, `cost`, `calibrate`."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from tyro.conf import Positional

from stepwell.commands.resolution import eval_resolution, resolution_of
from stepwell.commands.run_files import (
    Json,
    check_place,
    file_to_write,
    network_of,
    parts_of,
    rewriting,
)
from stepwell.console import (
    depth_table,
    print_json,
    say,
    show,
    show_cascade,
    show_churn,
    show_classes,
    show_conditions,
)

EVALUATED = (
    "blocks", "params", "macs", "accuracy", "nll", "ece", "agreement", "negative_flips",
    "positive_flips", "ms",
)  # fmt: skip
COSTS = ("blocks", "params", "macs", "peak_bytes", "accuracy", "ms", "ms_low", "ms_high")
CALIBRATED = ("blocks", "params", "macs", "accuracy", "ms")


def eval_(
    run: Positional[Path],
    *,
    data: str | None = None,
    cascade: bool = False,
    target_accuracy: float | None = None,
    budget_macs: float | None = None,
    save: bool = False,
    fidelity: tuple[str, ...] | None = None,
    teacher_mean: tuple[float, float, float] | None = None,
    teacher_std: tuple[float, float, float] | None = None,
    control: str | None = None,
    interpolate: int = 0,
    json: Json = False,
) -> None:
    """Measure every depth of a trained network: accuracy, calibration, churn, MACs, latency.

    With --fidelity, also how far every depth gives a teacher's predictions, on training and test images
    side by side; kept in the run's fidelity.json for its report, if measured on the run's own data.

    Of a network that chooses resolutions: as a whole, and each choice for all images; how often each is
    chosen, and images a second with and without.

    Examples:
        stepwell eval runs/digits
        stepwell eval runs/photos --data other-photos/ --json
        stepwell eval runs/digits --cascade --target-accuracy 0.97 --save
        stepwell eval runs/student --fidelity runs/teacher --control runs/student-of-another
        stepwell eval runs/student --fidelity runs/one@20 two.onnx resnet18=three.pth
        stepwell eval runs/digits --fidelity runs/digits

    Args:
        run: a run directory, or the file of its network.
        data: a folder or a name; its test part is used. By default the data of the run.
        cascade: also find the best cascade (shallow first, deeper when unsure) on the validation
            part, and measure it on the test part.
        target_accuracy: of the cascade on the validation part; the full net's own by default.
        budget_macs: mean MACs an image of the cascade, in place of a target; or of a network that
            chooses resolutions.
        save: keep the cascade in the network's file, for `stepwell predict --cascade`.
        fidelity: the teacher, named as for `stepwell train distill --teacher`: a run directory or the
            file of a network (PATH@DEPTH for another depth than the deepest), an ONNX file,
            NETWORK=FILE or timm/NAME; several are an ensemble. The run itself: its full net is the
            teacher of its sub-nets.
        teacher_mean: of pixels scaled to [0, 1], per channel, for a teacher that does not say how its
            images are normalised (most ONNX files).
        teacher_std: as --teacher-mean.
        control: a student of another teacher (another seed, as a rule), trained in the same way and
            named in the same way; only agreement beyond its own is this teacher's doing.
        interpolate: measure so many points on the straight line from the student's weights to the
            teacher's, where architectures are equal; BatchNorm statistics are measured anew at each.
    """
    from stepwell.evaluation import churn, gather_logits
    from stepwell.evaluation.accuracy import measures
    from stepwell.measure.cascade import calibrate_cascade, check_depths, measure_cascade
    from stepwell.measure.depths import cost_table
    from stepwell.nets.files.nested import net_digest, rewrite_card
    from stepwell.nets.nested.cascade import Cascade

    if not cascade and (save or target_accuracy is not None):
        raise ValueError("--target-accuracy and --save say more about --cascade")
    if fidelity == ():
        raise ValueError(
            "--fidelity: name the teacher after it, such as a run directory, or several for an ensemble"
        )
    if not fidelity and (teacher_mean or teacher_std or control is not None or interpolate):
        raise ValueError(
            "--teacher-mean, --teacher-std, --control and --interpolate say more about --fidelity"
        )
    net, config = network_of(run)
    if not (cascade or fidelity) and (chooses := resolution_of(run)):
        eval_resolution(run, chooses, config, data, budget_macs=budget_macs, json=json)
        return
    if budget_macs is not None and not cascade:
        raise ValueError(
            f"--budget-macs says more about --cascade, or about a network that chooses: {run} has "
            "none of its own"
        )
    net.require_ready()
    if cascade:
        check_depths(net)
    if fidelity:
        from stepwell.commands.fidelity_shown import show_fidelity
        from stepwell.measure.fidelity import fit_pair, keep, measure_pair
        from stepwell.measure.fidelity_networks import folder_of, open_pair

        pair = open_pair(
            run,
            net,
            config,
            fidelity,
            control,
            mean=teacher_mean,
            std=teacher_std,
            interpolate=interpolate,
        )
    if save:
        file_to_write(run)
    parts = parts_of(net, run, config, data)
    if fidelity:
        networks = fit_pair(pair, parts.test)
    logits, labels = gather_logits(net.logits_by_depth, parts.test)
    test, flips = measures(logits, labels, net.card.classes), churn(logits, labels)
    costs = cost_table(net, net.card.size)
    found: dict[str, Any] = {"test": test, "churn": flips, "examples": len(labels), "costs": costs}
    if cascade:
        if parts.validation is None:
            raise ValueError(
                "there is no validation part that the network was surely not trained on, and "
                "thresholds set on test images would look better than they are: name data with a "
                "val/ folder with --data"
            )
        chosen = calibrate_cascade(
            net, parts.validation, accuracy=target_accuracy, macs=budget_macs
        )
        net.card = replace(net.card, cascade=chosen)
        measured = measure_cascade(Cascade.of(net), parts.test)
        found["cascade"] = {"validation": chosen, "test": measured}
        if save:
            with rewriting(run, net_digest(net)) as (file, card):
                rewrite_card(file, replace(card, cascade=chosen))
            say(f"the cascade is kept in {file}")
    if fidelity:
        compared, arrays = measure_pair(networks, parts, interpolate=interpolate)
        found["fidelity"] = compared
        if config and parts.known:
            keep(folder_of(run), compared, arrays)
            say(
                f"kept in {folder_of(run) / 'fidelity.json'}; next: stepwell report {folder_of(run)}"
            )
        elif config:
            say(f"note: not kept in {folder_of(run)}, whose report is on the data of its training")
    if json:
        print_json(found)
        return
    show(depth_table(f"{run} on {len(labels)} images", EVALUATED, costs, test | flips))
    show_churn(flips)
    show_classes(test)
    show_conditions(costs)
    if cascade:
        show_cascade(chosen, measured)
    if fidelity:
        show_fidelity(compared)


def cost(
    network: Positional[str],
    *,
    depths: tuple[str, ...] = (),
    size: int | None = None,
    num_classes: int | None = None,
    stem: Literal["imagenet", "small"] | None = None,
    batch: int = 1,
    save: bool = False,
    accuracy_on: Literal["validation", "test"] | None = None,
    data: str | None = None,
    json: Json = False,
) -> None:
    """Measure what every depth of a network costs: params, MACs, memory, ms.

    Examples:
        stepwell cost resnet34 --depths 18 --size 224
        stepwell cost runs/digits --save

    Args:
        network: a name (`stepwell list`), a run directory, or the file of a network.
        depths: sub-nets of a network given by name, as for `stepwell train ekd`.
        size: height and width of the input; a trained network's own, else its family's.
        num_classes: classes of a network given by name; 1,000 by default.
        stem: first layers, where there is a choice; as in training, small ones below 64 pixels.
        batch: images at once.
        save: keep the times in the network's file, under this device and its threads, for
            `net.for_budget` and `stepwell predict --budget-ms`.
        accuracy_on: with --save: measure every depth's accuracy again, on this part of the data. By
            default what is not known yet is measured on the validation part.
        data: a folder or a name to measure accuracy on; by default the data of the run.
    """
    from stepwell.measure.depths import cost_table
    from stepwell.nets import build, builder_of
    from stepwell.nets.nested.input_size import check_size
    from stepwell.tasks.classification import input_arguments

    known = Path(network).exists()
    if not known and (save or accuracy_on or data):
        builder_of(network)  # which refuses what is neither
        raise ValueError(
            f"--save, --accuracy-on and --data are of a trained network, and {network} is the name of "
            "one with random weights: name a run directory or the file of a network, or leave them out"
        )
    if save and batch != 1:
        raise ValueError("--save keeps times of one image: leave out --batch")
    if not save and (accuracy_on or data):
        raise ValueError("--accuracy-on and --data say more about --save")
    if known:
        of_names = {"depths": depths, "num-classes": num_classes, "stem": stem}
        if odd := [flag for flag, value in of_names.items() if value]:
            raise ValueError(
                f"--{odd[0]} is of a network given by name, and {network} says its own: leave it out"
            )
        net, config = network_of(Path(network))
        if save and size not in (None, net.card.size):
            raise ValueError(f"--save measures at the network's own size, {net.card.size}")
        size = size or net.card.size
    else:
        builder = builder_of(network)
        size = size or (32 if stem == "small" else builder.size)
        arguments = input_arguments(network, size, stem)
        net = build(network, depths, num_classes=num_classes or 1000, **arguments)
    check_size(net, size)
    if save:
        file_to_write(Path(network))
    costs = cost_table(net, size, batch=batch)
    if save:
        costs = _save_costs(net, Path(network), config, costs, accuracy_on, data)
    if json:
        print_json(costs)
        return
    show(depth_table(f"{network} at {size}×{size}", COSTS, costs))
    show_conditions(costs)


def _save_costs(
    net: Any,
    run: Path,
    config: Mapping[str, Any],
    costs: Mapping[str, Mapping[str, Any]],
    part: Literal["validation", "test"] | None,
    data: str | None,
) -> dict[str, dict[str, Any]]:
    """Write the measured table to the network's file; `costs` with the accuracies it then holds."""
    from stepwell.device import device_name
    from stepwell.measure.depths import accuracy_on
    from stepwell.nets.files.nested import net_digest, rewrite_card

    accuracy: tuple[dict[str, float], str] | None = None
    unknown = any(
        "accuracy" not in net.card.costs.get(d, {}) for d, s in net.status.items() if s != "fresh"
    )
    if part or data or (unknown and config):
        parts = parts_of(net, run, config, data)
        batches = parts.test if part == "test" else parts.validation
        if batches is None:
            say(
                "note: no validation part that the network was surely not trained on: name data with a "
                "val/ folder with --data, or --accuracy-on test"
            )
        else:
            accuracy = accuracy_on(net, batches, part or "validation")
    elif unknown:
        say("note: the accuracy of some depths is not known: measure it with --data")
    with rewriting(run, net_digest(net)) as (file, card):
        card = card.with_costs(costs, device_name())
        if accuracy is not None:
            card = card.with_accuracy(*accuracy)
        rewrite_card(file, card)
    say(f"kept in {file} for {device_name()}")
    return {depth: {**cost} | card.costs[depth] for depth, cost in costs.items()}


def calibrate(
    run: Positional[Path],
    *,
    depths: tuple[str, ...] = (),
    data: str | None = None,
    out: Path | None = None,
    json: Json = False,
) -> None:
    """Add depths that nobody trained to a network, with norm statistics from its training images.

    One pass over the images calibrates all of them; what was trained stays as it is.

    Examples:
        stepwell calibrate runs/digits --depths middle=4,3,3
        stepwell calibrate runs/digits --depths 14 23=4,4,3 --out more.safetensors

    Args:
        run: a run directory, or the file of its network.
        depths: the depths to add, by the family's names (20) or as NAME=BLOCKS,BLOCKS,... a stage.
        data: a folder or a name; its training part is used. By default the data of the run.
        out: the file to write; by default the network's own is replaced.
    """
    from stepwell.device import device_name
    from stepwell.measure.depths import accuracy_on, cost_table
    from stepwell.nets import named_depths
    from stepwell.nets.files.nested import net_digest, save
    from stepwell.nets.nested.calibrate import calibrate as calibrate_norms
    from stepwell.training.run import writing

    if out is not None:
        check_place("--out", out)
    net, config = network_of(run)
    if resolution_of(run) is not None:
        raise ValueError(
            f"{run} chooses resolutions, so a depth that nobody trained has no norms for them: name "
            "it with --depths when you train"
        )
    read = net_digest(net)
    for name, blocks in named_depths(net.builder[0], depths).items():
        net.add_depth(name, blocks)
    new = [depth for depth, status in net.status.items() if status == "fresh"]
    if not new:
        raise ValueError(f"{run} has no depth to calibrate: add some with --depths NAME=BLOCKS,...")
    file = file_to_write(out or run)
    parts = parts_of(net, run, config, data)
    calibrate_norms(net, parts.train)
    measured = cost_table(net, net.card.size)
    accuracy = accuracy_on(net, parts.validation, "validation") if parts.validation else None

    def with_measured(card: Any) -> Any:
        card = card.with_costs(measured, device_name())
        return card if accuracy is None else card.with_accuracy(*accuracy)

    if out is None:
        with rewriting(run, read) as (file, card):
            net.card = with_measured(card)
            save(net, file)
    else:
        net.card = with_measured(net.card)
        with writing(file):
            save(net, file)
    times = net.card.latency[device_name()]
    costs = {d: net.card.costs[d] | times[d] | {"status": s} for d, s in net.status.items()}
    if json:
        print_json({"calibrated": new, "file": str(file), "depths": costs})
        return
    show(depth_table(f"{file}", CALIBRATED, costs))
    if parts.validation is not None:
        show(f"accuracy: of {len(parts.validation.images)} validation images", style="dim")
    say(f"calibrated {', '.join(new)} on {len(parts.train.images)} training images; wrote {file}")
