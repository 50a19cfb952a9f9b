"""A study's results as a page of Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any

from stepwell.claims.kit.columns import Arms, Column, rows, table_by_depth
from stepwell.console import sized

HOLDS = {True: "**holds**", False: "**does not hold**", None: "undecided"}


def render(record: Mapping[str, Any], picture: str, table: Sequence[Column] = ()) -> str:
    """The page beside claims.json: arms, then each claim, paper beside measured.

    Args:
        picture: the file that draws the arms, beside the page.
        table: the columns of the arms' table; those of every depth by default. Arms that have none of
            them are left out.
    """
    lines = [f"# stepwell verify {record['system']}", ""]
    if record["quick"]:
        lines += ["*A quick run: it shows that everything runs; its numbers mean nothing.*", ""]
    arguments = ", ".join(f"{k} {v}" for k, v in record["arguments"].items())
    versions = ", ".join(f"{k} {v}" for k, v in record["versions"].items())
    if record["note"]:
        lines += [record["note"], ""]
    lines += [
        f"- command: `{record['command']}`",
        f"- arguments of every arm: {arguments}",
        f"- date: {record['date']}; commit {record['commit']}; {versions}",
        f"- hardware: {record['hardware']}; {record['seconds']:.0f} s of training in all",
        "",
        "## Arms",
        "",
        f"![{'Measures' if table else 'Accuracy'} of every arm]({picture})",
        "",
        *_arms(record["arms"], table or table_by_depth(record["arms"])),
        "",
        "Mean ± sample standard deviation over seeds. Seconds are the arm's own, of the processor: "
        "a teacher's, or a first phase's, are not in them.",
        "",
    ]
    primary = [claim for claim in record["claims"] if claim["primary"]]
    others = [claim for claim in record["claims"] if not claim["primary"]]
    first = 1
    for title, claims in (("Primary claims", primary), ("Controls and other arms", others)):
        if claims:
            numbered = dict(enumerate(claims, first))
            lines += [f"## {title}", "", *_claims(numbered), "", *_numbers(numbered), ""]
            first += len(claims)
    if record["not_run"]:
        lines += [
            "## Not judged: something is missing",
            "",
            *_not_run(record["not_run"]),
            "",
        ]
    return "\n".join(lines).rstrip() + "\n"


def _not_run(claims: Sequence[Mapping[str, Any]]) -> list[str]:
    """The primary claims by their text, the others by their names."""
    lines = [f"- primary: {claim['text']}" for claim in claims if claim["primary"]]
    others = [claim["id"] for claim in claims if not claim["primary"]]
    return lines + ([f"- others: {', '.join(others)}"] if others else [])


def _claims(claims: Mapping[int, Mapping[str, Any]]) -> list[str]:
    """What is judged, a row a claim."""
    lines = [
        "| | claim | paper | measured | 90 % interval | seeds | margin | |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for number, claim in claims.items():
        d = claim["difference"]
        ends = [] if d["low"] is None else [d["low"], d["high"]]
        mean, *ends = sized(d["unit"], d["mean"], *ends)
        span = " to ".join(ends) or "one seed"
        sign = "+" if d["unit"] == "points" and not mean.startswith("-") else ""
        numbers = f"{sign}{mean} {d['unit']}".strip()
        bounds = [m["mean"] for name, m in claim["measured"].items() if name.startswith("bound")]
        if bounds:
            # Of a cost: what an implementation without overhead would take.
            numbers += (
                f" ({next(iter(claim['measured'].values()))['mean'] / bounds[0]:.2f} × the bound)"
            )
        lines.append(
            f"| {number} | {claim['text']} | {claim['paper']} | {numbers} | {span} | {d['n']} | "
            f"{claim['margin']} | {HOLDS[claim['holds']]} |"
        )
    return lines


def _numbers(claims: Mapping[int, Mapping[str, Any]]) -> list[str]:
    """What the arms of every claim measured, and what is to be known of it."""
    lines = ["Behind each number, mean ± sample standard deviation over the claim's seeds:", ""]
    for number, claim in claims.items():
        unit = f" ({claim['unit']})" if claim["unit"] else ""
        measured = "; ".join(
            f"{name}: {_spread(claim['unit'], m)}" for name, m in claim["measured"].items()
        )
        lines.append(f"{number}. {measured}{unit}. {claim['note']}".rstrip())
    return lines


def _spread(unit: str, measured: Mapping[str, Any]) -> str:
    if measured["n"] == 1:
        return sized(unit, measured["mean"])[0]
    return " ± ".join(sized(unit, measured["mean"], measured["std"]))


def _arms(arms: Arms, table: Sequence[Column]) -> list[str]:
    head = ["arm", "seeds", *(column.title for column in table)]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for name, measures in rows(arms, table).items():
        cells = [name, str(measures["seconds"]["n"])]
        cells += [_cell(measures.get(column.key), column.scale, column.form) for column in table]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _cell(measured: Mapping[str, Any] | None, scale: float, form: str) -> str:
    if measured is None:
        return "–"
    mean = format(scale * measured["mean"], form)
    return mean if measured["n"] == 1 else f"{mean} ± {format(scale * measured['std'], form)}"
