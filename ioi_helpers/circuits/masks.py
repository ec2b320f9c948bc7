"""Which edges a circuit keeps, as tensors: by source, by input, and by the tokens at its ends."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Shaped
from torch import Tensor

from ioi_helpers.graph import HEAD_INPUTS, Edge, Node, Shape


def source_index(shape: Shape, node: Node) -> int:
    """The number of a source: the embedding, then each layer's heads and its MLP."""
    if node.layer < 0:
        return 0
    return (
        1 + node.layer * (shape.n_heads + 1) + (shape.n_heads if node.head is None else node.head)
    )


def number_of_sources(shape: Shape) -> int:
    """The embedding, all heads, all MLPs."""
    return 1 + shape.n_layers * (shape.n_heads + 1)


@dataclass(frozen=True)
class EdgeMask:
    """Which edges are kept, by the class (a role, or none) of the tokens at their ends.

    Attributes:
        q: ``[layer head source token_class]``.
        kv: ``[2 layer head source key_class query_class]``, keys and values.
        mlp: ``[layer source token_class]``.
        final: ``[source]``, at END.
    """

    q: Bool[Tensor, "layer head source token_class"]
    kv: Bool[Tensor, "2 layer head source key_class query_class"]
    mlp: Bool[Tensor, "layer source token_class"]
    final: Bool[Tensor, " source"]

    def to(self, device: torch.device) -> EdgeMask:
        """The same on a device."""
        return EdgeMask(*(part.to(device) for part in (self.q, self.kv, self.mlp, self.final)))

    def without(self, other: EdgeMask) -> EdgeMask | None:
        """What is kept here and not there; None if something is kept there only."""
        pairs = [
            (self.q, other.q), (self.kv, other.kv), (self.mlp, other.mlp), (self.final, other.final)
        ]  # fmt: skip
        if any(bool((its & ~mine).any()) for mine, its in pairs):
            return None
        return EdgeMask(*(mine & ~its for mine, its in pairs))

    @staticmethod
    def of(
        shape: Shape, roles: Sequence[str], edges: Iterable[Edge], *, kept: bool = True
    ) -> EdgeMask:
        """Only these edges kept, or (``kept`` False) all but these.

        Args:
            shape: The model's.
            roles: Names of the token classes; one more stands for all other positions.
            edges: Edges; a role of None means every position.
        """
        classes, sources = len(roles) + 1, number_of_sources(shape)
        layers, heads = shape.n_layers, shape.n_heads
        mask = EdgeMask(
            torch.full((layers, heads, sources, classes), not kept),
            torch.full((2, layers, heads, sources, classes, classes), not kept),
            torch.full((layers, sources, classes), not kept),
            torch.full((sources,), not kept),
        )
        number = {role: [i] for i, role in enumerate(roles)}
        everywhere = list(range(classes))

        def of_role(role: str | None) -> list[int]:
            if role is None:
                return everywhere
            if role not in number:
                raise ValueError(f"{role!r} is not a role of these prompts: {', '.join(roles)}.")
            return number[role]

        for edge in edges:
            sender, receiver = edge.sender, edge.receiver
            source = source_index(shape, sender)
            if receiver is None:
                mask.final[source] = kept
                continue
            if edge.input in ("k", "v"):
                which = mask.kv[HEAD_INPUTS.index(edge.input) - 1, receiver.layer, receiver.head]
                for key in of_role(sender.role):
                    which[source, key, of_role(receiver.role)] = kept
                continue
            here = of_role(sender.role if receiver.role is None else receiver.role)
            if edge.input == "q":
                mask.q[receiver.layer, receiver.head, source, here] = kept
            else:
                mask.mlp[receiver.layer, source, here] = kept
        return mask


def same_columns(seen: Shaped[Tensor, "2 head source key_class query_class"]) -> list[list[int]]:
    """Query classes, those together that see the same keys and values."""
    groups: list[list[int]] = []
    for column in range(seen.shape[-1]):
        for group in groups:
            if torch.equal(seen[..., group[0]], seen[..., column]):
                group.append(column)
                break
        else:
            groups.append([column])
    return groups
