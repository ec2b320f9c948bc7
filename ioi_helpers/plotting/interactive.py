"""The interactive form of a figure: plotly for panels, circuitsvis for attention patterns.

Plotly figures are built as plain JSON of a few kilobytes, which JupyterLab, VS Code and Colab
render with a plotly they already have; no script travels with them. For web pages of our own,
`page_figure` turns a stored output into HTML and `page_scripts` returns the scripts that a page
loads once, whatever the number of its figures. Pages without JavaScript keep the static picture.
"""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from importlib import metadata, resources
from typing import Any

import numpy as np
from jaxtyping import Float

from ioi_helpers.plotting import style
from ioi_helpers.plotting.panels import (
    LINE,
    TITLE_LINE,
    Arrangement,
    Axis,
    Drawing,
    Panel,
    Place,
    Ticks,
    line_widths,
)
from ioi_helpers.plotting.reflow import WIDTHS, reflow
from ioi_helpers.plotting.summary import scale_of

PLOTLY_MIME = "application/vnd.plotly.v1+json"
ATTENTION_MIME = "application/vnd.ioi-helpers.attention+json"
CIRCUITSVIS_CDN = "https://unpkg.com/circuitsvis@{version}/dist/cdn/esm.js"


# The mode bar would cover titles; dragging zooms and a double click resets without it.
CONFIG = {"displayModeBar": False}


def plotly_json(
    panels: Sequence[Panel], arrangement: Arrangement, details: str = ""
) -> dict[str, Any]:
    """The figure as plotly's JSON (`data` and `layout`), ready for `plotly.graph_objects.Figure`.

    Values are rounded to five significant digits of the largest: what the eye and the hover label
    can use, and a stored notebook does not change when noise does. Hovering over the lines below
    the title shows `details`.
    """
    layout = _layout(arrangement, all(p.kind == "heatmap" for p in panels))
    annotations = _title_lines(arrangement, details)
    data: list[dict[str, Any]] = []
    shapes: list[dict[str, Any]] = []
    in_legend = {""}  # as if listed already: a series without a name
    for index, (panel, place) in enumerate(zip(panels, arrangement.places, strict=True)):
        key = "" if index == 0 else str(index + 1)
        axes = {"xaxis": f"x{key}", "yaxis": f"y{key}"}
        if panel.drawing is not None:
            layout |= _drawing_axes(panel.drawing, place, arrangement, key)
            data.append(axes | _hover_labels(panel.drawing))
            annotations += [axes_of(axes) | note for note in _drawing_notes(panel.drawing, axes)]
            shapes += [axes_of(axes) | shape for shape in _drawing_shapes(panel.drawing)]
        else:
            layout |= _panel_axes(panel, place, arrangement, key)
        if panel.kind == "heatmap":
            data.append(axes | _heatmap(panel, place, arrangement))
        for order, series in enumerate(panel.series):
            listed = arrangement.legend_top is not None and series.name not in in_legend
            in_legend.add(series.name)
            data.append(axes | _series(panel, order) | {"showlegend": listed})
        if panel.kind in ("bar", "histogram"):
            layout["barmode"] = "overlay" if panel.kind == "histogram" else "group"
        if panel.diagonal:
            shapes.append(_diagonal(panel, place, axes))
        if panel.title:
            annotations.append(_panel_title(panel.title, place, arrangement))
    layout["annotations"], layout["shapes"] = annotations, shapes
    return {"data": data, "layout": layout, "config": CONFIG}


def _panel_axes(panel: Panel, place: Place, whole: Arrangement, key: str) -> dict[str, Any]:
    """The layout's entries for the two axes of a panel."""
    x_domain, y_domain = _domains(place, whole)
    x = _axis(panel.x, place.x_ticks, x_domain, f"y{key}")
    y = _axis(panel.y, place.y_ticks, y_domain, f"x{key}")
    if place.both is not None:
        x["range"] = y["range"] = short_numbers(np.array(place.both))
    if place.same_y:
        y["matches"] = "y"
    if panel.kind == "bar":
        x["showgrid"] = False
    if panel.x.names is not None:
        x["zeroline"] = False
    if panel.kind == "heatmap":
        y["autorange"] = "reversed"
        for axis in (x, y):
            axis |= {"showgrid": False, "zeroline": False}
    return {f"xaxis{key}": x, f"yaxis{key}": y}


def axes_of(axes: Mapping[str, str]) -> dict[str, str]:
    """What a shape or an annotation calls the axes of its panel."""
    return {"xref": axes["xaxis"], "yref": axes["yaxis"]}


def _drawing_axes(
    drawing: Drawing, place: Place, whole: Arrangement, key: str
) -> dict[str, dict[str, Any]]:
    """Axes that cannot be seen, in the drawing's pixels."""
    hidden = {"visible": False, "fixedrange": True, "showgrid": False, "zeroline": False}
    x_domain, y_domain = _domains(place, whole)
    x = hidden | {"domain": x_domain, "anchor": f"y{key}", "range": [0, drawing.width]}
    y = hidden | {"domain": y_domain, "anchor": f"x{key}", "range": [drawing.height, 0]}
    return {f"xaxis{key}": x, f"yaxis{key}": y}


def _hover_labels(drawing: Drawing) -> dict[str, Any]:
    """The labels that say more when one hovers over them."""
    labels = [label for label in drawing.labels if label.hover]
    return {
        "type": "scatter",
        "mode": "text",
        "showlegend": False,
        "x": [round(label.x, 1) for label in labels],
        "y": [round(label.y, 1) for label in labels],
        "text": [plain(label.text) for label in labels],
        "textfont": {"size": labels[0].size if labels else 11, "color": style.TEXT},
        "hovertext": [plain(label.hover).replace("\n", "<br>") for label in labels],
        "hovertemplate": "%{hovertext}<extra></extra>",
    }


def _drawing_notes(drawing: Drawing, axes: Mapping[str, str]) -> list[dict[str, Any]]:
    """Arrows, and the labels without more to say."""
    arrow = {"showarrow": True, "arrowhead": 2, "arrowwidth": 1.5, "arrowcolor": style.TEXT}
    arrow |= {"axref": axes["xaxis"], "ayref": axes["yaxis"], "text": ""}
    notes: list[dict[str, Any]] = [
        {"x": round(x1, 1), "y": round(y1, 1), "ax": round(x0, 1), "ay": round(y0, 1)} | arrow
        for x0, y0, x1, y1 in drawing.arrows
    ]
    for label in drawing.labels:
        if not label.hover:
            place = {"x": round(label.x, 1), "y": round(label.y, 1), "xanchor": label.align}
            font = {"size": label.size, "color": style.TEXT}
            text = {"text": plain(label.text), "yanchor": "middle", "showarrow": False}
            notes.append(place | text | {"font": font})
    return notes


def _drawing_shapes(drawing: Drawing) -> list[dict[str, Any]]:
    thin = {"color": style.GRID, "width": 1}
    shapes: list[dict[str, Any]] = [
        {"type": "line", "x0": 0, "x1": round(drawing.width, 1), "y0": round(y, 1),
         "y1": round(y, 1), "line": thin}
        for y in drawing.rules
    ]  # fmt: skip
    for box in drawing.rectangles:
        frame = {"color": box.colour, "width": 1.5, "dash": "dash" if box.dashed else "solid"}
        shapes.append(
            {
                "type": "rect",
                "x0": round(box.left, 1),
                "x1": round(box.left + box.width, 1),
                "y0": round(box.top, 1),
                "y1": round(box.top + box.height, 1),
                "line": frame,
                "fillcolor": style.faint(box.colour),
                "layer": "below",
            }
        )
    return shapes


def plain(text: str) -> str:
    """Text for plotly, which reads a few HTML tags: tokens such as <|endoftext|> are escaped."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def short_numbers(values: Float[np.ndarray, " *shape"], scale: float | None = None) -> Any:
    """Nested lists of the values to five digits of the largest one; None where not finite."""
    scale = scale_of(values) if scale is None else scale
    places = 5 if scale <= 0 else int(np.clip(4 - np.floor(np.log10(scale)), 0, 12))
    if values.ndim > 1:
        return [short_numbers(row, scale) for row in values]
    return [round(float(v), places) + 0.0 if np.isfinite(v) else None for v in values]


def _layout(arrangement: Arrangement, heat_only: bool) -> dict[str, Any]:
    return {
        "width": round(arrangement.width),
        "height": round(arrangement.height),
        "margin": {"l": 0, "r": 0, "t": 0, "b": 0, "pad": 0},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": style.MISSING if heat_only else "rgba(0,0,0,0)",
        "font": {"color": style.TEXT, "size": style.FONT_SIZE},
        "legend": {
            "orientation": "h",
            "x": 0.01,
            "y": 1 - (arrangement.legend_top or 0) / arrangement.height,
            "yanchor": "top",
        },
        "hovermode": "closest",
        # An empty template: plotly's own would add seven kilobytes to every stored figure.
        "template": {"layout": {}},
    }


def _domains(place: Place, whole: Arrangement) -> tuple[list[float], list[float]]:
    left, right = place.left / whole.width, (place.left + place.width) / whole.width
    top, bottom = 1 - place.top / whole.height, 1 - (place.top + place.height) / whole.height
    return [round(left, 5), round(right, 5)], [round(bottom, 5), round(top, 5)]


def _axis(axis: Axis, ticks: Ticks | None, domain: list[float], anchor: str) -> dict[str, Any]:
    repeated = ticks is not None and not ticks.positions
    made: dict[str, Any] = {
        "domain": domain,
        "anchor": anchor,
        "title": {"text": "" if repeated else plain(axis.title), "standoff": 6},
        "gridcolor": style.GRID,
        "zerolinecolor": style.TEXT,
        "linecolor": style.GRID,
        "ticks": "",
    }
    if ticks is not None:
        made |= {
            "tickmode": "array",
            "tickvals": list(ticks.positions),
            "ticktext": [plain(t) for t in ticks.texts],
            "tickangle": -90 if ticks.turned else 0,
        }
    return made


def _heatmap(panel: Panel, place: Place, whole: Arrangement) -> dict[str, Any]:
    assert panel.values is not None
    assert panel.cells is not None
    colours = style.colours_between(place.colours[0])
    steps = len(colours) - 1
    unit = f" {plain(panel.unit)}" if panel.unit else ""
    # Into a cell plotly writes its text and no other data of ours: "-" in its place.
    names = "text" if panel.numbers is None else "hovertext"
    trace: dict[str, Any] = {
        "type": "heatmap",
        "z": short_numbers(panel.values),
        names: [[plain(name) for name in row] for row in panel.cells],
        "hovertemplate": f"%{{{names}}}: %{{z:.3~g}}{unit}<extra></extra>",
        "colorscale": [[i / steps, c] for i, c in enumerate(colours)],
        "zmin": round(place.colours[0], 6),
        "zmax": round(place.colours[1], 6),
        "xgap": gap(panel),
        "ygap": gap(panel),
        "showscale": place.colour_bar,
    }
    if panel.numbers is not None:
        trace["text"] = [list(row) for row in panel.numbers]
        trace["texttemplate"] = "%{text}"
    if place.colour_bar:
        trace["colorbar"] = {
            "x": (place.left + place.width + 8) / whole.width,
            "xanchor": "left",
            "y": 1 - (place.top + place.height / 2) / whole.height,
            "len": place.height,
            "lenmode": "pixels",
            "thickness": 12,
            "xpad": 0,
            "ypad": 0,
            "outlinewidth": 0,
            "title": {"text": plain(panel.unit), "side": "right"},
        }
    return trace


def gap(panel: Panel) -> int:
    """Pixels between cells: a hairline that helps to find a row, where cells are large enough."""
    return 1 if panel.values is not None and max(panel.values.shape) <= 40 else 0


def _series(panel: Panel, order: int) -> dict[str, Any]:
    series = panel.series[order]
    colour = style.series_colour(order)
    names = series.labels or panel.x.names
    trace: dict[str, Any] = {
        "name": plain(series.name),
        "x": short_numbers(series.x),
        "y": short_numbers(series.y),
    }
    unit = f" {plain(panel.unit)}" if panel.unit else ""
    first = "%{text}" if names else "%{x:.3~g}"
    if names:
        trace["text"] = [plain(n) for n in names]
        trace["textposition"] = "none" if panel.kind == "bar" else "top center"
    trace["hovertemplate"] = first + ": %{y:.3~g}" + unit + "<extra>%{fullData.name}</extra>"
    if series.error is not None:
        below, above = series.error
        trace["error_y"] = {"array": short_numbers(above), "color": style.TEXT, "width": 2}
        if not np.array_equal(below, above, equal_nan=True):
            trace["error_y"] |= {"symmetric": False, "arrayminus": short_numbers(below)}
    if panel.kind in ("bar", "histogram"):
        trace |= {"type": "bar", "marker": {"color": colour, "line": {"width": 0}}}
        if panel.kind == "histogram":
            trace |= {"width": float(np.diff(series.x)[0]) if len(series.x) > 1 else 1.0}
            trace["opacity"] = 0.65 if len(panel.series) > 1 else 1.0
    elif panel.kind == "line":
        width = line_widths(panel)[order]
        trace |= {"type": "scatter", "mode": "lines+markers"}
        trace |= {
            "line": {"color": colour, "width": width + 0.5},
            "marker": {"size": width + 3.5},
        }
    else:
        trace |= {"type": "scatter", "mode": "markers", "marker": {"color": colour, "size": 7}}
        both = "%{x:.3~g}, %{y:.3~g}"
        trace["hovertemplate"] = ("%{text}: " if names else "") + both + "<extra></extra>"
    return trace


def _diagonal(panel: Panel, place: Place, axes: dict[str, str]) -> dict[str, Any]:
    low, high = diagonal_ends(panel, place)
    return {
        "type": "line",
        "xref": axes["xaxis"],
        "yref": axes["yaxis"],
        "x0": low,
        "y0": low,
        "x1": high,
        "y1": high,
        "line": {"color": style.TEXT, "width": 1, "dash": "dot"},
        "layer": "below",
    }


def diagonal_ends(panel: Panel, place: Place) -> tuple[float, float]:
    """Where the line y = x begins and ends: the range of square axes, else the range that the
    values of both axes cover."""
    if place.both is not None:
        return place.both
    low = max(min(s.x.min() for s in panel.series), min(s.y.min() for s in panel.series))
    high = min(max(s.x.max() for s in panel.series), max(s.y.max() for s in panel.series))
    return (float(low), float(high)) if low < high else (0.0, 0.0)


def _title_lines(whole: Arrangement, details: str = "") -> list[dict[str, Any]]:
    """Title and note as lines of text: plotly's own title places several lines unevenly."""
    made = []
    y = 4.0
    for lines, size, step, hover in (
        (whole.title_lines, style.TITLE_SIZE, TITLE_LINE, ""),
        (whole.note_lines, style.FONT_SIZE, LINE, details),
    ):
        for line in lines:
            text = _text(line, 0.01, 1 - y / whole.height, "left", "top", size)
            made.append(text | ({"hovertext": plain(hover)} if hover else {}))
            y += step
    return made


def _panel_title(title: str, place: Place, whole: Arrangement) -> dict[str, Any]:
    x = (place.left + place.width / 2) / whole.width
    return _text(title, x, 1 - (place.top - 4) / whole.height, "center", "bottom", 13)


def _text(text: str, x: float, y: float, xanchor: str, yanchor: str, size: int) -> dict[str, Any]:
    return {
        "text": plain(text),
        "xref": "paper",
        "yref": "paper",
        "x": round(x, 5),
        "y": round(y, 5),
        "xanchor": xanchor,
        "yanchor": yanchor,
        "showarrow": False,
        "font": {"size": size, "color": style.TEXT},
    }


def attention_json(
    title: str,
    heads: Sequence[str],
    tokens: Sequence[str],
    patterns: Float[np.ndarray, "head destination source"],
) -> dict[str, Any]:
    """The figure's title and what circuitsvis' `AttentionHeads` is given, to four decimals."""
    props = {
        "attentionHeadNames": list(heads),
        "tokens": list(tokens),
        "attention": np.round(patterns, 4).tolist(),
        "maskUpperTri": True,
    }
    return {"title": title, "props": props}


def attention_html(spec: Mapping[str, Any], summary: str, png: str) -> str:
    """HTML for a live notebook: circuitsvis drawn over a static picture, which stays offline.

    The script comes from circuitsvis' CDN as a module, which a page fetches once, unless
    `offline_scripts()` was displayed on the page before; no copy of it is stored in the notebook.
    """
    url = CIRCUITSVIS_CDN.format(version=metadata.version("circuitsvis"))
    return f"""<style>{HEADS}</style>
<div class="ioi-attention" style="{CARD}">{_image(png, summary)}</div>
<script type="module">
const box = [...document.querySelectorAll(".ioi-attention")].find((e) => !e.dataset.drawn);
if (box) {{
  box.dataset.drawn = "yes";
  const draw = (library) => {{
    box.textContent = {script_json(spec["title"])};
    const drawing = box.appendChild(document.createElement("div"));
    drawing.id = "ioi-" + Math.random().toString(36).slice(2);
    drawing.className = "ioi-heads";
    library.render(drawing.id, library.AttentionHeads, {script_json(spec["props"])});
  }};
  if (window.CircuitsVis) draw(window.CircuitsVis);
  else import("{url}").then(draw).catch(() => {{}});
}}
</script>"""


def colab_html(figure: Any, summary: str, png: str = "") -> str:
    """HTML for Colab: plotly from its CDN, over a static picture that stays where it cannot come.

    Without `png` the summary stands there alone.
    """
    drawn = figure.to_html(include_plotlyjs="cdn", full_html=False)
    still = _image(png, summary) if png else f"<pre>{html.escape(summary)}</pre>"
    return (
        f'<div class="ioi-still">{still}</div>{drawn}<script>if (window.Plotly) '
        'document.querySelectorAll(".ioi-still").forEach((e) => e.remove());</script>'
    )


# circuitsvis draws dark text on nothing; a light card keeps it readable on a dark page.
CARD = "background:#fff;color:#222;padding:8px;border-radius:6px;overflow-x:auto;max-width:760px"

# circuitsvis lays a head's name over its thumbnail, which a long name covers, and over the large
# picture, whose heading says it anyway; its headings have the page's size. So names stand above.
HEADS = """
.ioi-heads h2 { display: none }
.ioi-heads h3 { font-size: 1rem !important; margin: 0.5rem 0 !important; color: #222 }
.ioi-heads h4 { position: static !important; font-size: 0.75rem !important; line-height: 1.3;
  color: #222 !important; background: none !important; overflow-wrap: anywhere }
.ioi-heads div:has(> div > div > h4) { flex-basis: 7rem !important; max-width: 7rem !important }
"""


def script_json(value: Any) -> str:
    """JSON that can stand inside a script element, whatever the tokens contain."""
    return json.dumps(value, separators=(",", ":")).replace("<", "\\u003c")


def _image(png: str, summary: str) -> str:
    return (
        f'<img src="data:image/png;base64,{png}" alt="{html.escape(summary)}"'
        ' style="max-width:100%">'
    )


def page_scripts() -> dict[str, str]:
    """JavaScript for a page that shows figures, by file name, in the order to load it.

    Works with no network: plotly's and circuitsvis' scripts come from their installed packages.
    Write the files beside the page (or inline them) once, whatever the number of figures.
    """
    from plotly.offline import get_plotlyjs

    circuitsvis = resources.files("circuitsvis").joinpath("dist/cdn/iife.js")
    return {
        "plotly.min.js": get_plotlyjs(),
        # `var` at the top of a classic script already makes a global; say so for modules as well.
        "circuitsvis.js": circuitsvis.read_text(encoding="utf-8").replace("</script>", "")
        + "\nwindow.CircuitsVis = CircuitsVis;\n",
        "figures.js": DRAW_PAGE,
    }


DRAW_PAGE = (
    """
// Draws every figure.ioi-figure over its static picture, which stays for printing, in the widest of
// its layouts that fits, with text that suits the page's theme; again when either changes.
(() => {
  const root = document.documentElement;
  const figures = [...document.querySelectorAll("figure.ioi-figure")];
  const specs = new Map(
    figures.map((figure) => [figure, figure.querySelector("script").textContent])
  );
  const touch = matchMedia("(pointer: coarse)").matches;
  const style = document.head.appendChild(document.createElement("style"));
  style.textContent = HEADS + ".ioi-figure.drawn > img { display: none } " +
    ".ioi-drawing { overflow-x: auto; max-width: 100% } " +
    "@media print { .ioi-figure.drawn > img { display: block } .ioi-drawing { display: none } }";

  const textColour = () => ({ light: "#595959", dark: "#bdbdbd" })[root.dataset.theme] || "TEXT";

  const drawAttention = (box, spec) => {
    if (box.firstChild) return;
    const card = box.appendChild(document.createElement("div"));
    card.style.cssText = "CARD";
    card.textContent = spec.title;
    card.setAttribute("aria-hidden", "true"); // the box around it has the words
    const drawing = card.appendChild(document.createElement("div"));
    drawing.id = "ioi-" + Math.random().toString(36).slice(2);
    drawing.className = "ioi-heads";
    CircuitsVis.render(drawing.id, CircuitsVis.AttentionHeads, spec.props);
  };

  const drawPlot = (box, text, width) => {
    const { data, layout, config, narrow } = JSON.parse(text.replaceAll("TEXT", textColour()));
    let best = layout;
    if (layout.width > width) {
      const fits = (narrow || []).filter((other) => other.layout.width <= width);
      const chosen = fits.length ? fits[fits.length - 1] : (narrow || [])[0];
      if (chosen) {
        best = chosen.layout;
        for (const [i, changes] of Object.entries(chosen.traces)) Object.assign(data[i], changes);
      }
    }
    // A finger that moves over a figure scrolls the page.
    if (touch) best.dragmode = false;
    Plotly.react(box, data, best, config);
  };

  const draw = (figure) => {
    const box = figure.querySelector(".ioi-drawing");
    const words = figure.querySelector("details pre");
    const width = figure.clientWidth;
    if (!width) return; // folded away: drawn when it is unfolded
    const state = figure.dataset.kind === "attention" ? "" : width + textColour();
    if (figure.dataset.state === state) return;
    try {
      const text = specs.get(figure);
      if (figure.dataset.kind === "attention") drawAttention(box, JSON.parse(text));
      else drawPlot(box, text, width);
      figure.dataset.state = state;
      figure.classList.add("drawn");
      box.setAttribute("role", "img");
      box.setAttribute("aria-label", words.textContent);
      const wide = box.scrollWidth > box.clientWidth + 1;
      if (wide) box.tabIndex = 0; // so that arrow keys scroll it
      else box.removeAttribute("tabindex");
    } catch (error) {
      console.error("figure not drawn", error);
    }
  };

  // Near the window first, the rest as it comes into sight.
  const seen = new Set();
  const watch = new IntersectionObserver(
    (entries) => {
      for (const entry of entries) {
        if (entry.isIntersecting) {
          seen.add(entry.target);
          draw(entry.target);
        }
      }
    },
    { rootMargin: "1000px" }
  );
  figures.forEach((figure) => watch.observe(figure));
  let waiting;
  addEventListener("resize", () => {
    clearTimeout(waiting);
    waiting = setTimeout(() => seen.forEach(draw), 150);
  });
  new MutationObserver(() => seen.forEach(draw)).observe(root, { attributeFilter: ["data-theme"] });
})();
""".replace("CARD", CARD)
    .replace("HEADS", script_json(HEADS))
    .replace("TEXT", style.TEXT)
)


def page_figure(bundle: Mapping[str, Any]) -> str | None:
    """HTML of a stored figure output (its mime bundle), None where the output is no figure.

    The page must load `page_scripts()` once, after the figures. The drawing then stands in the
    widest layout that fits, and takes its text's colour from the page's theme where that names one
    (`data-theme` of the root element). On paper and without JavaScript the static picture shows, if
    one is stored, with the summary as its alternative text; the summary can also be unfolded below.
    """
    kind = "attention" if ATTENTION_MIME in bundle else "plotly"
    spec = bundle.get(ATTENTION_MIME if kind == "attention" else PLOTLY_MIME)
    if spec is None:
        return None
    if kind == "plotly":
        spec = {**spec, "narrow": narrower(spec)}
    summary = _joined(bundle.get("text/plain", ""))
    png = _joined(bundle.get("image/png", "")).replace("\n", "")
    words = html.escape(summary)
    return f"""<figure class="ioi-figure" data-kind="{kind}" style="margin:0">
<div class="ioi-drawing"></div>{_image(png, summary) if png else ""}
<script type="application/json">{script_json(spec)}</script>
<details><summary>In words</summary><pre>{words}</pre></details></figure>"""


def narrower(spec: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What changes in a plotly figure where there is less room than it takes, narrowest first."""
    made = {}
    for width in WIDTHS:
        change = reflow(spec, width) if spec.get("layout") else None
        if change is not None:
            made[change["layout"]["width"]] = change
    return list(made.values())


def page(title: str, bundle: Mapping[str, Any]) -> str:
    """A whole HTML page that shows one figure and needs no network, from its mime bundle."""
    unused = "plotly.min.js" if ATTENTION_MIME in bundle else "circuitsvis.js"
    scripts = [script for name, script in page_scripts().items() if name != unused]
    return "\n".join(
        [
            '<!DOCTYPE html>\n<html lang="en">\n<head><meta charset="utf-8">',
            f"<title>{html.escape(title)}</title></head>\n<body>",
            page_figure(bundle) or "",
            *(f"<script>{script}</script>" for script in scripts),
            "</body>\n</html>",
        ]
    )


def _joined(text: str | Sequence[str]) -> str:
    """Notebook files may store a text as a list of lines."""
    return text if isinstance(text, str) else "".join(text)


class OfflineScripts:
    """circuitsvis' script as an output, so that a live notebook without network can use it."""

    def __repr__(self) -> str:
        return "circuitsvis' script is loaded: attention figures drawn from here on use it."

    def _repr_html_(self) -> str:
        return f"<script>{page_scripts()['circuitsvis.js']}</script>{self!r}"
