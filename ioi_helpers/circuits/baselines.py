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
Share = Literal["by chance", "least"]

Group = tuple[list[Node], int]
"""Nodes, and how many of them are drawn."""


def random_circuits(
    circuit: Circuit,
    shape: Shape,
    roles: Sequence[str],
    n: int,
    *,
    match: Match = "layer and role",
    share: Share = "by chance",
    seed: int = 0,
) -> Iterator[Circuit]:
    """Random circuits of heads that are like one circuit in something.

    Args:
        circuit: The one they are held against; heads, at roles or everywhere.
        shape: The model's.
        roles: The roles that nodes may have, for ``match="size"``.
        n: How many.
        match: ``"layer and role"``: as many heads of each layer at each role (and everywhere).
            ``"size"``: as many (head, role) pairs, any; and as many heads everywhere.
        share: ``"by chance"``: members of the circuit are drawn like any other, and in a small
            model there will be many, see :func:`expected_overlap`. ``"least"``: a member is drawn
            only where there are too few others; see :func:`number_of_matched` for how many such
            circuits there are at all.
        seed: Seeds the draws.

    Raises:
        ValueError: The circuit has nodes that are no heads, or an unknown ``match`` or ``share``.
    """
    groups = _groups(circuit, shape, roles, match)
    _check_share(share)
    # Checked above and drawn below, so that a fault shows at the call and not at the first draw.
    return _drawn(circuit, groups, n, share, seed)


def _groups(circuit: Circuit, shape: Shape, roles: Sequence[str], match: str) -> list[Group]:
    for node in circuit:
        if not node.is_head:
            raise ValueError(f"{node} is no head; random circuits are made of heads.")
    if match == "size":
        everywhere = sum(node.role is None for node in circuit)
        return [(shape.nodes(roles), len(circuit) - everywhere), (shape.nodes(), everywhere)]
    if match != "layer and role":
        raise ValueError(f"match must be 'layer and role' or 'size', not {match!r}.")
    sizes: dict[tuple[int, str | None], int] = {}
    for node in circuit:
        sizes[node.layer, node.role] = sizes.get((node.layer, node.role), 0) + 1
    return [
        ([Node(layer, head, role) for head in range(shape.n_heads)], size)
        for (layer, role), size in sizes.items()
    ]


def _check_share(share: str) -> None:
    if share not in ("by chance", "least"):
        raise ValueError(f"share must be 'by chance' or 'least', not {share!r}.")


def _pools(circuit: Circuit, group: Group, share: Share) -> list[Group]:
    """What a group is drawn from: all of it; or the others first, then members for the rest."""
    nodes, size = group
    if share == "by chance":
        return [group]
    others = [node for node in nodes if node not in circuit]
    members = [node for node in nodes if node in circuit]
    return [(others, min(size, len(others))), (members, max(0, size - len(others)))]


def _drawn(
    circuit: Circuit, groups: Sequence[Group], n: int, share: Share, seed: int
) -> Iterator[Circuit]:
    rng = np.random.default_rng(seed)
    pools = [pool for group in groups for pool in _pools(circuit, group, share)]
    for _ in range(n):
        yield Circuit(
            frozenset(
                nodes[i]
                for nodes, size in pools
                for i in rng.choice(len(nodes), size, replace=False)
            )
        )


def expected_overlap(circuit: Circuit, shape: Shape, share: Share = "by chance") -> float:
    """How many members a random circuit matched in layer and role shares with it, on average."""
    _check_share(share)
    sizes = [size for _, size in _groups(circuit, shape, (), "layer and role")]
    if share == "by chance":
        return sum(size**2 for size in sizes) / shape.n_heads
    return sum(max(0, 2 * size - shape.n_heads) for size in sizes)


def number_of_matched(circuit: Circuit, shape: Shape, share: Share = "by chance") -> int:
    """How many circuits there are with as many heads of each layer at each role."""
    _check_share(share)
    groups = _groups(circuit, shape, (), "layer and role")
    pools = [pool for group in groups for pool in _pools(circuit, group, share)]
    return math.prod(math.comb(len(nodes), size) for nodes, size in pools)


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
