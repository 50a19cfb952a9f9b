"""The page's section about a knowledge graph: its training, its updates, and their effects."""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from stepwell.colours import GREY, OKABE_ITO
from stepwell.files import damaged, read_json
from stepwell.report.figures import Figure, legend_text, svg
from stepwell.report.markup import ABSENT, as_count, as_decimal, as_duration, figure, table
from stepwell.report.run_record import RunRecord, as_mapping, number

#: Names in the picture, at most: of the entities that moved most.
NAMED = 8
#: Bars with a number above them, at most.
BARS_LABELLED = 8


def graph_section(record: RunRecord, colours: Mapping[str, str]) -> str:
    """Show the training and the updates of a graph."""
    updates, total = read_updates(record.path)
    counts = (
        as_count(record.system_results("dkge").get(k)) for k in ("triples", "entities", "relations")
    )
    triples, entities, relations = counts
    start = (
        f"{triples} triples of {entities} entities and {relations} relations, embedded in "
        f"{as_duration(record.results.get('seconds'))}; {total:,} updates since"
        + (f", the last {len(updates):,} of which are shown." if len(updates) < total else ".")
    )
    drawn = _mrr_and_seconds(record, updates, total - len(updates))
    parts = [f'<p class="lead">{escape(start)}</p>', "<h3>Training and updates</h3>"]
    parts += [_snapshots(record, updates, total - len(updates)), '<div class="figures">']
    parts += [figure(drawn, "MRR on test triples, and seconds of learning.")]
    last = updates[-1] if updates else {}
    picture = as_mapping(last.get("picture"))
    parts += [figure(_neighbourhood(picture), _caption(picture)), "</div>"]
    return "\n".join([*parts, _moved(last), _forgotten(last)])


def read_updates(run: Path) -> tuple[list[Mapping[str, Any]], int]:
    """Read a run's last updates, in order, and the number of all; ValueError if the file is damaged."""
    file = run / "updates.json"
    if not file.exists():
        return [], 0
    content = read_json(file, "delete it to report without updates")
    last = content.get("updates")
    if not isinstance(last, list) or not all(isinstance(update, dict) for update in last):
        raise damaged(file, "it lists no updates", "delete it to report without updates")
    total = content.get("total")
    return last, total if isinstance(total, int) and total > len(last) else len(last)


def _snapshots(record: RunRecord, updates: Sequence[Mapping[str, Any]], skipped: int) -> str:
    head = ("", "triples", "new entities", "gone", "affected", "removed ones' distance", "seconds",
            "MRR", "Hits@10")  # fmt: skip
    test = record.test
    first = [as_count(record.system_results("dkge").get("triples")), *[ABSENT] * 4]
    first += [as_duration(record.results.get("seconds"))]
    rows = [["trained", *first, *(as_decimal(number(test.get(k))) for k in ("mrr", "hits@10"))]]
    for i, update in enumerate(updates, start=1 + skipped):
        change = f"+{update.get('added', 0):,} -{update.get('removed', 0):,}"
        kinds = (as_mapping(update.get(k)) for k in ("new", "gone", "affected"))
        counts = [as_count(kind.get("entity")) for kind in kinds]
        measures = as_mapping(update.get("measures"))
        shown = [as_decimal(number(measures.get(k))) for k in ("mrr", "hits@10")]
        seconds = f"{number(update.get('seconds')) or 0:.1f}"
        unlearnt = " → ".join(as_decimal(number(far)) for far in update.get("unlearnt") or ())
        rows.append([f"update {i}", change, *counts, unlearnt or ABSENT, seconds, *shown])
    note = (
        "Ranks are filtered and realistic, of both ends. An update has an MRR if --test named "
        "triples to rank. The distance of removed triples is the mean before and after the update; a "
        "large distance is implausible."
    )
    return table(head, rows, note)


def _mrr_and_seconds(
    record: RunRecord, updates: Sequence[Mapping[str, Any]], skipped: int
) -> str | None:
    if not updates:
        return None
    measured = [number(record.test.get("mrr"))]
    measured += [number(as_mapping(u.get("measures")).get("mrr")) for u in updates]
    seconds = [number(record.results.get("seconds")), *(number(u.get("seconds")) for u in updates)]
    place = [0, *range(1 + skipped, 1 + skipped + len(updates))]

    def paint(drawn: Figure) -> None:
        left, right = drawn.subplots(1, 2)
        known = [(i, m) for i, m in zip(place, measured, strict=True) if m is not None]
        left.plot(*zip(*known, strict=True) if known else ((), ()), marker="o", color=OKABE_ITO[0])
        left.set(ylabel="MRR", ylim=(0, 1.1 * max([m for _, m in known], default=1.0) or 1.0))
        bars = right.bar(place, [s or 0 for s in seconds], color=OKABE_ITO[1])
        if len(seconds) <= BARS_LABELLED:
            right.bar_label(bars, fmt="%.3g", fontsize=8)
        right.set_ylabel("seconds")
        for axes in (left, right):
            axes.set(xlim=(-0.6, place[-1] + 0.6), xlabel="update (0: training)")
            axes.xaxis.get_major_locator().set_params(integer=True)

    return svg(7.2, 3.2, paint)


def _neighbourhood(picture: Mapping[str, Any]) -> str | None:
    names, before, after = (picture.get(key) or [] for key in ("names", "before", "after"))
    if not names:
        return None

    def paint(drawn: Figure) -> None:
        axes = drawn.add_subplot()
        for i, (old, new) in enumerate(zip(before, after, strict=True)):
            colour = OKABE_ITO[1] if i == 0 else OKABE_ITO[2] if old is None else OKABE_ITO[0]
            if old is not None:
                arrow = {"arrowstyle": "->", "color": GREY, "lw": 0.8}
                axes.annotate("", new, old, arrowprops=arrow)
                axes.plot(*old, "o", mfc="white", mec=colour, ms=9)  # seen around a dot that stays
            axes.plot(*new, "o", color=colour, ms=6)
            if i < NAMED:
                name = legend_text(names[i])
                axes.annotate(name, new, (4, 4), textcoords="offset points", fontsize=8)
        axes.set_aspect("equal", adjustable="datalim")
        axes.set(xticks=[], yticks=[])

    return svg(6.2, 4.2, paint)


def _caption(picture: Mapping[str, Any]) -> str:
    centre, *_ = picture.get("names") or [""]
    return (
        f"{centre}, the best-connected of the entities that the last update moved most, with its "
        "neighbours (removed ones too) and some of theirs. Rings: before; dots: after; green dots "
        "without a ring: new. The plane is the one in which these vectors differ most."
    )


def _moved(update: Mapping[str, Any]) -> str:
    rows = [[str(name), as_decimal(number(far))] for name, far in update.get("moved") or ()]
    shown = table(("entity", "distance"), rows)
    return f"<h3>Moved most by the last update</h3>{shown}" if rows else ""


def _forgotten(update: Mapping[str, Any]) -> str:
    rows = [
        [" | ".join(map(str, fact)), *(as_decimal(number(far)) for far in both)]
        for fact, *both in update.get("forgotten") or ()
    ]
    shown = table(("triple", "distance before", "now"), rows)
    return f"<h3>Removed by the last update</h3>{shown}" if rows else ""
