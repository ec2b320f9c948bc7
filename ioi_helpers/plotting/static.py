"""The static form of a figure: a PNG drawn by matplotlib, with no browser involved.

The picture stands where scripts cannot run: GitHub's viewer, a printed page, a slide. It uses the
geometry, colours and labels of the interactive form. matplotlib is imported only when a picture is
asked for.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ioi_helpers.plotting import style
from ioi_helpers.plotting.interactive import diagonal_ends, gap
from ioi_helpers.plotting.panels import (
    LINE,
    TITLE_LINE,
    Arrangement,
    Drawing,
    Panel,
    Place,
    legend_columns,
    line_widths,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PIXELS_PER_INCH = 96
SHARPNESS = 1.5  # device pixels per pixel: legible on dense screens, still a few dozen kilobytes

RC = {
    "font.size": style.FONT_SIZE * 72 / PIXELS_PER_INCH,
    "text.color": style.INK,
    "axes.labelcolor": style.INK,
    "xtick.color": style.INK,
    "ytick.color": style.INK,
    # Tokens may hold dollar signs, which matplotlib would read as mathematics.
    "text.parse_math": False,
    "axes.unicode_minus": True,
    "font.family": ["DejaVu Sans"],
}


def png(panels: Sequence[Panel], arrangement: Arrangement) -> bytes:
    """Draw the panels; returns a PNG on white paper."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context(RC):
        size = (arrangement.width / PIXELS_PER_INCH, arrangement.height / PIXELS_PER_INCH)
        figure = Figure(figsize=size, dpi=PIXELS_PER_INCH * SHARPNESS)
        FigureCanvasAgg(figure)
        figure.patch.set_facecolor(style.PAPER)
        _titles(figure, arrangement)
        for panel, place in zip(panels, arrangement.places, strict=True):
            first = figure.axes[0] if place.same_y else None
            axes = figure.add_axes(_box(place, arrangement), sharey=first)
            axes.patch.set_alpha(0)
            if panel.drawing is not None:
                _drawing(axes, panel.drawing, panel.title)
                continue
            _frame(axes, panel, place)
            if panel.kind == "heatmap":
                _heatmap(figure, axes, panel, place, arrangement)
            else:
                _series(axes, panel, place)
                if place.both is not None:
                    axes.set(xlim=place.both, ylim=place.both)
                if panel.kind == "scatter":
                    _name_points(axes, panel, place)
        _legend(figure, arrangement)
        stream = io.BytesIO()
        figure.savefig(stream, format="png", metadata={"Software": None})
        return stream.getvalue()


def base64_png(panels: Sequence[Panel], arrangement: Arrangement) -> str:
    """The picture as notebooks store it."""
    return base64.b64encode(png(panels, arrangement)).decode("ascii")


def _box(place: Place, whole: Arrangement) -> tuple[float, float, float, float]:
    return (
        place.left / whole.width,
        1 - (place.top + place.height) / whole.height,
        place.width / whole.width,
        place.height / whole.height,
    )


def _points(pixels: float) -> float:
    return pixels * 72 / PIXELS_PER_INCH


def _titles(figure: Figure, arrangement: Arrangement) -> None:
    y = 8.0
    for lines, size, step in (
        (arrangement.title_lines, style.TITLE_SIZE, TITLE_LINE),
        (arrangement.note_lines, style.FONT_SIZE, LINE),
    ):
        for line in lines:
            place = (0.01, 1 - y / arrangement.height)
            figure.text(*place, line, va="top", fontsize=_points(size))
            y += step


def _frame(axes: Axes, panel: Panel, place: Place) -> None:
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.tick_params(length=0, pad=3)
    axes.set_xlabel(panel.x.title, labelpad=4)
    repeated = place.y_ticks is not None and not place.y_ticks.positions
    axes.set_ylabel("" if repeated else panel.y.title, labelpad=4)
    if place.x_ticks is not None:
        axes.set_xticks(
            place.x_ticks.positions,
            place.x_ticks.texts,
            rotation=90 if place.x_ticks.turned else 0,
        )
    if place.y_ticks is not None:
        axes.set_yticks(place.y_ticks.positions, place.y_ticks.texts)
    if panel.title:
        axes.set_title(panel.title, fontsize=_points(13), pad=4)
    if panel.kind != "heatmap":
        direction = "y" if panel.kind == "bar" else "both"
        axes.grid(True, axis=direction, color=style.GRID_STATIC, linewidth=0.8)
        axes.set_axisbelow(True)


def _heatmap(figure: Figure, axes: Axes, panel: Panel, place: Place, whole: Arrangement) -> None:
    from matplotlib.colors import LinearSegmentedColormap

    assert panel.values is not None
    low, high = place.colours
    colours = style.colours_between(low)
    image = axes.imshow(
        np.ma.masked_invalid(panel.values),
        cmap=LinearSegmentedColormap.from_list("ioi", colours).with_extremes(bad=style.MISSING),
        vmin=low,
        vmax=high,
        aspect="auto",
        interpolation="nearest",
    )
    if gap(panel):
        rows, columns = panel.values.shape
        hairline = {"colors": [style.MISSING], "linewidths": 0.5}
        axes.vlines(np.arange(1, columns) - 0.5, -0.5, rows - 0.5, **hairline)
        axes.hlines(np.arange(1, rows) - 0.5, -0.5, columns - 0.5, **hairline)
    for y, row in enumerate(panel.numbers or ()):
        for x, text in enumerate(row):
            value = panel.values[y, x]
            strong = abs(value) > style.STRONG * max(abs(low), abs(high))
            colour = "white" if strong else "black"
            axes.text(x, y, text, ha="center", va="center", color=colour, fontsize=_points(11))
    if place.colour_bar:
        left, bottom, width, height = _box(place, whole)
        box = (left + width + 8 / whole.width, bottom, 12 / whole.width, height)
        bar = figure.colorbar(image, cax=figure.add_axes(box))
        bar.outline.set_visible(False)
        bar.ax.tick_params(length=0, pad=3)
        bar.set_label(panel.unit)


def _drawing(axes: Axes, drawing: Drawing, title: str) -> None:
    from matplotlib.patches import FancyArrowPatch
    from matplotlib.patches import Rectangle as Frame

    axes.set_axis_off()
    axes.set(xlim=(0, drawing.width), ylim=(drawing.height, 0))
    if title:
        axes.set_title(title, fontsize=_points(13), pad=4)
    for y in drawing.rules:
        axes.axhline(y, color=style.GRID_STATIC, linewidth=0.8)
    for box in drawing.rectangles:
        line = {"linewidth": 1.2, "linestyle": "--" if box.dashed else "-"}
        fill = (box.colour, style.FAINT)
        axes.add_patch(
            Frame((box.left, box.top), box.width, box.height, fc=fill, ec=box.colour, **line)
        )
    for x0, y0, x1, y1 in drawing.arrows:
        look = {"arrowstyle": "-|>", "mutation_scale": 9, "color": style.INK, "linewidth": 1.1}
        axes.add_patch(FancyArrowPatch((x0, y0), (x1, y1), shrinkA=0, shrinkB=1, **look))
    for label in drawing.labels:
        size = _points(label.size)
        axes.text(label.x, label.y, label.text, ha=label.align, va="center", fontsize=size)


def _series(axes: Axes, panel: Panel, place: Place) -> None:
    count = len(panel.series)
    low = min(float(np.nanmin(s.y)) for s in panel.series)
    if panel.kind in ("line", "bar") and low <= 0:
        axes.axhline(0, color=style.INK, linewidth=0.8)
    if panel.kind in ("scatter", "histogram"):
        _zero_lines(axes, panel)
    widths = line_widths(panel)
    for order, series in enumerate(panel.series):
        colour = style.series_colour(order)
        name = series.name or None
        if panel.kind == "line":
            look = {"color": colour, "linewidth": widths[order], "markersize": 1.5 + widths[order]}
            axes.plot(series.x, series.y, marker="o", label=name, **look)
        elif panel.kind == "scatter":
            axes.scatter(series.x, series.y, color=colour, s=18, label=name, linewidths=0)
        elif panel.kind == "bar":
            width = 0.8 / count
            x = series.x + (order - (count - 1) / 2) * width
            axes.bar(x, series.y, width, color=colour, label=name)
        else:
            width = float(np.diff(series.x)[0]) if len(series.x) > 1 else 1.0
            alpha = 0.65 if count > 1 else 1.0
            axes.bar(series.x, series.y, width, color=colour, alpha=alpha, label=name)
        if series.error is not None:
            x = series.x
            if panel.kind == "bar":
                x = x + (order - (count - 1) / 2) * 0.8 / count
            axes.errorbar(x, series.y, series.error, fmt="none", ecolor=style.INK, elinewidth=1)
    if panel.diagonal:
        low, high = diagonal_ends(panel, place)
        axes.plot([low, high], [low, high], color=style.INK, linewidth=1, linestyle=":")


def _zero_lines(axes: Axes, panel: Panel) -> None:
    """Where x or y changes its sign, as the live figure has it: below points, above bars."""
    layer = 3 if panel.kind == "histogram" else 0.5
    for direction, draw in (("x", axes.axvline), ("y", axes.axhline)):
        values = np.concatenate([getattr(series, direction) for series in panel.series])
        if np.nanmin(values) < 0 < np.nanmax(values):
            draw(0, color=style.INK, linewidth=0.8, zorder=layer)


LABEL_SIZE = (6.5, 11.0)  # pixels: width of a character of a point's name, and its height
BESIDE = ((6, 2, "left"), (6, -13, "left"), (-6, 2, "right"), (-6, -13, "right"))


def _name_points(axes: Axes, panel: Panel, place: Place, most: int = 10) -> None:
    """Names of the points that shall have one, or else of those furthest from the middle, since
    nothing can be hovered over here. None covers another name or, where it can be helped, lies as
    near to another point as to its own."""
    points = [
        (float(x), float(y), label)
        for series in panel.series
        for x, y, label in zip(series.x, series.y, series.labels or (), strict=False)
        if np.isfinite(x) and np.isfinite(y)
    ]
    if not points:
        return
    where = np.array([point[:2] for point in points])
    spread = np.ptp(where, axis=0) if place.both is None else np.ptp(place.both)
    far = np.hypot(*((where - np.median(where, axis=0)) / np.maximum(spread, 1e-12)).T)
    low, high = np.array([axes.get_xlim(), axes.get_ylim()]).T
    size = np.array([place.width, place.height])
    pixels = (where - low) / (high - low) * size
    must = np.array([label in panel.named for *_, label in points])
    taken: list[np.ndarray] = []
    for i in np.lexsort((-far, ~must)):
        if len(taken) >= (must.sum() or most):
            break
        extent = np.array([LABEL_SIZE[0] * len(points[i][2]), LABEL_SIZE[1]])
        free: list[tuple[float, int, int, int, str, np.ndarray]] = []
        for right, up, side in BESIDE:
            corner = pixels[i] + (right - extent[0] if side == "right" else right, up)
            box = np.array([corner, corner + extent])
            inside = (box[0] > -8).all() and (box[1] < size + 8).all()
            if inside and not any((box[0] < b[1]).all() and (b[0] < box[1]).all() for b in taken):
                near = ((box[0] - 6 < pixels) & (pixels < box[1] + 6)).all(axis=1).sum()
                # Among the numbers of the axis it is worse than on one point, better than on two.
                covered = float(near) + 1.5 * bool(box[0, 0] < 2)
                free.append((covered, len(free), right, up, side, box))
        if free and (must[i] or min(free)[0] in (0, 1.5)):
            _, _, right, up, side, box = min(free, key=lambda f: f[:2])
            taken.append(box)
            offset = {"xytext": (_points(right), _points(up)), "textcoords": "offset points"}
            axes.annotate(points[i][2], points[i][:2], fontsize=8, ha=side, **offset)


def _legend(figure: Figure, arrangement: Arrangement) -> None:
    if arrangement.legend_top is None:
        return
    handles: dict[str, Any] = {}
    for axes in figure.axes:
        for handle, name in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(name, handle)
    figure.legend(
        handles.values(),
        handles.keys(),
        loc="upper left",
        bbox_to_anchor=(0.0, 1 - (arrangement.legend_top - 3) / arrangement.height),
        ncols=legend_columns(handles, arrangement.width),
        frameon=False,
    )
