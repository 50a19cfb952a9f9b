"""Tables, figures and numbers as the page writes them."""

import math
from collections.abc import Callable, Iterable, Sequence
from html import escape
from typing import Any

from stepwell.measures import Measure, duration, number_in
from stepwell.report.run_record import finite, number

ABSENT = "–"


class Html(str):
    """Markup; tables escape every other string."""


def figure(address: str | None, caption: str) -> str:
    """Wrap a picture in a figure with a caption; without a picture, give nothing."""
    if address is None:
        return ""
    text = escape(caption)
    return (
        f'<figure class="plot"><img src="{address}" alt="{text}">'
        f"<figcaption>{text}</figcaption></figure>"
    )


def table(head: Sequence[str], rows: Iterable[Sequence[str]], note: str = "", *, words: int = 1) -> str:
    """Make a table, which scrolls sideways if it is too wide, with a note below it.

    Its first `words` columns are aligned as words, the others as numbers.
    """

    def row_of(tag: str, cells: Sequence[str]) -> str:
        shown = ""
        for i, text in enumerate(cells):
            kind = ' class="word"' if i < words else ""
            shown += f"<{tag}{kind}>{text if isinstance(text, Html) else escape(text)}</{tag}>"
        return f"<tr>{shown}</tr>"

    top = row_of("th", head)
    body = "".join(row_of("td", row) for row in rows)
    below = f'<p class="note">{escape(note)}</p>' if note else ""
    return (
        f'<div class="table" tabindex="0"><table><thead>{top}</thead>'
        f"<tbody>{body}</tbody></table></div>{below}"
    )


def warning(text: str) -> str:
    """Make a highlighted paragraph."""
    return f'<p class="warning">{escape(text)}</p>'


def written(measure: Measure, value: Any) -> str:
    """Write a measured value as the page shows it, without the unit if the title says it."""
    forms: dict[str, Callable[[Any], str]] = {
        "blocks": as_blocks, "count": as_count, "ms": as_ms,
        "percent": lambda share: as_percent(number(share)),
        "times": lambda ratio: f"{finite(ratio):.2f} ×",
    }  # fmt: skip
    if measure.unit in forms:
        return forms[measure.unit](value)
    return _known(number(value), lambda x: number_in(measure.unit, x, measure.digits))


def _known(value: float | None, form: Callable[[float], str]) -> str:
    return ABSENT if value is None else "NaN" if math.isnan(value) else form(value)


def as_blocks(value: Any) -> str:
    """[3, 3, 3] as 3-3-3."""
    if value is None:
        return ABSENT
    return "-".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def as_percent(value: float | None) -> str:
    """0.974 as 97.4%."""
    return _known(value, lambda share: f"{100 * share:.1f}%")


def as_decimal(value: float | None) -> str:
    """Three decimals."""
    return _known(value, "{:.3f}".format)


def as_ms(value: Any) -> str:
    """Milliseconds to three digits, without the unit."""
    ms = finite(value)
    if math.isnan(ms):
        return ABSENT
    return f"{ms:.0f}" if ms >= 100 else f"{ms:.3g}"


def as_count(value: Any) -> str:
    """2500000 as 2.5 M."""
    count = finite(value)
    if math.isnan(count):
        return ABSENT
    for size, unit in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if count >= size:
            return f"{count / size:.3g}{unit}"
    return f"{count:g}"


def as_duration(value: Any) -> str:
    """Seconds in the unit a person would say; empty where there are none."""
    seconds = finite(value)
    return "" if math.isnan(seconds) else duration(seconds)
