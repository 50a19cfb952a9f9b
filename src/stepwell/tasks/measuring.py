"""Measure the network of a run: on the validation part while it trains, on the test part at its end."""

import io
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int

from stepwell.data import Batches
from stepwell.device import device_name
from stepwell.evaluation import gather_logits, tally
from stepwell.files import write_whole
from stepwell.measure.cascade import calibrate_cascade, cascade_curve, measure_cascade
from stepwell.measure.depths import (
    Examples,
    accuracy_on,
    cost_table,
    logits_where_it_is,
    results_of,
    tally_of,
)
from stepwell.measure.mixtures import mixture_record
from stepwell.nets import Card, NestedNet
from stepwell.nets.adders.layers import adder_layers
from stepwell.nets.decisions.deciding import use_break_even
from stepwell.nets.files.nested import load, save
from stepwell.nets.nested.calibrate import calibrate, estimate_all
from stepwell.nets.nested.cascade import Cascade
from stepwell.tasks.advice import advise
from stepwell.tasks.finishing import finished, spent
from stepwell.tasks.task import Task
from stepwell.train_mode import in_eval_mode
from stepwell.training.progress import tell

#: Largest number of example pictures of each kind in the report.
PICTURES = 24
#: Images that give the norms of an adder network their statistics before a validation.
SETTLING = 2048


def tell_measuring(task: Task) -> None:
    """Say that the network is being measured, which takes a while for a large one."""
    examples = task.test.examples
    tell(f"measuring on {len(examples)} test {examples.NOUN}", quiet=not task.run.writes)


def validator(
    net: NestedNet, task: Task, depths: Sequence[str] | None = None, kind: str = "classifier"
) -> Callable[[], dict[str, float]] | None:
    """A call that measures `net`, of a `kind`, on the validation part; none without such a part.

    The norms of an adder network get present statistics before (see `settle`).
    """
    batches = task.validation
    if batches is None:
        return None

    def validate() -> dict[str, float]:
        if adder_layers(net.module):
            settle(net, task.train, SETTLING)
        with in_eval_mode(net):
            return tally(logits_where_it_is(net, depths), batches, tally_of(kind)).measures()

    return validate


def settle(net: NestedNet, train: Batches, images: int | None = None) -> None:
    """Replace the norms' statistics by those of training batches: augmented, mixed and joined as there.

    The filters of adder layers change fast, and the moving averages of training lag behind: after a
    short training, the same weights are far less accurate with them. The network has memorised the
    plain training images, so their statistics differ from those of new images.

    Args:
        images: most images to take, in whole batches; by default those of one epoch.
    """
    most = None if images is None else -(-images // train.batch_size)
    estimate_all(net, islice(train, most))


class Measured(NamedTuple):
    """A network measured on the test part.

    logits, labels: by row, and of the examples. costs: by depth. more: arrays for predictions.npz.
    """

    results: dict[str, Any]
    logits: Mapping[str, torch.Tensor]
    labels: torch.Tensor
    costs: Mapping[str, Mapping[str, Any]]
    more: Mapping[str, np.ndarray] = {}


def finish(
    task: Task[Any], net: NestedNet, untrained: Mapping[str, Sequence[int]] | None = None,
    record: Mapping[str, Any] | None = None, trained: Sequence[str] | None = None, *,
    kind: str = "classifier", write: Callable[[NestedNet, Path], object] | None = None,
    read: Callable[[Path], NestedNet] | None = None, cascade: Mapping[str, Any] | None = None,
    measure: Callable[[NestedNet, Any], Measured] | None = None,
    decide: Callable[[NestedNet], object] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Measure the trained `net` once on the test part, write the run's results, and return them.

    Everything runs on the task's device; only the times are measured on the CPU. Writes
    net.safetensors, predictions.npz and, last, results.json. A run that has all three keeps them. If
    one of the last two is missing or damaged, the network in the file is measured again, with the
    depths that `stepwell calibrate` added to it.

    Args:
        untrained: depths to add, by blocks per stage, with norm statistics from the training images.
        record: further entries of the results.
        trained: depths that training has reached; all by default. Other depths get norm statistics
            from the training images, with a warning.
        kind: of the network. write, read: its file, by default as `save` and `load` do.
        cascade: options of `calibrate_cascade`, which sets a cascade on the validation part.
        decide: sets what decisions of the trained network need, before it is measured and written.
        measure: measures the network on the test part, and leaves it on the CPU; by default each depth.
    """
    run = task.run
    file, predictions = run.path / "net.safetensors", run.path / "predictions.npz"
    finished_net, results = finished(run, read or load)
    if results is not None:
        return results
    net = (net if finished_net is None else finished_net).to(task.device)
    if finished_net is None:
        _complete(net, untrained or {}, task.train, net.depths if trained is None else trained)
        if adder_layers(net.module):
            settle(net, task.train)
        if decide is not None:
            decide(net)
        if task.validation is not None and not net.card.numeric:
            net.card = net.card.with_accuracy(*accuracy_on(net, task.validation, "validation"))
            if cascade is not None:
                thresholds = calibrate_cascade(net, task.validation, **cascade)
                net.card = replace(net.card, cascade=thresholds)
        elif cascade is not None:
            warnings.warn(
                "there is no validation part, so the exits have no thresholds: set --val-fraction "
                "above 0, or `stepwell eval --cascade --save` with --data of a val/ folder",
                stacklevel=2,
            )
    tell_measuring(task)
    seen = (measure or partial(measured, kind=kind))(net, task.test)
    if finished_net is None:
        net.card = net.card.with_costs(seen.costs, device_name())
    results = {**seen.results, **spent(run), **(record or {})}
    if cascade is not None and net.card.cascade:
        on_test = measure_cascade(Cascade.of(net), task.test)
        results["cascade"] = {"validation": net.card.cascade, "test": on_test}
        if task.validation is not None:
            known = seen.logits, seen.labels
            results["cascade"]["curve"] = cascade_curve(net, task.validation, *known, **cascade)
    if run.writes:
        if finished_net is None:
            (write or save)(net, file)
        results["file_bytes"] = file.stat().st_size
        write_predictions(predictions, seen.logits, seen.labels, task.test, seen.more)
        run.write_json("results.json", results)
        if not net.card.numeric:
            answers = seen.logits.get(net.full, next(iter(seen.logits.values())))
            advise(run, net, task.train.examples, answers, seen.labels)
    return results


def measured(net: NestedNet, test: Any, kind: str = "classifier") -> Measured:
    """Measure every depth; the network is on the CPU afterwards."""
    use_break_even(net.module, {})  # answers do not depend on a clock
    logits, labels = gather_logits(logits_where_it_is(net), test)
    record = mixture_record(net.cpu(), test)
    costs = cost_table(net, net.card.size)
    results = results_of(tally_of(kind).add(logits, labels), net.card.classes, costs, kind)
    return Measured(results | record, logits, labels, costs)


def _complete(
    net: NestedNet, untrained: Mapping[str, Sequence[int]], train: Any, trained: Collection[str]
) -> None:
    """Add and calibrate the depths that are not trained; write the card."""
    net.eval()
    net.mark("trained")
    if missing := [depth for depth in net.subnets if depth not in trained]:
        net.mark("fresh", *missing)
        warnings.warn(
            f"in the weights that are kept, no step has trained depth {', '.join(missing)}: norms get "
            'statistics from the training data, and the status is "calibrated": use more --epochs',
            stacklevel=3,
        )
    for depth, blocks in untrained.items():
        net.add_depth(depth, blocks)
    examples = train.examples
    calibrate(net, train.with_examples(examples))
    net.card = Card(
        examples.classes, examples.size, train.mean, train.std, input=examples.input,
        drawing=examples.drawing,
    )  # fmt: skip


def write_predictions(
    path: Path, logits: Mapping[str, torch.Tensor], labels: torch.Tensor, test: Examples,
    more: Mapping[str, np.ndarray] | None = None,
) -> None:  # fmt: skip
    """Every depth's outputs on the test part, and examples for a report.

    Disagreements of depths come first, of all classes in turn; of numbers, the full net's largest
    errors.

    Args:
        more: arrays by name that stand beside them.
    """
    *_, full = logits.values()
    numeric = labels.is_floating_point()
    if numeric:
        chosen = (full[:, 0] - labels).abs().argsort(descending=True)[:PICTURES]
    else:
        tops = torch.stack([values.argmax(1) for values in logits.values()])
        disagree = (tops != tops[-1]).any(0)
        unlike, alike = (in_turn(mask.nonzero().flatten(), labels) for mask in (disagree, ~disagree))
        chosen = torch.cat([unlike[:PICTURES], alike[: PICTURES // 2]])
    what = "numbers" if numeric else "logits"
    arrays = {f"{what}/{name}": values.numpy() for name, values in logits.items()}
    arrays |= {
        "labels": labels.numpy(), "image_index": chosen.numpy(),
        **test.examples.shown(test.order[chosen]), **(more or {}),
    }  # fmt: skip
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    write_whole(path, buffer.getvalue())


def in_turn(
    indices: Int[torch.Tensor, " some"], labels: Int[torch.Tensor, " n"]
) -> Int[torch.Tensor, " some"]:
    """Order examples so that the classes take turns; of a class, the earlier example comes first."""
    seen: Counter[int] = Counter()
    turn = []
    for label in labels[indices].tolist():
        turn.append(seen[label])
        seen[label] += 1
    return indices[torch.tensor(turn, dtype=torch.long).argsort(stable=True)]
