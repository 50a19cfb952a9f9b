"""Names and forms of all numbers that the library measures: one table for the terminal and the page.

A share of 0.95 is shown in percent; "points" are differences of shares. The terminal and the page
write units in their own typography (`console.written`, `report.markup.written`).
"""

import math
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Literal, NamedTuple

Unit = Literal["percent", "points", "number", "count", "ms", "bytes", "blocks", "times"]


#: The measure that chooses epochs and stands in figures: of classes, of numbers, and of boxes. It is 1
#: at most.
SCORES = ("accuracy", "pearson", "ap")
#: Said of MCC and F1, and of the scores of numbers.
OF_CLASSES = "MCC: Matthews correlation; F1: of two classes that of the second, else the mean over them"
OF_NUMBERS = "Pearson, Spearman: correlation with the true numbers; RMSE: root mean squared error"


class Measure(NamedTuple):
    """A measured quantity.

    title: heads its column; a word for one input stands in the place of "image".
    unit: how it is written.
    digits: decimals, for units that have a fixed number of them.
    """

    title: str
    unit: Unit
    digits: int = 1

    def of(self, noun: str) -> str:
        """The title for another input than images."""
        return self.title.replace("image", noun)


#: Costs and test results of the rows of a network: of depths, choices, exits.
MEASURES: Mapping[str, Measure] = {
    "blocks": Measure("blocks", "blocks"),
    "params": Measure("params", "count"),
    "macs": Measure("MACs", "count"),
    "additions": Measure("additions", "count"),
    "multiplications": Measure("multiplications", "count"),
    "model_uj": Measure("µJ by a model", "number", 1),
    "accuracy": Measure("accuracy", "percent", 2),
    "nll": Measure("NLL", "number", 3),
    "ece": Measure("ECE", "number", 3),
    "balanced_accuracy": Measure("balanced", "percent", 2),
    "mcc": Measure("MCC", "number", 3),
    "f1": Measure("F1", "percent", 2),
    "pearson": Measure("Pearson", "number", 3),
    "spearman": Measure("Spearman", "number", 3),
    "rmse": Measure("RMSE", "number", 3),
    "ap": Measure("AP", "percent"),
    "ap50": Measure("AP50", "percent"),
    "ap75": Measure("AP75", "percent"),
    "ap_small": Measure("small", "percent"),
    "ap_medium": Measure("medium", "percent"),
    "ap_large": Measure("large", "percent"),
    "agreement": Measure("agreement", "percent"),
    "negative_flips": Measure("made wrong", "percent"),
    "positive_flips": Measure("made right", "percent"),
    "weight_bytes": Measure("weights", "bytes"),
    "peak_bytes": Measure("activations, at most", "bytes"),
    "ms": Measure("ms per image", "ms"),
    "ms_low": Measure("10 %", "ms"),
    "ms_high": Measure("90 %", "ms"),
}

#: Said beside times that were measured while other programs held the processor.
BUSY = "the machine was busy, so times are unsure"

#: Scores of a cascade's criteria.
CRITERIA: Mapping[str, str] = {
    "confidence": "top probability", "entropy": "1 - entropy / log(classes)",
    "patience": "depths that agree", "learned": "probability to be right",
}  # fmt: skip

#: Images per second of a network with and without its chooser.
SPEED: Mapping[str, Measure] = {
    "batch": Measure("batch", "number", 0),
    "chosen": Measure("chosen, images/s", "number", 0),
    "fixed": Measure("full size, images/s", "number", 0),
    "speed_up": Measure("speed-up", "times"),
    "by_macs": Measure("by MACs", "times"),
}

#: The same of a network with and without the choice of its blocks.
BLOCKS_SPEED: Mapping[str, Measure] = {
    **SPEED, "fixed": SPEED["fixed"]._replace(title="all blocks, images/s")
}  # fmt: skip

#: The same of a recurrent network, beside torch's own layer, which reads every token.
TOKENS_SPEED: Mapping[str, Measure] = {
    **SPEED, "chosen": SPEED["chosen"]._replace(title="chosen tokens, texts/s"),
    "fixed": SPEED["fixed"]._replace(title="every token, by torch's layer, texts/s"),
}  # fmt: skip

#: The same of a network with and without the choice of its width.
WIDTHS_SPEED: Mapping[str, Measure] = {
    **SPEED, "fixed": SPEED["fixed"]._replace(title="full width, images/s")
}  # fmt: skip

#: Other ways to choose, beside a chooser.
CONTROLS: Mapping[str, str] = {
    "random": "at random, each choice as often",
    "line": "at random between two choices, the best mixture",
    "oracle": "the cheapest that is right",
}


class Mixture(NamedTuple):
    """Words about the parts that a network mixes for each example.

    parts: their name. share: the number that tells their use. plain: the network to compare speed with.
    """

    parts: str
    share: str
    plain: str

    @property
    def speed(self) -> Mapping[str, Measure]:
        """Images per second with and without the mixture."""
        plain = SPEED["fixed"]._replace(title=f"{self.plain}, images/s")
        return {**SPEED, "chosen": SPEED["chosen"]._replace(title="mixed, images/s"), "fixed": plain}

    @property
    def legend(self) -> str:
        """Explanation of the numbers of a layer."""
        return (
            f"{self.share} by layer; CV: standard deviation over the {self.parts} by the mean, 0 where "
            "all are used alike; by class: share of the variance between images that their classes "
            "explain"
        )


#: By the key in the results.
MIXTURES: Mapping[str, Mixture] = {
    "experts": Mixture("experts", "share of the tokens", "all experts"),
    "kernels": Mixture("kernels", "mean weight", "plain kernels"),
}


class Gates(NamedTuple):
    """Words for the results of a network whose blocks run in part.

    title, column: of the table of blocks.
    key: of what an image runs, in the results; of_blocks: its words.
    at_random: the case of the accuracy at random.
    unit: what runs.
    """

    title: str
    column: str
    key: str
    of_blocks: str
    at_random: str
    unit: str


#: By the key in the results.
GATES: Mapping[str, Gates] = {
    "skipping": Gates(
        "open rates", "images that run it", "mean", "of the blocks",
        "if each block ran for as many images, drawn at random", "blocks",
    ),
    "pixels": Gates(
        "work that runs", "share of its MACs", "work", "of the blocks' work",
        "with the masks of another image", "positions",
    ),
}  # fmt: skip

#: Ranks of true triples among all entities.
RANKS: Mapping[str, Measure] = {
    "mrr": Measure("MRR", "number", 3),
    "hits@1": Measure("Hits@1", "number", 3),
    "hits@3": Measure("Hits@3", "number", 3),
    "hits@10": Measure("Hits@10", "number", 3),
    "mean_rank": Measure("mean rank", "number", 1),
    "adjusted": Measure("adjusted (1: all first, 0: chance)", "number", 3),
}

#: A depth beside its teacher, in reading order; titles with dots continue the line above.
FIDELITY: Mapping[str, Measure] = {
    "agreement": Measure("top-1 agreement", "percent"),
    "control/agreement": Measure("... of the control", "percent"),
    "transfer": Measure("transfer: the difference, points", "points"),
    "agreement_on_right": Measure("agreement where the teacher is right", "percent"),
    "agreement_on_errors": Measure("... where it is wrong: same error", "percent"),
    "control/agreement_on_errors": Measure("... by the control", "percent"),
    "errors_shared": Measure("student's errors that are its teacher's", "percent"),
    "kl": Measure("KL(teacher || student), nats", "number", 3),
    "control/kl": Measure("... of the control", "number", 3),
    "transfer_kl": Measure("... of the control, less the student's", "number", 3),
    "accuracy": Measure("accuracy", "percent"),
    "teacher/accuracy": Measure("... of the teacher", "percent"),
    "gain": Measure("accuracy less the teacher's, points", "points"),
    "nll": Measure("NLL", "number", 3),
    "teacher/nll": Measure("... of the teacher", "number", 3),
    "ece": Measure("ECE", "number", 3),
    "teacher/ece": Measure("... of the teacher", "number", 3),
}


def share_interval(share: float, n: int, z: float = 1.959964) -> tuple[float, float]:
    """Give Wilson's interval (1927) of a share of n examples; `z`: half its width in standard errors.

    Unlike the plain interval it stays within [0, 1], and is not empty if all or none are right.
    """
    middle = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * (share * (1 - share) / n + z**2 / (4 * n**2)) ** 0.5
    return max(0.0, min(share, middle - half)), min(1.0, max(share, middle + half))


def threshold_title(cascade: Mapping[str, Any]) -> str:
    """The title of a cascade's thresholds: "answers from", and the score unless it is the usual one."""
    criterion = cascade.get("criterion", "confidence")
    return "answers from" if criterion == "confidence" else f"answers from, {CRITERIA[criterion]}"


def correlation_interval(r: float, n: int, z: float = 1.959964) -> tuple[float, float]:
    """Give Fisher's interval of a correlation of n examples; `z` as for `share_interval`."""
    if n <= 3 or abs(r) >= 1:
        return r, r
    middle, half = math.atanh(r), z / math.sqrt(n - 3)
    return math.tanh(middle - half), math.tanh(middle + half)


def of_row(numbers: Mapping[str, float], row: str) -> dict[str, float]:
    """The numbers of one row by measure, of numbers by "ROW/measure"."""
    start = f"{row}/"
    return {k.removeprefix(start): v for k, v in numbers.items() if k.startswith(start)}


def score_among(names: Iterable[str]) -> str:
    """The score among measures by "ROW/measure": accuracy, or that of numbers."""
    measures = {name.rpartition("/")[2] for name in names}
    return next((score for score in SCORES if score in measures), SCORES[0])


def number_in(unit: Unit, value: float, digits: int = 1) -> str:
    """A number in the scale of its unit, without the unit's sign: 0.981 in percent is "98.1"."""
    scale = 100 if unit in ("percent", "points") else 1
    sign = "+" if unit == "points" else ""
    return f"{scale * value:{sign}.{digits}f}"


def big(number: float) -> str:
    """A large number with its unit: 1.23 M."""
    for unit, scale in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= scale:
            return f"{number / scale:.2f} {unit}"
    return f"{number:.0f}"


def duration(seconds: float) -> str:
    """A time in words: 40 s, 12 min, 3 h 30 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def in_words(name: str, value: float, noun: str = "image") -> str:
    """A budget in words: "ms", "macs" or "accuracy" of an image, or of another input."""
    if name == "accuracy":
        return f"{100 * value:.4g} % accuracy"
    each = with_article(noun)
    return f"{big(value)} MACs {each}" if name == "macs" else f"{value:.4g} ms {each}"


def with_article(noun: str) -> str:
    """A word with its article: an image, a text."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


#: Titles of `curve_rows`.
CURVE = ("mean MACs", "accuracy", "with random depths")


def curve_rows(cascade: Mapping[str, Any]) -> list[list[str]]:
    """The cascades of `cascade_curve` as rows of a table; none if they were not measured.

    Budgets that make the same cascade share a row.
    """
    rows = [
        [big(point["macs"]), *(f"{100 * point[k]:.2f} %" for k in ("accuracy", "random_accuracy"))]
        for point in cascade.get("curve") or ()
    ]
    return [row for i, row in enumerate(rows) if row not in rows[:i]]


def chance_in_words(test: Mapping[str, Any], noun: str) -> str:
    """Say what random depths and perfect choices would reach; nothing if it was not measured."""
    if "oracle_macs" not in test:
        return ""
    return (
        f"as many {noun}s at each depth, drawn at random: {100 * test['random_accuracy']:.2f} %; the "
        f"cheapest of its depths that is right: {100 * test['oracle_accuracy']:.2f} % at "
        f"{big(test['oracle_macs'])} MACs"
    )


def some(names: Collection[object], most: int = 5) -> str:
    """The first names, and the number of the others."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(str, [*names][:most])) + more
