"""A plotly figure laid out anew for a narrower place: fewer panels side by side, and narrower.

`arrange` lays a figure out in pixels for a wide page. On a phone, or between the side bars of a web
page, that is too wide, and shrunk as a picture its text could not be read. Here text keeps its size
and panels are made narrower and stacked. What is read is the figure's JSON as notebooks store it,
so that a page of ours fits whatever notebook it is made from.
"""

from __future__ import annotations

import copy
import math
import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ioi_helpers.plotting import style
from ioi_helpers.plotting.panels import (
    CHARACTER,
    LEGEND_LINE,
    LINE,
    TITLE_LINE,
    TITLE_WIDENING,
    legend_columns,
)

WIDTHS = (320, 480, 640, 800)  # pixels: what pages of ours offer, from a phone's width up
NARROWEST = 210.0  # what a panel needs inside its axes to stand beside another
DRAWING_SCALE = 0.75  # a drawing is not made smaller than this, because of its text
BAR_HEIGHT = 52.0  # a colour bar below the panels, with its numbers and its unit
RIGHT = 14.0
LONGEST_NAME = 14  # characters that rows' names keep

Json = dict[str, Any]


@dataclass(frozen=True)
class _Panel:
    """One pair of axes as the JSON has it: their keys, its traces, its size and title."""

    x_key: str
    y_key: str
    traces: tuple[int, ...]
    left: float
    width: float
    height: float
    title: str


def reflow(figure: Mapping[str, Any], width: float) -> Json | None:
    """`figure` (plotly's JSON) for a place `width` pixels wide; None where it fits as it is.

    Returns the keys that change: `layout`, and `traces`, new entries of the traces by index. A
    drawing is scaled, to three quarters at least, and can then still be wider than `width`.
    """
    layout = figure["layout"]
    if not layout.get("width") or layout["width"] <= width:
        return None
    if any(layout[key].get("visible") is False for key in _axes(layout, "x")):
        return _scaled(figure, max(width / layout["width"], DRAWING_SCALE))
    panels = _panels(figure)
    if not panels:
        return None
    return _stacked(figure, panels, width)


def _axes(layout: Mapping[str, Any], letter: str) -> list[str]:
    """The keys of axes in the panels' order; a stored notebook has keys in that of the alphabet."""
    name = f"{letter}axis"
    found = [key for key in layout if key.startswith(name)]
    return sorted(found, key=lambda key: int(key.removeprefix(name) or 1))


def _panels(figure: Mapping[str, Any]) -> list[_Panel]:
    layout = figure["layout"]
    whole, high = layout["width"], layout["height"]
    titles = [note for note in layout.get("annotations", ()) if note.get("yanchor") == "bottom"]
    found = []
    for x_key in _axes(layout, "x"):
        number = x_key.removeprefix("xaxis")
        (x0, x1), (y0, y1) = layout[x_key]["domain"], layout[f"yaxis{number}"]["domain"]
        middle, top = (x0 + x1) / 2, y1 + 4 / high
        above = [
            note["text"]
            for note in titles
            if abs(note["x"] - middle) < 0.01 and abs(note["y"] - top) < 0.01
        ]
        traces = [
            i
            for i, trace in enumerate(figure["data"])
            if trace.get("xaxis", "x").removeprefix("x") == number
        ]
        size = (x1 - x0) * whole, (y1 - y0) * high
        title = _joined(above)
        found.append(
            _Panel(x_key, f"yaxis{number}", tuple(traces), round(x0 * whole), *size, title)
        )
    return found


def _scaled(figure: Mapping[str, Any], scale: float) -> Json:
    """A drawing with everything smaller by the same factor, its letters too."""
    layout = copy.deepcopy(dict(figure["layout"]))
    layout["width"], layout["height"] = layout["width"] * scale, layout["height"] * scale
    for note in layout.get("annotations", ()):
        if "font" in note:
            note["font"]["size"] = round(note["font"]["size"] * scale, 1)
    traces = {}
    for i, trace in enumerate(figure["data"]):
        if "textfont" in trace:
            size = round(trace["textfont"]["size"] * scale, 1)
            traces[str(i)] = {"textfont": trace["textfont"] | {"size": size}}
    return {"layout": layout, "traces": traces}


def _stacked(figure: Mapping[str, Any], panels: list[_Panel], width: float) -> Json:
    layout = copy.deepcopy(dict(figure["layout"]))
    columns = _columns(panels)
    data = figure["data"]
    while True:
        rows = [panels[i : i + columns] for i in range(0, len(panels), columns)]
        axes = [_YAxis.of(layout, panels, data, i, i % columns > 0) for i in range(len(panels))]
        lefts = [max(axis.left for axis in axes[c::columns]) for c in range(columns)]
        inside = (width - sum(lefts) - columns * RIGHT) / columns
        if columns == 1 or inside >= NARROWEST:
            break
        columns -= 1

    top = 4.0
    annotations: list[Json] = []
    top = _heading(layout, width, top, annotations)
    legend_top = top
    names = [trace["name"] for trace in data if trace.get("showlegend")]
    if names:
        top += LEGEND_LINE * math.ceil(len(names) / legend_columns(names, width)) + 4

    places: list[tuple[float, float, float, float]] = []
    for row in rows:
        widths = [min(panel.width, inside) for panel in row]
        lines = [textwrap.wrap(panel.title, max(int(w / 7.5), 12)) for panel, w in zip(row, widths)]
        top += LINE * max(len(wrapped) for wrapped in lines) + 10
        lowest = top
        x = 0.0
        for c, panel in enumerate(row):
            index = panels.index(panel)
            x += lefts[c]
            square = abs(panel.width - panel.height) < 2 and "range" in layout[panel.x_key]
            height = widths[c] if square else panel.height
            axes[index].apply(layout[panel.y_key], height)
            below = _x_axis(layout[panel.x_key], panel, data, widths[c])
            places.append((x, top, widths[c], height))
            for i, line in enumerate(reversed(lines[c])):
                middle, y = x + widths[c] / 2, top - 4 - LINE * i
                annotations.append(_note(line, middle, y, "center", "bottom", 13))
            lowest = max(lowest, top + height + below)
            x += inside + RIGHT
        top = lowest

    bars = [i for i, trace in enumerate(data) if trace.get("showscale") and "colorbar" in trace]
    one = len(bars) == 1
    height = top + (BAR_HEIGHT if one else 0)
    traces: Json = {}
    for i in bars:
        if one:
            bar = {"orientation": "h", "x": 0.5, "xanchor": "center", "len": min(width * 0.8, 300)}
            bar |= {"y": 1 - (top + 6) / height, "yanchor": "top"}
            title = data[i]["colorbar"].get("title", {}) | {"side": "bottom"}
            traces[str(i)] = {"colorbar": data[i]["colorbar"] | bar | {"title": title}}
        else:
            traces[str(i)] = {"showscale": False}  # its colours are said when one touches a cell
    for panel, (left, start, wide, high) in zip(panels, places):
        layout[panel.x_key]["domain"] = [left / width, min((left + wide) / width, 1.0)]
        layout[panel.y_key]["domain"] = [
            max(1 - (start + high) / height, 0.0),
            1 - start / height,
        ]
    for note in annotations:
        note["x"], note["y"] = round(note["x"] / width, 5), round(1 - note["y"] / height, 5)
    kept = [n for n in layout.get("annotations", ()) if n.get("xref", "paper") != "paper"]
    layout |= {"annotations": annotations + kept, "width": width, "height": round(height)}
    if names:
        layout["legend"] = layout["legend"] | {"y": 1 - legend_top / height}
    return {"layout": layout, "traces": traces}


def _columns(panels: list[_Panel]) -> int:
    """How many panels stand in the first row."""
    for i in range(1, len(panels)):
        if panels[i].left <= panels[i - 1].left:
            return i
    return len(panels)


def _heading(layout: Json, width: float, top: float, into: list[Json]) -> float:
    """Title and note, wrapped anew; returns where they end."""
    lines = [n for n in layout.get("annotations", ()) if n.get("yanchor") == "top"]
    for size, step, widening in (
        (style.TITLE_SIZE, TITLE_LINE, TITLE_WIDENING),
        (style.FONT_SIZE, LINE, 1.0),
    ):
        same = [note for note in lines if note["font"]["size"] == size]
        words = _joined([note["text"] for note in same])
        for line in textwrap.wrap(words, int(width / (CHARACTER * widening))):
            made = _note(line, 0.01 * width, top, "left", "top", size)
            if "hovertext" in same[0]:
                made["hovertext"] = same[0]["hovertext"]
            into.append(made)
            top += step
    return top + 8


def _joined(lines: Sequence[str]) -> str:
    """Lines as one; a word that was cut at a hyphen is whole again."""
    return re.sub(r"(?<=\w-) (?=\w)", "", " ".join(lines))


def _note(text: str, x: float, y: float, xanchor: str, yanchor: str, size: int) -> Json:
    return {
        "text": text,
        "xref": "paper",
        "yref": "paper",
        "x": x,
        "y": y,
        "xanchor": xanchor,
        "yanchor": yanchor,
        "showarrow": False,
        "font": {"size": size, "color": style.TEXT},
    }


@dataclass(frozen=True)
class _YAxis:
    """A panel's vertical axis: the room it needs at the left, its names and its title."""

    left: float
    names: tuple[tuple[int, ...], tuple[str, ...]] | None
    title: str

    @classmethod
    def of(
        cls,
        layout: Json,
        panels: list[_Panel],
        data: Sequence[Mapping[str, Any]],
        index: int,
        beside: bool,
    ) -> _YAxis:
        """The axis of panel `index`. What a panel left out because its neighbour at the left shows
        the same stands there again once it has no such neighbour (`beside` false)."""
        axis = layout[panels[index].y_key]
        silent = axis.get("ticktext") == []
        if silent and beside:
            return cls(10.0, None, "")
        source = index
        while source and layout[panels[source].y_key].get("ticktext") == []:
            source -= 1
        shown = layout[panels[source].y_key]
        title = shown.get("title", {}).get("text", "")
        names = None
        longest = 5
        if shown.get("ticktext"):
            texts = tuple(_short(text) for text in shown["ticktext"])
            names = tuple(shown["tickvals"]), texts
            longest = max(len(text) for text in texts)
        return cls(longest * CHARACTER + 14 + (18 if title else 0), names, title)

    def apply(self, axis: Json, height: float) -> None:
        """Write it into the layout's entry, for an axis `height` pixels high."""
        if self.names is not None:
            axis["tickvals"], axis["ticktext"] = map(list, self.names)
        wrapped = textwrap.shorten(self.title, max(int(height / 6.5), 12), placeholder="...")
        axis["title"] = axis.get("title", {}) | {"text": wrapped}


def _short(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + "…"


def _x_axis(axis: Json, panel: _Panel, data: Sequence[Mapping[str, Any]], width: float) -> float:
    """Thin out or turn the horizontal axis' names, wrap its title; returns the room below."""
    below = LINE + 14
    if axis.get("ticktext"):
        values, texts = axis["tickvals"], axis["ticktext"]
        matrix = [data[i]["z"] for i in panel.traces if "z" in data[i]]
        places = len(matrix[0][0]) if matrix else max(values) + 1
        step = width / max(places, 1) * (values[1] - values[0] if len(values) > 1 else 1)
        longest = max(len(text) for text in texts)
        turned = longest > 2 and longest * CHARACTER > step - 2
        needed = LINE - 2 if turned else min(longest, 2) * CHARACTER + 3
        every = max(math.ceil(needed / step), 1)
        axis |= {"tickvals": values[::every], "ticktext": texts[::every]}
        axis["tickangle"] = -90 if turned else 0
        below = (longest * CHARACTER if turned else LINE) + 14
    elif axis.get("ticktext") is None:
        axis["nticks"] = max(int(width / 50), 2)
    title = axis.get("title", {}).get("text", "")
    if title:
        lines = textwrap.wrap(title, max(int(width / 6.5), 12))
        axis["title"] = axis["title"] | {"text": "<br>".join(lines)}
        below += 5 + LINE * len(lines)
    return below
