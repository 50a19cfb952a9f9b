"""Do pictures classify complex networks, and do they say more than degrees?

Four tasks on generated networks: the paper's (Barabási-Albert or Watts-Strogatz, which degrees alone
separate), two against nulls of equal degrees, and Watts-Strogatz of near rewiring rates; and real
networks by field, whose groups are split as wholes. Every arm of a seed has the same networks.
"""

from stepwell.claims.cnc.arms import networks_digest, write_quick
from stepwell.claims.kit.figure import Axis, Plot, Point
from stepwell.claims.kit.measures import Named, least, level, more, of_test_if_any
from stepwell.claims.kit.study import Arm, Claim, Column, Measure, Question, Study

PICTURE, PAPER, CBOW = "three channels", "the paper's picture and CNN", "counts, CBOW"
COUNTS, DEGREES, STRUCTURE = "nodes and edges", "degrees", "degrees and structure"
GRAPHLETS, KERNEL, GIN = "graphlets", "Weisfeiler-Lehman kernel", "graph isomorphism network"
GREY, SKIPGRAM, SUMS = "counts, PPMI", "counts, skip-gram", "sums of the channels"
POOLED, CHANNELS_CBOW = "three channels, pooled CNN", "three channels, CBOW"
PUBLISHED, UNSEEN = "sums of training pictures", "sums of unseen pictures"
PLACE = "stepwell.claims.cnc.arms"
#: The paper's embedding, by its code.
WORD2VEC: dict[str, object] = {"embedding": "cbow", "dimensions": 20}


def drawn(**flags: object) -> Arm:
    """A CNN on pictures drawn by these flags."""
    return Arm(f"{PLACE}:pictures", flags)


ARMS: dict[str, Arm] = {
    PICTURE: drawn(changed=True),
    PAPER: drawn(**WORD2VEC, channels=("linear",), net="cnc", fields=False, tasks=("ba-ws",)),
    CBOW: drawn(**WORD2VEC, channels=("counts",), fields=False),
    CHANNELS_CBOW: drawn(**WORD2VEC, fields=False),
    DEGREES: Arm(f"{PLACE}:statistics", {"features": "degrees"}),
    STRUCTURE: Arm(f"{PLACE}:statistics", {"features": "structure"}),
    POOLED: drawn(net="cnc_pooled"),
    GREY: drawn(dimensions=20, channels=("counts",)),
    SKIPGRAM: drawn(
        **(WORD2VEC | {"embedding": "skipgram"}), channels=("counts",), fields=False, tasks=("ws-null",)
    ),
    GRAPHLETS: Arm(f"{PLACE}:statistics", {"features": "graphlets"}),
    KERNEL: Arm(f"{PLACE}:graph_kernel"),
    GIN: Arm(f"{PLACE}:graph_network"),
    COUNTS: Arm(f"{PLACE}:statistics", {"features": "counts"}),
    SUMS: Arm(f"{PLACE}:sums"),
    PUBLISHED: Arm(f"{PLACE}:published_split"),
    UNSEEN: Arm(f"{PLACE}:published_split", {"leak": False}),
}


def right(arm: str, task: str, rate: str = "accuracy") -> Named:
    """The accuracy of an arm on a task, in percent."""
    return arm, of_test_if_any(arm, f"{task}/{rate}", 100)


def beats(
    id: str, text: str, paper: str, arm: str, rival: str, task: str, margin: float = 0.0,
    expected: float | None = None, rate: str = "accuracy",
) -> Claim:  # fmt: skip
    """A claim that one arm is more accurate on a task than another."""
    sides = right(arm, task, rate), right(rival, task, rate)
    return more(id, text, paper, *sides, margin, "% accuracy", expected=expected, pool=f"{task} {rate}")


def worse(kind: str) -> Measure:
    """The recall of the class that fares worse on networks of a kind, in percent."""
    return least([of_test_if_any(PICTURE, f"{kind}: {name}/recall", 100) for name in ("ba", "ws")])


#: Named before the runs: the paper's own task; pictures against degrees and structure on real networks
#: whose groups are new; and the default embedding against the paper's.
PRIMARY = ("headline", "beyond-structure/fields", "embedding")
FIELDS = "balanced_accuracy"
#: Rivals of the picture that know more of a network than its degrees: id, words, arm.
RIVALS = (
    ("graphlets", "counts of small subgraphs", GRAPHLETS),
    ("kernel", "the Weisfeiler-Lehman kernel", KERNEL),
    ("gin", "a graph isomorphism network", GIN),
)
CLAIMS = [
    level(PRIMARY[0], "The paper's picture and CNN tell Barabási-Albert from Watts-Strogatz networks: "
          "at least 97 %", "0.1 % error (project page)", right(PAPER, "ba-ws"), 97.0, expected=99.0),
    beats(PRIMARY[1], "On real networks of new groups, the picture is better than degrees, "
          "transitivity, assortativity and spectrum by logistic regression", "not compared", PICTURE,
          STRUCTURE, "fields", rate=FIELDS, expected=-5.0),
    beats(PRIMARY[2], "Pictures of counts made with PPMI + SVD are at most 2 points less accurate "
          "than those made with CBOW, on average over the four tasks", "CBOW (code)", GREY, CBOW,
          "mean", -2.0, expected=3.0),
    beats("embedding/channels", "With three channels, pictures made with PPMI + SVD are at most 2 "
          "points less accurate than those made with CBOW, on average over the four tasks", "not asked",
          PICTURE, CHANNELS_CBOW, "mean", -2.0),
    level("degrees-suffice", "Degrees alone reach at least 97 % on the paper's task", "not compared",
          right(DEGREES, "ba-ws"), 97.0),
    *(beats(f"beyond-degrees/{task}", f"The picture is better than degrees: {task}", "not compared",
            PICTURE, DEGREES, task) for task in ("ws-null", "ba-null", "ws-ws")),
    *(beats(f"beyond-structure/{task}", f"The picture is better than degrees and structure: {task}",
            "not compared", PICTURE, STRUCTURE, task) for task in ("ws-null", "ba-null", "ws-ws")),
    beats("beyond-degrees/fields", "On real networks of new groups, the picture is better than degrees",
          "not compared", PICTURE, DEGREES, "fields", rate=FIELDS),
    *(beats(f"beyond-{id}/{task}", f"The picture is better than {words}: {task}", "not compared",
            PICTURE, rival, task)
      for id, words, rival in RIVALS for task in ("ws-null", "ba-null", "ws-ws")),
    *(beats(f"beyond-{id}/fields", f"On real networks of new groups, it is better than {words}",
            "not compared", PICTURE, rival, "fields", rate=FIELDS) for id, words, rival in RIVALS),
    *(beats(f"channels/{task}", f"Degree and span as channels beat counts alone: {task}", "not asked",
            PICTURE, GREY, task) for task in ("ws-null", "ba-null", "ws-ws")),
    beats("channels/fields", "Degree and span as channels beat counts alone on real networks",
          "not asked", PICTURE, GREY, "fields", rate=FIELDS),
    *(beats(f"beyond-sums/{task}", f"The picture is better than the sums of its channels: {task}",
            "not compared", PICTURE, SUMS, task) for task in ("ws-null", "ba-null")),
    beats("pooled/ba-null", "A head that sees statistics of the lit cells, and no places, is better: "
          "ba-null", "not asked", POOLED, PICTURE, "ba-null"),
    beats("pooled/fields", "A head that sees statistics of the lit cells, and no places, is better on "
          "real networks", "not asked", POOLED, PICTURE, "fields", rate=FIELDS),
    beats("pooled-structure/fields", "With that head, the picture is better than degrees and structure "
          "on real networks of new groups", "not compared", POOLED, STRUCTURE, "fields", rate=FIELDS),
    beats("skip-gram", "Skip-gram, which the text names, is better than CBOW, which the code runs: "
          "ws-null", "DeepWalk (text)", SKIPGRAM, CBOW, "ws-null"),
    beats("leak", "A test on sums of training pictures shows more than a test on sums of unseen ones: "
          "ba-null", "96.3 % on trade networks (log)", PUBLISHED, UNSEEN, "ba-null"),
    *(level(f"robust/{id}", f"Networks {text} are recognised: at least 95 % of the class that fares "
            "worse", paper, (PICTURE, worse(kind)), 95.0) for id, text, paper, kind in (
        ("size", "of half the nodes", "holds (page)", "0.5 × nodes"),
        ("density", "of half the edges", "only above the training density (page)", "m 2"),
        ("edges", "without a fifth of their edges", "not asked", "-20% edges"))),
    level("copies", "At least 99 % of relabelled copies of real networks get the same class",
          "not asked", (PICTURE, of_test_if_any(PICTURE, "copies/same", 100)), 99.0),
    more("salient", "Deleting salient nodes lowers the margin of the class more than deleting as many "
         "of equal degree: ws-null", "shown by examples",
         ("salient", of_test_if_any(PICTURE, "ws-null/salient")),
         ("equal degree", of_test_if_any(PICTURE, "ws-null/equal degree")), unit="logits",
         judged_in="logits"),
]  # fmt: skip

ACCURACIES = [
    *(Column(f"{task}/accuracy", task) for task in ("ba-ws", "ws-null", "ba-null", "ws-ws")),
    Column("fields/balanced_accuracy", "fields, balanced"), Column("mean/accuracy", "mean of four"),
]  # fmt: skip
CHANGES = [
    *(Column(f"{kind}: {name}/recall", f"{kind}, {name}")
      for kind in ("0.5 × nodes", "1.5 × nodes", "m 2", "m 8", "-20% edges") for name in ("ba", "ws")),
    *(Column(f"p {rate}: ws/recall", f"rewired {rate}, ws") for rate in ("0.3", "0.6", "1")),
    Column("copies/same", "copies alike"), Column("copies/cells", "changed cells", form=".4f"),
]  # fmt: skip

STUDY = Study(
    key="cnc", noun="networks", arms=ARMS, claims=CLAIMS, primary=PRIMARY,
    note=("The channels degree and span, and 8 dimensions for them, were chosen on networks of 500 "
          "nodes of the four tasks, with another seed of graphs; the arms of counts alone have the "
          "paper's 20. The regressions have the same networks and no tuning. In every arm, "
          "the classes of the real networks weigh the same, or are drawn alike. The pooled CNN was "
          "made after trials on two other splits of the same real networks. Seconds are those of the "
          "four tasks. Left out: molecules, films and trade."),
    common={"data": "", "nodes": 300, "train": 100, "test": 250, "epochs": 20,
            "field_epochs": 60, "repeats": 30},
    quick=write_quick,
    fingerprint=networks_digest,
    questions=[
        Question("Do pictures say more than degrees?",
                 (PICTURE, COUNTS, DEGREES, STRUCTURE, GRAPHLETS, KERNEL, GIN, SUMS),
                 ("degrees-suffice", "beyond-*"), ACCURACIES),
        Question("Which picture, and which CNN?",
                 (PICTURE, CHANNELS_CBOW, POOLED, PAPER, GREY, CBOW, SKIPGRAM),
                 ("embedding/*", "channels/*", "pooled*", "skip-gram"), ACCURACIES),
        Question("What does the published split show?", (PUBLISHED, UNSEEN), ("leak",), ACCURACIES),
        Question("Are the answers stable?", (PICTURE,), ("robust/*", "copies", "salient"), CHANGES),
    ],
    plot=Plot(Axis("processor seconds of four tasks", log=True),
              Axis("mean accuracy of four tasks, %", 100), {
        arm: [Point(arm, "cpu_seconds", "mean/accuracy")]
        for arm in (PICTURE, GREY, CBOW, DEGREES, STRUCTURE)
    }),
)  # fmt: skip
