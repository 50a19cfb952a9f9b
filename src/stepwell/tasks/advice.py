"""Advice at the end of a run: what the person may do better the next time."""

from jaxtyping import Int
from torch import Tensor

from stepwell.data import ImageSet
from stepwell.data.tokens import TokenSet
from stepwell.nets import NestedNet
from stepwell.nets.files.initial_weights import is_published
from stepwell.training import Run
from stepwell.training.progress import tell
from stepwell.types import Logits

Examples = ImageSet | TokenSet

#: Photographs have at least this size, in pixels.
PHOTOGRAPHS = 64
#: With fewer training images than this, published weights are likely a better start.
FEW = 5_000
#: Classes are uneven if the largest has this many times the images of the smallest.
UNEVEN = 1.5
#: Most classes that a note names.
NAMED = 5


def advise(
    run: Run, net: NestedNet, train: Examples, logits: Logits, labels: Int[Tensor, " examples"]
) -> None:
    """Print what stands out in a trained network's answers to the test part, and what may help."""
    for text in (_on_answers(run, train, logits, labels), _on_start(run, net, train)):
        if text:
            tell(f"note: {text}")


def _on_answers(run: Run, train: Examples, logits: Logits, labels: Tensor) -> str:
    """Name the only class that is answered, or the classes without a right answer."""
    answers, present = logits.argmax(1), labels.unique()
    counts = train.labels[train.labels >= 0].bincount(minlength=len(train.classes)).tolist()
    uneven = max(counts) >= UNEVEN * max(1, min(counts))
    if len(present) > 1 and len(answers.unique()) == 1:
        only = train.classes[int(answers[0])]
        text = (
            f"the classifier gives the class {only!r} to all {len(labels)} test {train.NOUN}, so it "
            "has learned nothing: try more --epochs or another --lr, under another --out"
        )
    else:
        right = labels[answers == labels].bincount(minlength=len(train.classes))
        missed = [c for c in present.tolist() if not right[c]]
        if not missed:
            return ""
        shown = {c: f" ({counts[c]} training {train.NOUN})" * any(counts) for c in missed[:NAMED]}
        named = ", ".join(f"{train.classes[c]}{number}" for c, number in shown.items())
        more = f" and {len(missed) - NAMED} more" if len(missed) > NAMED else ""
        text = f"0 % of the test {train.NOUN} are right in {len(missed)} classes: {named}{more}"
        if len(missed) == 1:
            text = f"0 % of the test {train.NOUN} of class {named} are right"
        uneven = uneven and max(counts[c] for c in missed) * UNEVEN <= max(counts)
    if uneven and run.config["arguments"].get("balance") is False:
        text += "; --balance draws every class equally often"
    return text


def _on_start(run: Run, net: NestedNet, train: Examples) -> str:
    """Advise published weights for few photographs."""
    fresh = run.config["arguments"].get("init", "none taken") is None
    name, arguments = net.builder or ("", {})
    small = (
        train.input != "image"
        or train.size < PHOTOGRAPHS
        or len(train) >= FEW
        or arguments.get("stem") == "small"
    )
    if not fresh or small or not is_published(name):
        return ""
    return (
        f"{name} began with random weights and saw {len(train):,} photographs: there are published "
        "weights, and --init pretrained is likely better (under another --out)"
    )
