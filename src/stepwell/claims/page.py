"""A study's results as a page of Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any

from stepwell.claims.figure import depths_of

HOLDS = {True: "**holds**", False: "**does not hold**", None: "undecided"}


def render(record: Mapping[str, Any]) -> str:
    """The page beside claims.json: arms, then each claim, paper beside measured."""
    lines = [f"# stepwell verify {record['system']}", ""]
    if record["quick"]:
        lines += ["*A quick run: it shows that everything runs; its numbers mean nothing.*", ""]
    arguments = ", ".join(f"{k} {v}" for k, v in record["arguments"].items())
    versions = ", ".join(f"{k} {v}" for k, v in record["versions"].items())
    lines += [
        f"- command: `{record['command']}`",
        f"- arguments of every arm: {arguments}",
        f"- date: {record['date']}; commit {record['commit']}; {versions}",
        f"- hardware: {record['hardware']}; {record['seconds']:.0f} s of training in all",
        "",
        "## Arms",
        "",
        f"![Accuracy of every arm]({record['system']}.svg)",
        "",
        *_arms(record["arms"]),
        "",
        "Mean ± sample standard deviation over seeds. Seconds are the arm's own, of the processor: "
        "a teacher's, or a first phase's, are not in them.",
        "",
    ]
    primary = [claim for claim in record["claims"] if claim["primary"]]
    others = [claim for claim in record["claims"] if not claim["primary"]]
    for title, claims in (("Primary claims", primary), ("Controls and other arms", others)):
        if claims:
            lines += [f"## {title}", "", *_claims(claims), ""]
    return "\n".join(lines).rstrip() + "\n"


def _claims(claims: Sequence[Mapping[str, Any]]) -> list[str]:
    rows = [
        "| claim | paper | measured | 90 % interval | margin | |",
        "|---|---|---|---|---|---|",
    ]
    for claim in claims:
        d = claim["difference"]
        span = "one seed" if d["low"] is None else f"{d['low']:.2f} to {d['high']:.2f}"
        rows.append(
            f"| {claim['text']} | {claim['paper']} | {d['mean']:+.2f} | {span} | "
            f"{claim['margin']} | {HOLDS[claim['holds']]} |"
        )
    return rows


def _arms(arms: Mapping[str, Mapping[str, Any]]) -> list[str]:
    depths = depths_of(arms)
    kinds = (
        ("accuracy", 100.0, ".2f"),
        ("nll", 1.0, ".3f"),
        ("ece", 1.0, ".3f"),
        ("agreement", 100.0, ".1f"),
    )
    head = ["arm", "seeds", *(f"{d} {kind}" for d in depths for kind, _, _ in kinds), "seconds"]
    rows = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for name, measures in arms.items():
        cells = [name, str(measures["seconds"]["n"])]
        cells += [
            _cell(measures.get(f"{depth}/{kind}"), scale, form)
            for depth in depths
            for kind, scale, form in kinds
        ]
        cells.append(_cell(measures["cpu_seconds"], 1.0, ".0f"))
        rows.append("| " + " | ".join(cells) + " |")
    return rows


def _cell(measured: Mapping[str, Any] | None, scale: float, form: str) -> str:
    if measured is None:
        return "–"
    mean = format(scale * measured["mean"], form)
    return mean if measured["n"] == 1 else f"{mean} ± {format(scale * measured['std'], form)}"
