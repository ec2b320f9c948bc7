"""The circuit diagram: placed and linked by its data alone, in the three forms of every figure."""

from __future__ import annotations

import json

import pytest

from ioi_helpers import plotting, published
from ioi_helpers.graph import EMBEDDING, Circuit, Edge, Node
from ioi_helpers.plotting.diagram import BOX_WIDTH, Box, Diagram
from ioi_helpers.plotting.panels import Drawing, Label

PUBLISHED = Circuit.of_registry(published.head_classes(), "gpt2-small")


def circuit(*entries: tuple[str, str, str]) -> Circuit:
    """From (head, head class, role of its token)."""
    keys = ("head", "head_class", "position")
    return Circuit.of_registry(dict(zip(keys, entry, strict=True)) for entry in entries)


def box(figure: Diagram, label: str) -> Box:
    return next(b for b in figure.boxes if b.label == label)


def drawing_of(figure: Diagram) -> Drawing:
    (panel,) = figure.panels
    assert panel.drawing is not None
    return panel.drawing


def rows_of(figure: Diagram) -> list[Label]:
    """The names of the tokens, at the left."""
    return [label for label in drawing_of(figure).labels if label.align == "left"]


def test_gpt2s_published_circuit_has_26_heads_in_7_boxes() -> None:
    figure = plotting.diagram(PUBLISHED, "published")
    assert sum(len(b.heads) for b in figure.boxes) == 26
    assert len(figure.boxes) == 7
    assert [row.text for row in rows_of(figure)] == ["S1+1", "S2", "END"]
    assert len(figure.arrows) == 6
    assert "at END: name movers: L9H6, L9H9, L10H0" in figure.summary
    assert "previous-token heads -> induction heads (keys)" in figure.summary


def test_classes_stand_early_to_late_and_in_the_row_of_their_token() -> None:
    figure = plotting.diagram(PUBLISHED)
    left = {b.label: b.left for b in figure.boxes}
    order = ("duplicate_token", "induction", "s_inhibition", "name_mover")
    assert [left[name] for name in order] == sorted({left[name] for name in order})
    assert left["previous_token"] == left["duplicate_token"]
    drawing = drawing_of(figure)
    edges = [0.0, *drawing.rules, drawing.height]
    names = [row.text for row in rows_of(figure)]
    for b in figure.boxes:
        row = names.index(b.position)
        assert edges[row] < b.top and b.top + b.height < edges[row + 1]


def test_boxes_do_not_overlap_and_stay_inside() -> None:
    figure = plotting.diagram(PUBLISHED)
    for one in figure.boxes:
        assert one.left >= 0 and one.left + BOX_WIDTH <= drawing_of(figure).width
        for other in figure.boxes:
            if one is not other and one.left == other.left:
                assert one.top + one.height <= other.top or other.top + other.height <= one.top


def test_arrows_are_drawn_between_classes_that_are_there() -> None:
    figure = plotting.diagram(
        circuit(("L0H1", "duplicate_token", "S2"), ("L2H0", "s_inhibition", "END"))
    )
    assert [(a.label, b.label) for a, b, _ in figure.arrows] == [
        ("duplicate_token", "s_inhibition")
    ]
    for one, other, _ in figure.arrows:
        assert one.left < other.left


def test_classes_set_apart_get_no_arrows_and_are_called_so() -> None:
    entries = circuit(
        ("L0H0", "previous_token", "S1+1"),
        ("L1H1", "induction", "S2"),
        ("L2H0", "s_inhibition", "END"),
    )
    figure = plotting.diagram(entries, apart=["previous_token", "induction"])
    assert figure.arrows == ()
    assert "induction heads (no part in this task known): L1H1" in figure.summary
    assert "Dashed" in figure.summary
    assert figure.summary.endswith("arrows: none")


def test_other_arrows_give_another_order() -> None:
    entries = circuit(("L0H0", "sender", "S2"), ("L3H1", "reader", "END"))
    figure = plotting.diagram(entries, arrows=[("sender", "reader", "values")])
    assert box(figure, "sender").left < box(figure, "reader").left
    assert "sender -> reader (values)" in figure.summary


def test_long_names_of_rows_end_before_the_boxes_begin() -> None:
    rows = ("the person who gives", "END")
    figure = plotting.diagram(Circuit.of([("L0H1", rows[0]), ("L1H2", "END")]), roles=rows)
    names = [label for label in drawing_of(figure).labels if label.align == "left"]
    for name in names:
        width = 0.6 * name.size * len(name.text)
        assert name.x + width < min(box.left for box in figure.boxes)


def test_arrows_between_the_same_classes_are_one() -> None:
    entries = circuit(("L0H0", "sender", "S2"), ("L3H1", "reader", "END"))
    arrows = [("sender", "reader", "keys"), ("sender", "reader", "values")]
    figure = plotting.diagram(entries, arrows=arrows)
    assert len(figure.arrows) == 1
    assert "sender -> reader (keys and values)" in figure.summary


def test_an_empty_registry_is_a_sentence_in_every_form() -> None:
    figure = plotting.diagram(Circuit.of([]), "ioi-plain")
    assert figure.summary == (
        "Circuit diagram: ioi-plain\nThere is no head in this circuit, so there is nothing to draw."
    )
    assert figure.png().startswith(b"\x89PNG")
    assert "nothing to draw" in json.dumps(figure.plotly().to_dict(), default=str)


def test_three_forms(monkeypatch: pytest.MonkeyPatch) -> None:
    figure = plotting.diagram(PUBLISHED, "published", note="a note")
    live = figure._repr_mimebundle_()[0]
    assert live["text/plain"] == figure.summary == repr(figure)
    spec = live["application/vnd.plotly.v1+json"]
    assert {text for trace in spec["data"] for text in trace["text"]} == {
        node.name for node in PUBLISHED
    }
    assert any("path patching" in text for text in spec["data"][0]["hovertext"])
    assert len(json.dumps(spec)) < 30_000
    figure.plotly().to_json()
    monkeypatch.setenv(plotting.STATIC_VARIABLE, "1")
    stored, metadata = figure._repr_mimebundle_()
    assert set(stored) == {"text/plain", "image/png", "application/vnd.plotly.v1+json"}
    assert metadata["image/png"]["alt"] == figure.summary
    assert figure.with_note("another").boxes == figure.boxes


def test_the_registry_of_the_bundled_models_can_be_drawn() -> None:
    from ioi_helpers import heads, load_model

    for name in ("ioi-mini", "ioi-plain"):
        known = heads.circuit(load_model(name, device="cpu", verbose=False))
        figure = plotting.diagram(known, name)
        assert sum(len(b.heads) for b in figure.boxes) == len(known)


@pytest.mark.parametrize(
    ("entries", "arrows", "said"),
    [
        ([("L0H0", "name_mover", "S3")], (), "L0H0 works at 'S3'"),
        ([], [("a", "b", "keys"), ("b", "a", "keys")], "go in a circle"),
    ],
)
def test_bad_input_is_refused_in_a_sentence(
    entries: list[tuple[str, str, str]], arrows: tuple[tuple[str, str, str], ...], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        plotting.diagram(circuit(*entries), arrows=arrows)


def test_known_edges_are_the_arrows() -> None:
    """Between head classes, layers, the embedding and the logits; several inputs in one arrow."""
    base = circuit(("L0H1", "duplicate_token", "S2"), ("L2H0", "s_inhibition", "END"))
    nodes = {node.name: node for node in base}
    other = Node(3, None, "END")
    edges = frozenset(
        {
            Edge(EMBEDDING.at("S2"), nodes["L0H1"], "q"),
            Edge(nodes["L0H1"], nodes["L2H0"], "v"),
            Edge(nodes["L0H1"], nodes["L2H0"], "k"),
            Edge(nodes["L2H0"], other, "in"),
            Edge(other, None, "final"),
        }
    )
    drawn = plotting.diagram(Circuit(base.nodes | {other}, edges, base.classes))
    assert drawn.summary.splitlines()[1:] == [
        "at S2: embedding",
        "at S2: duplicate-token heads: L0H1",
        "at END: S-inhibition heads: L2H0",
        "at END: layer 3: MLP3",
        "at END: logits",
        "arrows: embedding -> duplicate-token heads (queries); duplicate-token heads -> "
        "S-inhibition heads (keys and values); S-inhibition heads -> layer 3 (input); "
        "layer 3 -> logits (writes)",
    ]
    assert [box.stage for box in drawn.boxes] == [0, 1, 2, 3, 4]
    assert drawn.png().startswith(b"\x89PNG")


def test_arrows_and_their_words_lie_on_no_box() -> None:
    """One to the logits passes the box between; two that come down stay apart from each other."""
    early, late = Node(0, 2, "END"), Node(1, None, "END")
    embedded = {Edge(EMBEDDING.at(role), early, x) for role in ("IO", "S2") for x in ("k", "v")}
    written = {Edge(early, late, "in"), Edge(early, None, "final"), Edge(late, None, "final")}
    classes = {"reach": frozenset({early}), "answer for them": frozenset({late})}
    nodes = frozenset({early, late})
    figure = plotting.diagram(Circuit(nodes, frozenset(embedded | written), classes))
    drawing = drawing_of(figure)
    assert len(drawing.arrows) == len(figure.arrows) == 5
    words = [x for x in drawing.labels if x.text in {what for _, _, what in figure.arrows}]
    assert len(words) == 5
    for step in range(1, 100):
        for x0, y0, x1, y1 in drawing.arrows:
            x, y = x0 + step / 100 * (x1 - x0), y0 + step / 100 * (y1 - y0)
            for b in figure.boxes:
                inside = 0 < x - b.left < BOX_WIDTH and 0 < y - b.top < b.height
                assert not inside, f"an arrow runs through {b.title}"
            for word in words:
                wide = 0.6 * word.size * len(word.text) / 2
                assert abs(x - word.x) > wide or abs(y - word.y) > word.size / 2
    for word in words:
        for b in figure.boxes:
            apart = abs(word.x - b.left - BOX_WIDTH / 2) > BOX_WIDTH / 2
            assert apart or abs(word.y - b.middle) > (b.height + word.size) / 2


def test_boxes_that_read_from_each_other_are_drawn_by_layer() -> None:
    """A head class over several layers can read from another one and be read by it."""
    a, b, c = (Node(layer, 0, "END") for layer in (0, 1, 2))
    edges = frozenset({Edge(a, b, "q"), Edge(b, c, "q")})
    classes = {"one": frozenset({a, c}), "two": frozenset({b})}
    drawn = plotting.diagram(Circuit(frozenset({a, b, c}), edges, classes))
    assert {box.label: box.stage for box in drawn.boxes} == {"one": 0, "two": 1}
    assert len(drawn.arrows) == 2 and drawn.png()


def test_nodes_at_every_token_have_a_row_of_their_own() -> None:
    drawn = plotting.diagram(Circuit.of(["L1H0", "MLP0"]))
    assert "at every token: layer 1: L1H0" in drawn.summary


def test_diagrams_stand_beside_other_figures() -> None:
    """One scheme for all: under each other, with the names of the parts, in the three forms."""
    mine = circuit(("L0H1", "duplicate_token", "S2"), ("L2H0", "s_inhibition", "END"))
    both = plotting.side_by_side(
        {"mine": plotting.diagram(mine), "published": plotting.diagram(PUBLISHED)}, "Two circuits"
    )
    assert both.summary.startswith("Circuit diagram: Two circuits\n[mine]\n  at S2: duplicate")
    assert "[published]\n  at S1+1: previous-token heads: L2H2, L4H11" in both.summary
    spec = both.plotly().to_dict()
    assert spec["data"][1]["xaxis"] == "x2" and len(spec["data"][1]["text"]) == 26
    arrows = [note for note in spec["layout"]["annotations"] if note["showarrow"]]
    assert [note["axref"] for note in arrows] == ["x"] + ["x2"] * 6
    assert not any(place.same_y for place in both._arrangement.places)  # each its own pixels
    assert both.png().startswith(b"\x89PNG")
