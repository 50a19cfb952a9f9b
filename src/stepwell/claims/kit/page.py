"""A study's results as a page of Markdown."""

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from stepwell.claims.kit.inference import CONFIDENCE, MOST_SEEDS, UNEQUAL
from stepwell.claims.kit.study import Column, Question, Study
from stepwell.console import sized

#: Measures by name, of every arm by its name.
Arms = Mapping[str, Mapping[str, Any]]
PERCENT = f"{100 * CONFIDENCE:.0f} %"
RULE = f"""\
How to read a verdict. Each claim names a margin and a side. The judged number is a paired difference
(or a ratio) of two arms at the same seed. *Holds*: its whole interval lies on the claimed side
of the margin. *Refuted*: all of it lies on the other side. *Not decided*: it contains the margin. The
head of each table states the level of its intervals.

Intervals are Student's t over seeds. The spread of the difference is pooled over the study's claims
about the same quantity (`std, pooled`, with its degrees of freedom `df`); `std, own` is this pair's
alone. A pair of arms counts once in a pool, however many claims compare it. Bartlett's test asks at 5 %
whether the pairs of a pool vary alike. Where it says no (‡), the interval is the wider of two: by the
pooled spread, and by the pair's own with n - 1 degrees of freedom. The groups that pool were settled
after the published runs. With k primary claims, each of their intervals is at 1 - 0.1 / k (Bonferroni),
so that all k are right together with {PERCENT}. "To decide" is the number of seeds that would decide
the claim with 80 % power if the measured value were the true one.

Exploratory claims that repeated another one, that nobody would ask, or whose answer followed from the
construction were removed after the published runs (docs/log.md). The tables of arms are complete."""

CAPTION = """\
In the rows of the picture: the interval of a claim, its margin (dashed) and the claimed side
(shaded)."""


def render(record: Mapping[str, Any], study: Study, picture: str) -> str:
    """Write the page: the primary claims, then the arms and exploratory claims of each question.

    Args:
        record: the content of claims.json.
        picture: name of the picture's file, beside the page.
    """
    lines = [f"# stepwell verify {record['system']}", ""]
    if record["quick"]:
        lines += ["*A quick run: it shows that everything runs; its numbers mean nothing.*", ""]
    if record["note"]:
        lines += [record["note"], ""]
    lines += [*_origin(record, study.noun), "", RULE, ""]
    numbered = dict(enumerate(record["claims"], 1))
    primary = {i: claim for i, claim in numbered.items() if claim["primary"]}
    lines += ["## Primary claims, named from the paper's abstract", ""]
    lines += _claims(primary, study) if primary else ["None of them was run here."]
    lines += ["", *_plans(primary.values())]
    lines += [f"![Curves, and intervals of claims]({picture})", "", CAPTION, ""]
    for question, arms, claims in _sections(record, study, numbered):
        lines += [f"## {question.title}", "", *_arms(record, study, arms, question.columns)]
        lines += ["", "Exploratory claims:", "", *_claims(claims, study), ""] if claims else [""]
    lines += _footnotes(record, study)
    if record["not_run"]:
        lines += ["## Not run", "", *_not_run(record["not_run"]), ""]
    return "\n".join(lines).rstrip() + "\n"


def _origin(record: Mapping[str, Any], noun: str) -> list[str]:
    """The command, data, versions and machine of a study."""
    arguments = ", ".join(f"{k} {v}" for k, v in record["arguments"].items())
    versions = ", ".join(f"{k} {v}" for k, v in record["versions"].items())
    lines = [
        f"- command: `{record['command']}`",
        f"- arguments of every arm: {arguments}",
        f"- date: {record['date']}; commit {record['commit']}; {versions}",
        f"- hardware: {record['hardware']}; {record['seconds']:.0f} s of training in all",
    ]
    if data := record.get("data"):
        lines.append(f"- data: {data['layout']}; fingerprint {data['fingerprint']}")
    if examples := record.get("test_examples"):
        noise = 100 * (0.7 * 0.3 / examples) ** 0.5
        lines.append(
            f"- test noise: {examples:,} test {noun} give an accuracy of 70 % a standard error of "
            f"{noise:.1f} points; all arms share these {noun}, and intervals over seeds leave it out"
        )
    return lines


def _sections(
    record: Mapping[str, Any], study: Study, numbered: Mapping[int, Mapping[str, Any]]
) -> Iterable[tuple[Question, list[str], dict[int, Mapping[str, Any]]]]:
    """The study's questions, each with its arms and its exploratory claims; then all that is left."""
    arms = dict.fromkeys(record["arms"])
    claims = {i: claim for i, claim in numbered.items() if not claim["primary"]}
    shown: set[str] = set()
    for question in (*study.questions, Question("Other arms and claims", ("*",), ("*",))):
        last = question.arms == ("*",)
        named = [a for a in arms if _matches(a, question.arms) and not (last and a in shown)]
        asked = {i: claim for i, claim in claims.items() if _matches(claim["id"], question.claims)}
        claims = {i: claim for i, claim in claims.items() if i not in asked}
        columns = question.columns or columns_by_depth(record["arms"])
        shown |= set(named)
        if rows({arm: record["arms"][arm] for arm in named}, columns) or asked:
            yield question, named, asked


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _arms(
    record: Mapping[str, Any], study: Study, arms: Sequence[str], columns: Sequence[Column]
) -> list[str]:
    """A table of arms, with a mark on arms that were trained elsewhere."""
    measured = {arm: record["arms"][arm] for arm in arms}
    columns = columns or columns_by_depth(measured)
    columns = [c for c in columns if any(c.key in measures for measures in measured.values())]
    if not columns:
        return []
    head = ["arm", "seeds", *(column.title for column in columns)]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for name, measures in rows(measured, columns).items():
        mark = " †" * (name in record["elsewhere"])
        cells = [study.title(name) + mark, str(measures["seconds"]["n"])]
        cells += [_cell(measures.get(column.key), column.scale, column.form) for column in columns]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _cell(measured: Mapping[str, Any] | None, scale: float, form: str) -> str:
    if measured is None:
        return "–"
    mean = format(scale * measured["mean"], form)
    return mean if measured["n"] == 1 else f"{mean} ± {format(scale * measured['std'], form)}"


def _footnotes(record: Mapping[str, Any], study: Study) -> list[str]:
    """The arms that were trained elsewhere, by the way in which they differ."""
    lines = [
        "Tables: mean ± sample standard deviation over seeds. Seconds are the processor's, of the arm "
        "alone, without its teacher or first phase.",
        "",
    ]
    for why in dict.fromkeys(record["elsewhere"].values()):
        arms = [study.title(a) for a, reason in record["elsewhere"].items() if reason == why]
        lines.append(f"† {why}, so that differences from other arms are no pairs: {'; '.join(arms)}.")
        lines.append("")
    return lines


def _claims(claims: Mapping[int, Mapping[str, Any]], study: Study) -> list[str]:
    """A table of claims, and the numbers of their arms."""
    level = next(iter(claims.values()))["difference"]["level"]
    lines = [
        f"| | claim | paper | measured | {100 * level:.3g} % interval | n | std, own | std, "
        "pooled (df) | verdict | to decide |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [_row(number, claim) for number, claim in claims.items()]
    return [*lines, "", *(_numbers(number, claim, study) for number, claim in claims.items())]


def _row(number: int, claim: Mapping[str, Any]) -> str:
    judged = claim["difference"]
    has_interval = judged["low"] is not None
    values = [judged["mean"], judged["std"]]
    values += [judged["low"], judged["high"], judged["pooled_std"]] if has_interval else []
    mean, std, *rest = sized(judged["unit"], *values)
    sign = "+" if judged["unit"] == "points" and not mean.startswith("-") else ""
    span = f"{rest[0]} to {rest[1]}" if has_interval else "–"
    unequal = " ‡" * ((judged.get("equal_spreads") or 1.0) < UNEQUAL)
    pooled = f"{rest[2]} ({judged['df']:.1f}){unequal}" if has_interval else "–"
    means = {name: m["mean"] for name, m in claim["measured"].items()}
    bounds = [value for name, value in means.items() if name.startswith("bound")]
    times = f" ({next(iter(means.values())) / bounds[0]:.2f} × the bound)" if bounds else ""
    cells = (
        f"{number}", claim["text"], claim["paper"], f"{sign}{mean} {judged['unit']}".strip() + times,
        span, f"{judged['n']}", std, pooled, f"**{claim['verdict']}**", _to_decide(claim),
    )  # fmt: skip
    return f"| {' | '.join(cells)} |"


def _to_decide(claim: Mapping[str, Any]) -> str:
    """The seeds that would decide a claim that is not decided."""
    if claim["verdict"] != "not decided":
        return ""
    if claim["planned"]["power"] is None:
        return "a pair, or more than one seed"
    seeds = claim["planned"]["to_decide"]
    return f"{seeds} seeds" if seeds else f"over {MOST_SEEDS:,} seeds"


def _plans(claims: Iterable[Mapping[str, Any]]) -> list[str]:
    """For each primary claim the seeds that it takes, and the power of the seeds that were run."""
    lines = []
    for claim in claims:
        plan, judged = claim["planned"], claim["difference"]
        if plan["power"] is not None:
            (true,) = sized(judged["unit"], plan["true_value"])
            lines.append(
                f"- `{claim['id']}`: if the true value is {true} {judged['unit']}, "
                f"{plan['seeds'] or f'over {MOST_SEEDS:,}'} seeds decide with 80 % power; "
                f"{judged['n']} seeds do with {100 * plan['power']:.0f} %."
            )
    return ["Planned seeds:", "", *lines, ""] if lines else []


def _numbers(number: int, claim: Mapping[str, Any], study: Study) -> str:
    """The arms' numbers behind a claim, and its note."""
    unit = f" ({claim['unit']})" if claim["unit"] else ""
    measured = "; ".join(
        f"{study.title(name)}: {_spread(claim['unit'], m)}" for name, m in claim["measured"].items()
    )
    return f"{number}. {measured}{unit}. {claim['note']}".rstrip()


def _spread(unit: str, measured: Mapping[str, Any]) -> str:
    if measured["n"] == 1:
        return sized(unit, measured["mean"])[0]
    return " ± ".join(sized(unit, measured["mean"], measured["std"]))


def _not_run(claims: Sequence[Mapping[str, Any]]) -> list[str]:
    """The primary claims by their text, the others by their names."""
    lines = [f"- primary: {claim['text']}" for claim in claims if claim["primary"]]
    others = [f"`{claim['id']}`" for claim in claims if not claim["primary"]]
    return lines + ([f"- exploratory: {', '.join(others)}"] if others else [])


def columns_by_depth(arms: Arms) -> list[Column]:
    """Accuracy, likelihood, calibration and agreement of every depth, and the processor's seconds."""
    kinds = (
        ("accuracy", 100.0, ".2f"), ("nll", 1.0, ".3f"), ("ece", 1.0, ".3f"),
        ("agreement", 100.0, ".1f"),
    )  # fmt: skip
    depths = {name.split("/")[0] for arm in arms.values() for name in arm if name.endswith("/accuracy")}
    columns = [
        Column(f"{depth}/{kind}", f"{depth} {kind}", scale, form)
        for depth in sorted(depths, key=lambda depth: (len(depth), depth))
        for kind, scale, form in kinds
    ]
    return [*columns, Column("cpu_seconds", "seconds", 1.0, ".0f")]


def rows(arms: Arms, columns: Sequence[Column]) -> dict[str, Mapping[str, Any]]:
    """The arms that have any of the columns."""
    keys = {column.key for column in columns}
    return {name: measures for name, measures in arms.items() if keys & measures.keys()}
