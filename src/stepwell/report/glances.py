"""The page's section about where a network looks."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stepwell.colours import OKABE_ITO
from stepwell.report.figures import Figure, picture, svg
from stepwell.report.markup import as_percent, figure, table
from stepwell.report.run_record import RunRecord, as_mapping, number, read_arrays
from stepwell.report.sections import grid


class Words(NamedTuple):
    """The page's words about glances, or about frames.

    whole, part: what the first glance and a later one see. way: the range of a place.
    counted: the title of the counts of places. controls: places besides those of the results.
    """

    whole: str
    part: str
    way: str
    counted: str
    controls: Mapping[str, str]


CROPS = Words(
    "the whole image", "square", "way that a square can move",
    "How many images have a glance's top left corner where",
    {"others": "places of another image", "random": "random places", "fixed": "fixed places"},
)  # fmt: skip
FRAMES = Words(
    "all frames", "frame", "length of a clip", "How many clips have a glance's frame where",
    {"others": "frames of another clip", "random": "random frames", "fixed": "frames spread evenly"},
)  # fmt: skip
#: By recipe.
WORDS = {"glance": CROPS, "frames": FRAMES}
#: Pictures with their glances, at most.
SHOWN = 12


def glances_section(run: RunRecord, colours: Mapping[str, str]) -> str:
    """Show the accuracy after every glance, with crops here and elsewhere, and where they are."""
    results = run.system_results("glance")
    side, apart = number(results.get("side")), number(results.get("apart"))
    looks = results.get("looks")
    if side is None:
        return ""
    placed = {"random": "at random", "fixed": "at fixed places"}.get(str(results.get("where")), "")
    words = WORDS.get(run.recipe, CROPS)
    text = (
        f"The first glance sees {words.whole}, scaled to {side:g} pixels; each later one sees a "
        f"{words.part} of {side:g} pixels, placed {placed or 'by the policy'}."
    )
    if apart is not None:
        text += (
            f" Over the test part, places vary by {apart:.2f} of the {words.way} (random ones by 0.29)."
        )
    parts = ["<h3>Where the network looks</h3>", f"<p>{escape(text)}</p>"]
    if isinstance(looks, Sequence) and not isinstance(looks, str):
        controls = {name: as_mapping(results.get(key)) for key, name in words.controls.items()}
        rows = [
            [row, as_percent(run.score(row, "accuracy"))]
            + [as_percent(number(accuracies.get(row))) for accuracies in controls.values()]
            for row in run.rows
        ]
        parts.append(table(["glances", "accuracy, placed by the policy", *controls], rows, ""))
        drawn = _looks([np.array(look, float) for look in looks])
        parts.append(figure(drawn, words.counted))
    return "\n".join([*parts, grid(_pictures(run, int(side)))])


def _looks(counts: list[NDArray[np.float64]]) -> str:
    def paint(whole: Figure) -> None:
        for i, glance in enumerate(counts, start=1):
            axes = whole.add_subplot(1, len(counts), i)
            axes.imshow(glance, cmap="Blues", vmin=0)
            axes.set(title=f"glance {i + 1}", xticks=[], yticks=[])

    return svg(1.8 * len(counts), 2.1, paint)


def _pictures(run: RunRecord, side: int) -> list[str]:
    """Examples with a frame around every glance, the first crop's the lightest."""
    examples = run.predictions
    try:
        places = read_arrays(run.path / "predictions.npz", "", ["places"])["places"]
    except ValueError:
        return []  # the rest of the page says what is wrong with the file
    if examples is None:
        return []
    cards: list[str] = []
    for i, pixels in zip(examples.image_index, examples.shown, strict=True):
        if not isinstance(pixels, str) and i < len(places) and len(cards) < SHOWN:
            name = escape(run.class_name(int(examples.labels[i])))
            image = picture(framed(pixels, places[i], side))
            cards.append(
                f'<figure class="example"><img class="pixels" src="{image}" alt="{name}">'
                f"<figcaption>{name}</figcaption></figure>"
            )
    return cards


def framed(pixels: NDArray[np.uint8], places: NDArray[np.float64], side: int) -> NDArray[np.uint8]:
    """A picture with a line of one pixel around every crop, or every frame of a clip."""
    drawn = pixels.copy()
    rgb = [[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in OKABE_ITO]
    height, width = pixels.shape[:2]
    for place, colour in zip(np.clip(places, 0, 1), rgb, strict=False):
        if len(place) == 1:
            across, count = width // side, (width // side) * (height // side)
            index = min(int(place[0] * count), count - 1)
            top, left = index // across * side, index % across * side
        else:
            top, left = int(place[0] * (height - side)), int(place[1] * (width - side))
        bottom, right = top + side - 1, left + side - 1
        drawn[[top, bottom], left : right + 1] = colour
        drawn[top : bottom + 1, [left, right]] = colour
    return drawn
