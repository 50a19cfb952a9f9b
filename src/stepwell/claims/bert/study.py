"""Internal representations of a text encoder: what Aguilar et al. 2020 claim, and its test on SST-2.

A fine-tuned encoder of six layers (MiniLM-L6) teaches one of three, which begins with layers 2, 4 and 6
of the pretrained encoder. All students take as many optimizer steps; the rate of each was the best of
three on validation sentences. "labels" learns from labels alone, "soft targets" from the teacher's
probabilities alone, all others from attention maps and [CLS] states as well.

Controls tell knowledge from regularisation: the layer map reversed; attention and states of another
text of the batch. A nested encoder (`train ekd`) is compared with the paper's method: it holds both
depths in one file, and may take as long as teacher and student together. Its rival at the shallow depth
is the arm of the paper's method that was best on validation sentences, so that the test does not choose
it.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from stepwell.claims.bert.tiny import small_study
from stepwell.claims.kit.figure import Axis, Plot, Point
from stepwell.claims.kit.measures import accuracy, least, less, more, seconds, times
from stepwell.claims.kit.study import Absent, Arm, Claim, Measure, Question, Study
from stepwell.data.text_files import TESTS, TRAIN, test_file

DEEP, SHALLOW = "6", "3"
TEACHER, LABELS, SOFT = "teacher", "labels", "soft targets"
ALL, STACKED, PROGRESSIVE = "all layers", "stacked", "progressive"
KL, COSINE, KEPT = "attention alone", "CLS alone", "stacked, soft targets kept"
HALF = "stacked, half of the steps for soft targets"
REVERSED, SHUFFLED = "all layers, reversed", "all layers, of another text"
NESTED, NESTED_LABELS = "nested 3 < 6", "nested 3 < 6, labels only"

#: Rates of fine-tuning, each the best on validation sentences: of the whole encoder alone and nested;
#: of students that learn from outputs alone, and from layers, too.
DEEP_RATE, NESTED_RATE, OUTPUTS_RATE, RATE = 1e-4, 2e-4, 1e-4, 3e-4
#: The arm of the paper's method that was best on validation sentences (81.3 %, as `HALF`; two seeds).
RIVAL = ALL
NONE: dict[str, Any] = {"attention": 0.0, "cls": 0.0}
NO_ATTENTION, NO_CLS = {"attention": 0.0}, {"cls": 0.0}


def student(**arguments: Any) -> Arm:
    """A student of three layers."""
    settings = {"student_layers": int(SHALLOW), "lr": RATE} | arguments
    return Arm("bert", settings, {"teacher": TEACHER})


def nested(**arguments: Any) -> Arm:
    """An encoder that holds both depths, of as many steps as the teacher."""
    return Arm("ekd", {"depths": (SHALLOW,), "lr": NESTED_RATE, "full_weight": 2.0} | arguments)


ARMS: dict[str, Arm] = {
    TEACHER: Arm("supervised", {"lr": DEEP_RATE}),
    SOFT: student(**NONE, lr=OUTPUTS_RATE),
    ALL: student(),
    STACKED: student(schedule="stacked"),
    NESTED: nested(schedule="one-run", distill_from=0.0),
    LABELS: student(**NONE, kl=0.0, ce=1.0, lr=OUTPUTS_RATE),
    PROGRESSIVE: student(schedule="progressive"),
    KL: student(**NO_CLS),
    COSINE: student(**NO_ATTENTION),
    KEPT: student(schedule="stacked", keep_task=True),
    HALF: student(schedule="stacked", label_share=0.5),
    REVERSED: student(layers=(6, 4, 2)),
    SHUFFLED: student(shuffled=True),
    NESTED_LABELS: nested(schedule="plain", kl=0.0),
}

ACCURACY, SECONDS = "% accuracy", "processor seconds"
UNREAD = "not read"


def beats(
    id: str, text: str, paper: str, a: str, b: str, margin: float = 0.0, expected: float | None = None
) -> Claim:
    """A claim that the student of arm `a` is more accurate than that of arm `b`."""
    of_a, of_b = (a, accuracy(a, SHALLOW)), (b, accuracy(b, SHALLOW))
    return more(id, text, paper, of_a, of_b, margin, ACCURACY, expected=expected)


def attention_distance(arm: str) -> Measure:
    """KL of the teacher's and the student's attention on test texts, in nats, a mean over layers."""
    return lambda results: fmean(results[arm]["bert"]["attention_kl"])


def on_errors(arm: str) -> Measure:
    """Agreement of student and teacher on the texts where the teacher is wrong, in percent."""

    def measure(results: Mapping[str, Mapping[str, Any]]) -> float:
        share: float | None = results[arm]["bert"]["agreement_on_errors"]
        if share is None:
            raise Absent("agreement_on_errors")  # a teacher without errors
        return 100 * share

    return measure


#: Named from the paper's abstract (internal representations are stronger than soft targets
#: alone; of several algorithms the stacked one is best), and for nested encoders, before the runs.
PRIMARY = ("internal-helps", "stacked-best", "nested")
CLAIMS = [
    beats(PRIMARY[0], "Attention and [CLS] states of all layers give the student more than soft "
          "targets alone", "consistently stronger than soft labels (abstract)", ALL, SOFT,
          expected=0.8),
    beats(PRIMARY[1], "Stacked distillation is better than all layers at once, in as many steps",
          "stacked is best on most sets (numbers not read)", STACKED, ALL, expected=0.8),
    Claim(PRIMARY[2], "Every depth of the nested encoder is as good as the paper's method, within half "
          "a point: depth 3 as the student that was best on validation sentences, depth 6 as the "
          "teacher (the depth that fares worst)", "not asked", ACCURACY,
          {f"{NESTED}: 3": accuracy(NESTED, SHALLOW), RIVAL: accuracy(RIVAL, SHALLOW),
           f"{NESTED}: 6": accuracy(NESTED, DEEP), TEACHER: accuracy(TEACHER, DEEP)},
          least([less(accuracy(NESTED, SHALLOW), accuracy(RIVAL, SHALLOW)),
                 less(accuracy(NESTED, DEEP), accuracy(TEACHER, DEEP))]),
          margin=-0.5, expected=0.3),
    times("nested-cost", "The nested encoder takes at most 1.1 of the seconds of teacher and student",
          "not asked", SECONDS,
          {NESTED: seconds(NESTED), f"{TEACHER}, {RIVAL}": seconds(TEACHER, RIVAL)}, 1.1, below=True),
    beats("nested-teaching", "Teaching gives depth 3 of the nested encoder more than labels only",
          "not asked", NESTED, NESTED_LABELS),
    beats("nested-soft", "Depth 3 of the nested encoder is above a student of soft targets",
          "not asked", NESTED, SOFT),
    beats("stacked-helps", "Stacked distillation is better than soft targets alone", UNREAD, STACKED,
          SOFT),
    beats("progressive-helps", "Progressive distillation is better than soft targets alone", UNREAD,
          PROGRESSIVE, SOFT),
    beats("kept-helps", "Stacked distillation gains by soft targets in every step", UNREAD, KEPT,
          STACKED),
    beats("half-helps", "Stacked distillation gains if half of its steps are for soft targets", UNREAD,
          HALF, STACKED),
    beats("both/attention", "Attention and [CLS] together are better than attention alone",
          "both together are at least as good (secondary page)", ALL, KL),
    beats("both/cls", "Attention and [CLS] together are better than [CLS] alone",
          "both together are at least as good (secondary page)", ALL, COSINE),
    beats("attention-helps", "Attention alone is better than soft targets alone", UNREAD, KL, SOFT),
    beats("cls-helps", "[CLS] states alone are better than soft targets alone", UNREAD, COSINE, SOFT),
    beats("distilling-helps", "Soft targets give the student more than labels", UNREAD, SOFT, LABELS),
    beats("control/reversed", "The layer map matters: the teacher's layers in order are better than "
          "reversed", "not compared", ALL, REVERSED),
    beats("control/shuffled", "Knowledge, not regularisation: a text's own attention and states are "
          "better than another text's", "not compared", ALL, SHUFFLED),
    times("mismatch", "A student of soft targets alone keeps another attention: its distance from the "
          "teacher is more than 3 times that of a student of all layers",
          "much larger (secondary page)", "nats",
          {SOFT: attention_distance(SOFT), ALL: attention_distance(ALL)}, 3.0),
    more("errors", "Students of all layers make more of their teacher's errors than students of soft "
         "targets", "errors overlap more (secondary page)", (ALL, on_errors(ALL)),
         (SOFT, on_errors(SOFT)), 0.0, "% agreement on errors"),
]  # fmt: skip


def fingerprint(arguments: Mapping[str, Any]) -> str:
    """Hash of the texts and of the pretrained encoder; ValueError if a file is not there."""
    data, net = Path(arguments["data"]), Path(arguments["net"])
    files = [data / TRAIN, test_file(data) or data / TESTS[0]]
    files += [net / name for name in ("config.json", "tokenizer.json", "model.safetensors")]
    digest = hashlib.sha256()
    for file in files:
        if not file.is_file():
            flag = "--net" if file.parent == net else "--data"
            raise ValueError(f"there is no {file}: name the folder that holds it with {flag}")
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


STUDENTS = (LABELS, SOFT, KL, COSINE, ALL, PROGRESSIVE, STACKED, KEPT, HALF, REVERSED, SHUFFLED)
STUDY = Study(
    key="bert", noun="texts", arms=ARMS, claims=CLAIMS, primary=PRIMARY,
    note=("Rates and the schedule of the nested encoder were chosen on validation texts, the claims "
          "before the runs. The method is a reconstruction where the paper could not be read."),
    common={"data": "sst2", "net": "minilm", "epochs": 3, "batch_size": 32, "val_fraction": 0.0},
    quick=lambda folder: small_study(folder) | {"epochs": 1},
    fingerprint=fingerprint,
    questions=[
        Question("Which losses and schedules teach the student most?", STUDENTS,
                 ("*-helps", "both/*", "control/*")),
        Question("Is a nested encoder as good, for as many seconds?",
                 (TEACHER, SOFT, ALL, NESTED, NESTED_LABELS), ("nested-*",)),
        Question("How far do students stay from their teacher?", STUDENTS, ("mismatch", "errors")),
    ],
    plot=Plot(Axis("million MACs a text", 1e-6), Axis("test accuracy, %", 100), {
        "teacher, and a student of soft targets": [
            Point(SOFT, f"{SHALLOW}/macs", f"{SHALLOW}/accuracy"),
            Point(TEACHER, f"{DEEP}/macs", f"{DEEP}/accuracy"),
        ],
        "teacher, and a student of all layers": [
            Point(ALL, f"{SHALLOW}/macs", f"{SHALLOW}/accuracy"),
            Point(TEACHER, f"{DEEP}/macs", f"{DEEP}/accuracy"),
        ],
        "nested encoder": [
            Point(NESTED, f"{d}/macs", f"{d}/accuracy") for d in (SHALLOW, DEEP)
        ],
    }),
)  # fmt: skip
