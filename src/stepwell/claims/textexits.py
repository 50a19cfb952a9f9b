"""Early exits of a text encoder: do texts that leave early gain over a shallower encoder, on SST-2?

MiniLM-L6 with an exit behind each of its layers, trained jointly, and cascades of the exits: patience
(PABEE: as many exits in a row agree), entropy (DeeBERT) and confidence. Thresholds are set on
validation sentences; every accuracy is of test sentences. Between two cascades, straight lines join the
measured points, which random choices between the two reach.

Controls: the encoder alone; three of its six layers alone, about the mean cost of a cascade (evenly
spaced layers of the pretrained encoder, labels only); as many texts at each exit, drawn at random; the
cheapest exit that is right (an oracle). All arms take as many passes and one learning rate.
"""

from typing import Any

from stepwell.claims.bert.study import fingerprint
from stepwell.claims.bert.tiny import small_study
from stepwell.claims.exits import (
    BUDGETS,
    beyond_chance,
    cascaded,
    cascades_of,
    of_cascade,
    one_by_one,
    others,
    within,
)
from stepwell.claims.kit.figure import Axis, Plot, Point
from stepwell.claims.kit.measures import ACCURACY, accuracy, alone, macs_of, more, times
from stepwell.claims.kit.study import Arm, Question, Study

FULL, SMALL = "6", "3"
EXITS, WEIGHTED, TAUGHT, FROZEN = (
    "exits", "exits, later ones weigh more", "exits, the last one teaches",
    "exits on a frozen encoder",
)  # fmt: skip
RATE = 1e-4


def exits(**arguments: Any) -> Arm:
    """The encoder with an exit behind each layer."""
    return Arm("exits", {"lr": RATE} | arguments)


PATIENCE, ENTROPY = cascaded(EXITS, "patience"), cascaded(EXITS, "entropy")
LABELS: dict[str, Any] = {"attention": 0.0, "cls": 0.0, "kl": 0.0, "ce": 1.0}
ARMS: dict[str, Arm] = {
    alone(FULL): Arm("supervised", {"lr": RATE}),
    alone(SMALL): Arm(
        "bert", {"student_layers": int(SMALL), "lr": RATE} | LABELS, {"teacher": alone(FULL)}
    ),
    EXITS: exits(),
    cascaded(EXITS): cascades_of(EXITS),
    PATIENCE: cascades_of(EXITS, criterion="patience"),
    ENTROPY: cascades_of(EXITS, criterion="entropy"),
    WEIGHTED: exits(weights="depth"),
    TAUGHT: exits(kl=1.0),
    FROZEN: Arm("exits", {"lr": RATE, "schedule": "frozen"}, scaled={"epochs": 0.5}),
    **{cascaded(arm): cascades_of(arm) for arm in (WEIGHTED, TAUGHT, FROZEN)},
}

COST = macs_of(alone(SMALL), SMALL)
BY_CONFIDENCE = within(cascaded(EXITS), COST)
#: Named before the runs, as for exits on images.
PRIMARY = ("better-than-static", "better-than-chance", "network-unharmed")
CLAIMS = [
    more(PRIMARY[0], f"At the cost of {SMALL} layers, the cascade by confidence is more accurate than "
         f"an encoder of {SMALL} layers alone", "1.6 times as fast as BERT at its accuracy less 0.9 "
         "points (MNLI, PABEE's example code)", (EXITS, BY_CONFIDENCE),
         (alone(SMALL), accuracy(alone(SMALL), SMALL)), 0.0, ACCURACY, expected=1.0),
    beyond_chance(PRIMARY[1], "texts"),
    more(PRIMARY[2], "Exits do not harm the encoder: its last exit is at most 1 point below it trained "
         "alone", "above it for ALBERT (84.6 to 85.1 % on MNLI, PABEE's example code)",
         (f"{EXITS}: {FULL}", accuracy(EXITS, FULL)), (alone(FULL), accuracy(alone(FULL), FULL)), -1.0,
         ACCURACY, expected=0.5),
    times("saves/macs", "Set to the encoder's accuracy on validation texts, the cascade takes at most "
          "0.75 of its MACs", "about 0.6 of the time (DeeBERT's abstract)", "MACs",
          {"cascade": of_cascade("macs"), "encoder": of_cascade("full_macs")}, 0.75, below=True),
    one_by_one(),
    more("oracle", "The first right exit of the saved cascade, an oracle, is more than 3 points above "
         "its last exit: better decisions would pay", "not asked",
         ("oracle", lambda results: 100 * of_cascade("oracle_accuracy")(results)),
         (f"{EXITS}: {FULL}", accuracy(EXITS, FULL)), 3.0, ACCURACY, pool="oracle"),
    *others((
          ("patience", PATIENCE, "Patience is better than confidence",
           "above confidence at equal speed (Fig. 1 of PABEE)"),
          ("entropy", ENTROPY, "Entropy is better than confidence", "not asked"),
          ("weighted", cascaded(WEIGHTED), "Weights that grow with the exit help cascades",
           "not asked"),
          ("taught", cascaded(TAUGHT), "Soft targets of the last exit help cascades", "not asked"),
          ("frozen", cascaded(FROZEN), "Exits on a frozen encoder give better cascades than joint "
           "ones", "not asked")), COST),
]  # fmt: skip

STUDY = Study(
    key="textexits", noun="texts", arms=ARMS, claims=CLAIMS, primary=PRIMARY,
    note=("The papers measure BERT and ALBERT on GLUE; their numbers stand beside other networks. A "
          "tenth of the training sentences sets the thresholds; all arms leave it out."),
    common={"data": "sst2", "net": "minilm", "epochs": 4, "batch_size": 32, "val_fraction": 0.1},
    quick=lambda folder: small_study(folder) | {"epochs": 1},
    fingerprint=fingerprint,
    questions=[
        Question("Are cascades of exits better than a shallower encoder?",
                 (alone("*"), EXITS, cascaded(EXITS)), ("saves/*", "oracle")),
        Question("Which exits, and which criterion?", (f"{EXITS}*",), ("other/*",)),
    ],
    plot=Plot(Axis("million MACs a text", 1e-6), Axis("test accuracy, %", 100), {
        "encoders alone": [Point(alone(d), f"{d}/macs", f"{d}/accuracy") for d in (SMALL, FULL)],
        "exits": [Point(EXITS, f"{d}/macs", f"{d}/accuracy")
                  for d in (*(f"exit{i}" for i in range(1, 6)), FULL)],
        "cascades by confidence": [Point(cascaded(EXITS), f"{i}/mean_macs", f"{i}/accuracy")
                                   for i in range(1, BUDGETS + 1)],
    }),
)  # fmt: skip
