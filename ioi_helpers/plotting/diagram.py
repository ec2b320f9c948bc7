"""A circuit drawn by a program: groups of heads as boxes, and arrows for who reads from whom.

What is drawn is a `graph.Circuit`. A box holds the nodes of one head class, or of one layer where
the circuit names no head classes. It stands in the row of the token at which its heads work, and
the further right the longer the chain of arrows that leads to it. Nothing is placed by hand, so
another circuit gives another drawing.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ioi_helpers.dataset.roles import ROLES
from ioi_helpers.graph import EMBEDDING, Circuit, Node
from ioi_helpers.plotting import style
from ioi_helpers.plotting.figure import Figure
from ioi_helpers.plotting.panels import CHARACTER, LINE, Axis, Drawing, Label, Panel, Rectangle

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
COLOURS = {
    "previous_token": style.OTHER,
    "duplicate_token": style.series_colour(0),
    "induction": style.series_colour(5),
    "s_inhibition": style.series_colour(4),
    "name_mover": style.series_colour(2),
    "backup_name_mover": style.series_colour(3),
    "negative_name_mover": style.series_colour(1),
}
"""A head class has its colour in every diagram; other boxes go by how far to the right they are."""
READ = {"q": "queries", "k": "keys", "v": "values", "in": "input", "final": "writes"}
LOGITS = "logits"
EVERYWHERE = "all"
"""The row of nodes that are in the circuit at every token."""

EMPTY = "There is no head in this circuit, so there is nothing to draw."

HEADS_A_LINE = 3
BOX_WIDTH = 156.0  # pixels; the rest of the geometry as well
STAGE_WIDTH = BOX_WIDTH + 74.0
LEFT = 62.0  # names of the rows, at least
ROLE_SIZE = 13
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
    def colour(self) -> str:
        """The head class's, or that of its place from left to right."""
        return COLOURS.get(self.label, style.series_colour(self.stage))

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

    @property
    def middle(self) -> float:
        """How far down the middle of the box is."""
        return self.top + self.height / 2


@dataclass(frozen=True, repr=False)
class Diagram(Figure):
    """A figure of a circuit. `boxes` and `arrows` are what its drawing shows."""

    boxes: tuple[Box, ...] = ()
    arrows: tuple[tuple[Box, Box, str], ...] = ()


def diagram(
    circuit: Circuit,
    title: str = "",
    *,
    arrows: Sequence[Arrow] | None = None,
    apart: Collection[str] = (),
    note: str = "",
    roles: Sequence[str] = ROLES,
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
        roles: What nodes may stand at, from top to bottom; of another task, ``data.positions``.

    Raises:
        ValueError: A node at an unknown role; arrows between head classes that go in a circle.
    """
    groups = _groups(circuit)
    for (label, position), members in groups.items():
        if position not in (*roles, EVERYWHERE):
            name = members[0].name if members else label
            raise ValueError(
                f"{name} works at {position!r}, which is no role; use one of {', '.join(roles)}."
            )
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
            tuple(node.name for node in members if node.name != label),  # said by the title
            tuple(circuit.notes.get(node, "") for node in members if node.name != label),
            stages.get((label, position), 0),
            label in apart,
        )
        for (label, position), members in groups.items()
    ]
    places = [*roles, EVERYWHERE]
    boxes.sort(key=lambda box: (places.index(box.position), box.stage, _place(order, box.label)))
    # An arrow within a row runs under the boxes that stand between its ends.
    passed = {
        (source[1], stage)
        for source, target in links
        if source[1] == target[1]
        for stage in range(stages[source] + 1, stages[target])
    }
    placed, bands, size = _lay_out(boxes, passed)
    by_key = {(box.label, box.position): box for box in placed if not box.apart}
    # Two arrows between the same boxes would lie on each other: they are one, with both words.
    drawn = tuple(
        (by_key[source], by_key[target], " and ".join(dict.fromkeys(what)))
        for (source, target), what in links.items()
        if source in by_key and target in by_key
    )
    if not note and any(box.apart for box in placed):
        note = "Dashed: heads with no known part in this task."
    drawing = _draw(placed, drawn, bands, size)
    panel = Panel("diagram", Axis(), Axis(), drawing=drawing)
    return Diagram(title, (panel,), note=note, boxes=placed, arrows=drawn)


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
    boxes: Sequence[Box], passed: Collection[tuple[str, int]] = ()
) -> tuple[tuple[Box, ...], tuple[tuple[str, float, float], ...], tuple[float, float]]:
    """Boxes with their places, the band of each token, and the size of the drawing, in pixels.

    Where (position, stage) is in `passed`, boxes stand above the middle of their band.
    """
    if not boxes:
        return (), (), (480.0, 40.0)
    used = sorted({box.stage for box in boxes})
    margin = left_of_boxes(boxes)
    placed, bands, top = [], [], 0.0
    for position in dict.fromkeys(box.position for box in boxes):
        columns = [[b for b in boxes if (b.position, b.stage) == (position, s)] for s in used]
        heights = [sum(b.height for b in c) + GAP * (len(c) - 1) for c in columns]
        below = [
            (h + 2 * GAP) * ((position, s) in passed) for h, s in zip(heights, used, strict=True)
        ]
        height = max(h + free for h, free in zip(heights, below, strict=True))
        for column, inside in enumerate(columns):
            # In the middle of its band, so that arrows from one band to the next stay short.
            y = top + ROW_PADDING + (height - heights[column] - below[column]) / 2
            for box in inside:
                left = margin + column * STAGE_WIDTH
                placed.append(replace(box, left=left, top=y))
                y += box.height + GAP
        bands.append((position, top, top + height + 2 * ROW_PADDING))
        top += height + 2 * ROW_PADDING
    width = margin + (len(used) - 1) * STAGE_WIDTH + BOX_WIDTH + 14
    return tuple(placed), tuple(bands), (max(width, 480.0), top + LINE + 8)


def left_of_boxes(boxes: Sequence[Box]) -> float:
    """Where boxes begin: right of the longest name of a row."""
    longest = max((len(box.position) for box in boxes), default=0)
    return max(LEFT, 8 + longest * CHARACTER * ROLE_SIZE / 12 + 12)


def _in_words(boxes: Sequence[Box], links: Sequence[tuple[Box, Box, str]]) -> Iterator[str]:
    if not boxes:
        yield EMPTY
        return
    for box in boxes:
        aside = " (no part in this task known)" if box.apart else ""
        where = "at every token" if box.position == EVERYWHERE else f"at {box.position}"
        members = f": {', '.join(box.heads)}" if box.heads else ""
        yield f"{where}: {box.title}{aside}{members}"
    said = dict.fromkeys(f"{a.title} -> {b.title} ({what})" for a, b, what in links)
    yield "arrows: " + ("; ".join(said) or "none")


def _ends(
    one: Box, other: Box, links: Sequence[tuple[Box, Box, str]]
) -> tuple[float, float, float, float]:
    """Where an arrow leaves `one` (right side) and enters `other` (left side), fanned out."""
    leaving = sorted(
        (link[1] for link in links if link[0] == one),
        key=lambda box: (box.middle - one.middle) / max(box.left - one.left, 1.0),
    )
    # Steep arrows come from above: where they enter above the flatter ones, none cross.
    entering = sorted(
        (link[0] for link in links if link[1] == other),
        key=lambda box: (box.top - other.top) / max(other.left - box.left, 1.0),
    )
    y0 = one.top + one.height * (leaving.index(other) + 1) / (len(leaving) + 1)
    y1 = other.top + other.height * (entering.index(one) + 1) / (len(entering) + 1)
    return one.left + BOX_WIDTH, y0, other.left, y1


def _beside(
    ends: tuple[float, float, float, float], what: str, along: float = 0.5, over: bool = True
) -> tuple[float, float]:
    """The middle of a text beside an arrow, on its upper right or below it, clear of the line."""
    x0, y0, x1, y1 = ends
    length = math.hypot(x1 - x0, y1 - y0) or 1.0
    across, down = (y1 - y0) / length, -(x1 - x0) / length
    away = 8 + abs(across) * len(what) * CHARACTER / 2
    side = 1.0 if (down <= 0) == over else -1.0
    x, y = x0 + along * (x1 - x0), y0 + along * (y1 - y0)
    return x + side * across * away, y + side * down * away


def _crosses(
    line: tuple[float, float, float, float], left: float, top: float, right: float, bottom: float
) -> bool:
    """Whether a straight line runs through a rectangle."""
    x0, y0, x1, y1 = line
    enters, leaves = 0.0, 1.0  # as shares of the line
    for start, step, low, high in ((x0, x1 - x0, left, right), (y0, y1 - y0, top, bottom)):
        if step == 0:
            if not low < start < high:
                return False
            continue
        near, far = sorted(((low - start) / step, (high - start) / step))
        enters, leaves = max(enters, near), min(leaves, far)
    return enters < leaves


def _words(
    boxes: Sequence[Box],
    links: Sequence[tuple[Box, Box, str]],
    ends: Sequence[tuple[float, float, float, float]],
) -> list[Label]:
    """The text of each arrow, above its middle or, where something is in the way, elsewhere."""
    placed: list[Label] = []

    def free(label: Label, own: tuple[float, float, float, float]) -> bool:
        wide, high = len(label.text) * CHARACTER * label.size / 12 / 2, label.size / 2
        left, right = label.x - wide, label.x + wide
        top, bottom = label.y - high, label.y + high
        in_box = any(
            left < box.left + BOX_WIDTH
            and right > box.left
            and top < box.top + box.height
            and bottom > box.top
            for box in boxes
        )
        on_text = any(
            abs(label.x - other.x) < wide + len(other.text) * CHARACTER * other.size / 12 / 2
            and abs(label.y - other.y) < 2 * high
            for other in placed
        )
        on_line = any(_crosses(line, left, top, right, bottom) for line in ends if line != own)
        return not (in_box or on_text or on_line)

    for end, (_, _, what) in zip(ends, links, strict=True):
        tried = [
            Label(*_beside(end, what, along, over), what, 10)
            for over in (True, False)
            for along in (0.5, 0.4, 0.6, 0.3, 0.7)
        ]
        placed.append(next((label for label in tried if free(label, end)), tried[0]))
    return placed


BELOW = "early  →  late"


def _draw(
    boxes: Sequence[Box],
    links: Sequence[tuple[Box, Box, str]],
    bands: Sequence[tuple[str, float, float]],
    size: tuple[float, float],
) -> Drawing:
    """The boxes at their places as rectangles, arrows and lines of text."""
    width, height = size
    labels = [
        Label(8.0, (top + bottom) / 2, name, ROLE_SIZE, "left") for name, top, bottom in bands
    ]
    for box in boxes:
        middle = box.left + BOX_WIDTH / 2
        labels.append(Label(middle, box.top + 6 + LINE / 2, box.title, 12))
        notes = dict(zip(box.heads, box.notes, strict=True))
        step = (BOX_WIDTH - 8) / HEADS_A_LINE
        for number, line in enumerate(box.lines):
            y = box.top + 6 + LINE * (number + 1.5)
            for place, head in enumerate(line):
                x = middle + (place - (len(line) - 1) / 2) * step
                hover = f"{head}, {box.title}, at {box.position}\n{notes[head]}".strip()
                labels.append(Label(x, y, head, hover=hover))
    ends = [_ends(one, other, links) for one, other, _ in links]
    labels += _words(boxes, links, ends)
    if boxes:
        labels.append(Label((left_of_boxes(boxes) + width) / 2, height - LINE / 2 - 4, BELOW, 12))
    else:
        labels.append(Label(8, 12, EMPTY, 12, "left"))
    return Drawing(
        width,
        height,
        rectangles=tuple(
            Rectangle(box.left, box.top, BOX_WIDTH, box.height, box.colour, box.apart)
            for box in boxes
        ),
        rules=tuple(bottom for _, _, bottom in bands[:-1]),
        arrows=tuple(ends),
        labels=tuple(labels),
        lines=tuple(_in_words(boxes, links)),
    )
