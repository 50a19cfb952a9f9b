"""Skipped tokens: does a gate that chooses the tokens to read gain over other tokens, on SST-2?

A GRU of 128 numbers reads MiniLM's word vectors. One arm has a gate with a price for each update (Skip
RNN); the others read every token, evenly spaced ones, or random ones, which they are trained on, too.
At a cost between two of these, a rival is their mixture on a straight line.

Controls after the training: the gate's network reads as many random, or evenly spaced, tokens. All arms
take as many passes, and one learning rate.
"""

from typing import Any

from stepwell.claims.bert.study import fingerprint
from stepwell.claims.bert.tiny import small_study
from stepwell.claims.kit.figure import Axis, Plot, Point
from stepwell.claims.kit.measures import (
    ACCURACY,
    accuracy,
    correct,
    level,
    more,
    on_curve,
    times,
    versus,
)
from stepwell.claims.kit.study import Arm, Measure, Question, Study

EVERY, GATE, CHEAP, LSTM = "every token", "gate", "gate, a higher price", "gate, LSTM"
RATES = (0.25, 0.5, 0.75)
#: The price of an update, chosen on validation sentences.
PRICE = 0.003


def reader(**arguments: Any) -> Arm:
    """A recurrent network."""
    return Arm("sequences", {"cost_weight": PRICE} | arguments)


def picked(pick: str, rate: float) -> str:
    """The name of an arm without a gate."""
    return f"{pick}, {rate:g} of the tokens"


ARMS: dict[str, Arm] = {
    EVERY: reader(pick="even", rate=1.0),
    GATE: reader(),
    **{picked(pick, rate): reader(pick=pick, rate=rate)
       for pick in ("even", "random") for rate in RATES},
    CHEAP: reader(cost_weight=3 * PRICE),
    LSTM: reader(cell="lstm"),
}  # fmt: skip


def record(arm: str, key: str) -> Measure:
    """A number of the measurement of skipped tokens, in percent."""
    return lambda results: 100 * float(results[arm]["sequences"][key])


def curve(pick: str, arm: str = GATE) -> Measure:
    """Accuracy of a rival without a gate at the MACs of an arm."""
    rows = [(picked(pick, rate), "chosen") for rate in RATES]
    return on_curve([*rows, (EVERY, "chosen")], arm)


#: Named before the runs: the gate keeps the accuracy, skips tokens, and finds those that matter.
PRIMARY = ("keeps-accuracy", "skips", "better-than-even")
CLAIMS = [
    versus(PRIMARY[0], "The network that skips is as accurate as the one that reads every token, "
           "within 1 point", "86.2 and 86.8 % (IMDB, LSTM, 400 tokens)", GATE,
           accuracy(EVERY, "chosen"), EVERY, -1.0, expected=0.0),
    level(PRIMARY[1], "It reads at most 60 % of the tokens", "46 % (the same network)",
          (GATE, record(GATE, "share")), 60.0, "% of the tokens", below=True),
    versus(PRIMARY[2], "It is more accurate than networks that are trained on evenly spaced tokens, at "
           "its MACs", "not asked", GATE, curve("even"), "evenly spaced tokens at its cost",
           expected=2.0),
    versus("random", "It is more accurate than networks that are trained on random tokens, at its MACs",
           "random skips fail on the adding task (Table 1)", GATE, curve("random"),
           "random tokens at its cost"),
    versus("own/random", "As many random tokens in use cost the gate's network more than 1 point",
           "not asked", GATE, record(GATE, "random_accuracy"), "its own network at random tokens", 1.0),
    versus("own/even", "As many evenly spaced tokens in use cost the gate's network more than 1 point",
           "not asked", GATE, record(GATE, "even_accuracy"), "its own network at even tokens", 1.0),
    more("cheap", "At a higher price, it is more accurate than evenly spaced tokens at its MACs",
         "not asked", correct(CHEAP, "chosen"), ("evenly spaced", curve("even", CHEAP)), 0.0, ACCURACY),
    more("lstm", "A GRU is as good as an LSTM, within 1 point", "84.8 and 84.6 % without skips",
         correct(GATE, "chosen"), correct(LSTM, "chosen"), -1.0, ACCURACY),
    times("saves/macs", "It takes at most 0.65 of the MACs of reading every token", "0.46", "MACs",
          {"gate": lambda r: float(r[GATE]["costs"]["chosen"]["macs"]),
           "every token": lambda r: float(r[GATE]["costs"]["all"]["macs"])}, 0.65, below=True),
    level("saves/clock", "In batches, it is faster than torch's own layer, which reads every token",
          "not measured", (GATE, lambda r: float(r[GATE]["sequences"]["speed"][0]["speed_up"])), 1.0,
          "×"),
]  # fmt: skip

STUDY = Study(
    key="sequences", noun="texts", arms=ARMS, claims=CLAIMS, primary=PRIMARY,
    note=("The paper reads 400 tokens of film reviews (IMDB); these are sentences of 25 on average. "
          "Its word vectors are trained; here they are an encoder's and stay."),
    common={"data": "sst2", "net": "minilm", "epochs": 6, "batch_size": 32, "val_fraction": 0.0},
    quick=lambda folder: small_study(folder) | {"epochs": 1, "width": 8},
    fingerprint=fingerprint,
    questions=[
        Question("Does the gate find the tokens that matter?", ("*",), ("random", "own/*", "cheap")),
        Question("What does it save?", (GATE,), ("saves/*", "lstm")),
    ],
    plot=Plot(Axis("million MACs a text", 1e-6), Axis("test accuracy, %", 100), {
        "evenly spaced tokens": [Point(name, "chosen/macs", "chosen/accuracy")
                                 for name in (*(picked("even", r) for r in RATES), EVERY)],
        "random tokens": [Point(name, "chosen/macs", "chosen/accuracy")
                          for name in (*(picked("random", r) for r in RATES), EVERY)],
        "gates": [Point(arm, "chosen/macs", "chosen/accuracy") for arm in (CHEAP, GATE)],
    }),
)  # fmt: skip
