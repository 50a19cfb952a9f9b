"""The page's section about tokens that a recurrent network skips."""

from collections.abc import Mapping, Sequence
from html import escape

from stepwell.measures import TOKENS_SPEED
from stepwell.report.markup import as_count, as_percent
from stepwell.report.run_record import RunRecord, number
from stepwell.report.sections import speed_table


def sequences_section(run: RunRecord, colours: Mapping[str, str] | None = None) -> str:
    """Show how many tokens are read, some texts with the skipped ones in grey, and the speed."""
    found = run.own("sequences")
    texts = found.get("texts")
    used, length = (number(found.get(key)) for key in ("used", "length"))
    if used is None or length is None or not isinstance(texts, Sequence):
        return ""
    words = (
        f"A text updates the state {used:.1f} times on average, at "
        f"{as_percent(number(found.get('share')))} of its {length:.1f} tokens, and costs "
        f"{as_percent(number(found.get('cost')))} of the MACs of all. The gate takes "
        f"{as_count(found.get('gate_macs'))} MACs of them. With at least as many other tokens, the "
        f"accuracy is {as_percent(number(found.get('random_accuracy')))} at random ones, and "
        f"{as_percent(number(found.get('even_accuracy')))} at evenly spaced ones."
    )
    rows = "\n".join(f"<li>{_words(one)}</li>" for one in texts if isinstance(one, Sequence))
    parts = [
        "<h3>Skipped tokens</h3>", f"<p>{escape(words)}</p>",
        "<p>Some test texts; skipped tokens are grey.</p>", f"<ul>{rows}</ul>",
    ]  # fmt: skip
    return "\n".join(filter(None, (*parts, speed_table(found, TOKENS_SPEED))))


def _words(tokens: Sequence[object]) -> str:
    """A text; skipped tokens are grey."""
    shown = []
    for one in tokens:
        if isinstance(one, Sequence) and len(one) == 2:
            word, read = escape(str(one[0])), bool(one[1])
            shown.append(f"<b>{word}</b>" if read else f'<span style="color:#8a8a8a">{word}</span>')
    return " ".join(shown)
