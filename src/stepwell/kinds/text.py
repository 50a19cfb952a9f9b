"""Text classifiers: a nested encoder with its tokenizer.

The encoder inside does what an image classifier does where no text is read: costs, cascades, tables.
"""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from stepwell.console import say
from stepwell.kinds import Costs, Network, Predicted, classifier, classifier_tables
from stepwell.kinds.classifier import show_results as show_results
from stepwell.kinds.serving import Engine, depth_rows

if TYPE_CHECKING:
    from stepwell.data.text import Text
    from stepwell.measure.text import TextClassifier
    from stepwell.nets.predictions import Prediction
    from stepwell.serve.served import Served

NAME = "a text classifier"
NOUN, SIZE = "text", "{} tokens"
#: What `predict` takes beside the run.
TAKES = "texts"
ADVICE = {
    "calibrate": "its norms have no statistics: name the depths with --depths when you train",
    "delta": "export each depth",
}
NEXT = (
    "stepwell eval {run}", "stepwell export {run}", "stepwell report {run}",
    "stepwell predict {run} TEXT|FILE.tsv|-",
)  # fmt: skip
SECTIONS = classifier.SECTIONS
#: Characters of a text that a server takes.
LONGEST = 100_000
#: Characters of a text whose tokens are found in about a millisecond.
QUICK = 2000
#: Standard input as a file.
STDIN = "-"
#: Letters of a text in a message.
SHOWN = 40


def open(path: Path, module: Callable[[], Any] | None = None) -> "TextClassifier":
    """Read the network of a run or a file; errors as for `load_text`."""
    from stepwell.measure.text import load_text
    from stepwell.nets.files.container import network_file

    network = load_text(network_file(path), module)
    classifier.check_card(path, network.net)
    return network


def inside(network: Network) -> Network:
    """The nested encoder alone."""
    return network._replace(net=network.net.net)


def evaluate(
    network: Network, *, data: str | None = None, cascade: bool = False,
    target_accuracy: float | None = None, budget_macs: float | None = None,
    criterion: str = "confidence", search: str = "best", temper: bool = False, save: bool = False,
    fidelity: tuple[str, ...] = (), control: str | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Measure every depth, a cascade of them, and fidelity to a teacher. Flags as for `eval`."""
    from stepwell.measure.fidelity_fit import fit_texts
    from stepwell.measure.text import text_parts

    if budget_macs is not None and not cascade:
        raise ValueError("--budget-macs needs --cascade")
    return classifier.evaluate_depths(
        inside(network), lambda: text_parts(network.net, network.path, network.config, data), fit_texts,
        cascade=cascade, target_accuracy=target_accuracy, budget_macs=budget_macs, criterion=criterion,
        search=search, temper=temper, save=save, fidelity=fidelity, control=control, kind=network.kind,
    )  # fmt: skip


def predict(
    network: Network, inputs: Sequence[str], *, depth: str | None = None, cascade: bool = False,
    top: int = 1, **limits: float,
) -> Predicted:  # fmt: skip
    """Classify texts at one depth, within a budget, or by a cascade. Flags as for `predict`.

    Each of `inputs` is a tab-separated file of texts, "-" for lines of standard input, or a text.
    """
    from stepwell.measure.cascade import check_depths
    from stepwell.nets.nested.cascade import Cascade

    text, net = network.net, network.net.net
    by: Any = net.full if depth is None else depth
    title = f"depth {by}"
    if cascade:
        check_depths(net)
        by = Cascade.of(net)
        title = f"cascade of {', '.join(by.depths)}"
    elif limits:
        by = classifier.depth_within(net, classifier.budget_of(limits), network.path)
        title = f"depth {by}"
    if isinstance(by, str):
        net.require_ready(by)
    rows = [row for source in inputs for row in read_input(source, network)]
    if not rows:
        raise ValueError("there is no text to classify: give words, a tab-separated file, or -")
    if len(rows) > classifier.MANY:
        say(f"{len(rows):,} texts")
    places, texts = zip(*rows, strict=True)
    return Predicted(text.classify(texts, by, top=top, places=places), title, noun=NOUN)


def serve(network: Network, *, engine: Engine = "torch", cascade: bool = False) -> "Served":
    """Give every depth to a server, and the saved cascade. Flags as for `serve`."""
    from stepwell.data.tokens import TokenSet
    from stepwell.serve.served import Served

    text, net = network.net, network.net.net
    rows, default, answers = depth_rows(network, net, engine, cascade)

    def read(given: str | Sequence[str], name: str = "") -> TokenSet:
        parts = (given,) if isinstance(given, str) else tuple(given)
        if not parts:
            raise ValueError("there is no text")
        if (count := sum(map(len, parts))) > LONGEST:
            raise ValueError(f"the text has {count:,} characters: send at most {LONGEST:,}")
        encoded: TokenSet = text.encoded([parts], ["the text"])
        return encoded

    def run(texts: Sequence[TokenSet], row: str, top: int) -> "list[Prediction]":
        joined = TokenSet.joined(texts)
        predictions: list[Prediction] = text.classify_encoded(
            joined, lambda ids: answers(ids, row), top=top
        )
        notes = (tokens.cut_note for tokens in texts)
        return [
            prediction._replace(note=note) for prediction, note in zip(predictions, notes, strict=True)
        ]

    # as long as a text may be, so that the promise holds for every one
    longest = " ".join(["the"] * text.tokenizer.limit)
    example = text.encoded([(longest,) * (1 + bool(text.pairs))], ["the text"])
    return Served(
        tuple(rows), default, read, run, example, net.card.costs, noun=NOUN, takes=TAKES,
        quick=lambda given: sum(map(len, given)) <= QUICK,
    )  # fmt: skip


def read_input(named: str, network: Network) -> "list[tuple[str, Text]]":
    """The texts that an argument of `predict` names, each after its place; ValueError for no text."""
    import codecs
    import sys

    from stepwell.data.text import read_texts
    from stepwell.measure.text import AS_TRAINED

    if named == STDIN:
        lines = [*enumerate(sys.stdin.buffer, start=1)]
        # Windows begins a file with a mark that is no text
        lines[:1] = [(i, line.removeprefix(codecs.BOM_UTF8)) for i, line in lines[:1]]
        return [(f"standard input, line {i},", read_line(line, i)) for i, line in lines]
    if not named.strip():
        raise ValueError("a text is empty: give words, a tab-separated file, or -")
    is_file, is_folder = named.endswith(".tsv"), False
    with contextlib.suppress(OSError, ValueError):  # a long text is no name of a file
        is_file, is_folder = is_file or Path(named).is_file(), Path(named).is_dir()
    if is_folder:
        raise ValueError(f"{named} is a folder: give words, a tab-separated file, or -")
    if is_file:
        columns = network.config.get("arguments", {}).get("text", ())
        texts = read_texts(Path(named), columns, None, AS_TRAINED)
        return [*zip(texts.places, texts.texts, strict=True)]
    return [(f"the text {named[:SHOWN]!r}", tuple(named.split("\t")))]


def read_line(line: bytes, number: int) -> "Text":
    """A text, or a pair with a tab between, of a line of standard input; ValueError for no text."""
    try:
        text = line.decode().rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"standard input, line {number}, is not UTF-8: convert it first") from error
    if not text.strip():
        raise ValueError(f"standard input, line {number}: the text is empty: remove the line")
    return tuple(text.split("\t"))


def export(
    network: Network, folder: Path, *, format: Literal["onnx", "pt2", "safetensors"] = "onnx",
    depth: str | None = None, cascade: bool = False, data: str | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Write depths as files for other programs, each checked on texts; and the tokenizer.

    Flags as for `export`. A graph takes ids and mask (batch, tokens) of any length.
    """
    from stepwell.export import export_folder
    from stepwell.export.check import Sample
    from stepwell.measure.text import some_ids, text_parts

    text, net = network.net, network.net.net
    net.require_ready(*(net.depths if depth is None else [depth]))
    whole = classifier.exported_cascade(net, format, depth) if cascade else None
    parts = text_parts(text, network.path, network.config, data)
    part = "test" if parts.validation is None else "validation"
    sample = Sample(some_ids(parts.validation or parts.test), part)
    return export_folder(
        net, folder, sample, format=format, depth=depth, own=classifier.is_own(network, folder),
        say=say, beside={"tokenizer.json": text.tokenizer.cutting.encode()}, cascade=whole,
    )  # fmt: skip


def show_export(title: str, result: Mapping[str, Any]) -> None:
    """Print exported files: size and check."""
    classifier_tables.show_export(title, result)


def cost(
    network: Network, *, size: int | None = None, batch: int = 1, save: bool = False,
    accuracy_on: Literal["validation", "test"] | None = None, data: str | None = None,
) -> Costs:  # fmt: skip
    """Measure the costs of every depth. Flags as for `cost`; the size is in tokens."""
    from stepwell.kinds.classifier_costs import measured_costs
    from stepwell.measure.text import text_parts
    from stepwell.nets.families.encoders import most_tokens

    module = network.net.net.module
    if size is not None and size > (most := most_tokens(module.config, module.padding)):
        raise ValueError(f"--size {size}: this encoder takes at most {most} tokens")
    read = partial(text_parts, network.net, network.path, network.config)
    return measured_costs(inside(network), read, size, batch, save, accuracy_on, data)
