"""Figures in three forms: interactive, a static picture, and a short text summary.

Every function takes tensors, arrays or lists and returns a `Figure`, which Jupyter displays when it
is the last line of a cell. Heat maps use one colour-blind-safe diverging scale centred at zero.
The summary (`figure.summary`) is the figure's `text/plain` and alternative text: rounded numbers
that survive floating-point noise, so that tests can compare them.

    plotting.head_heatmap(values, title="Direct logit attribution", unit="logits")

In a script nothing shows by itself: `figure.save("name.html")` writes the interactive form as a
page that needs no network, `"name.png"` the picture, `"name.txt"` the summary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from ioi_helpers.plotting.diagram import IOI_ARROWS, Diagram, diagram
from ioi_helpers.plotting.figure import STATIC_VARIABLE, Figure
from ioi_helpers.plotting.interactive import (
    OfflineScripts,
    attention_json,
    page_figure,
    page_scripts,
)
from ioi_helpers.plotting.panels import (
    Array,
    Axis,
    Panel,
    Series,
    distinct,
    names_for,
    show_token,
    to_numpy,
)
from ioi_helpers.plotting.summary import describe_attention, number

__all__ = [
    "IOI_ARROWS",
    "STATIC_VARIABLE",
    "Diagram",
    "Figure",
    "attention",
    "bar",
    "diagram",
    "head_heatmap",
    "heatmap",
    "histogram",
    "line",
    "number",
    "offline_scripts",
    "page_figure",
    "page_scripts",
    "scatter",
    "side_by_side",
]


def heatmap(
    values: Array,
    x: Sequence[Any] | None = None,
    y: Sequence[Any] | None = None,
    title: str = "",
    *,
    x_title: str = "",
    y_title: str = "",
    unit: str = "",
    limit: float | None = None,
    cell: str | None = None,
    numbers: bool | None = None,
    top: int = 5,
) -> Figure:
    """A heat map of `values` [row column], the first row on top; NaN is drawn grey.

    Args:
        x, y: labels of columns and rows (default: 0, 1, 2, ...); they may repeat, as tokens do.
        unit: what the values are measured in (logits, nats, fraction recovered).
        limit: the scale runs from -limit to limit, by default the largest magnitude (from 0 where
            nothing is negative).
        cell: how a cell is called when hovered over and in the summary, from its labels; default
            "{y}, {x}" with numbers called by the axis' title, as in "layer 9, John(2)".
        numbers: write each value into its cell; by default where there are no more than a dozen.
        top: how many of the largest and smallest the summary names.

    Raises:
        ValueError: the values are not a matrix of numbers, or the labels do not fit it.
    """
    array = to_numpy(values, 2, "values")
    rows, columns = array.shape
    xs, ys = names_for(x, columns, "x"), names_for(y, rows, "y")
    x_cells, y_cells = distinct(xs), distinct(ys)
    if cell is None:
        cell = "{y}, {x}"
        x_cells, y_cells = _called(x_cells, x_title), _called(y_cells, y_title)
    cells = tuple(tuple(cell.format(x=b, y=a) for b in x_cells) for a in y_cells)
    panel = Panel(
        kind="heatmap",
        x=Axis(x_title, xs),
        y=Axis(y_title, ys),
        unit=unit,
        values=array,
        cells=cells,
        numbers=_written(array) if (array.size <= SMALL if numbers is None else numbers) else None,
        limit=limit,
    )
    return Figure(title, (panel,), top=top)


def head_heatmap(
    values: Array, title: str = "", *, unit: str = "", limit: float | None = None, top: int = 5
) -> Figure:
    """A heat map of one number a head, `values` [layer head]; cells are called L9H9."""
    return heatmap(
        values,
        title=title,
        x_title="head",
        y_title="layer",
        unit=unit,
        limit=limit,
        cell="L{y}H{x}",
        top=top,
    )


def line(
    y: Array | Mapping[str, Array],
    x: Sequence[Any] | None = None,
    title: str = "",
    *,
    x_title: str = "",
    y_title: str = "",
    unit: str = "",
    error: Array | Mapping[str, Array] | None = None,
) -> Figure:
    """A line through `y` [point], or one line for each entry of a mapping {name: y}.

    Args:
        x: numbers, or labels that are then spaced evenly; default 0, 1, 2, ...
        error: how far bars reach from each point, a standard error for instance: [point], or
            [2 point] for other lengths below and above; of each line in a mapping {name: error}.
    """
    return _points("line", y, x, title, x_title, y_title, unit, error)


def bar(
    y: Array | Mapping[str, Array],
    x: Sequence[Any] | None = None,
    title: str = "",
    *,
    x_title: str = "",
    y_title: str = "",
    unit: str = "",
    error: Array | Mapping[str, Array] | None = None,
    top: int = 5,
) -> Figure:
    """Bars of height `y` [point] at the labels `x`, grouped for a mapping {name: y}.

    Args:
        error: as in `line`.
        top: how many of the largest and smallest the summary names.
    """
    return _points("bar", y, x, title, x_title, y_title, unit, error, top)


def scatter(
    x: Array,
    y: Array,
    labels: Sequence[Any] | None = None,
    title: str = "",
    *,
    x_title: str = "",
    y_title: str = "",
    groups: Sequence[str] | None = None,
    named: Sequence[str] = (),
    diagonal: bool = False,
    square: bool = False,
    top: int = 5,
) -> Figure:
    """Points (`x` [point], `y` [point]) whose `labels` show when hovered over.

    The static picture names the points in `named`, or those furthest from the middle.

    Args:
        groups: names the group, and with it the colour, of each point.
        named: labels of points that the static picture names; none: those that stand out.
        diagonal: draw y = x.
        square: x and y on one range in a square, so that y = x stands at 45 degrees.
        top: how many of the largest and smallest y the summary names, in each group.
    """
    xs, ys = to_numpy(x, 1, "x"), to_numpy(y, 1, "y")
    if len(xs) != len(ys):
        raise ValueError(f"x has {len(xs)} points but y has {len(ys)}; they must be as many.")
    names = None if labels is None else names_for(labels, len(xs), "labels")
    if groups is not None and len(groups) != len(xs):
        raise ValueError(f"groups needs {len(xs)} names, one a point, but got {len(groups)}.")
    of_point = list(groups) if groups is not None else [""] * len(xs)
    series = []
    for group in dict.fromkeys(of_point):
        at = [i for i, g in enumerate(of_point) if g == group]
        chosen = None if names is None else tuple(names[i] for i in at)
        series.append(Series(group, xs[at], ys[at], chosen))
    panel = Panel(
        kind="scatter",
        x=Axis(x_title),
        y=Axis(y_title),
        series=tuple(series),
        named=tuple(named),
        diagonal=diagonal,
        square=square,
    )
    return Figure(title, (panel,), top=top)


def histogram(
    values: Array | Mapping[str, Array],
    title: str = "",
    *,
    x_title: str = "",
    y_title: str = "count",
    bins: int = 30,
) -> Figure:
    """How `values` [value] are distributed; a mapping {name: values} overlays several.

    All share `bins` bins of equal width over their common range.
    """
    samples = {name: to_numpy(v, 1, name or "values") for name, v in _named(values).items()}
    for name, sample in samples.items():
        if not np.isfinite(sample).all():
            raise ValueError(f"{name or 'values'} holds NaN or infinity; remove them first.")
    edges = np.histogram_bin_edges(np.concatenate(list(samples.values())), bins=bins)
    middles = (edges[:-1] + edges[1:]) / 2
    series = tuple(
        Series(name, middles, np.histogram(sample, edges)[0].astype(np.float64))
        for name, sample in samples.items()
    )
    panel = Panel(
        kind="histogram",
        x=Axis(x_title),
        y=Axis(y_title),
        series=series,
        samples=tuple(samples.values()),
    )
    return Figure(title, (panel,))


def attention(
    tokens: Sequence[str],
    patterns: Array,
    head_names: Sequence[str] | None = None,
    title: str = "",
    *,
    query: int = -1,
    top: int = 3,
) -> Figure:
    """Attention `patterns` [head destination source] over `tokens`, by circuitsvis.

    A single pattern [destination source] is accepted too. The static picture and the plotly form
    show one heat map a head.

    Args:
        query: the token from which the summary says where each head looks, by default the last
            (END of an unpadded prompt); `top` places are named.

    Raises:
        ValueError: tokens, patterns and names disagree, or a pattern is not attention: its rows
            must be probabilities (as its dtype rounds them) and nothing may look ahead.
    """
    if not all(isinstance(token, str) for token in tokens):
        raise ValueError(
            "tokens must be the words that attention runs over; the order is "
            "plotting.attention(tokens, patterns), as circuitsvis has it."
        )
    # What rounding leaves of a sum of probabilities: in bfloat16 a unit is 0.8 % of them.
    rounding = torch.finfo(patterns.dtype).eps if isinstance(patterns, torch.Tensor) else 0.0
    if np.ndim(patterns) == 2:
        patterns = to_numpy(patterns, 2, "patterns")[None]
    array = to_numpy(patterns, 3, "patterns")
    count, length = array.shape[0], len(tokens)
    if array.shape[1:] != (length, length):
        raise ValueError(
            f"patterns must be [head {length} {length}] for {length} tokens but has shape "
            f"{list(array.shape)}; select one prompt and drop its padding."
        )
    if head_names is None:
        heads = tuple(f"head {i}" for i in range(count))
    else:
        heads = names_for(head_names, count, "head_names")
    off = abs(array.sum(-1) - 1).max()
    if array.min() < -1e-6 or off > max(1e-3, 2 * rounding) or np.triu(array, 1).max() > 1e-6:
        raise ValueError(
            "patterns is not causal attention (rows of probabilities over the tokens so far); pass "
            "hook_pattern, not hook_attn_scores."
        )
    if not -length <= query < length:
        raise ValueError(f"query {query} is not the place of one of {length} tokens.")
    query %= length
    names = names_for(tokens, length, "tokens")
    cells = tuple(
        tuple(f"{a.strip()}({i}) looks at {b.strip()}({j})" for j, b in enumerate(names))
        for i, a in enumerate(names)
    )
    ahead = np.triu(np.ones((length, length), dtype=bool), 1)  # grey: nothing there
    panels = tuple(
        Panel(
            kind="heatmap",
            x=Axis("source", names),
            y=Axis("destination", names),
            title=head,
            values=np.where(ahead, np.nan, pattern),
            cells=cells,
            limit=1.0,
        )
        for head, pattern in zip(heads, array, strict=True)
    )
    words = describe_attention(title, heads, [show_token(t) for t in tokens], array, query, top)
    return Figure(
        title,
        panels,
        attention=attention_json(title, heads, [show_token(t) for t in tokens], array),
        words=words,
    )


def side_by_side(
    figures: Mapping[str, Figure],
    title: str = "",
    *,
    note: str = "",
    details: str = "",
    share_scale: bool = True,
) -> Figure:
    """Several figures as one, each under its name, on one scale (colour or y) unless told not to.

    `note` is a line below the title, `details` what hovering over it shows. For the reader's result
    beside a published one, use `published.compare`.
    """
    if not figures:
        raise ValueError("side_by_side needs at least one figure.")
    panels = []
    for name, figure in figures.items():
        for panel in figure.panels:
            label = f"{name}: {panel.title}" if len(figure.panels) > 1 else name
            panels.append(replace(panel, title=label))
    top = max(figure.top for figure in figures.values())
    return Figure(
        title, tuple(panels), note=note, details=details, share_scale=share_scale, top=top
    )


def offline_scripts() -> OfflineScripts:
    """Display this once in a live notebook with no network to make attention figures interactive.

    It puts circuitsvis' script (over a megabyte) into the cell's output; clear it before saving.
    """
    return OfflineScripts()


SMALL = 12  # cells, up to which a heat map is a table with its numbers written in


def _written(values: Float[np.ndarray, "row column"]) -> tuple[tuple[str, ...], ...]:
    """Two decimals a cell, and nothing where there is no value."""
    return tuple(tuple(f"{v:z.2f}" if np.isfinite(v) else "" for v in row) for row in values)


def _called(names: tuple[str, ...], axis_title: str) -> tuple[str, ...]:
    """Bare numbers get the axis' title before them."""
    return tuple(f"{axis_title} {n}".strip() if n.isdigit() else n for n in names)


def _named(values: Array | Mapping[str, Array]) -> dict[str, Array]:
    return dict(values) if isinstance(values, Mapping) else {"": values}


def _reach(error: Array) -> Float[np.ndarray, "below_above point"]:
    """How far error bars reach below and above, from one length for both or one for each."""
    if np.ndim(error[0]) == 0:
        return np.repeat(to_numpy(error, 1, "error")[None], 2, axis=0)
    reach = to_numpy(error, 2, "error")
    if len(reach) != 2:
        raise ValueError(f"error must be [point], or [2 point], but has shape {list(reach.shape)}.")
    if (reach < 0).any():
        raise ValueError(
            "error is how far bars reach below and above, so nothing in it is negative."
        )
    return reach


def _points(
    kind: Any,
    y: Array | Mapping[str, Array],
    x: Sequence[Any] | None,
    title: str,
    x_title: str,
    y_title: str,
    unit: str,
    error: Array | Mapping[str, Array] | None,
    top: int = 5,
) -> Figure:
    ys = {name: to_numpy(v, 1, name or "y") for name, v in _named(y).items()}
    errors = {name: _reach(given) for name, given in _named({} if error is None else error).items()}
    length = len(next(iter(ys.values())))
    numeric = x is not None and kind == "line" and not any(isinstance(v, str) for v in x)
    names = None if numeric else names_for(x, length, "x")
    places = to_numpy(x, 1, "x") if numeric else np.arange(length, dtype=np.float64)  # type: ignore[arg-type]
    series = []
    for name, values in ys.items():
        reach = errors.get(name)
        for what, given in ((name or "y", values), ("error", reach), ("x", places)):
            if given is not None and given.shape[-1] != length:
                raise ValueError(f"{what} has {given.shape[-1]} points but {length} are needed.")
        series.append(Series(name, places, values, names, reach))
    panel = Panel(
        kind=kind,
        x=Axis(x_title, names),
        y=Axis(y_title or unit),
        unit=unit,
        series=tuple(series),
    )
    return Figure(title, (panel,), top=top)
