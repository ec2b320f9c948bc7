"""One look for every figure of the curriculum, shared by its interactive and its static form.

Live figures are transparent, with text of a grey that reads equally well on white and near-black.
Static pictures bring their own white paper, on which dark text reads better than any such grey.
Colours are safe for colour-blind readers: a red-blue diverging scale whose middle, always at zero,
is nearly white, and the Okabe-Ito hues for series.
"""

from __future__ import annotations

# Contrast 4.4 : 1 against white and 4.3 : 1 against GitHub's dark page. No grey does better on
# both: the best possible is the square root of their own contrast, 18.9 : 1, which is 4.35.
TEXT = "#787878"
PAPER, INK = "#ffffff", "#595959"  # of static pictures: 7 : 1
GRID = "rgba(128,128,128,0.25)"
GRID_STATIC = (0.5, 0.5, 0.5, 0.25)
FONT_SIZE = 12
TITLE_SIZE = 15

# ColorBrewer RdBu: negative red, zero nearly white, positive blue.
DIVERGING = (
    "#67001f", "#b2182b", "#d6604d", "#f4a582", "#fddbc7", "#f7f7f7",
    "#d1e5f0", "#92c5de", "#4393c3", "#2166ac", "#053061",
)  # fmt: skip
STRONG = 0.6  # of the largest magnitude: from here on a number in a cell is white, not black
MISSING = "#d0d0d0"  # also the hairlines between cells
MIDDLE = len(DIVERGING) // 2

# Okabe and Ito's palette without black and yellow, which vanish on one of the two backgrounds.
FAINT = 0.13  # opacity of a box's filling
OTHER = "#8c8c8c"  # a seventh, which no series has
SERIES = ("#1f83c4", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")


def colours_between(low: float) -> tuple[str, ...]:
    """The diverging scale, or its upper half where the data begin at zero (`low` = 0)."""
    return DIVERGING if low < 0 else DIVERGING[MIDDLE:]


def series_colour(index: int) -> str:
    """The colour of the `index`-th series; they repeat after six."""
    return SERIES[index % len(SERIES)]


def faint(colour: str) -> str:
    """A hexadecimal colour, nearly transparent, for a box filled with its frame's colour."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{FAINT})"
