"""The networks of a fidelity comparison, adapted to the examples that they are compared on."""

import warnings
from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import Tensor, nn

from stepwell.data import Batches
from stepwell.data.tokens import TextBatches
from stepwell.measure.data_parts import fitted
from stepwell.measure.fidelity_networks import Pair, named
from stepwell.measure.text import load_text
from stepwell.nets import NestedNet
from stepwell.teachers import OpenTeacher
from stepwell.teachers.stages import common_stages, pair_stages
from stepwell.teachers.teacher import Frozen, Teacher, stages_of
from stepwell.types import Exit, Images

#: Name of the features that are compared on texts.
CLS = "[CLS] of the last layer"
#: Texts, the longest ones, that every network is tried on.
TRIED = 16


class Fitted(NamedTuple):
    """A pair of networks adapted to the examples of some data.

    stages: names of the compared stages. The exits hold the features of these stages alone, in this
        order; a control without these stages gives none.
    """

    pair: Pair
    student: Callable[[Tensor], dict[str, Exit]]
    teacher: Teacher
    control: Callable[[Tensor], dict[str, Exit]] | None
    stages: tuple[str, ...]


def fit_pair(pair: Pair, test: Batches) -> Fitted:
    """Adapt the networks to the images of `test`, and try them on a few.

    All networks see the student's pixels, in their own normalisation and size.

    Raises:
        ValueError: a network has other classes, in number, names or order, or does not run on the
            images; as for `OpenTeacher.for_data`.
    """
    net, depths = pair.net, pair.depths
    teacher = fitted(pair.teacher, test, resize=True)
    controls = {d: fitted(opened, test, resize=True) for d, opened in pair.controls.items()}
    names = common_stages(net, teacher)
    if not names:
        warnings.warn(
            f"no CKA: {named(pair.teacher)} gives no features of stages that {pair.run} has, too",
            stacklevel=2,
        )
    size = test.images.size
    pairs = pair_stages(net, teacher, names, (3, size, size)) if names else []
    ours = [p.student for p in pairs]
    control = None
    if controls:
        of_controls = {d: _places(net, ours, other) for d, other in controls.items()}

        def control(images: Images) -> dict[str, Exit]:
            return {d: _picked(other(images), of_controls[d]) for d, other in controls.items()}

    def student(images: Images) -> dict[str, Exit]:
        return {d: _picked(exit, ours) for d, exit in net.forward_all(images, depths).items()}

    return Fitted(
        pair, student, lambda images: _picked(teacher(images), [p.teacher for p in pairs]), control,
        tuple(names),
    )  # fmt: skip


def fit_texts(pair: Pair, test: TextBatches) -> Fitted:
    """Adapt the networks to texts, and try them on the longest of `test`.

    Raises:
        ValueError: a network is for images, or has another vocabulary or other classes.
    """
    teacher = _of_texts(pair, pair.teacher, test)
    controls = {depth: _of_texts(pair, opened, test) for depth, opened in pair.controls.items()}
    states = isinstance(teacher, Frozen)  # an ensemble has none
    net, depths = pair.net, pair.depths

    def exit_of(network: nn.Module, ids: Tensor) -> Exit:
        return _first_token(network(ids, extras=["cls"])) if states else network(ids)

    def student(ids: Tensor) -> dict[str, Exit]:
        exits = net.forward_all(ids, depths, extras=["cls"] if states else ())
        return {d: _first_token(exit) if states else exit for d, exit in exits.items()}

    def control(ids: Tensor) -> dict[str, Exit]:
        return {depth: exit_of(other, ids) for depth, other in controls.items()}

    return Fitted(
        pair, student, lambda ids: exit_of(teacher, ids), control if controls else None,
        (CLS,) if states else (),
    )  # fmt: skip


def _of_texts(pair: Pair, opened: OpenTeacher, test: TextBatches) -> nn.Module:
    """A teacher of texts with the student's vocabulary and classes; ValueError for another."""
    examples = test.examples
    for source in opened.sources:
        if source.file is None or source.net is None or source.net.card.input != "text":
            raise ValueError(f"{source} is for images, and {pair.run} for texts: name a text run")
        if load_text(source.file).tokenizer.fingerprint != examples.tokenizer.fingerprint:
            raise ValueError(
                f"{source} has another vocabulary than {pair.run}, so the same ids are other words to "
                "it: name a network of the same tokenizer"
            )
    longest = examples.lengths.argsort(descending=True)[:TRIED]
    card = pair.net.card
    # a text has no size that a teacher could want changed
    sources = [source._replace(size=0) for source in opened.sources]
    return OpenTeacher(sources).for_data(card.classes, examples.rows(longest), (card.mean, card.std))


def _first_token(exit: Exit) -> Exit:
    """The exit with the last layer's state of the first token for its features."""
    states = exit.extras["cls"]
    return Exit(exit.logits, (states[-1],))


def _places(net: NestedNet, stages: Sequence[int], other: nn.Module) -> list[int]:
    """Find these stages of `net` among another network's, by name; empty if any is missing."""
    theirs = stages_of(other)
    names = [net.stages[i] for i in stages]
    return [theirs.index(name) for name in names] if set(names) <= set(theirs) else []


def _picked(exit: Exit, places: Sequence[int]) -> Exit:
    return Exit(exit.logits, tuple(exit.features[i] for i in places))
