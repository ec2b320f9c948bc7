"""Circuits to compare one with: random ones of the same kind, and where one stands among them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ioi_helpers.circuits.run import Circuits
from ioi_helpers.graph import Circuit, Node, Shape
from ioi_helpers.runs import progress_bar

Match = Literal["layer and role", "size"]


def random_circuits(
    circuit: Circuit,
    shape: Shape,
    roles: Sequence[str],
    n: int,
    *,
    match: Match = "layer and role",
    seed: int = 0,
) -> Iterator[Circuit]:
    """Random circuits of heads that are like one circuit in something.

    Args:
        circuit: The one they are held against; heads, at roles or everywhere.
        shape: The model's.
        roles: The roles that nodes may have, for ``match="size"``.
        n: How many.
        match: ``"layer and role"``: as many heads of each layer at each role (and everywhere).
            They share many members with it by chance alone, see :func:`expected_overlap`.
            ``"size"``: as many (head, role) pairs, any; and as many heads everywhere.
        seed: Seeds the draws.

    Raises:
        ValueError: The circuit has nodes that are no heads, or an unknown ``match``.
    """
    for node in circuit:
        if not node.is_head:
            raise ValueError(f"{node} is no head; random circuits are made of heads.")
    if match not in ("layer and role", "size"):
        raise ValueError(f"match must be 'layer and role' or 'size', not {match!r}.")
    # Checked above and drawn below, so that a fault shows at the call and not at the first draw.
    return _drawn(circuit, shape, roles, n, match, seed)


def _drawn(
    circuit: Circuit, shape: Shape, roles: Sequence[str], n: int, match: Match, seed: int
) -> Iterator[Circuit]:
    rng = np.random.default_rng(seed)
    everywhere = sum(node.role is None for node in circuit)
    kinds = ((shape.nodes(roles), len(circuit) - everywhere), (shape.nodes(), everywhere))
    groups = _group_sizes(circuit)
    for _ in range(n):
        if match == "size":
            yield Circuit(
                frozenset(
                    nodes[i]
                    for nodes, size in kinds
                    for i in rng.choice(len(nodes), size, replace=False)
                )
            )
            continue
        yield Circuit(
            frozenset(
                Node(layer, int(head), role)
                for (layer, role), size in groups.items()
                for head in rng.choice(shape.n_heads, size, replace=False)
            )
        )


def _group_sizes(circuit: Circuit) -> dict[tuple[int, str | None], int]:
    sizes: dict[tuple[int, str | None], int] = {}
    for node in circuit:
        key = (node.layer, node.role)
        sizes[key] = sizes.get(key, 0) + 1
    return sizes


def expected_overlap(circuit: Circuit, shape: Shape) -> float:
    """How many members a random circuit matched in layer and role shares with it, on average."""
    return sum(size**2 for size in _group_sizes(circuit).values()) / shape.n_heads


def number_of_matched(circuit: Circuit, shape: Shape) -> int:
    """How many circuits there are with as many heads of each layer at each role."""
    return math.prod(math.comb(shape.n_heads, size) for size in _group_sizes(circuit).values())


@dataclass(frozen=True)
class Rank:
    """Where a circuit stands among others by how far its F(C) / F(M) is from 1.

    Attributes:
        own: F(C) / F(M) of the circuit.
        others: Those of the others.
        overlaps: How many members each of the others shares with it.
    """

    own: float
    others: tuple[float, ...]
    overlaps: tuple[int, ...]

    @property
    def p(self) -> float:
        """(1 + number at least as near to 1) / (1 + number)."""
        at_least_as_good = sum(abs(1 - f) <= abs(1 - self.own) for f in self.others)
        return (1 + at_least_as_good) / (1 + len(self.others))


def rank(
    circuits: Circuits, circuit: Circuit, others: Iterable[Circuit], *, progress: bool = True
) -> Rank:
    """Hold a circuit's faithfulness against that of others, such as `random_circuits`."""
    total = float(circuits.run_model().logit_diff.mean())
    ratios, overlaps = [], []
    for other in progress_bar("circuits", others, show=progress):
        ratios.append(float(circuits.run(other).logit_diff.mean()) / total)
        overlaps.append(len(circuit & other))
    own = float(circuits.run(circuit).logit_diff.mean()) / total
    return Rank(own, tuple(ratios), tuple(overlaps))
