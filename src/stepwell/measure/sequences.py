"""Recurrent networks that skip tokens: updates, costs, speed, and controls without the gate."""

from collections.abc import Callable, Sequence
from functools import partial
from statistics import fmean
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from stepwell.cost import count_macs, time_each
from stepwell.cost.latency import marked
from stepwell.data.tokens import TextBatches, TokenSet
from stepwell.evaluation import gather_logits
from stepwell.measure import speed
from stepwell.measure.depths import results_of, tally_of
from stepwell.measure.text import SEQUENCE
from stepwell.nets.decisions.sequences import Mask, at_random, evenly, skip_cell
from stepwell.nets.nested.net import NestedNet
from stepwell.train_mode import in_eval_mode
from stepwell.types import Labels, Logits

#: Rows of the results: the gate decides, or every token updates the state.
CHOSEN, ALL = "chosen", "all"
#: The tokens that update the state, of the mask of all tokens.
Pick = Callable[[Mask], Mask]
#: Key in the results.
KEY = "sequences"
#: Texts whose skipped words the report shows; texts on which time is measured, at most.
SHOWN, TIMED = 8, 64


class EveryToken(nn.Module):
    """The same network without a gate, by torch's own recurrent layer, which runs all tokens at once.

    The layer's weights are copies; words and classifier are the network's own.
    """

    def __init__(self, net: NestedNet) -> None:
        super().__init__()
        module: Any = net.module
        cell = skip_cell(module)
        make = {"gru": nn.GRU, "lstm": nn.LSTM}[cell.kind]
        self.layer = make(cell.cell.input_size, cell.width, batch_first=True)
        state = {f"{name}_l0": value for name, value in cell.cell.state_dict().items()}
        self.layer.load_state_dict(state)
        self.start = nn.Parameter(cell.start.detach().clone())
        self.words, self.classifier = module.words, module.classifier

    def forward(self, ids: Tensor) -> Logits:
        """Logits of token ids (batch, tokens)."""
        mask, vectors = self.words(ids)
        begin = self.start.view(-1, 1, self.layer.hidden_size).expand(-1, len(ids), -1).contiguous()
        packed = pack_padded_sequence(
            vectors, mask.sum(1).cpu(), batch_first=True, enforce_sorted=False
        )
        lstm = isinstance(self.layer, nn.LSTM)
        _, last = self.layer(packed, tuple(part[None] for part in begin) if lstm else begin)
        logits: Logits = self.classifier((last[0] if lstm else last)[-1])
        return logits


class SequenceMacs(NamedTuple):
    """MACs of an update of the state, of the gate behind it, and of the classifier."""

    update: int
    gate: int
    head: int

    def at(self, updates: float) -> float:
        """MACs of a text with this many updates, on average."""
        return self.head + updates * (self.update + self.gate)

    def every(self, tokens: float) -> float:
        """MACs of a text of this many tokens where each updates the state, without a gate."""
        return self.head + tokens * self.update


def sequence_macs(net: NestedNet) -> SequenceMacs:
    """Count the MACs of a network's parts."""
    cell, module = skip_cell(net.module), net.module
    like = cell.start
    x, h = like.new_zeros(1, cell.cell.input_size), like.new_zeros(1, cell.width)
    return SequenceMacs(
        count_macs(cell.cell, x), count_macs(cell.gate, h),
        count_macs(module.get_submodule("classifier"), h),
    )  # fmt: skip


class Observed(NamedTuple):
    """Answers for the test texts, on the CPU, by row; and the updates and tokens of each text."""

    logits: dict[str, Logits]
    labels: Labels
    used: Float[Tensor, " n"]
    length: Float[Tensor, " n"]


def observe_sequences(net: NestedNet, test: TextBatches, pick: Pick | None = None) -> Observed:
    """Run the network as its gate decides, and with an update at every token, on all test texts.

    `pick` decides in place of the gate.
    """
    device = next(net.parameters()).device
    module: Any = net.module
    every = EveryToken(net).eval()

    def predict(ids: Tensor) -> dict[str, Tensor]:
        ids = ids.to(device)
        given = None if pick is None else {"keep": pick(module.words.mask(ids))}
        exit = net.forward_all(ids, given=given, extras=("used", "length"))[net.full]
        counts = {name: exit.extras[name][0][:, None] for name in ("used", "length")}
        return {CHOSEN: exit.logits, ALL: every(ids), **counts}

    with in_eval_mode(net):
        logits, labels = gather_logits(predict, test)
    used, length = (logits.pop(name)[:, 0] for name in ("used", "length"))
    return Observed(logits, labels, used, length)


def accuracy_with(net: NestedNet, test: TextBatches, pick: Pick) -> float:
    """The accuracy on test texts if `pick` decides in place of the gate."""
    device = next(net.parameters()).device
    module: Any = net.module

    def predict(ids: Tensor) -> dict[str, Tensor]:
        ids = ids.to(device)
        return {"": net(ids, given={"keep": pick(module.words.mask(ids))})}

    with in_eval_mode(net):
        logits, labels = gather_logits(predict, test)
    return (logits[""].argmax(1) == labels).double().mean().item()


def measure_sequences(
    net: NestedNet, test: TextBatches, pick: Pick | None = None
) -> tuple[dict[str, Any], Observed]:
    """Measure the network as its gate decides, and with an update at every token.

    Args:
        pick: decides in place of the gate, for a network that was trained so. Its times, and what
            depends on the gate, are not measured.

    Returns:
        Results as a run's results.json has them, with the rows "chosen" and "all". Under "sequences":
        the mean numbers of "used" tokens and of all ("length"); "share", of the tokens; "cost", the
        share of the MACs of every token; "gate_macs" of a text; "speed" of both, as `compare_speed`,
        "all" by torch's own layer; "random_accuracy" and "even_accuracy" if as many other tokens
        update the state; "texts", by word whether it was read. Then the network's answers.
    """
    seen = observe_sequences(net, test, pick)
    macs = sequence_macs(net)
    if pick is not None:
        macs = macs._replace(gate=0)
    used, length = float(seen.used.mean()), float(seen.length.mean())
    share = float(seen.used.sum() / seen.length.sum())
    numbers = {CHOSEN: macs.at(used), ALL: macs.every(length)}
    record: dict[str, Any] = {
        "used": used, "length": length, "share": share, "cost": numbers[CHOSEN] / numbers[ALL],
    }  # fmt: skip
    params = sum(p.numel() for p in net.module.parameters())
    costs = {row: {"params": params, "macs": round(number)} for row, number in numbers.items()}
    if pick is None:
        draw = torch.Generator().manual_seed(0)
        record |= {
            "gate_macs": round(used * macs.gate), "speed": _speed(net, test, macs),
            "random_accuracy": accuracy_with(net, test, partial(at_random, rate=share, draw=draw)),
            "even_accuracy": accuracy_with(net, test, partial(evenly, rate=share)),
            "texts": read_words(net, test),
        }  # fmt: skip
        costs = {row: costs[row] | time for row, time in _times(net, test).items()}
    sums = tally_of(SEQUENCE).add(seen.logits, seen.labels)
    results = results_of(sums, net.card.classes, costs, SEQUENCE, "choice")
    return results | {KEY: record}, seen


def read_words(net: NestedNet, test: TextBatches) -> list[list[list[Any]]]:
    """Some texts as pairs: a token as a person reads it, and whether it updated the state."""
    examples = test.examples
    chosen = torch.linspace(0, len(examples) - 1, min(SHOWN, len(examples))).long().unique()
    device, texts = next(net.parameters()).device, []
    for i in chosen:
        ids = examples.rows(i[None])
        with in_eval_mode(net), torch.inference_mode():
            exit = net.forward_all(ids.to(device), extras=("read",))[net.full]
        words = examples.tokenizer.words_of(ids[0].tolist())
        read = exit.extras["read"][0][0].bool().tolist()
        texts.append([[word, was_read] for word, was_read in zip(words, read, strict=True)])
    return texts


def _timed(test: TextBatches) -> TokenSet:
    return test.examples.subset(speed.timed_rows(len(test.examples), TIMED))


def _times(net: NestedNet, test: TextBatches) -> dict[str, dict[str, Any]]:
    """The mean milliseconds of a text in each row, one by one."""
    device = next(net.parameters()).device
    ids = [batch.inputs.to(device) for batch in TextBatches(_timed(test), 1)]
    runs: dict[str, Callable[[Tensor], Tensor]] = {CHOSEN: net.forward, ALL: EveryToken(net).eval()}
    with in_eval_mode(net), torch.inference_mode():
        times = time_each(runs, ids, seconds=speed.SECONDS)
    return {
        row: {"ms": 1000 * fmean(watch.times), "batch": 1, "threads": torch.get_num_threads()}
        | marked(watch.busy)
        for row, watch in times.items()
    }


def _speed(net: NestedNet, test: TextBatches, macs: SequenceMacs) -> list[dict[str, float]]:
    """Texts per second as the gate decides, and of torch's own layer, in batches of 64 and of one."""
    plain = EveryToken(net).eval()
    device = next(net.parameters()).device
    timed = _timed(test)

    def by_macs(parts: Sequence[Tensor]) -> float:
        exits = [net.forward_all(x, extras=("used", "length"))[net.full].extras for x in parts]
        used, length = (
            float(torch.cat([exit[name][0] for exit in exits]).mean()) for name in ("used", "length")
        )
        return macs.every(length) / macs.at(used)

    speeds = []
    with in_eval_mode(net):
        for size in dict.fromkeys(min(b, len(timed)) for b in speed.BATCHES):
            parts = [batch.inputs.to(device) for batch in TextBatches(timed, size)][: speed.PARTS]
            whole = [part for part in parts if len(part) == size]
            speeds.append(speed.compare_batches(net.forward, plain, whole, by_macs))
    return speeds
