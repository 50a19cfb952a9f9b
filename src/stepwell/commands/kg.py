"""The commands about knowledge graphs: `stepwell kg update|query|eval`."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tyro.conf import Positional

from stepwell.commands.run_files import Json
from stepwell.console import print_json, say, show, table

if TYPE_CHECKING:
    from stepwell.data.triples import Fact
    from stepwell.kg import KnowledgeGraph, Report

#: Measures of ranks: key, what it is called, how it is written.
MEASURES = (
    ("mrr", "MRR", "{:.3f}"),
    ("hits@1", "Hits@1", "{:.3f}"),
    ("hits@3", "Hits@3", "{:.3f}"),
    ("hits@10", "Hits@10", "{:.3f}"),
    ("mean_rank", "mean rank", "{:.1f}"),
    ("adjusted", "adjusted (1: all first, 0: chance)", "{:.3f}"),
)


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
    """Add and remove triples, and learn what that affects; everything else stays to the bit.

    Changes are on the disk before they are learnt: after Ctrl-C or a kill the same command goes on, and
    without any file it learns what waits. Where the update was done by then, it says so.

    Examples:
        stepwell kg update runs/graph --add new.tsv --remove gone.tsv
        stepwell kg update runs/graph

    Args:
        run: a run of `stepwell train dkge`.
        add: a file of triples, HEAD<tab>RELATION<tab>TAIL a line. New names are welcome.
        remove: a file of triples.
        test: a file of true triples to rank afterwards; the report page shows the MRR of every update.
        ignore_absent: leave out triples to be removed that are not there.
        rule: what a change affects: elements whose context changes and both ends of each changed triple
            (`touched`), the former alone (`context`), or entities whose neighbour is new or gone.
        epochs: passes over the triples of what is affected.
        lr: the highest learning rate.
        unlearn: weight of removed triples, which are to be farther than true ones (0: they are left to
            the drawing of false triples, as in the paper).
        max_seconds: learn at most so long (0: no bound).
    """
    from stepwell.data.triples import read_triples
    from stepwell.kg import Online
    from stepwell.kg import open as open_graph

    changes = {name: read_triples(file, empty=True) if file else [] for name, file in
               (("add", add), ("remove", remove))}  # fmt: skip
    asked = read_triples(test) if test else []
    if both := set(changes["add"]).intersection(changes["remove"]):
        raise ValueError(
            f"--add and --remove both have {' | '.join(min(both))}: take it out of one of them"
        )
    with open_graph(run) as graph:
        _change(graph, changes, ignore_absent)
        how = Online(rule=rule, epochs=epochs, lr=lr, unlearn=unlearn, seconds=max_seconds)
        try:
            report = graph.update(how, test=asked)
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


def _change(
    graph: "KnowledgeGraph", changes: Mapping[str, list["Fact"]], ignore_absent: bool
) -> None:
    """Put changes on the disk, and say which were made before, and what else waits to be learnt."""
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
        _show_measures(f"{report.measures['triples']:,.0f} test triples", report.measures)
    if report.unlearnt:
        before, after = report.unlearnt
        show(
            f"removed triples: mean distance {before:.2f} before, {after:.2f} now (far: implausible)"
        )
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
    """Ask for the missing end of a triple, or for the entities nearest to one.

    Examples:
        stepwell kg query runs/graph --head Paris --relation capital_of
        stepwell kg query runs/graph --relation capital_of --tail France
        stepwell kg query runs/graph --near Paris

    Args:
        run: a run of `stepwell train dkge`.
        near: an entity, in place of a triple.
        k: how many answers.
    """
    from stepwell.kg import open as open_graph

    if (near is None) == (relation is None):
        raise ValueError("give --relation with --head or with --tail, or --near alone")
    if near is not None and (head or tail):
        raise ValueError("--near asks about one entity: leave --head and --tail out")
    with open_graph(run, write=False) as graph:
        _say_what_waits(graph)
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
    """Rank true triples against all entities, and measure whether old ones were unlearnt.

    Examples:
        stepwell kg eval runs/graph --test test.tsv
        stepwell kg eval runs/graph --test questions.tsv --ask tail --gone old_answers.tsv

    Args:
        run: a run of `stepwell train dkge`.
        test: a file of triples that are true now.
        gone: a file of triples that are true no more.
        ask: which end of each triple is asked for; `tail` answers questions.
    """
    from stepwell.data.triples import read_triples
    from stepwell.kg import open as open_graph

    asked = read_triples(test)
    old = read_triples(gone) if gone else []
    with open_graph(run, write=False) as graph:
        _say_what_waits(graph)
        found = graph.evaluate(asked, gone=old, ask=ask)
    if not found["triples"]:
        raise ValueError(f"--test {test}: the graph has none of these names, so nothing is ranked")
    if json:
        print_json(found)
        return
    for name, key in (("test", "left_out"), ("gone", "gone/left_out")):
        if found.get(key):
            say(
                f"note: --{name}: {found[key]:,.0f} triples have names that the graph lacks: left out"
            )
    if learnt := sum(fact in graph for fact in asked):
        say(f"note: --test: {learnt:,} triples were learnt: how they rank tests memory alone")
    if true := sum(fact in graph for fact in old):
        say(f"note: --gone: {true:,} triples are in the graph still")
    _show_measures(f"{run}: {found['triples']:,.0f} triples", found)
    if "auc" in found:
        show(
            f"a gone triple is more distant than a true one in {100 * found['auc']:.1f} % of pairs.\n"
            "Gone ones were learnt once: compare with this number before the update (yearly Wikidata:\n"
            "25 to 30 %), or of a graph trained without them (60 to 70 %). In both columns other true\n"
            "answers are left out: an old answer is ranked among wrong ones, not against the new one."
        )


def _say_what_waits(graph: "KnowledgeGraph") -> None:
    if waiting := sum(graph.pending):
        say(
            f"note: {waiting:,} changes wait for `stepwell kg update {graph.path}`: not known here yet"
        )


def show_graph(results: Mapping[str, Any], out: Path) -> None:
    """What a run of `stepwell train dkge` gave, and what comes next."""
    if results["test"]:
        _show_measures(f"dkge, {results['examples']:,} test triples", results["test"])
    say(
        "embedded {triples:,} triples of {entities:,} entities in {seconds:.0f} s; next, try:".format(
            **results["dkge"], seconds=results["seconds"]
        )
    )
    say(f"  stepwell kg query {out} --near ENTITY")
    say(f"  stepwell kg update {out} --add NEW.tsv --remove GONE.tsv")


def _show_measures(title: str, found: Mapping[str, float]) -> None:
    old = "gone/mrr" in found
    rows = [
        [name, form.format(found[key]), *([form.format(found[f"gone/{key}"])] if old else [])]
        for key, name, form in MEASURES
    ]
    columns = ["filtered, ties in the middle", "true", *(["gone"] if old else [])]
    show(table(title, columns, rows))


KG: dict[str, Callable[..., None]] = {"update": update, "query": query, "eval": eval_graph}
