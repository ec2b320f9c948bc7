"""What a figure shows, apart from how it is drawn: panels of plain numpy data with labels.

A `Panel` is one pair of axes holding a heat map, a list of series or a drawing. The two renderers
(`interactive`, `static`) and the text summary all read the same panels, and all take their geometry
from `arrange`, so the three forms of a figure cannot drift apart.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float

Kind = Literal["heatmap", "line", "bar", "scatter", "histogram", "diagram"]
Array = Float[torch.Tensor, " *shape"] | Float[np.ndarray, " *shape"] | Sequence[Any]


@dataclass(frozen=True)
class Axis:
    """An axis: its title, and the names of its places where it has names rather than numbers."""

    title: str = ""
    names: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Series:
    """One set of points: `x` and `y` of equal length, a name for each point, error bars.

    `error` is how far the bars reach, below the point and above it.
    """

    name: str
    x: Float[np.ndarray, " point"]
    y: Float[np.ndarray, " point"]
    labels: tuple[str, ...] | None = None
    error: Float[np.ndarray, "below_above point"] | None = None


@dataclass(frozen=True)
class Rectangle:
    """A box of a drawing, faintly filled with the colour of its frame; in pixels."""

    left: float
    top: float
    width: float
    height: float
    colour: str
    dashed: bool = False


@dataclass(frozen=True)
class Label:
    """A line of text of a drawing: the place of its middle, or of its left end, in pixels.

    What is said when one hovers over it stands in `hover`.
    """

    x: float
    y: float
    text: str
    size: int = 11
    align: Literal["center", "left"] = "center"
    hover: str = ""


@dataclass(frozen=True)
class Drawing:
    """Boxes, arrows and text instead of axes: in pixels from the top left, y growing downwards.

    `rules` are the heights of lines across the whole width, `arrows` go from (x0, y0) to (x1, y1),
    and `lines` are the drawing in words, for the summary.
    """

    width: float
    height: float
    rectangles: tuple[Rectangle, ...] = ()
    rules: tuple[float, ...] = ()
    arrows: tuple[tuple[float, float, float, float], ...] = ()
    labels: tuple[Label, ...] = ()
    lines: tuple[str, ...] = ()


@dataclass(frozen=True)
class Panel:
    """One pair of axes.

    A heat map fills `values` (first row drawn on top) and `cells`, the name of every cell, by which
    hovering and the summary call it, and `numbers`, what is written into each, where it is to be
    read as a table. The other kinds fill `series`; a histogram keeps the raw values as well, in
    `samples`, because its summary speaks of them and not of bins. The points of a scatter plot
    whose labels are in `named` have their name beside them. A diagram has a `drawing` only.
    """

    kind: Kind
    x: Axis
    y: Axis
    title: str = ""
    unit: str = ""
    values: Float[np.ndarray, "row column"] | None = None
    cells: tuple[tuple[str, ...], ...] | None = None
    numbers: tuple[tuple[str, ...], ...] | None = None
    limit: float | None = None
    series: tuple[Series, ...] = ()
    samples: tuple[Float[np.ndarray, " value"], ...] = ()
    named: tuple[str, ...] = ()
    diagonal: bool = False
    square: bool = False  # x and y on one range, in an area as high as it is wide
    drawing: Drawing | None = None

    @property
    def n_values(self) -> int:
        """How many cells and points are drawn."""
        cells = 0 if self.values is None else self.values.size
        return cells + sum(len(series.x) for series in self.series)


def to_numpy(values: Array | float, ndim: int, what: str) -> Float[np.ndarray, " *shape"]:
    """Turn tensors, arrays or (nested) lists into a float64 array with `ndim` axes.

    Raises ValueError when the values are not numbers or have another number of axes.
    """
    if isinstance(values, torch.Tensor):
        array = values.detach().to(device="cpu", dtype=torch.float64).numpy()
    else:
        try:
            array = np.asarray(
                [to_numpy(v, 0, what) for v in values]
                if isinstance(values, (list, tuple)) and any(torch.is_tensor(v) for v in values)
                else values,
                dtype=np.float64,
            )
        except (TypeError, ValueError):
            raise ValueError(
                f"{what} must be numbers in equal rows; pass a tensor, an array or a list of them."
            ) from None
    if array.ndim != ndim:
        raise ValueError(
            f"{what} must have {ndim} axes but has shape {list(array.shape)}; "
            "average over or select from the others first."
        )
    if array.size == 0:
        raise ValueError(f"{what} is empty; there is nothing to draw.")
    return array


def names_for(labels: Sequence[Any] | None, length: int, what: str) -> tuple[str, ...]:
    """Labels as strings, checked against the axis they name; 0, 1, 2, ... where none are given."""
    if labels is None:
        return tuple(str(i) for i in range(length))
    names = tuple(show_token(str(label)) for label in labels)
    if len(names) != length:
        raise ValueError(f"{what} needs {length} labels, one a place, but got {len(names)}.")
    return names


def distinct(names: Sequence[str]) -> tuple[str, ...]:
    """The names, stripped, and those that occur more than once with their place: Mary(4)."""
    stripped = [name.strip() for name in names]
    return tuple(f"{n}({i})" if stripped.count(n) > 1 else n for i, n in enumerate(stripped))


def show_token(token: str) -> str:
    """A token as it can stand on one line: newlines and tabs are spelled out."""
    return token.replace("\n", "\\n").replace("\t", "\\t")


def colour_range(panels: Sequence[Panel]) -> tuple[float, float]:
    """Ends of the colour scale for these heat maps: -m and m, m the largest magnitude.

    Where nothing is negative (attention, scores) the upper half of the scale is enough: 0 and m.
    """
    values = np.concatenate([[0.0]] + [p.values.ravel() for p in panels if p.values is not None])
    values = values[np.isfinite(values)]
    stated = [p.limit for p in panels if p.limit is not None]
    limit = float(max(stated) if stated else np.abs(values).max()) or 1.0
    return (-limit if values.min() < -1e-3 * limit else 0.0), limit


def square_range(panels: Sequence[Panel]) -> tuple[float, float]:
    """One range that holds x and y of all points of these panels, with a margin around them."""
    values = np.concatenate([[]] + [v for p in panels for s in p.series for v in (s.x, s.y)])
    values = values[np.isfinite(values)]
    if not values.size:
        return 0.0, 1.0
    margin = 0.05 * (float(np.ptp(values)) or 1.0)
    return float(values.min()) - margin, float(values.max()) + margin


THIN, WIDER = 1.5, 2.0  # pixels: a line, and what one that would be hidden is wider by
HIDDEN = 0.01  # of the range of y: how near two lines are that look like one


def line_widths(panel: Panel) -> tuple[float, ...]:
    """How wide to draw each line: one is drawn over those before it, so that these are wider where
    it runs along them from one point to the next, and show on either side."""
    if panel.kind != "line":
        return (THIN,) * len(panel.series)
    values = np.concatenate([series.y for series in panel.series])
    near = HIDDEN * float(np.nanmax(values) - np.nanmin(values))

    def hides(over: Series, under: Series) -> bool:
        if not np.array_equal(over.x, under.x):
            return False
        same = np.abs(over.y - under.y) <= near
        return bool((same[1:] & same[:-1]).any())

    return tuple(
        THIN + WIDER * sum(hides(over, under) for over in panel.series[order + 1 :])
        for order, under in enumerate(panel.series)
    )


@dataclass(frozen=True)
class Place:
    """Where a panel stands, in pixels from the picture's left and top edge."""

    left: float
    top: float
    width: float
    height: float
    x_ticks: Ticks | None
    y_ticks: Ticks | None
    colour_bar: bool
    colours: tuple[float, float]
    same_y: bool  # drawn on the y range of the first panel
    both: tuple[float, float] | None  # the range of both axes, where they are square


@dataclass(frozen=True)
class Ticks:
    """Which places of a named axis get a tick, what stands there, and whether it is turned."""

    positions: tuple[int, ...]
    texts: tuple[str, ...]
    turned: bool = False

    @property
    def longest(self) -> int:
        """Length in characters of the longest text."""
        return max((len(t) for t in self.texts), default=0)


@dataclass(frozen=True)
class Arrangement:
    """Size of the whole picture in pixels, its wrapped title lines and the panels' places."""

    width: float
    height: float
    title_lines: tuple[str, ...]
    note_lines: tuple[str, ...]
    legend_top: float | None
    places: tuple[Place, ...]


CHARACTER = 7.0  # width in pixels of a character at the figures' font size, on the wide side
LINE = 15.0  # height of a line of text
TITLE_LINE = 20.0  # and of the title
TITLE_WIDENING = 1.25  # the title is set larger than other text
LEGEND_LINE = 20.0
LEGEND_MARK = 42.0  # width of a legend's mark, with the room around it
COLUMNS = 3  # panels side by side before a new row begins


def arrange(
    panels: Sequence[Panel], title: str, note: str = "", share_scale: bool = True
) -> Arrangement:
    """Compute the geometry that both renderers use.

    `share_scale` gives all heat maps one colour scale, and one bar at the right for it; all other
    panels, where none is a heat map, one range of y; and panels with square axes one range.
    """
    # Drawings are as wide as they must be, so each gets a row of its own.
    drawn = any(panel.drawing for panel in panels)
    columns = 1 if drawn else min(COLUMNS, len(panels))
    frames = _frames(panels, columns, share_scale)
    column_left = [max(f.left for f in frames[c::columns]) for c in range(columns)]
    column_right = [max(f.width + f.right for f in frames[c::columns]) for c in range(columns)]
    width = max(sum(column_left) + sum(column_right), 360.0)

    per_line = max(int(width / (CHARACTER * TITLE_WIDENING)), 20)
    title_lines = tuple(textwrap.wrap(title, per_line))
    note_lines = tuple(textwrap.wrap(note, int(width / CHARACTER)))
    top = 12 + TITLE_LINE * len(title_lines) + LINE * len(note_lines)
    names = {s.name for p in panels for s in p.series}
    legend_top = top if len(names) > 1 else None
    if legend_top is not None:
        top += 4 + LEGEND_LINE * math.ceil(len(names) / legend_columns(names, width))
    above = 26.0 if any(p.title for p in panels) else 8.0

    shared = _Scales.of(panels)
    places = []
    for first in range(0, len(panels), columns):
        row = range(first, min(first + columns, len(panels)))
        x = 0.0
        for c, i in enumerate(row):
            scales = shared if share_scale else _Scales.of([panels[i]])
            places.append(
                Place(
                    left=x + column_left[c],
                    top=top + above,
                    width=frames[i].width,
                    height=frames[i].height,
                    x_ticks=frames[i].x_ticks,
                    y_ticks=frames[i].y_ticks,
                    colour_bar=frames[i].colour_bar,
                    colours=scales.colours,
                    same_y=share_scale and i > 0 and not shared.heat and not drawn,
                    both=scales.both if panels[i].square else None,
                )
            )
            x += column_left[c] + column_right[c]
        top += above + max(frames[i].height + frames[i].below for i in row)
    return Arrangement(width, top, title_lines, note_lines, legend_top, tuple(places))


def legend_columns(names: Collection[str], width: float) -> int:
    """How many of these names stand in a line of a legend so wide: all, if they fit."""
    if sum(LEGEND_MARK + CHARACTER * len(name) for name in names) <= width:
        return len(names)
    return max(int(width // (LEGEND_MARK + CHARACTER * max(map(len, names)))), 1)


@dataclass(frozen=True)
class _Frame:
    """What one panel needs, in pixels: the area inside its axes and the margins around it."""

    width: float
    height: float
    x_ticks: Ticks | None
    y_ticks: Ticks | None
    colour_bar: bool
    left: float
    right: float
    below: float


def _frames(panels: Sequence[Panel], columns: int, share_scale: bool) -> list[_Frame]:
    heat = [i for i, panel in enumerate(panels) if panel.kind == "heatmap"]
    # The bar of a common scale stands at the right end of the first row.
    with_bar = ([i for i in heat if i < columns] or heat)[-1:] if share_scale else heat
    frames = []
    for i, panel in enumerate(panels):
        width, height = _size(panel, len(panels))
        x_ticks, y_ticks = _ticks(panel, width, height)
        if i % columns and panel.y == panels[i - 1].y and panel.y.names is not None:
            y_ticks = Ticks((), ())  # the neighbour to the left shows the same labels already
        frames.append(
            _Frame(
                width,
                height,
                x_ticks,
                y_ticks,
                colour_bar=i in with_bar,
                left=_left_margin(panel, y_ticks),
                right=92.0 if i in with_bar else 14.0,
                below=_bottom_margin(panel, x_ticks),
            )
        )
    return frames


@dataclass(frozen=True)
class _Scales:
    """The scales that panels have in common: colours, and the range of both square axes."""

    heat: bool
    colours: tuple[float, float]
    both: tuple[float, float]

    @classmethod
    def of(cls, panels: Sequence[Panel]) -> _Scales:
        heat = [panel for panel in panels if panel.kind == "heatmap"]
        return cls(bool(heat), colour_range(heat), square_range([p for p in panels if p.square]))


def _size(panel: Panel, neighbours: int) -> tuple[float, float]:
    """Width and height of the area inside the axes."""
    if panel.drawing is not None:
        return panel.drawing.width, panel.drawing.height
    if panel.values is not None:
        rows, columns = panel.values.shape
        widest = {1: 640.0, 2: 380.0}.get(neighbours, 290.0)
        return (
            float(np.clip(34 * columns, 150, widest)),
            float(np.clip(26 * rows, 60, 380 if rows <= 40 else 720)),
        )
    if panel.square:
        side = {1: 380.0, 2: 340.0}.get(neighbours, 280.0)
        return side, side
    return {1: 620.0, 2: 360.0}.get(neighbours, 280.0), 300.0


def _ticks(panel: Panel, width: float, height: float) -> tuple[Ticks | None, Ticks | None]:
    x = None
    if panel.x.names is not None:
        step_width = width / len(panel.x.names)
        longest = max(len(n) for n in panel.x.names)
        turned = longest * CHARACTER > step_width - 2 and longest > 2
        needed = LINE - 2 if turned else min(longest, 2) * CHARACTER + 3
        x = _every(panel.x.names, math.ceil(needed / step_width), turned)
    y = None
    if panel.y.names is not None:
        y = _every(panel.y.names, math.ceil((LINE - 2) / (height / len(panel.y.names))), False)
    return x, y


def _every(names: tuple[str, ...], step: int, turned: bool) -> Ticks:
    positions = tuple(range(0, len(names), max(step, 1)))
    texts = tuple(textwrap.shorten(names[i].strip(), 20, placeholder="...") for i in positions)
    return Ticks(positions, texts, turned)


def _left_margin(panel: Panel, ticks: Ticks | None) -> float:
    if panel.drawing is not None:
        return 0
    if ticks is not None and not ticks.positions:
        return 10
    numbers = (ticks.longest if ticks is not None else 5) * CHARACTER
    return numbers + 14 + (18 if panel.y.title else 0)


def _bottom_margin(panel: Panel, ticks: Ticks | None) -> float:
    if panel.drawing is not None:
        return 0
    labels = ticks.longest * CHARACTER if ticks is not None and ticks.turned else LINE
    return labels + 14 + (20 if panel.x.title else 0)
