"""A circuit drawn by a program: groups of heads as boxes, and arrows for who reads from whom.

What is drawn is a `graph.Circuit`. A box holds the nodes of one head class, or of one layer where
the circuit names no head classes. It stands in the row of the token at which its heads work, and
the further right the longer the chain of arrows that leads to it. Nothing is placed by hand, so
another circuit gives another drawing.
"""

from __future__ import annotations

import base64
import io
import math
import textwrap
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from ioi_helpers.dataset.roles import ROLES
from ioi_helpers.graph import EMBEDDING, Circuit, Node
from ioi_helpers.plotting import interactive, static, style
from ioi_helpers.plotting.figure import Figure
from ioi_helpers.plotting.panels import CHARACTER, LINE, TITLE_LINE, TITLE_WIDENING, Arrangement

Arrow = tuple[str, str, str]
Key = tuple[str, str]
"""A box: its label (a head class, or a layer) and the role of its token."""

IOI_ARROWS: tuple[Arrow, ...] = (
    ("previous_token", "induction", "keys"),
    ("duplicate_token", "s_inhibition", "values"),
    ("induction", "s_inhibition", "values"),
    ("s_inhibition", "name_mover", "queries"),
    ("s_inhibition", "backup_name_mover", "queries"),
    ("s_inhibition", "negative_name_mover", "queries"),
)
"""Which head class reads from which, and into what, in GPT-2 small (Wang et al. 2022, figure 2
and section 3)."""

CALLED = {
    "previous_token": "previous-token heads",
    "duplicate_token": "duplicate-token heads",
    "induction": "induction heads",
    "s_inhibition": "S-inhibition heads",
    "name_mover": "name movers",
    "backup_name_mover": "backup name movers",
    "negative_name_mover": "negative name movers",
}
READ = {"q": "queries", "k": "keys", "v": "values", "in": "input", "final": "writes"}
LOGITS = "logits"
EVERYWHERE = "all"
"""The row of nodes that are in the circuit at every token."""

EMPTY = "There is no head in this circuit, so there is nothing to draw."

HEADS_A_LINE = 3
BOX_WIDTH = 156.0  # pixels; the rest of the geometry as well
STAGE_WIDTH = BOX_WIDTH + 74.0
LEFT = 62.0  # names of the rows
GAP = 16.0  # between boxes of one row and stage
ROW_PADDING = 18.0


@dataclass(frozen=True)
class Box:
    """One group at one token: its heads, what is known of each, and where it stands in pixels."""

    label: str
    position: str
    heads: tuple[str, ...]
    notes: tuple[str, ...]
    stage: int
    apart: bool
    left: float = 0.0
    top: float = 0.0

    @property
    def title(self) -> str:
        """The group as a reader calls it."""
        return CALLED.get(self.label, self.label.replace("_", " "))

    @property
    def lines(self) -> tuple[tuple[str, ...], ...]:
        """The heads, as many a line as fit."""
        return tuple(
            self.heads[i : i + HEADS_A_LINE] for i in range(0, len(self.heads), HEADS_A_LINE)
        )

    @property
    def height(self) -> float:
        """Room for the title and the heads."""
        return 12 + LINE + LINE * len(self.lines)


@dataclass(frozen=True)
class Diagram(Figure):
    """A figure made of boxes and arrows instead of axes; the other figures' three forms."""

    boxes: tuple[Box, ...] = ()
    arrows: tuple[tuple[Box, Box, str], ...] = ()
    rows: tuple[tuple[str, float, float], ...] = ()  # token, top and bottom, below the title
    size: tuple[float, float] = (480.0, 40.0)  # of the drawing below the title

    @cached_property
    def _arrangement(self) -> Arrangement:
        width = self.size[0]
        titles = tuple(textwrap.wrap(self.title, int(width / (CHARACTER * TITLE_WIDENING))))
        notes = tuple(textwrap.wrap(self.note, int(width / CHARACTER)))
        height = 14 + TITLE_LINE * len(titles) + LINE * len(notes) + self.size[1]
        return Arrangement(width, height, titles, notes, None, ())

    @property
    def _origin(self) -> float:
        return self._arrangement.height - self.size[1]

    def _plotly_json(self) -> dict[str, Any]:
        return _plotly(self, self._arrangement, self._origin)

    def png(self) -> bytes:
        """The static picture, a PNG with a transparent background."""
        return _png(self, self._arrangement, self._origin)

    def _picture(self) -> str:
        return base64.b64encode(self.png()).decode("ascii")


def diagram(
    circuit: Circuit,
    title: str = "",
    *,
    arrows: Sequence[Arrow] | None = None,
    apart: Collection[str] = (),
    note: str = "",
) -> Diagram:
    """Draw a circuit: its groups of nodes as boxes, arrows between them.

    Args:
        circuit: What `heads.circuit(model)` returns, or any other: nodes in no head class are
            grouped by layer, and a node's note is shown when one hovers over it. It may be empty:
            then the figure is a sentence that says so.
        title: What stands above.
        arrows: (from head class, to head class, what of the reader it changes). By default the
            circuit's own edges where it has any, else `IOI_ARROWS`. Only those between groups that
            have nodes are drawn. They also say what comes early: a box stands one step to the right
            of the last one that it reads from.
        apart: Head classes without a known part in the behaviour: drawn with a dashed frame and
            without arrows.
        note: A line below the title; by default it explains dashed frames where there are some.

    Raises:
        ValueError: A node at an unknown role; arrows between head classes that go in a circle.
    """
    groups = _groups(circuit)
    if arrows is None and circuit.edges is not None:
        links = _edges_between(circuit, groups)
        try:
            stages = _stages(links)
        except ValueError:  # boxes that read from each other, through several layers
            stages = _by_layer(groups)
        order: list[str] = []
    else:
        arrows = IOI_ARROWS if arrows is None else arrows
        links = _links(groups, [(source, target, what) for source, target, what in arrows])
        by_class = _stages({(source, target): [] for source, target, _ in arrows})
        stages = {key: by_class.get(key[0], 0) for key in groups}
        order = [*dict.fromkeys(name for arrow in arrows for name in arrow[:2])]
    boxes = [
        Box(
            label,
            position,
            tuple(node.name for node in members),
            tuple(circuit.notes.get(node, "") for node in members),
            stages.get((label, position), 0),
            label in apart,
        )
        for (label, position), members in groups.items()
    ]
    places = [*ROLES, EVERYWHERE]
    boxes.sort(key=lambda box: (places.index(box.position), box.stage, _place(order, box.label)))
    placed, bands, size = _lay_out(boxes)
    by_key = {(box.label, box.position): box for box in placed if not box.apart}
    # Two arrows between the same boxes would lie on each other: they are one, with both words.
    drawn = tuple(
        (by_key[source], by_key[target], " and ".join(dict.fromkeys(what)))
        for (source, target), what in links.items()
        if source in by_key and target in by_key
    )
    if not note and any(box.apart for box in placed):
        note = "Dashed: heads with no known part in this task."
    words = _describe(title, note, placed, drawn)
    return Diagram(
        title, (), note=note, words=words, boxes=placed, arrows=drawn, rows=bands, size=size
    )


def _groups(circuit: Circuit) -> dict[Key, list[Node]]:
    """The nodes of each box, early ones first; those without a head class by layer."""
    found: dict[Key, list[Node]] = {}
    for label, members in circuit.classes.items():
        for node in sorted(members):
            found.setdefault((label, _position(node)), []).append(node)
    grouped = frozenset().union(*circuit.classes.values())
    for node in circuit:
        if node not in grouped:
            found.setdefault((f"layer {node.layer}", _position(node)), []).append(node)
    for edge in circuit.edges or ():
        if edge.sender.layer < 0:
            found.setdefault((EMBEDDING.name, _position(edge.sender)), [edge.sender])
        if edge.receiver is None:
            found.setdefault((LOGITS, "END"), [])
    return found


def _position(node: Node) -> str:
    if node.role is not None and node.role not in ROLES:
        raise ValueError(
            f"{node.name} works at {node.role!r}, which is no role; use one of {', '.join(ROLES)}."
        )
    return node.role or EVERYWHERE


def _links(groups: Mapping[Key, Any], arrows: Iterable[Arrow]) -> dict[tuple[Key, Key], list[str]]:
    """Arrows between head classes as arrows between their boxes, with what each changes."""
    found: dict[tuple[Key, Key], list[str]] = {}
    for source, target, what in arrows:
        for one in groups:
            for other in groups:
                if (one[0], other[0]) == (source, target):
                    found.setdefault((one, other), []).append(what)
    return found


def _edges_between(
    circuit: Circuit, groups: Mapping[Key, Sequence[Node]]
) -> dict[tuple[Key, Key], list[str]]:
    """The circuit's edges as arrows between boxes; those within a box are left out."""
    boxes_of: dict[Node, list[Key]] = {}
    for key, members in groups.items():
        for node in members:
            boxes_of.setdefault(node, []).append(key)
    found: dict[tuple[Key, Key], list[str]] = {}
    for edge in circuit.sorted_edges():
        ends = [(LOGITS, "END")] if edge.receiver is None else boxes_of[edge.receiver]
        for one in boxes_of[edge.sender]:
            for other in ends:
                if one != other:
                    found.setdefault((one, other), []).append(READ[edge.input])
    return found


def _stages(links: Iterable[tuple[Any, Any]]) -> dict[Any, int]:
    """How many arrows lead to each box, or head class, along the longest chain."""
    links = list(links)
    stages = {end: 0 for link in links for end in link}
    for _ in range(len(stages) + 1):
        before = dict(stages)
        for source, target in links:
            stages[target] = max(stages[target], stages[source] + 1)
        if stages == before:
            return stages
    raise ValueError(
        "The arrows go in a circle, so no head class comes first; leave one of them out."
    )


def _by_layer(groups: Mapping[Key, Sequence[Node]]) -> dict[Key, int]:
    """Boxes in the order of their first layers; the logits last."""
    first = {key: min((n.layer for n in nodes), default=10**9) for key, nodes in groups.items()}
    ranks = sorted(set(first.values()))
    return {key: ranks.index(layer) for key, layer in first.items()}


def _place(order: Sequence[str], label: str) -> int:
    return order.index(label) if label in order else len(order)


def _lay_out(
    boxes: Sequence[Box],
) -> tuple[tuple[Box, ...], tuple[tuple[str, float, float], ...], tuple[float, float]]:
    """Boxes with their places, the band of each token, and the size of the drawing, in pixels."""
    if not boxes:
        return (), (), (480.0, 40.0)
    used = sorted({box.stage for box in boxes})
    placed, bands, top = [], [], 0.0
    for position in dict.fromkeys(box.position for box in boxes):
        columns = [[b for b in boxes if (b.position, b.stage) == (position, s)] for s in used]
        height = max(sum(b.height for b in c) + GAP * (len(c) - 1) for c in columns)
        for column, inside in enumerate(columns):
            y = top + ROW_PADDING
            # In the middle of its band, so that arrows from one band to the next stay short.
            y += (height - sum(b.height for b in inside) - GAP * max(len(inside) - 1, 0)) / 2
            for box in inside:
                left = LEFT + column * STAGE_WIDTH
                placed.append(replace(box, left=left, top=y))
                y += box.height + GAP
        bands.append((position, top, top + height + 2 * ROW_PADDING))
        top += height + 2 * ROW_PADDING
    width = LEFT + (len(used) - 1) * STAGE_WIDTH + BOX_WIDTH + 14
    return tuple(placed), tuple(bands), (max(width, 480.0), top + LINE + 8)


def _describe(
    title: str,
    note: str,
    boxes: Sequence[Box],
    links: Sequence[tuple[Box, Box, str]],
) -> str:
    lines = [f"Circuit diagram: {title}" if title else "Circuit diagram"]
    lines += [note] if note else []
    if not boxes:
        return "\n".join([*lines, EMPTY])
    for box in boxes:
        aside = " (no part in this task known)" if box.apart else ""
        where = "at every token" if box.position == EVERYWHERE else f"at {box.position}"
        members = f": {', '.join(box.heads)}" if box.heads else ""
        lines.append(f"{where}: {box.title}{aside}{members}")
    said = dict.fromkeys(f"{a.title} -> {b.title} ({what})" for a, b, what in links)
    return "\n".join([*lines, "arrows: " + ("; ".join(said) or "none")])


def _colour(box: Box) -> str:
    return style.series_colour(box.stage)


def _ends(
    one: Box, other: Box, links: Sequence[tuple[Box, Box, str]]
) -> tuple[float, float, float, float]:
    """Where an arrow leaves `one` (right side) and enters `other` (left side), fanned out."""
    leaving = [link[1] for link in links if link[0] == one]
    # Steep arrows come from above: where they enter above the flatter ones, none cross.
    entering = sorted(
        (link[0] for link in links if link[1] == other),
        key=lambda box: (box.top - other.top) / max(other.left - box.left, 1.0),
    )
    y0 = one.top + one.height * (leaving.index(other) + 1) / (len(leaving) + 1)
    y1 = other.top + other.height * (entering.index(one) + 1) / (len(entering) + 1)
    return one.left + BOX_WIDTH, y0, other.left, y1


def _beside(ends: tuple[float, float, float, float], what: str) -> tuple[float, float]:
    """The middle of a text beside an arrow, on its upper right, clear of the line."""
    x0, y0, x1, y1 = ends
    length = math.hypot(x1 - x0, y1 - y0) or 1.0
    across, down = (y1 - y0) / length, -(x1 - x0) / length
    away = 8 + abs(across) * len(what) * CHARACTER / 2
    side = 1.0 if down <= 0 else -1.0
    return (x0 + x1) / 2 + side * across * away, (y0 + y1) / 2 + side * down * away


def _scene(
    figure: Diagram, origin: float
) -> tuple[list[tuple[float, float, str, str, str]], float]:
    """Every text of the drawing as (x, y, text, kind, hover); y of the words below it."""
    texts = []
    for name, top, bottom in figure.rows:
        texts.append((8.0, origin + (top + bottom) / 2, name, "row", ""))
    for box in figure.boxes:
        middle = box.left + BOX_WIDTH / 2
        texts.append((middle, origin + box.top + 6 + LINE / 2, box.title, "title", ""))
        notes = dict(zip(box.heads, box.notes, strict=True))
        step = (BOX_WIDTH - 8) / HEADS_A_LINE
        for number, line in enumerate(box.lines):
            y = origin + box.top + 6 + LINE * (number + 1.5)
            for place, head in enumerate(line):
                x = middle + (place - (len(line) - 1) / 2) * step
                hover = f"{head}, {box.title}, at {box.position}\n{notes[head]}".strip()
                texts.append((x, y, head, "head", hover))
    return texts, origin + figure.size[1] - LINE / 2 - 4


BELOW = "early  →  late"


def _plotly(figure: Diagram, whole: Arrangement, origin: float) -> dict[str, Any]:
    """Boxes as shapes, arrows as annotations, heads as points with a hover label, in pixels."""
    axis = {"visible": False, "fixedrange": True, "showgrid": False, "zeroline": False}
    layout: dict[str, Any] = {
        "width": round(whole.width),
        "height": round(whole.height),
        "margin": {"l": 0, "r": 0, "t": 0, "b": 0, "pad": 0},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"color": style.TEXT, "size": style.FONT_SIZE},
        "hovermode": "closest",
        "showlegend": False,
        "template": {"layout": {}},
        "xaxis": axis | {"range": [0, round(whole.width, 1)]},
        "yaxis": axis | {"range": [round(whole.height, 1), 0]},
    }
    shapes: list[dict[str, Any]] = []
    notes = interactive._title_lines(whole)

    def text(x: float, y: float, words: str, anchor: str = "center", size: int = 11) -> None:
        place = {"x": round(x, 1), "y": round(y, 1), "xanchor": anchor, "yanchor": "middle"}
        font = {"size": size, "color": style.TEXT}
        notes.append(place | {"text": interactive.plain(words), "showarrow": False, "font": font})

    for _, _, bottom in figure.rows[:-1]:
        y = round(origin + bottom, 1)
        line = {"color": style.GRID, "width": 1}
        shapes.append(
            {"type": "line", "x0": 0, "x1": round(whole.width, 1), "y0": y, "y1": y, "line": line}
        )
    for box in figure.boxes:
        colour = _colour(box)
        shapes.append(
            {
                "type": "rect",
                "x0": round(box.left, 1),
                "x1": round(box.left + BOX_WIDTH, 1),
                "y0": round(origin + box.top, 1),
                "y1": round(origin + box.top + box.height, 1),
                "line": {"color": colour, "width": 1.5, "dash": "dash" if box.apart else "solid"},
                "fillcolor": _faint(colour),
                "layer": "below",
            }
        )
    for one, other, what in figure.arrows:
        x0, y0, x1, y1 = _ends(one, other, figure.arrows)
        arrow = {"showarrow": True, "arrowhead": 2, "arrowwidth": 1.5, "arrowcolor": style.TEXT}
        ends = {"x": x1, "y": origin + y1, "ax": x0, "ay": origin + y0}
        notes.append(
            {name: round(value, 1) for name, value in ends.items()}
            | {"axref": "x", "ayref": "y", "text": ""}
            | arrow
        )
        x, y = _beside((x0, y0, x1, y1), what)
        text(x, origin + y, what, size=10)
    texts, below = _scene(figure, origin)
    heads = [t for t in texts if t[3] == "head"]
    for x, y, words, kind, _ in texts:
        if kind != "head":
            text(x, y, words, "left" if kind == "row" else "center", 13 if kind == "row" else 12)
    if figure.boxes:
        text((LEFT + whole.width) / 2, below, BELOW)
    else:
        text(8, origin + 12, EMPTY, "left", 12)
    trace = {
        "type": "scatter",
        "mode": "text",
        "x": [round(t[0], 1) for t in heads],
        "y": [round(t[1], 1) for t in heads],
        "text": [t[2] for t in heads],
        "textfont": {"size": 11, "color": style.TEXT},
        "hovertext": [interactive.plain(t[4]).replace("\n", "<br>") for t in heads],
        "hovertemplate": "%{hovertext}<extra></extra>",
    }
    layout["annotations"], layout["shapes"] = notes, shapes
    return {"data": [trace], "layout": layout, "config": interactive.CONFIG}


def _faint(colour: str, alpha: float = 0.13) -> str:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{alpha})"


def _png(figure: Diagram, whole: Arrangement, origin: float) -> bytes:
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Canvas
    from matplotlib.patches import FancyArrowPatch, Rectangle

    with matplotlib.rc_context(static.RC):
        inch = static.PIXELS_PER_INCH
        canvas = Canvas(figsize=(whole.width / inch, whole.height / inch), dpi=inch * 1.5)
        FigureCanvasAgg(canvas)
        canvas.patch.set_alpha(0)
        static._titles(canvas, whole)
        axes = canvas.add_axes((0, 0, 1, 1))
        axes.set_axis_off()
        axes.set_xlim(0, whole.width)
        axes.set_ylim(whole.height, 0)

        def text(x: float, y: float, words: str, align: str = "center", size: float = 11) -> None:
            points = size * 72 / inch
            axes.text(x, y, words, ha=align, va="center", fontsize=points, color=style.TEXT)

        for _, _, bottom in figure.rows[:-1]:
            axes.axhline(origin + bottom, color=style.GRID_STATIC, linewidth=0.8)
        for box in figure.boxes:
            place = (box.left, origin + box.top)
            frame = Rectangle(
                place,
                BOX_WIDTH,
                box.height,
                facecolor=(*matplotlib.colors.to_rgb(_colour(box)), 0.13),
                edgecolor=_colour(box),
                linewidth=1.2,
                linestyle="--" if box.apart else "-",
            )
            axes.add_patch(frame)
        for one, other, what in figure.arrows:
            x0, y0, x1, y1 = _ends(one, other, figure.arrows)
            axes.add_patch(
                FancyArrowPatch(
                    (x0, origin + y0),
                    (x1, origin + y1),
                    arrowstyle="-|>",
                    mutation_scale=9,
                    color=style.TEXT,
                    linewidth=1.1,
                    shrinkA=0,
                    shrinkB=1,
                )
            )
            x, y = _beside((x0, y0, x1, y1), what)
            text(x, origin + y, what, size=10)
        texts, below = _scene(figure, origin)
        for x, y, words, kind, _ in texts:
            size = {"row": 13, "title": 12, "head": 11}[kind]
            text(x, y, words, "left" if kind == "row" else "center", size)
        if figure.boxes:
            text((LEFT + whole.width) / 2, below, BELOW)
        else:
            text(8, origin + 12, EMPTY, "left", 12)
        stream = io.BytesIO()
        canvas.savefig(stream, format="png", transparent=True, metadata={"Software": None})
        return stream.getvalue()
