"""Image classifiers with one or several depths (`NestedNet`)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from stepwell.console import big, row_table, say, show, show_conditions, track
from stepwell.files import export_folder
from stepwell.kinds import LIMITS, Network, Predicted, noun_of
from stepwell.kinds import classifier_tables as tables
from stepwell.kinds.classifier_costs import calibrate as calibrate
from stepwell.kinds.classifier_costs import cost as cost
from stepwell.kinds.classifier_tables import show_export as show_export
from stepwell.kinds.serving import Engine, serve_depths
from stepwell.measures import BUSY, MIXTURES, OF_CLASSES, OF_NUMBERS, with_article

if TYPE_CHECKING:
    from stepwell.nets import NestedNet
    from stepwell.serve import Prediction
    from stepwell.serve.served import Served

NAME = "an image classifier"
NOUN = "image"
ADVICE: dict[str, str] = {}
NEXT = (
    "stepwell eval {run}", "stepwell export {run}", "stepwell report {run}",
    "stepwell predict {run} FILE|FOLDER...",
)  # fmt: skip
SECTIONS = [
    f"stepwell.report.{section}" for section in (
        "sections:lead", "systems:notes", "sections:cost_figures", "sections:row_table",
        "classes:classes_section", "sections:churn", "evaluations:tempered_section",
        "evaluations:cascade_section", "evaluations:other_evaluations", "sections:run_figures",
        "fidelity:fidelity_section", "systems:sections", "sections:examples", "sections:facts",
        "sections:arguments",
    )
]  # fmt: skip
#: Tables of what `eval` measures on request, by its key in the results.
EXTRA: Mapping[str, Callable[..., None]] = {
    "tempered": lambda tempered, row, noun: tables.show_tempered(tempered, row=row),
    "cascade": tables.show_cascade,
    "adder_bits": lambda bits, row, noun: tables.show_bits(bits, row=row),
    "fidelity": lambda fidelity, row, noun: tables.show_fidelity(fidelity),
    "glance": lambda glance, row, noun: tables.show_glances(glance, noun=noun),
    **{k: lambda mixture, key=k, **_: tables.show_mixture(key, mixture) for k in MIXTURES},
}  # fmt: skip
#: Words of the columns of an evaluation.
LEGEND = (
    "agreement: same class as the full net; made wrong, made right: answers of the full net that this "
    "row turns so; NLL, ECE: lower is better"
)
#: Words below a table that has the measure.
LEGENDS = {"f1": OF_CLASSES, "rmse": OF_NUMBERS, "agreement": LEGEND}
#: A number of images to say before they are classified.
MANY = 1000
#: Columns after a training, and of an evaluation.
TRAINED = (
    "blocks", "params", "macs", "accuracy", "balanced_accuracy", "mcc", "f1", "pearson", "spearman",
    "rmse", "ms",
)  # fmt: skip
EVALUATED = (
    "blocks", "params", "macs", "accuracy", "balanced_accuracy", "mcc", "f1", "pearson", "spearman",
    "rmse", "nll", "ece", "agreement", "negative_flips", "positive_flips", "ms",
)  # fmt: skip


def open(path: Path, module: Callable[[], Any] | None = None) -> "NestedNet":
    """Read the network of a run or a file; errors as for `stepwell.load` and `check_card`."""
    from stepwell.nets.files.nested import load

    net = load(path, module)
    check_card(path, net)
    return net


def check_card(path: Path, net: "NestedNet") -> None:
    """Check that a network's card names its classes and its input size; ValueError if not."""
    if not net.card.classes or not net.card.size:
        raise ValueError(
            f"{path} does not say its classes and input size: set net.card = "
            "stepwell.Card(classes, size, mean, std) and save it again"
        )


def evaluate(
    network: Network,
    *,
    data: str | None = None,
    cascade: bool = False,
    target_accuracy: float | None = None,
    budget_macs: float | None = None,
    criterion: str = "confidence",
    search: str = "best",
    temper: bool = False,
    save: bool = False,
    bits: tuple[int, ...] | None = None,
    fidelity: tuple[str, ...] = (),
    teacher_mean: tuple[float, float, float] | None = None,
    teacher_std: tuple[float, float, float] | None = None,
    control: str | None = None,
    interpolate: int = 0,
) -> dict[str, Any]:
    """Measure every depth; also a cascade, layers of bits, fidelity to a teacher. Flags as for `eval`.

    Gives results as results.json has them, and the "data"; with "cascade" ("validation" and "test"),
    "adder_bits" (of `measure_bits`) and "fidelity" (the content of fidelity.json) where they were asked
    for.
    """
    from stepwell.measure.adders import measure_bits
    from stepwell.measure.data_parts import parts_of
    from stepwell.measure.fidelity_fit import fit_pair

    path, net, config = network.path, network.net, network.config
    if budget_macs is not None and not cascade:
        raise ValueError("--budget-macs needs --cascade, or a network that chooses")
    return evaluate_depths(
        network, lambda: parts_of(net, path, config, data), fit_pair, cascade=cascade,
        target_accuracy=target_accuracy, budget_macs=budget_macs, criterion=criterion, search=search,
        temper=temper, save=save, fidelity=fidelity, control=control, mean=teacher_mean,
        std=teacher_std, interpolate=interpolate,
        more=lambda parts: {"adder_bits": measure_bits(net, parts, bits)} if bits else {},
    )  # fmt: skip


def evaluate_depths(
    network: Network, read: Callable[[], Any], fit: Callable[..., Any], *, cascade: bool,
    target_accuracy: float | None, budget_macs: float | None, criterion: str, search: str,
    temper: bool, save: bool, fidelity: Sequence[str], control: str | None,
    mean: tuple[float, ...] | None = None, std: tuple[float, ...] | None = None, interpolate: int = 0,
    kind: str = "classifier", more: Callable[[Any], dict[str, Any]] = lambda parts: {},
) -> dict[str, Any]:  # fmt: skip
    """Measure every depth of a nested network, a cascade of them, and fidelity, as `evaluate` says.

    Args:
        network: with a nested network.
        read: reads the parts of the data, when all that needs no data is checked.
        fit: adapts the networks of fidelity to the test part, such as `fit_pair`.
        mean, std: of the teacher's images.
        more: measures what this kind has beside them, by key.
    """
    from stepwell.measure.cascade import check_depths
    from stepwell.measure.depths import measure_depths
    from stepwell.measure.fidelity import measure_pair
    from stepwell.measure.fidelity_networks import open_pair
    from stepwell.nets.files.container import network_file
    from stepwell.nets.files.nested import check_writable

    path, net, config = network.path, network.net, network.config
    net.require_ready()
    if cascade:
        check_depths(net)
    if fidelity:
        pair = open_pair(
            path, net, config, fidelity, control, mean=mean, std=std, interpolate=interpolate
        )
    if save:
        check_writable(network_file(path))
    parts = read()
    networks = fit(pair, parts.test) if fidelity else None
    extra = more(parts)
    if temper:
        net.card = replace(net.card, temperatures=fitted_temperatures(network, parts))
    results = measure_depths(net, parts.test, kind) | {"data": parts.about} | extra
    if cascade:
        results["cascade"] = calibrated_cascade(
            network, parts, accuracy=target_accuracy, macs=budget_macs, criterion=criterion,
            search=search, temper=temper,
        )  # fmt: skip
    if save:
        keep_fitted(network, ["temperatures"] * temper + ["cascade"] * cascade)
    if networks is not None:
        numbers, arrays = measure_pair(networks, parts, interpolate=interpolate, track=track)
        results["fidelity"] = numbers
        keep_fidelity(network, parts.known, numbers, arrays)
    return results


def validation_of(network: Network, parts: Any, what: str) -> Any:
    """The validation part; ValueError, which says what would suffer, if there is none."""
    if parts.validation is None:
        from stepwell.nets.inputs import INPUTS

        kind = INPUTS[network.net.card.input]
        raise ValueError(
            f"there is no validation part that the network was surely not trained on, and {what} on "
            f"test {kind.noun}s would look better than they are: {kind.aside}"
        )
    return parts.validation


def fitted_temperatures(network: Network, parts: Any) -> dict[str, float]:
    """Fit a temperature for every depth, and say where the validation part is too small for it."""
    from stepwell.evaluation.calibration import COLDEST
    from stepwell.measure.depths import fit_temperatures

    validation = validation_of(network, parts, "temperatures fitted")
    found = fit_temperatures(network.net, validation)
    noun, count = validation.examples.NOUN, len(validation.examples)
    if count < tables.FEW:
        say(f"note: {count} validation {noun} decide little about temperatures: fit them on more")
    ends = [depth for depth, t in found.items() if not 1.01 / COLDEST < t < COLDEST / 1.01]
    if ends:
        say(
            f"note: no temperature from {1 / COLDEST:g} to {COLDEST:g} is best for {', '.join(ends)}: "
            f"on validation {noun}, its answers are all right, or no better than guesses"
        )
    return found


def calibrated_cascade(network: Network, parts: Any, **how: Any) -> dict[str, Any]:
    """Calibrate the best cascade on validation images, and measure it on test images.

    `how` are the goal, the criterion and the search of `calibrate_cascade`.
    """
    from stepwell.measure.cascade import calibrate_cascade, measure_cascade
    from stepwell.nets.nested.cascade import Cascade

    net = network.net
    chosen = calibrate_cascade(net, validation_of(network, parts, "thresholds set"), **how)
    net.card = replace(net.card, cascade=chosen)
    return {"validation": chosen, "test": measure_cascade(Cascade.of(net), parts.test)}


def keep_fitted(network: Network, names: Sequence[str]) -> None:
    """Save these facts of a network's card, which were fitted on validation examples, in its file."""
    from stepwell.nets.files.nested import net_digest, rewrite_card, rewriting

    net = network.net
    with rewriting(network.path, net_digest(net)) as (file, card):
        rewrite_card(file, replace(card, **{name: getattr(net.card, name) for name in names}))
    say(f"saved the {' and the '.join(names)} in {file}")


def keep_fidelity(
    network: Network, known: bool, numbers: Mapping[str, Any], arrays: Mapping[str, Any]
) -> None:
    """Keep fidelity in the run for its report, if it was measured on the run's own data."""
    from stepwell.measure.fidelity import write_fidelity
    from stepwell.nets.files.container import folder_of

    if not network.config:
        return
    run = folder_of(network.path)
    if known:
        write_fidelity(run, numbers, arrays)
        say(f"saved {run / 'fidelity.json'}; next: stepwell report {run}")
    else:
        say(f"note: not saved in {run}: its report is about the data of its training")


def show_results(results: Mapping[str, Any], title: str, *, brief: bool = False) -> None:
    """Print results as tables; `brief`: as after a training."""
    costs, test, rows = results["costs"], results["test"], results["rows"]
    noun = noun_of(results["kind"])
    columns, numbers = (TRAINED, test) if brief else (EVALUATED, test | results["churn"])
    show(row_table(title, columns, costs, numbers, row=rows, noun=noun))
    for measure, words in LEGENDS.items():
        if any(name.endswith(f"/{measure}") for name in numbers) and not (brief and words is LEGEND):
            show(words, style="dim")
    if not brief:
        tables.show_churn(results["churn"], row=rows)
        tables.show_never_right(results, row=rows, noun=noun)
    tables.show_classes(test)
    show_conditions(costs)
    for name, show_table in EXTRA.items():
        if name in results:
            show_table(results[name], row=rows, noun=noun)


def predict(
    network: Network, paths: Sequence[Path], *, depth: str | None = None, cascade: bool = False,
    top: int = 1, **limits: float,
) -> Predicted:  # fmt: skip
    """Classify images at one depth, within a budget, or by a cascade. Flags as for `predict`."""
    from stepwell.measure.cascade import check_depths
    from stepwell.nets.nested.cascade import Cascade

    net = network.net
    if cascade:
        check_depths(net)
        by = Cascade.of(net)
        title = f"cascade of {', '.join(by.depths)}"
        return Predicted(classified(net, by, paths, top), title)
    if limits:
        depth = depth_within(net, budget_of(limits), network.path)
    depth = net.full if depth is None else depth
    net.require_ready(depth)
    return Predicted(classified(net, depth, paths, top), f"depth {depth}")


def serve(network: Network, *, engine: Engine = "torch", cascade: bool = False) -> "Served":
    """Give every depth to a server, and the saved cascade. Flags as for `serve`."""
    return serve_depths(network, engine, cascade)


def classified(net: "NestedNet", by: Any, paths: Sequence[Path], top: int) -> "list[Prediction]":
    """Classify files and folders by a depth, a cascade or a resolution network, and show progress."""
    from stepwell.data.formats import format_of
    from stepwell.serve import expand, predict_files

    form = format_of(net.card.drawing)
    files = expand(paths, form)
    if len(files) > MANY:
        say(f"{len(files):,} {form.NOUN}s")
    return [*track(predict_files(net, by, files, top=top), "classifying", len(files))]


def budget_of(limits: Mapping[str, float]) -> dict[str, float]:
    """Turn the flags of a budget into arguments of `for_budget`."""
    return {LIMITS[flag]: value for flag, value in limits.items()}


def depth_within(
    net: "NestedNet", budget: Mapping[str, float], path: Path,
    costs: Callable[[], Mapping[str, Any]] | None = None,
) -> str:  # fmt: skip
    """Choose the depth for a budget, as `for_budget`; unknown costs are measured first, by `costs`."""
    from stepwell.device import device_name
    from stepwell.measure.depths import cost_table

    here = device_name()
    known = net.card.latency.get(here, {}) if "ms" in budget else net.card.costs
    if any(depth not in known for depth, status in net.status.items() if status != "fresh"):
        missing = f"no times of {here}" if "ms" in budget else "not the costs of every depth"
        say(f"note: {path} has {missing}: measuring now; `stepwell cost {path} --save` keeps them")
        net.card = net.card.with_costs(costs() if costs else cost_table(net, net.card.size), here)
    depth: str = net.for_budget(**budget)
    row = net.card.costs[depth] | net.card.latency.get(here, {}).get(depth, {})
    per_input = with_article(net.card.input)
    facts = [f"{big(row['macs'])} MACs {per_input}"]
    if "ms" in row:
        doubt = f" ({BUSY}: measure again with `stepwell cost {path} --save`)"
        facts.append(f"{row['ms']:.2f} ms {per_input} here" + doubt * ("unsure" in row))
    if "accuracy" in row:
        facts.append(f"{100 * row['accuracy']:.2f} % of {row['accuracy_on']} right")
    say(f"depth {depth}: {', '.join(facts)}")
    return depth


def export(
    network: Network, folder: Path, *, format: Literal["onnx", "pt2", "safetensors"] = "onnx",
    depth: str | None = None, int8: bool = False, cascade: bool = False, data: str | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Write depths as files for other programs, each checked on images. Flags as for `export`."""
    from stepwell.export import Int8, export_folder
    from stepwell.nets.adders.layers import adder_layers
    from stepwell.nets.decisions.deciding import deciding_parts

    net = network.net
    net.require_ready(*(net.depths if depth is None else [depth]))
    if int8 and adder_layers(net.module):
        raise ValueError(
            "--int8 is for convolutions: `stepwell eval --bits 8` measures adder layers of few bits"
        )
    whole = exported_cascade(net, format, depth, int8) if cascade else None
    sample, parts = sample_of(network, data, calibrated=int8)
    quantised = Int8(parts.train, parts.test) if int8 else None
    own = is_own(network, folder)
    result = export_folder(
        net, folder, sample, format=format, depth=depth, int8=quantised, own=own, say=say,
        cascade=whole,
    )  # fmt: skip
    in_vain = {part.in_graphs.get(format): None for _, part in deciding_parts(net.module)}
    for work in filter(None, in_vain):
        say(f"note: the graph gives the network's answers, but computes {work}")
    return result


def exported_cascade(net: "NestedNet", format: str, depth: str | None, int8: bool = False) -> Any:
    """The saved cascade of a network, for its graph; ValueError for flags that do not go with it."""
    from stepwell.nets.nested.cascade import Cascade

    if format != "onnx" or depth is not None or int8:
        raise ValueError(
            "--cascade writes one ONNX graph of several depths: leave --depth, --int8 and --format out"
        )
    return Cascade.of(net.eval())


def is_own(network: Network, folder: Path) -> bool:
    """Check whether a folder is the default one for exports of a network's run."""
    return bool(network.config) and folder.resolve() == export_folder(network.path).resolve()


def sample_of(network: Network, data: str | None, *, calibrated: bool = False) -> tuple[Any, Any]:
    """Give images to check an export on, and the parts of the data if they can be read.

    ValueError if `data` cannot be used, or if `calibrated` images of the training are missing.
    """
    from stepwell.export import Sample, check_images, take
    from stepwell.measure.data_parts import parts_of
    from stepwell.nets.files.container import folder_of

    net, path, config = network.net, network.path, network.config
    if not (config or data):
        if calibrated:
            raise ValueError(f"--int8 calibrates on training images, and {path} names none: add --data")
        return check_images(net, folder_of(path)), None
    try:
        parts = parts_of(net, path, config, data)
    except ValueError as error:
        if data or calibrated:
            raise
        say(f"note: checked on the run's stored images, because its data cannot be used: {error}")
        return check_images(net, folder_of(path)), None
    part = "test" if parts.validation is None else "validation"
    return Sample(take(parts.validation or parts.test, 64), part), parts


def delta(network: Network, depth: str, beyond: str, out: Path) -> dict[str, Any]:
    """Write the tensors that `depth` needs in addition to the shallower depth `beyond`."""
    from stepwell.export import export_delta

    return export_delta(network.net, depth, beyond, out)._asdict()
