"""The page's section about tokens that a recurrent network skips."""

from collections.abc import Mapping, Sequence
from html import escape

from stepwell.measures import TOKENS_SPEED
from stepwell.report.markup import as_count, as_percent
from stepwell.report.run_record import RunRecord, number
from stepwell.report.sections import speed_table


def sequences_section(run: RunRecord, colours: Mapping[str, str] | None = None) -> str:
    """Show how many tokens are read, some texts with the skipped ones in grey, and the speed."""
    results = run.system_results("sequences")
    texts = results.get("texts")
    used, length = (number(results.get(key)) for key in ("used", "length"))
    if used is None or length is None or not isinstance(texts, Sequence):
        return ""
    words = (
        f"A text updates the state {used:.1f} times on average, at "
        f"{as_percent(number(results.get('share')))} of its {length:.1f} tokens, and costs "
        f"{as_percent(number(results.get('cost')))} of the MACs of all. The gate takes "
        f"{as_count(results.get('gate_macs'))} MACs of them. With at least as many other tokens, the "
        f"accuracy is {as_percent(number(results.get('random_accuracy')))} at random ones, and "
        f"{as_percent(number(results.get('even_accuracy')))} at evenly spaced ones."
    )
    rows = "\n".join(f"<li>{_words(text)}</li>" for text in texts if isinstance(text, Sequence))
    parts = [
        "<h3>Skipped tokens</h3>", f"<p>{escape(words)}</p>",
        "<p>Some test texts; skipped tokens are grey.</p>", f"<ul>{rows}</ul>",
    ]  # fmt: skip
    return "\n".join(filter(None, (*parts, speed_table(results, TOKENS_SPEED))))


def _words(tokens: Sequence[object]) -> str:
    """A text; skipped tokens are grey."""
    shown = []
    for token in tokens:
        if isinstance(token, Sequence) and len(token) == 2:
            word, read = escape(str(token[0])), bool(token[1])
            shown.append(f"<b>{word}</b>" if read else f'<span style="color:#8a8a8a">{word}</span>')
    return " ".join(shown)
