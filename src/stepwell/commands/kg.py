"""`stepwell kg update|query|eval`: the commands about knowledge graphs."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tyro.conf import Positional

from stepwell.commands.arguments import Json, call, description, first_sentence, show_help, unknown
from stepwell.console import print_json, say, show, table
from stepwell.kinds.graph import show_ranks

if TYPE_CHECKING:
    from stepwell.data.triples import Fact
    from stepwell.kg import KnowledgeGraph, Report


def kg(arguments: list[str]) -> None:
    """Change, update and ask a knowledge graph.

    Examples:
        stepwell kg update runs/graph --add new.tsv --remove gone.tsv
        stepwell kg query runs/graph --head Paris --relation capital_of
        stepwell kg eval runs/graph --test test.tsv
    """
    name, *rest = arguments or ["--help"]
    if name in KG:
        call(KG[name], f"stepwell kg {name}", rest)
    elif name.startswith("-"):
        lines = {n: first_sentence(command) for n, command in KG.items()}
        show_help("stepwell kg", lines, [name], description(kg))
    else:
        raise unknown("command kg", name, KG)


def update(
    run: Positional[Path],
    *,
    add: Path | None = None,
    remove: Path | None = None,
    test: Path | None = None,
    ignore_absent: bool = False,
    rule: Literal["touched", "context", "neighbour"] = "touched",
    epochs: int = 20,
    lr: float = 0.03,
    unlearn: float = 0.1,
    max_seconds: float = 0.0,
    json: Json = False,
) -> None:
    """Add and remove triples, and learn the affected vectors; all other vectors stay bit-identical.

    Changes are on the disk before they are learnt. After Ctrl-C or a kill, the same command goes on;
    without --add and --remove, it learns the changes that are still waiting.

    Examples:
        stepwell kg update runs/graph --add new.tsv --remove gone.tsv
        stepwell kg update runs/graph

    Args:
        run: a run of `stepwell train dkge`.
        add: a file of triples to add, HEAD<tab>RELATION<tab>TAIL a line. New names join the graph.
        remove: a file of triples to remove.
        test: a file of true triples to rank afterwards; the report page shows the MRR of every update.
        ignore_absent: skip triples to remove that are not in the graph.
        rule: the affected elements. touched: elements with a changed context, and both ends of each
            changed triple; context: only elements with a changed context; neighbour: entities with a
            new or removed neighbour.
        epochs: passes over the triples of the affected elements.
        lr: the highest learning rate.
        unlearn: weight of the loss that moves removed triples farther than true ones (0: removed ones
            are only drawn as false triples, as in the paper).
        max_seconds: seconds of learning, at most (0: no limit).
    """
    from stepwell.data.triples import read_triples
    from stepwell.kg import Online
    from stepwell.kg import open as open_graph

    changes = {name: read_triples(file, empty=True) if file else [] for name, file in
               (("add", add), ("remove", remove))}  # fmt: skip
    test_triples = read_triples(test) if test else []
    if repeated := set(changes["add"]).intersection(changes["remove"]):
        raise ValueError(
            f"--add and --remove both have {' | '.join(min(repeated))}: take it out of one of them"
        )
    with open_graph(run) as graph:
        _change(graph, changes, ignore_absent)
        settings = Online(rule=rule, epochs=epochs, lr=lr, unlearn=unlearn, seconds=max_seconds)
        try:
            report = graph.update(settings, test=test_triples)
        except KeyboardInterrupt:
            if waiting := sum(graph.pending):
                raise KeyboardInterrupt(f"{waiting:,} changes wait for the update") from None
            say("the update is done")
            raise
        total = len(graph)
    if json:
        print_json(report.as_dict() | {"triples": total})
        return
    if not report.added and not report.removed:
        say("nothing to learn: no triple was added or removed")
        return
    _show_update(report, total)
    if report.measures and not report.measures["triples"]:
        say(f"note: --test {test}: the graph has none of these names, so nothing is ranked")


def _change(graph: "KnowledgeGraph", changes: Mapping[str, list["Fact"]], ignore_absent: bool) -> None:
    """Write changes to the disk; report repeated changes, and earlier ones that wait to be learnt."""
    before = dict(zip(("add", "remove"), graph.waiting, strict=True))
    added, removed = changes["add"], changes["remove"]
    # a command that is given again, after it was cut off behind the update
    done = bool(added) and all(f in graph for f in added) and not any(f in graph for f in removed)
    gone = graph.remove(removed, absent="ignore" if ignore_absent or done else "refuse")
    come = graph.add(added)
    for name, count, there in (("add", come, "there already"), ("remove", gone, "not there")):
        if waited := len(set(changes[name]).intersection(before[name])):
            say(f"note: {waited:,} triples to {name} wait for the update already")
        if idle := len(changes[name]) - count - waited:
            say(f"note: {idle:,} triples to {name} are {there}")
    now = zip(("add", "remove"), graph.waiting, strict=True)
    if others := sum(len(set(facts).difference(changes[name])) for name, facts in now):
        say(f"note: {others:,} earlier changes wait for the update, and are learnt, too")


def _show_update(report: "Report", total: int) -> None:
    rows = [
        [kind, *(f"{n:,}" for n in (len(report.new[kind]), len(report.gone[kind]), count))]
        for kind, count in report.affected.items()
    ]
    show(table(f"+{report.added:,} -{report.removed:,} triples: {total:,} now",
               ["", "new", "gone", "affected"], rows))  # fmt: skip
    moved = [[name, f"{far:.3f}"] for name, far in report.moved]
    show(table("moved most", ["entity", "distance"], moved))
    if report.measures.get("triples"):
        show_ranks(f"{report.measures['triples']:,.0f} test triples", report.measures)
    if report.unlearnt:
        before, after = report.unlearnt
        distances = f"{before:.2f} before, {after:.2f} now (far: implausible)"
        show(f"removed triples: mean distance {distances}")
    show(f"learnt in {report.seconds:.1f} s, {report.trained:,} triples an epoch", style="dim")


def query(
    run: Positional[Path],
    *,
    head: str | None = None,
    relation: str | None = None,
    tail: str | None = None,
    near: str | None = None,
    k: int = 10,
    json: Json = False,
) -> None:
    """Ask for the missing end of a triple, or for the nearest entities of an entity.

    Examples:
        stepwell kg query runs/graph --head Paris --relation capital_of
        stepwell kg query runs/graph --relation capital_of --tail France
        stepwell kg query runs/graph --near Paris

    Args:
        run: a run of `stepwell train dkge`.
        head: the first entity of a triple, to ask for the last.
        relation: the relation of the triple.
        tail: the last entity of a triple, to ask for the first.
        near: an entity to find the nearest entities of, instead of a triple.
        k: number of answers.
    """
    from stepwell.kg import open as open_graph

    if (near is None) == (relation is None):
        raise ValueError("give --relation with --head or with --tail, or --near alone")
    if near is not None and (head or tail):
        raise ValueError("--near asks about one entity: leave --head and --tail out")
    with open_graph(run, write=False) as graph:
        _say_waiting(graph)
        if near is not None:
            answers = graph.neighbours(near, k)
            title, known = f"nearest to {near}", "shares a triple"
        else:
            answers = graph.rank(head, str(relation), tail, k=k)
            title, known = f"{head or '?'} | {relation} | {tail or '?'}", "in the graph"
    if json:
        print_json([answer._asdict() for answer in answers])
        return
    rows = [
        [str(place), answer.name, f"{answer.distance:.3f}", "yes" if answer.known else ""]
        for place, answer in enumerate(answers, start=1)
    ]
    show(table(title, ["", "entity", "distance", known], rows, words=2))


def eval_graph(
    run: Positional[Path],
    *,
    test: Path,
    gone: Path | None = None,
    ask: Literal["both", "head", "tail"] = "both",
    json: Json = False,
) -> None:
    """Rank true triples among all entities, and check that removed ones were unlearnt.

    Examples:
        stepwell kg eval runs/graph --test test.tsv
        stepwell kg eval runs/graph --test questions.tsv --ask tail --gone old_answers.tsv

    Args:
        run: a run of `stepwell train dkge`.
        test: a file of true triples.
        gone: a file of triples that are no longer true.
        ask: the end of each triple to ask for; tail answers questions.
    """
    from stepwell.data.triples import read_triples
    from stepwell.kg import open as open_graph

    triples = read_triples(test)
    old = read_triples(gone) if gone else []
    with open_graph(run, write=False) as graph:
        _say_waiting(graph)
        ranks = graph.evaluate(triples, gone=old, ask=ask)
    if not ranks["triples"]:
        raise ValueError(f"--test {test}: the graph has none of these names, so nothing is ranked")
    if json:
        print_json(ranks)
        return
    for name, key in (("test", "left_out"), ("gone", "gone/left_out")):
        if n := ranks.get(key):
            say(f"note: --{name}: {n:,.0f} triples have names that the graph lacks: left out")
    if learnt := sum(fact in graph for fact in triples):
        say(
            f"note: --test: {learnt:,} triples were in the training graph; their ranks only test memory"
        )
    if true := sum(fact in graph for fact in old):
        say(f"note: --gone: {true:,} triples are in the graph still")
    show_ranks(f"{run}: {ranks['triples']:,.0f} triples", ranks)
    if "auc" in ranks:
        show(
            f"a gone triple is more distant than a true one in {100 * ranks['auc']:.1f} % of pairs.\n"
            "Gone triples were learnt once: compare this number with that before the update (yearly\n"
            "Wikidata: 25 to 30 %), or with a graph trained without them (60 to 70 %). Both columns\n"
            "leave out other true answers: an old answer is ranked among wrong answers only."
        )


def _say_waiting(graph: "KnowledgeGraph") -> None:
    if waiting := sum(graph.pending):
        say(f"note: {waiting:,} changes wait for `stepwell kg update {graph.path}`: not learnt yet")


KG: dict[str, Callable[..., None]] = {"update": update, "query": query, "eval": eval_graph}
