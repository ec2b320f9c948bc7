"""Nouns for circuits: nodes, edges, and sets of them. Nothing is run here.

A *node* is a component (a head or an MLP) at a token role, or at every position (role None). What
a node writes is added to the residual stream, and what later nodes read is the sum of all earlier
writes. So the wiring of a transformer is a graph (Elhage et al. 2021; Wang et al. 2022, section 2):

* sources: the embedding, every head, every MLP;
* inputs: the ``q``, ``k`` and ``v`` of every head, the ``in`` of every MLP, and the ``final``
  stream that the logits are read from.

An *edge* goes from a source to an input. A head's node stands at the token that attends. For its
``q`` the sender stands there too; for ``k`` and ``v`` the sender stands at the token attended to.
An MLP and the final stream read their own token only.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from ioi_helpers.names import (
    HeadLike,
    head_name,
    is_head_pair,
    mlp_name,
    parse_component,
    require_component,
)

if TYPE_CHECKING:  # importing it takes seconds, and nothing here runs a model
    from transformer_lens.model_bridge import TransformerBridge

Input = Literal["q", "k", "v", "in", "final"]
HEAD_INPUTS: tuple[Input, ...] = ("q", "k", "v")


@dataclass(frozen=True)
class Shape:
    """As much of a model as says which edges are possible."""

    n_layers: int
    n_heads: int
    has_mlps: bool = True
    parallel: bool = False
    """Attention and MLP of a block read the same stream, so neither reads the other."""

    @classmethod
    def of(cls, model: TransformerBridge) -> Shape:
        """The shape of a model."""
        cfg = model.cfg
        return cls(
            cfg.n_layers,
            cfg.n_heads,
            has_mlps=not getattr(cfg, "attn_only", False),
            parallel=bool(getattr(cfg, "parallel_attn_mlp", False)),
        )

    def nodes(self, roles: Iterable[str | None] = (None,), mlps: bool = False) -> list[Node]:
        """Every head, and every MLP if asked for, at each of these roles; early ones first."""
        roles = tuple(roles)
        found = []
        for layer in range(self.n_layers):
            heads: list[int | None] = list(range(self.n_heads))
            components = [*heads, None] if mlps and self.has_mlps else heads
            found += [Node(layer, head, role) for head in components for role in roles]
        return found


@dataclass(frozen=True)
class Node:
    """A head, or an MLP (``head`` is None), at a role's token, or everywhere (``role`` None).

    The embedding, which is a source but no component, is ``EMBEDDING`` (layer -1).
    """

    layer: int
    head: int | None
    role: str | None = None

    @property
    def name(self) -> str:
        """``"L9H9"``, ``"MLP0"`` or ``"embedding"``, without the role."""
        if self.layer < 0:
            return "embedding"
        return mlp_name(self.layer) if self.head is None else head_name(self.layer, self.head)

    @property
    def is_head(self) -> bool:
        """Whether it is a head."""
        return self.head is not None

    def at(self, role: str | None) -> Node:
        """The same component at another role."""
        return replace(self, role=role)

    def __str__(self) -> str:
        return self.name if self.role is None else f"{self.name} at {self.role}"

    def __lt__(self, other: Node) -> bool:
        return self._order() < other._order()

    def _order(self) -> tuple[int, bool, int, str]:
        """Early layers first, a layer's MLP after its heads."""
        return self.layer, self.head is None, self.head or 0, self.role or ""


EMBEDDING = Node(-1, None)

NodeLike = HeadLike | tuple[HeadLike, str | None] | Node
"""One node: ``"L9H9"``, ``(9, 9)``, ``"MLP0"``, ``("L9H9", "END")``, ``((9, 9), "END")``."""


def parse_node(spec: NodeLike) -> Node:
    """The node that is meant by one of the forms of :data:`NodeLike`.

    Raises:
        ValueError: It has another form.
    """
    if isinstance(spec, Node):
        return spec
    component, role = spec, None
    if isinstance(spec, tuple) and len(spec) == 2 and not is_head_pair(spec):
        component, role = spec  # type: ignore[assignment]
    if role is not None and not isinstance(role, str):
        raise ValueError(f"{role!r} is not a role; write ('L9H9', 'END') for one token's position.")
    if component == EMBEDDING.name:
        return EMBEDDING.at(role)
    try:
        layer, head = parse_component(component)  # type: ignore[arg-type]
    except ValueError as error:
        raise ValueError(
            f"{str(error)[:-1]}; or with a role, ('L9H9', 'END'), for one position."
        ) from None
    return Node(layer, head, role)


def parse_nodes(what: NodeLike | Iterable[NodeLike]) -> tuple[Node, ...]:
    """One node, or several in any form: each once, in the order given.

    A set, which has no order of its own, and a :class:`Circuit` come sorted.

    Raises:
        ValueError: One of them has another form.
    """
    if isinstance(what, str | Node) or is_head_pair(what) or _is_node_and_role(what):
        return (parse_node(what),)  # type: ignore[arg-type]
    if not isinstance(what, Iterable):
        return (parse_node(what),)  # says what is wrong with it
    several: Iterable[Any] = what
    nodes = dict.fromkeys(parse_node(one) for one in several)
    return tuple(sorted(nodes) if isinstance(what, set | frozenset) else nodes)


def _is_node_and_role(what: Any) -> bool:
    """Whether a tuple is one component with its role, and not two components."""
    if not isinstance(what, tuple) or len(what) != 2:
        return False
    component, role = what
    if not (isinstance(component, str) or is_head_pair(component)):
        return False
    return role is None or (isinstance(role, str) and re.match(r"L\d|MLP\d", role) is None)


def require_node(model: TransformerBridge, node: Node) -> None:
    """Refuse a component that the model does not have.

    Raises:
        ValueError: There is none.
    """
    if node.layer >= 0:
        require_component(model, node.layer, node.head)


@dataclass(frozen=True)
class Edge:
    """From what a sender writes to one input of a receiver.

    Attributes:
        sender: The source; its role says at which token it writes.
        receiver: The head or MLP that reads, at the role of the token that attends (head) or is
            processed (MLP); None for the final stream.
        input: ``"q"``, ``"k"``, ``"v"`` of a head, ``"in"`` of an MLP, ``"final"``.
    """

    sender: Node
    receiver: Node | None
    input: Input

    def __post_init__(self) -> None:
        wanted = "final" if self.receiver is None else "a head" if self.receiver.is_head else "in"
        fits = self.input in HEAD_INPUTS if wanted == "a head" else self.input == wanted
        if not fits:
            raise ValueError(
                f"{self.receiver or 'The final stream'} has no input {self.input!r}; heads have "
                "q, k and v, MLPs 'in', and the final stream (receiver None) 'final'."
            )

    def __str__(self) -> str:
        to = "the final stream" if self.receiver is None else f"{self.input} of {self.receiver}"
        return f"{self.sender} to {to}"

    def impossible(self, shape: Shape) -> str:
        """Why nothing can pass along this edge in a model of this shape; empty if it can.

        Whether a key's token comes before its query's depends on the prompt and is not asked here.
        """
        sender, receiver = self.sender, self.receiver
        if receiver is None:
            if sender.role not in (None, "END"):
                return f"the final stream is read at END, not at {sender.role}"
            return ""
        same_block = sender.layer == receiver.layer
        into_own_mlp = same_block and sender.is_head and not receiver.is_head and not shape.parallel
        if sender.layer >= receiver.layer and not into_own_mlp:
            return f"{receiver.name} does not come after {sender.name}"
        moves = self.input in ("k", "v")
        if not moves and None not in (sender.role, receiver.role) and sender.role != receiver.role:
            return f"{self.input} of {receiver} is read at {receiver.role}, not at {sender.role}"
        return ""


@dataclass(frozen=True)
class Circuit:
    """A set of nodes, and of edges where they are known.

    ``|``, ``&`` and ``-`` are those of sets, ``node in circuit`` and ``len`` ask for nodes. With
    ``edges`` None the circuit is of nodes only: everything its nodes read from each other, and all
    else that is no head, is in.

    Attributes:
        nodes: The components at their roles.
        edges: The edges, or None.
        classes: Names of groups of nodes, such as the head classes of the IOI paper.
        notes: What is known of a node, to be read (a figure shows it).
        name: What it is called in figures and tables.
    """

    nodes: frozenset[Node]
    edges: frozenset[Edge] | None = None
    classes: Mapping[str, frozenset[Node]] = field(default_factory=dict, compare=False)
    notes: Mapping[Node, str] = field(default_factory=dict, compare=False)
    name: str = field(default="", compare=False)

    @classmethod
    def of(cls, nodes: Iterable[NodeLike], name: str = "") -> Circuit:
        """From heads and MLPs in any form: ``Circuit.of(["L9H9", ("L5H5", "S2")])``."""
        return cls(frozenset(parse_node(node) for node in nodes), name=name)

    @classmethod
    def of_edges(cls, edges: Iterable[Edge], name: str = "") -> Circuit:
        """From edges: its nodes are those at their ends, the embedding apart."""
        edges = frozenset(edges)
        ends = [end for edge in edges for end in (edge.sender, edge.receiver)]
        nodes = frozenset(end for end in ends if end is not None and end.layer >= 0)
        return cls(nodes, edges, name=name)

    @classmethod
    def of_registry(cls, entries: Iterable[Mapping[str, Any]], name: str = "") -> Circuit:
        """From the entries of a registry.

        Args:
            entries: Mappings with ``head``, ``head_class`` and ``position`` (a role), and with
                ``evidence`` where it is known, which becomes the node's note.
            name: The circuit's name.

        Raises:
            ValueError: An entry lacks one of them, or stands twice.
        """
        classes: dict[str, set[Node]] = {}
        notes: dict[Node, str] = {}
        for entry in entries:
            head, head_class, position = (
                entry.get(key) for key in ("head", "head_class", "position")
            )
            if not head or not isinstance(head_class, str) or not isinstance(position, str):
                raise ValueError(
                    f"{dict(entry)} does not say head, head_class and position; pass the entries "
                    "of a registry."
                )
            node = parse_node((head, position))
            members = classes.setdefault(head_class, set())
            if node in members:
                raise ValueError(f"{node} stands twice in the head class {head_class}.")
            members.add(node)
            known = "\n".join(_lines(entry.get("evidence") or {}))
            notes[node] = "\n".join(filter(None, (notes.get(node), known)))
        grouped = {label: frozenset(nodes) for label, nodes in classes.items()}
        return cls(frozenset(notes), classes=grouped, notes=notes, name=name)

    @classmethod
    def of_scores(
        cls,
        scores: Mapping[Any, float] | Iterable[tuple[Any, float]],
        *,
        at_least: float | None = None,
        top: int | None = None,
        key: Callable[[float], float] = abs,
        name: str = "",
    ) -> Circuit:
        """The nodes, or edges, whose score is large: above a threshold, or the ``top`` largest.

        Args:
            scores: A score for each node, in any form of :data:`NodeLike`, or for each `Edge`.
            at_least, top: One of them.
            key: What is compared; the size of a score unless told otherwise. Ties at the end of
                ``top`` go to earlier nodes.
            name: The circuit's name.

        Raises:
            ValueError: Both or neither of ``at_least`` and ``top`` are given, or a score is not a
                number.
        """
        if (at_least is None) == (top is None):
            raise ValueError("Give either at_least= or top=.")
        pairs = scores.items() if isinstance(scores, Mapping) else scores
        ranked = [
            (key(float(score)), what if isinstance(what, Edge) else parse_node(what))
            for what, score in pairs
        ]
        for score, what in ranked:
            if math.isnan(score):
                raise ValueError(f"The score of {what} is not a number; leave it out.")
        ranked.sort(key=lambda pair: (-pair[0], _order(pair[1])))
        if at_least is not None:
            ranked = [pair for pair in ranked if pair[0] >= at_least]
        chosen = [what for _, what in ranked[:top]]
        edges = [what for what in chosen if isinstance(what, Edge)]
        if edges:
            return cls.of_edges(edges, name)
        return cls.of((what for what in chosen if isinstance(what, Node)), name)

    def __contains__(self, node: object) -> bool:
        return node in self.nodes

    def __iter__(self) -> Iterator[Node]:
        return iter(sorted(self.nodes))

    def __len__(self) -> int:
        return len(self.nodes)

    def __or__(self, other: Circuit) -> Circuit:
        edges = None
        if self.edges is not None and other.edges is not None:
            edges = self.edges | other.edges
        return self._with(self.nodes | other.nodes, edges)

    def __and__(self, other: Circuit) -> Circuit:
        edges = self.edges
        if other.edges is not None:
            edges = other.edges if edges is None else edges & other.edges
        return self._with(self.nodes & other.nodes, edges)

    def __sub__(self, other: Circuit | Iterable[NodeLike]) -> Circuit:
        gone = other.nodes if isinstance(other, Circuit) else Circuit.of(other).nodes
        return self._with(self.nodes - gone, self.edges)

    def _with(self, nodes: frozenset[Node], edges: frozenset[Edge] | None) -> Circuit:
        """These nodes, with those edges whose ends are still there, and groups likewise."""
        if edges is not None:
            edges = frozenset(
                edge for edge in edges
                if (edge.sender in nodes or edge.sender.layer < 0)
                and (edge.receiver is None or edge.receiver in nodes)
            )  # fmt: skip
        classes = {label: members & nodes for label, members in self.classes.items()}
        classes = {label: members for label, members in classes.items() if members}
        notes = {node: text for node, text in self.notes.items() if node in nodes}
        return Circuit(nodes, edges, classes, notes, self.name)

    def outside(self, shape: Shape, roles: Iterable[str], mlps: bool = False) -> list[Node]:
        """All nodes of the model at these roles that are not in the circuit, early ones first.

        A node without a role counts as being at every role.
        """
        everywhere = {(node.layer, node.head) for node in self.nodes if node.role is None}
        return [
            node
            for node in shape.nodes(roles, mlps)
            if node not in self.nodes and (node.layer, node.head) not in everywhere
        ]

    def sorted_edges(self) -> list[Edge]:
        """The edges in a fixed order: by sender, then by receiver; none if they are not known."""
        return sorted(self.edges or (), key=_order)

    def require(self, model: TransformerBridge) -> None:
        """Refuse a circuit with nodes that the model does not have, or edges it cannot have.

        Raises:
            ValueError: There is one.
        """
        for node in self:
            require_node(model, node)
        for edge in self.edges or ():
            why = edge.impossible(Shape.of(model))
            if why:
                raise ValueError(f"There is no edge {edge}: {why}.")

    def to_json(self) -> str:
        """As text that `from_json` reads back."""

        def row(node: Node | None) -> list[str | None] | None:
            return None if node is None else [node.name, node.role]

        return json.dumps(
            {
                "name": self.name,
                "nodes": [row(node) for node in self],
                "edges": None if self.edges is None else [
                    [row(edge.sender), row(edge.receiver), edge.input]
                    for edge in self.sorted_edges()
                ],
                "classes": {
                    label: [row(node) for node in sorted(members)]
                    for label, members in self.classes.items()
                },
                "notes": [[row(node), text] for node, text in sorted(self.notes.items())],
            },
            indent=1,
        )  # fmt: skip

    @classmethod
    def from_json(cls, text: str) -> Circuit:
        """The circuit that `to_json` wrote.

        Raises:
            ValueError: The text is no such circuit.
        """
        try:
            data = json.loads(text)
            edges = None
            if data["edges"] is not None:
                edges = frozenset(
                    Edge(parse_node(tuple(sender)), to and parse_node(tuple(to)), read)
                    for sender, to, read in data["edges"]
                )
            return cls(
                _read_nodes(data["nodes"]),
                edges,
                {label: _read_nodes(rows) for label, rows in data["classes"].items()},
                {parse_node(tuple(node)): text for node, text in data["notes"]},
                data["name"],
            )
        except (TypeError, KeyError, ValueError) as error:
            raise ValueError(f"This is no circuit as to_json writes it ({error}).") from error


def _order(what: Node | Edge) -> tuple[Any, ...]:
    """Nodes early to late; edges by their sender, then by their receiver, the final stream last."""
    if isinstance(what, Node):
        return what._order()
    receiver = what.receiver or Node(10**9, None)
    return what.sender._order(), receiver._order(), what.input


def _lines(evidence: Mapping[str, Any]) -> Iterator[str]:
    """Evidence as a few short lines; nested findings are written on one line each."""
    for what, value in evidence.items():
        if isinstance(value, Mapping):
            measured = f"{value.get('value')} {value.get('unit', '')}"
            value = value.get("finding") or measured.strip()
        yield f"{what.replace('_', ' ')}: {value}"


def _read_nodes(rows: Iterable[Any]) -> frozenset[Node]:
    return frozenset(parse_node(tuple(row)) for row in rows)
