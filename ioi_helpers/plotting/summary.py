"""A figure in words: a few lines with its title, its axes and its most telling numbers.

This text is the `text/plain` form of every figure. It is what a screen reader reads (alt text) and
what the notebook tests compare, so it must not change when floating-point noise does: numbers are
rounded first and ranked afterwards, and equal printed numbers stand in the order of their places.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from ioi_helpers.plotting.panels import Axis, Panel, Series, show_token

KINDS = {
    "heatmap": "Heat map",
    "line": "Line chart",
    "bar": "Bar chart",
    "scatter": "Scatter plot",
    "histogram": "Histogram",
    "diagram": "Circuit diagram",
}


def decimals(value: float, scale: float) -> int:
    """Decimal places that show three significant digits of `value`; one at least where it is large.

    At most four digits of `scale`, the largest magnitude around, and never more than five places:
    what lies below may be rounding noise of float32 sums, in which differences of logits lose two
    digits, and prints as 0.
    """
    if value == 0 or not math.isfinite(value):
        return 0
    # Tests compare whole numbers exactly and only numbers with a point within a tolerance.
    wanted = max(2 - math.floor(math.log10(abs(value))), 1)
    most = min(max(3 - math.floor(math.log10(scale)), 1), 5) if scale > 0 else 5
    return min(wanted, most)


def rounded(value: float, scale: float) -> float:
    """`value` at its printed precision (see `decimals`)."""
    return round(float(value), decimals(value, scale)) + 0.0 if math.isfinite(value) else value


def number(value: float, scale: float | None = None) -> str:
    """`value` as the summaries print it: three significant digits, and 0 for noise."""
    scale = abs(value) if scale is None else scale
    short = rounded(value, scale)
    if short == 0:
        return "0"
    return f"{short:.{decimals(value, scale)}f}"


def scale_of(values: Float[np.ndarray, " *shape"]) -> float:
    """The largest finite magnitude, 0 where there is none."""
    finite = np.abs(values[np.isfinite(values)])
    return float(finite.max()) if finite.size else 0.0


def ranked(
    values: Float[np.ndarray, " item"], count: int, largest: bool, scale: float | None = None
) -> list[int]:
    """Indices of the `count` largest (or smallest) values at printed precision, ties by place."""
    scale = scale_of(values) if scale is None else scale
    known = [i for i, v in enumerate(values) if math.isfinite(v)]
    sign = -1.0 if largest else 1.0
    return sorted(known, key=lambda i: (sign * rounded(float(values[i]), scale), i))[:count]


def extremes(
    values: Float[np.ndarray, " item"], names: Sequence[str], count: int, scale: float
) -> list[str]:
    """Lines naming the highest values and, where any are negative, the lowest."""
    lines = [f"highest: {_named(values, names, ranked(values, count, True, scale), scale)}"]
    lowest = ranked(values, count, False, scale)
    negative = [i for i in lowest if rounded(values[i], scale) < 0]
    shown = negative or lowest[:1]
    if len(values) > 1:
        lines.append(f"lowest: {_named(values, names, shown, scale)}")
    return lines


def describe(title: str, panels: Sequence[Panel], note: str = "", top: int = 5) -> str:
    """The summary of a whole figure: title, note, then every panel."""
    lines = [f"{KINDS[panels[0].kind]}: {title}" if title else KINDS[panels[0].kind]]
    if note:
        lines.append(note)
    for panel in panels:
        indent = ""
        if len(panels) > 1 or panel.title:
            lines.append(f"[{panel.title or 'untitled'}]")
            indent = "  "
        lines += [indent + line for line in _panel_lines(panel, top)]
    return "\n".join(lines)


def describe_attention(
    title: str,
    heads: Sequence[str],
    tokens: Sequence[str],
    patterns: Float[np.ndarray, "head destination source"],
    query: int,
    top: int = 3,
) -> str:
    """The summary of attention patterns: where each head looks from the token at `query`."""
    lines = [f"Attention patterns: {title}", f"{len(tokens)} tokens"]
    places = [f"{show_token(t).strip()}({i})" for i, t in enumerate(tokens)]
    for head, pattern in zip(heads, patterns, strict=True):
        row = pattern[query, : query + 1]
        targets = _named(row, places, ranked(row, top, True, 1.0), 1.0)
        lines.append(f"{head} from {places[query]}: {targets}")
    return "\n".join(lines)


def _panel_lines(panel: Panel, top: int) -> list[str]:
    if panel.drawing is not None:
        return list(panel.drawing.lines)
    if panel.values is not None and panel.cells is not None:
        rows, columns = panel.values.shape
        flat = panel.values.ravel()
        scale = scale_of(flat)
        names = [name for row in panel.cells for name in row]
        size = f"{rows} rows{_of(panel.y)} x {columns} columns{_of(panel.x)}"
        lines = [size + (f", {panel.unit}" if panel.unit else "")]
        lines += extremes(flat, names, min(top, flat.size), scale)
        missing = int(np.sum(~np.isfinite(flat)))
        if missing < flat.size:
            lines.append(f"mean: {number(float(np.nanmean(flat)), scale)}")
        return lines + ([f"missing: {missing}"] if missing else [])
    lines = [f"{_axis('x', panel.x)}; {_axis('y', panel.y)}"]
    if panel.kind == "histogram":
        pairs = zip(panel.series, panel.samples, strict=True)
        return lines + [_histogram_line(series, sample) for series, sample in pairs]
    for series in panel.series:
        indent = ""
        if len(panel.series) > 1 or panel.kind == "scatter":
            lines.append(f"{series.name or 'points'}, {len(series.y)} points")
            indent = "  "
        lines += [indent + line for line in _series_lines(panel, series, top)]
    return lines


def _series_lines(panel: Panel, series: Series, top: int) -> list[str]:
    # Series share their axes: beside large values, small ones are rounding noise.
    scale = max(scale_of(one.y) for one in panel.series)
    x_scale = max(scale_of(one.x) for one in panel.series)
    names = series.labels
    if names is None:
        names = panel.x.names or tuple(f"x={number(float(x), x_scale)}" for x in series.x)
    lines = extremes(series.y, names, 2 if panel.kind == "line" else top, scale)
    if panel.kind == "line":
        lines.append(f"first and last: {_named(series.y, names, [0, len(names) - 1], scale)}")
    if panel.kind == "scatter" and len(series.x) > 2:
        lines.append(f"correlation of x and y: {_correlation(series, x_scale, scale)}")
    return lines


def _correlation(series: Series, x_scale: float, y_scale: float) -> str:
    """Pearson's; undefined where the values do not differ at printed precision."""
    known = np.isfinite(series.x) & np.isfinite(series.y)
    x, y = series.x[known], series.y[known]
    printed = ({rounded(v, x_scale) for v in x}, {rounded(v, y_scale) for v in y})
    if len(x) < 3 or min(map(len, printed)) < 2:
        return "undefined"
    return number(float(np.corrcoef(x, y)[0, 1]), 1.0)


def _histogram_line(series: Series, sample: Float[np.ndarray, " value"]) -> str:
    scale = scale_of(sample)
    middle = number(float(np.median(sample)), scale)
    facts = [
        f"{len(sample)} values",
        f"mean {number(float(sample.mean()), scale)}",
        f"median {middle}",
        f"sd {number(float(sample.std()), scale)}",
        f"from {number(float(sample.min()), scale)} to {number(float(sample.max()), scale)}",
    ]
    return (f"{series.name}: " if series.name else "") + ", ".join(facts)


def _named(
    values: Float[np.ndarray, " item"], names: Sequence[str], chosen: Sequence[int], scale: float
) -> str:
    return "; ".join(f"{names[i].strip()} {number(float(values[i]), scale)}" for i in chosen)


def _of(axis: Axis) -> str:
    return f" ({axis.title})" if axis.title else ""


def _axis(letter: str, axis: Axis) -> str:
    places = f", {len(axis.names)} places" if axis.names else ""
    return f"{letter}: {axis.title or 'unnamed'}{places}"
