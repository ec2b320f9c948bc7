"""Figures laid out for narrower places: everything is still there, and inside."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import numpy as np
import pytest

from ioi_helpers import graph, plotting, published
from ioi_helpers.plotting.reflow import DRAWING_SCALE, WIDTHS, reflow
from notebooks.tools.execution import find_notebooks
from notebooks.tools.stored_outputs import code_cells, read

PLOTLY = "application/vnd.plotly.v1+json"
ATTENTION = "application/vnd.ioi-helpers.attention+json"


def stored_figures() -> list[tuple[str, dict[str, Any]]]:
    """Every plotly figure that the notebooks store, by notebook and title."""
    found = []
    for path in find_notebooks():
        for cell in code_cells(read(path)):
            for output in cell.outputs:
                data = output.get("data", {})
                if PLOTLY in data and ATTENTION not in data:
                    title = data["text/plain"].splitlines()[0]
                    found.append((f"{path.stem[:2]} {title}", data[PLOTLY]))
    return found


def letters(layout: dict[str, Any]) -> Counter[str]:
    """All letters of the words around the panels, wherever lines break."""
    notes = [n for n in layout["annotations"] if n.get("xref", "paper") == "paper"]
    return Counter("".join(n["text"] for n in notes).replace(" ", ""))


def areas(layout: dict[str, Any]) -> list[tuple[float, float, float, float]]:
    """Left, right, bottom and top of every panel, as shares of the picture."""
    return [
        (*layout[key]["domain"], *layout[key.replace("x", "y", 1)]["domain"])
        for key in layout
        if key.startswith("xaxis")
    ]


@pytest.mark.parametrize("width", WIDTHS)
def test_every_stored_figure_fits(width: int) -> None:
    figures = stored_figures()
    assert len(figures) > 50
    for name, figure in figures:
        made = reflow(figure, width)
        if made is None:
            assert figure["layout"]["width"] <= width, name
            continue
        layout = made["layout"]
        drawing = figure["layout"]["xaxis"].get("visible") is False
        scale = DRAWING_SCALE if drawing else 0
        assert layout["width"] <= max(width, scale * figure["layout"]["width"] + 1), name
        panels = areas(layout)
        assert len(panels) == len(areas(figure["layout"])), name
        for left, right, bottom, top in panels:
            assert 0 <= left < right <= 1 and 0 <= bottom < top <= 1, name
        for i, a in enumerate(panels):
            for b in panels[:i]:
                apart = a[0] >= b[1] or b[0] >= a[1] or a[2] >= b[3] or b[2] >= a[3]
                assert apart, f"{name}: panels lie over each other"
        if not drawing:
            assert letters(layout) == letters(figure["layout"]), name


def test_columns_become_fewer_and_names_return() -> None:
    one = plotting.heatmap(np.eye(3), ["a", "b", "c"], ["first", "second", "third"], y_title="row")
    figure = plotting.side_by_side({"left": one, "right": one}, "Two")._plotly_json()
    assert figure["layout"]["yaxis2"]["ticktext"] == []
    made = reflow(figure, 300)
    assert made is not None
    layout = made["layout"]
    (_, _, low, _), (_, _, _, high) = areas(layout)
    assert low > high  # one below the other
    assert layout["yaxis2"]["ticktext"] == ["first", "second", "third"]
    assert layout["yaxis2"]["title"]["text"] == "row"
    assert made["traces"]["1"]["colorbar"]["orientation"] == "h"
    assert figure["layout"]["yaxis2"]["ticktext"] == []  # what was given is as it was


def test_many_panels_stay_in_their_order() -> None:
    """A notebook's file has its keys sorted, "xaxis10" before "xaxis2"."""
    dots = np.arange(3.0)
    panels = {f"panel {i}": plotting.scatter(dots, dots, title="one") for i in range(13)}
    figure = json.loads(
        json.dumps(plotting.side_by_side(panels, "Many")._plotly_json(), sort_keys=True)
    )
    for width in (320, 640):
        made = reflow(figure, width)
        assert made is not None
        titles = [n for n in made["layout"]["annotations"] if n["text"].startswith("panel")]
        in_order = sorted(titles, key=lambda note: (-round(note["y"], 3), note["x"]))
        assert [note["text"] for note in in_order] == list(panels)
    assert len({note["x"] for note in titles}) > 1, "two beside each other where there is room"


def test_names_that_would_touch_are_turned_or_left_out() -> None:
    names = [f"head {i}" for i in range(40)]
    figure = plotting.bar(np.arange(40.0), names, "Many")._plotly_json()
    axis = reflow(figure, 320)["layout"]["xaxis"]  # type: ignore[index]
    assert axis["tickangle"] == -90
    assert 5 < len(axis["ticktext"]) < 20
    assert axis["ticktext"] == [names[i] for i in axis["tickvals"]]


def test_a_drawing_is_scaled_as_far_as_it_can_be_read() -> None:
    circuit = graph.Circuit.of_registry(published.head_classes())
    figure = plotting.diagram(circuit, "Circuit")._plotly_json()
    whole = figure["layout"]["width"]
    made = reflow(figure, 320)
    assert made is not None
    assert made["layout"]["width"] == pytest.approx(DRAWING_SCALE * whole)
    assert reflow(figure, whole) is None
