"""How many edges does it take? Circuits from scores of edges, and size against faithfulness.

MIB (Mueller et al. 2025, arXiv:2504.13151) sums such a curve up in two areas over the share of
edges kept: CPR, under f itself (edges by signed score, the most helpful first; higher is better),
and CMD, under |1 - f| (edges by the size of their score; lower is better). 85 % of either area is
decided where more than a fifth of all edges is kept, which nobody would call a circuit; so look at
f at 1 % as well. f is 0 for the run with no edge kept and 1 for the model; what the former is
depends on the reference, so numbers with different references do not compare.
"""

from __future__ import annotations

import heapq
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from ioi_helpers.circuits.edges import EdgeCircuits
from ioi_helpers.graph import Circuit, Edge, Node, Shape
from ioi_helpers.runs import progress_bar

SHARES: tuple[float, ...] = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""The shares of all edges at which MIB looks."""

By = Literal["signed", "size"]


def top_edges(scores: Mapping[Edge, float], n: int, *, by: By = "size") -> Circuit:
    """The ``n`` edges of highest score, or of largest size of it; ties go to earlier edges.

    Raises:
        ValueError: ``n`` is negative, ``by`` unknown, or a score not a number.
    """
    if n < 0:
        raise ValueError(f"n must not be negative, but is {n}.")
    return Circuit.of_edges(_ranked(scores, by)[:n])


def _ranked(scores: Mapping[Edge, float], by: str) -> list[Edge]:
    if by not in ("signed", "size"):
        raise ValueError(f"by must be 'signed' or 'size', not {by!r}.")
    for edge, score in scores.items():
        if math.isnan(score):
            raise ValueError(f"The score of {edge} is not a number; leave it out.")
    value = (lambda s: float(s)) if by == "signed" else (lambda s: abs(float(s)))
    return sorted(scores, key=lambda edge: -value(scores[edge]))


def greedy_edges(scores: Mapping[Edge, float], n: int, *, by: By = "size") -> Circuit:
    """``n`` edges that hang together, from the logits backwards.

    Of the edges into what is in the circuit already (at first the final stream), the one of highest
    score comes in, and its sender with it (EAP-IG's greedy search, Hanna et al. 2024).

    Raises:
        ValueError: ``by`` is unknown, or a score not a number.
    """
    ranked = _ranked(scores, by)
    rank_of = {edge: i for i, edge in enumerate(ranked)}
    into: dict[tuple[int, int | None] | None, list[Edge]] = {}
    for edge in ranked:
        into.setdefault(_component(edge.receiver), []).append(edge)
    waiting = [rank_of[edge] for edge in into.get(None, [])]
    heapq.heapify(waiting)
    reached: set[tuple[int, int | None] | None] = {None}
    chosen: list[Edge] = []
    while waiting and len(chosen) < n:
        edge = ranked[heapq.heappop(waiting)]
        chosen.append(edge)
        sender = _component(edge.sender)
        if sender not in reached:
            reached.add(sender)
            for earlier in into.get(sender, []):
                heapq.heappush(waiting, rank_of[earlier])
    return Circuit.of_edges(chosen)


def _component(node: Node | None) -> tuple[int, int | None] | None:
    return None if node is None else (node.layer, node.head)


def without_dead_ends(circuit: Circuit) -> Circuit:
    """Without edges that lie on no way from the embedding to the final stream.

    A way keeps to its token, but where a head carries something from the token of its keys and
    values to its own; so an edge at S2 goes if what is written at S2 is read at END only, or if its
    sender is fed at IO only. (That a key's token comes first is not asked: which role does depends
    on the prompt.)

    Under resampling they change nothing. Under zero ablation they do, as a head or MLP writes
    something there even if all that it reads is taken away.

    Raises:
        ValueError: The circuit has no edges.
    """
    if circuit.edges is None:
        raise ValueError("This circuit has no edges, so it has no dead ends.")
    ends = {end.role for edge in circuit.edges for end in (edge.sender, edge.receiver) if end}
    places = sorted({"END", *(role for role in ends if role)}) + [ELSEWHERE]
    steps = {edge: _steps(edge, places) for edge in circuit.edges}
    ahead = defaultdict[Place, set[Place]](set)
    back = defaultdict[Place, set[Place]](set)
    for way in steps.values():
        for start, end in way:
            ahead[start].add(end)
            back[end].add(start)
    fed = _reached({((-1, None), place) for place in places}, ahead)
    read = _reached({(None, "END")}, back)
    return Circuit.of_edges(
        (
            edge
            for edge, way in steps.items()
            if any(start in fed and end in read for start, end in way)
        ),
        name=circuit.name,
    )


ELSEWHERE = "elsewhere"
"""The tokens that no edge of a circuit names."""

Place = tuple[tuple[int, int | None] | None, str]
"""A component (None: the final stream) at the token of a role, or elsewhere."""


def _steps(edge: Edge, places: Sequence[str]) -> list[tuple[Place, Place]]:
    """Where an edge leads from and to; an edge without a role stands at every token."""

    def at(role: str | None) -> Sequence[str]:
        return places if role is None else [role]

    sender, receiver = _component(edge.sender), _component(edge.receiver)
    from_role = edge.sender.role
    if edge.receiver is None:
        return [((sender, place), (None, place)) for place in at(from_role)]
    to_role = edge.receiver.role
    if edge.input in ("k", "v"):
        return [((sender, a), (receiver, b)) for a in at(from_role) for b in at(to_role)]
    return [
        ((sender, place), (receiver, place))
        for place in places
        if place in at(from_role) and place in at(to_role)
    ]


def _reached(starts: set[Place], ahead: Mapping[Place, set[Place]]) -> set[Place]:
    found, waiting = set(starts), list(starts)
    while waiting:
        new = ahead.get(waiting.pop(), set()) - found
        found |= new
        waiting += new
    return found


def possible_edges(shape: Shape, roles: Sequence[str | None] = (None,)) -> list[Edge]:
    """Every edge that a model of this shape can have.

    Args:
        shape: The model's.
        roles: ``(None,)``: an edge is at all positions at once, as in EAP and MIB. With roles, an
            edge into a query, an MLP or the final stream stands at each; one into a key or value
            stands at each role of the sender, for all queries at once; into the final stream at
            END only.
    """
    senders = [Node(-1, None), *shape.nodes(mlps=True)]
    found = []
    for role in roles:
        for sender in senders:
            for receiver in shape.nodes(mlps=True):
                for read in ("q", "k", "v") if receiver.is_head else ("in",):
                    there = None if read in ("k", "v") else role
                    edge = Edge(sender.at(role), receiver.at(there), read)  # type: ignore[arg-type]
                    if not edge.impossible(shape):
                        found.append(edge)
            if role in (None, "END"):
                found.append(Edge(sender.at(role), None, "final"))
    return found


@dataclass(frozen=True)
class SizeCurve:
    """Faithfulness against the share of edges kept.

    Attributes:
        shares: Of all possible edges, ascending.
        edges: How many that is.
        f: (m - m(empty)) / (m(model) - m(empty)) at each, m the mean logit difference.
        empty, model: m with no edge kept, and with all.
    """

    shares: tuple[float, ...]
    edges: tuple[int, ...]
    f: tuple[float, ...]
    empty: float
    model: float

    @property
    def area(self) -> float:
        """The area under f, by trapezoids: with edges by signed score, MIB's CPR."""
        return float(np.trapezoid(self.f, self.shares))

    @property
    def distance(self) -> float:
        """The area under |1 - f|: with edges by the size of their score, MIB's CMD."""
        return float(np.trapezoid(np.abs(1 - np.array(self.f)), self.shares))

    def at(self, share: float) -> float:
        """f at one of the shares.

        Raises:
            ValueError: It is not among them.
        """
        if share not in self.shares:
            raise ValueError(f"The curve has no share {share}; it has {list(self.shares)}.")
        return self.f[self.shares.index(share)]

    def table(self) -> pd.DataFrame:
        """A row for each share."""
        return pd.DataFrame({"share of edges": self.shares, "edges": self.edges, "f": self.f})


def size_curve(
    circuits: EdgeCircuits,
    scores: Mapping[Edge, float],
    *,
    by: By = "size",
    shares: Iterable[float] = SHARES,
    method: Literal["top", "greedy"] = "top",
    progress: bool = True,
) -> SizeCurve:
    """Run circuits of more and more edges, the highest scores first.

    Args:
        circuits: The model on its prompts.
        scores: A score for every possible edge (helpful edges positive, for ``by="signed"``).
        by: Rank by the score, or by its size.
        shares: Of all edges that have a score, each from 0 to 1.
        method: The top edges, or edges that hang together (:func:`greedy_edges`).
        progress: Show a bar where there is something to wait for.

    Raises:
        ValueError: A share is not between 0 and 1, ``by`` or ``method`` is unknown, a score is not
            a number, or the two ends have the same logit difference.
    """
    if method not in ("top", "greedy"):
        raise ValueError(f"method must be 'top' or 'greedy', not {method!r}.")
    _ranked(scores, by)  # refused before anything is run
    shares = tuple(sorted(shares))
    if not shares or shares[0] < 0 or shares[-1] > 1:
        raise ValueError(f"shares must be numbers from 0 to 1, not {list(shares)}.")
    model = float(circuits.run_model().logit_diff.mean())
    empty = float(circuits.run(Circuit(frozenset(), frozenset())).logit_diff.mean())
    if abs(model - empty) < 1e-6:
        raise ValueError(
            "The model and the run without any edge have the same logit difference, so there is "
            "nothing to be faithful to; use another reference."
        )
    numbers = tuple(round(share * len(scores)) for share in shares)
    pick = top_edges if method == "top" else greedy_edges
    values = []
    for n in progress_bar("circuits", numbers, show=progress):
        found = circuits.run(pick(scores, n, by=by))
        values.append((float(found.logit_diff.mean()) - empty) / (model - empty))
    return SizeCurve(shares, numbers, tuple(values), empty, model)
