"""Nodes, edges and circuits: what is possible, set operations, JSON."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformer_lens.model_bridge import TransformerBridge

from ioi_helpers import load_model
from ioi_helpers.dataset import IOIDataset
from ioi_helpers.graph import EMBEDDING, Circuit, Edge, Node, Shape, parse_node, require_node

SMALL = Shape(n_layers=3, n_heads=2)
ROLES = ("S2", "END")
nodes = st.builds(
    Node, st.integers(0, 11), st.none() | st.integers(0, 11), st.none() | st.sampled_from(ROLES)
)


def test_a_shape_knows_its_nodes() -> None:
    assert [str(node) for node in Shape(2, 2).nodes(mlps=True)] == [
        *("L0H0", "L0H1", "MLP0", "L1H0", "L1H1", "MLP1"),
    ]
    assert len(SMALL.nodes(ROLES)) == 12
    assert len(Shape(2, 2, has_mlps=False).nodes(mlps=True)) == 4
    ordered = SMALL.nodes(("END",), mlps=True)
    assert sorted(ordered) == ordered


def test_the_shape_of_a_model() -> None:
    mini = load_model("ioi-mini", device="cpu", verbose=False)
    assert Shape.of(mini) == Shape(6, 6)
    other = SimpleNamespace(
        cfg=SimpleNamespace(n_layers=2, n_heads=4, attn_only=True, parallel_attn_mlp=True)
    )
    assert Shape.of(other) == Shape(2, 4, has_mlps=False, parallel=True)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("spec", "node"),
    [
        ("L9H9", Node(9, 9)),
        ((9, 9), Node(9, 9)),
        ("MLP0", Node(0, None)),
        (("L9H9", "END"), Node(9, 9, "END")),
        (((9, 9), "END"), Node(9, 9, "END")),
        (("MLP3", None), Node(3, None)),
        (("embedding", "S2"), EMBEDDING.at("S2")),
        (Node(1, 2, "IO"), Node(1, 2, "IO")),
    ],
)
def test_nodes_are_read(spec: Any, node: Node) -> None:
    assert parse_node(spec) == node


@pytest.mark.parametrize("spec", ["9.9", ("L9H9", 3), (1, 2, 3), 4, ("L1H1", "END", "S2"), "l9h9"])
def test_what_is_no_node_is_refused(spec: Any) -> None:
    with pytest.raises(ValueError, match=r"\('L9H9', 'END'\)"):
        parse_node(spec)


@given(node=nodes)
def test_a_nodes_name_reads_back(node: Node) -> None:
    assert parse_node((node.name, node.role)) == node
    assert str(node.at("END")) == f"{node.name} at END"


def test_nodes_are_held_against_a_model() -> None:
    mini = load_model("ioi-mini", device="cpu", verbose=False)
    require_node(mini, EMBEDDING)
    require_node(mini, Node(5, 5, "END"))
    with pytest.raises(ValueError, match="There is no L6H0 in this model"):
        require_node(mini, Node(6, 0))
    with pytest.raises(ValueError, match="There is no MLP6 in this model"):
        Circuit.of(["L0H0", "MLP6"]).require(mini)


@pytest.mark.parametrize(
    ("receiver", "read"),
    [(Node(1, 0), "in"), (Node(1, None), "q"), (None, "v"), (Node(1, 0), "final")],
)
def test_an_edge_needs_an_input_that_is_there(receiver: Node | None, read: Any) -> None:
    with pytest.raises(ValueError, match=f"has no input '{read}'"):
        Edge(Node(0, 0), receiver, read)


END, S2 = "END", "S2"


@pytest.mark.parametrize(
    ("edge", "why"),
    [
        (Edge(Node(0, 0, END), Node(1, 0, END), "q"), ""),
        (Edge(Node(0, 0, S2), Node(1, 0, END), "v"), ""),
        (Edge(Node(0, 0, S2), Node(1, 0, END), "k"), ""),
        (Edge(Node(0, 0), Node(1, 0, END), "q"), ""),
        (Edge(EMBEDDING.at(END), Node(0, 0, END), "q"), ""),
        (Edge(Node(2, 0, END), None, "final"), ""),
        (Edge(Node(1, 0, END), Node(1, None, END), "in"), ""),
        (Edge(Node(1, 0, END), Node(1, 1, END), "q"), "L1H1 does not come after L1H0"),
        (Edge(Node(1, None, END), Node(1, 0, END), "q"), "L1H0 does not come after MLP1"),
        (Edge(Node(1, None, END), Node(1, None, END), "in"), "MLP1 does not come after MLP1"),
        (Edge(Node(2, 0, END), Node(1, 0, END), "v"), "L1H0 does not come after L2H0"),
        (Edge(Node(0, 0, S2), Node(1, 0, END), "q"), "q of L1H0 at END is read at END, not at S2"),
        (Edge(Node(0, 0, S2), Node(1, None, END), "in"), "in of MLP1 at END is read at END"),
    ],
)
def test_which_edges_are_possible(edge: Edge, why: str) -> None:
    assert edge.impossible(SMALL).startswith(why) and bool(edge.impossible(SMALL)) == bool(why)


def test_in_parallel_blocks_the_mlp_does_not_read_its_own_heads() -> None:
    edge = Edge(Node(1, 0, END), Node(1, None, END), "in")
    assert not edge.impossible(SMALL)
    assert edge.impossible(Shape(3, 2, parallel=True)) == "MLP1 does not come after L1H0"


def moves(model: TransformerBridge, data: IOIDataset, sender: Node, receiver: Node | None) -> bool:
    """Whether what a component reads changes when another's output does."""

    def spoil(value: torch.Tensor, hook: Any) -> torch.Tensor:
        return value + torch.arange(value.shape[-1], dtype=value.dtype)

    def spoil_head(z: torch.Tensor, hook: Any) -> torch.Tensor:
        z = z.clone()
        z[:, :, sender.head] += torch.arange(z.shape[-1], dtype=z.dtype)
        return z

    if sender.layer < 0:
        hook: Any = ("hook_embed", spoil)
    elif sender.head is None:
        hook = (f"blocks.{sender.layer}.hook_mlp_out", spoil)
    else:
        hook = (f"blocks.{sender.layer}.attn.hook_z", spoil_head)
    if receiver is None:
        read = f"blocks.{model.cfg.n_layers - 1}.hook_resid_post"
    elif receiver.head is None:
        read = f"blocks.{receiver.layer}.hook_resid_mid"
    else:
        read = f"blocks.{receiver.layer}.hook_resid_pre"
    seen: list[torch.Tensor] = []

    def look(value: torch.Tensor, hook: Any) -> None:
        seen.append(value.clone())

    for hooks in ([(read, look)], [hook, (read, look)]):
        with torch.no_grad():
            model.run_with_hooks(data.tokens, fwd_hooks=hooks)
    return not torch.equal(*seen)


def test_possible_edges_are_those_of_a_real_model() -> None:
    """A receiver's input moves when the sender's output does, exactly where an edge can be."""
    model = load_model("ioi-plain", device="cpu", verbose=False)
    data = IOIDataset.demo(model.tokenizer)[:2]
    shape = Shape.of(model)
    some = [Node(layer, head) for layer in (0, 1, 3) for head in (0, None)]
    for sender, receiver in itertools.product([EMBEDDING, *some], [*some, None]):
        read: Any = "final" if receiver is None else "q" if receiver.is_head else "in"
        possible = not Edge(sender, receiver, read).impossible(shape)
        assert moves(model, data, sender, receiver) == possible, f"{sender} to {receiver}"


def test_circuits_are_sets_of_nodes() -> None:
    one, other = Circuit.of(["L0H0", ("L1H1", "S2")], "one"), Circuit.of([(1, 1), ("L1H1", "S2")])
    assert [str(node) for node in one] == ["L0H0", "L1H1 at S2"] and len(one) == 2
    assert Node(1, 1, "S2") in one and Node(1, 1) not in one
    assert (one | other).nodes == {Node(0, 0), Node(1, 1, "S2"), Node(1, 1)}
    assert (one & other).nodes == {Node(1, 1, "S2")}
    assert (one - other) == Circuit.of(["L0H0"]) == one - [("L1H1", "S2")]
    assert (one | other).name == "one"


def chain() -> Circuit:
    a, b, c = Node(0, 0, S2), Node(1, 1, END), Node(2, None, END)
    edges = [Edge(EMBEDDING.at(S2), a, "k"), Edge(a, b, "v"), Edge(b, c, "in")]
    return Circuit.of_edges([*edges, Edge(c, None, "final")], "chain")


def test_edges_bring_their_nodes_and_go_with_them() -> None:
    circuit = chain()
    assert [node.name for node in circuit] == ["L0H0", "L1H1", "MLP2"]
    fewer = circuit - [("L1H1", END)]
    assert fewer.edges is not None and {str(edge) for edge in fewer.edges} == {
        "embedding at S2 to k of L0H0 at S2",
        "MLP2 at END to the final stream",
    }
    more = Circuit.of_edges([Edge(Node(0, 1, END), Node(1, 1, END), "q")])
    joined = circuit | more
    assert joined.edges is not None and len(joined.edges) == 5 and len(joined) == 4
    assert (joined & more).edges == more.edges
    # Nodes only, whose edges are not known, leave the edges of a union open.
    assert (circuit | Circuit.of(["L0H1"])).edges is None
    assert (circuit & Circuit.of([("L1H1", END), ("MLP2", END)])).edges == {
        Edge(Node(1, 1, END), Node(2, None, END), "in"),
        Edge(Node(2, None, END), None, "final"),
    }


def test_impossible_edges_are_refused() -> None:
    mini = load_model("ioi-mini", device="cpu", verbose=False)
    chain().require(mini)
    backwards = Circuit.of_edges([Edge(Node(2, 0, END), Node(1, 0, END), "q")])
    with pytest.raises(ValueError, match="There is no edge L2H0 at END to q of L1H0 at END: L1H0"):
        backwards.require(mini)


def test_circuits_from_scores() -> None:
    scores = {"L0H0": 0.5, ("L1H1", "END"): -2.0, "MLP1": 0.5, "L2H0": 0.1}
    assert Circuit.of_scores(scores, at_least=0.5) == Circuit.of(["L0H0", ("L1H1", "END"), "MLP1"])
    assert Circuit.of_scores(scores, top=2) == Circuit.of(["L0H0", ("L1H1", "END")])
    assert Circuit.of_scores(scores.items(), top=2, key=float) == Circuit.of(["L0H0", "MLP1"])
    assert len(Circuit.of_scores(scores, top=0)) == 0
    for wrong in ({}, {"top": 1, "at_least": 1.0}):
        with pytest.raises(ValueError, match="either at_least= or top="):
            Circuit.of_scores(scores, **wrong)  # type: ignore[arg-type]
    edges = chain().sorted_edges()
    strongest = Circuit.of_scores({edge: i for i, edge in enumerate(edges)}, top=2, name="e")
    assert strongest == Circuit.of_edges(edges[2:]) and strongest.name == "e"
    with pytest.raises(ValueError, match="L0H0 is not a number"):
        Circuit.of_scores({"L0H0": float("nan")}, top=1)


def entry(head: str, head_class: str, position: str, **evidence: Any) -> dict[str, Any]:
    return {
        "head": head, "head_class": head_class, "position": position, "evidence": evidence,
    }  # fmt: skip


def test_circuits_from_a_registry() -> None:
    circuit = Circuit.of_registry(
        [
            entry("L9H9", "name_mover", "END", copy_score={"finding": "above 95 %"}),
            entry("L9H9", "odd", "END", effect={"value": 0.5, "unit": "logits"}),
            entry("L5H5", "induction", "S2"),
        ],
        "x",
    )
    mover = Node(9, 9, "END")
    assert circuit.classes == {
        "name_mover": {mover}, "odd": {mover}, "induction": {Node(5, 5, "S2")},
    }  # fmt: skip
    assert circuit.notes[mover] == "copy score: above 95 %\neffect: 0.5 logits"
    assert len(circuit) == 2
    less = circuit - [mover]
    assert list(less.classes) == ["induction"] and mover not in less.notes
    assert Circuit.of_registry([]) == Circuit.of([])
    with pytest.raises(ValueError, match="does not say head, head_class and position"):
        Circuit.of_registry([{"head": "L0H0", "role": "name_mover"}])
    with pytest.raises(ValueError, match="L9H9 at END stands twice in the head class odd"):
        Circuit.of_registry([entry("L9H9", "odd", "END")] * 2)


def test_what_lies_outside() -> None:
    circuit = Circuit.of(["L0H0", ("L0H1", "END")])
    left = circuit.outside(Shape(1, 2), ROLES, mlps=True)
    assert [str(node) for node in left] == ["L0H1 at S2", "MLP0 at S2", "MLP0 at END"]


def test_json_reads_back() -> None:
    for circuit in (
        chain(),
        Circuit.of(["L0H0", ("MLP1", "END")], "nodes only"),
        Circuit.of([]),
        Circuit.of_registry([entry("L9H9", "name_mover", "END", copying=0.9)], "x"),
    ):
        back = Circuit.from_json(circuit.to_json())
        assert back == circuit and back.name == circuit.name
        assert back.classes == circuit.classes and back.notes == circuit.notes
        assert back.to_json() == circuit.to_json()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"nodes": [["L0", null]]}', "null"])
def test_other_text_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no circuit as to_json writes it"):
        Circuit.from_json(text)
