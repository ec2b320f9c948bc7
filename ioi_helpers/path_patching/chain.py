"""Pass C: what every receiver would read if senders wrote what they write on the reference.

Attention is frozen, so nothing crosses from one token to another: a sender's change stays at its
token and passes MLPs only. With d the change of the residual stream at one token::

    d_mid = d + (z' - z) W_O of sending heads                in the middle of block l
    d     = d_mid + MLP_l(x_mid + d_mid) - MLP_l(x_mid)      after it; with MLPs frozen d_mid

(In parallel blocks the MLP reads x and d, not x_mid and d_mid.) x is the stream of the unpatched
run, primes mark the reference. So one chain of one-token MLPs a sender gives the inputs of all
receivers at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ioi_helpers import forward
from ioi_helpers.graph import Node
from ioi_helpers.path_patching.language import (
    EMBEDDING_STAGE,
    FINAL_STAGE,
    Receiver,
    Senders,
    stage,
)
from ioi_helpers.path_patching.pair import Pair

KEEP: tuple[str, ...] = (*forward.BASE_SITES, "q", "z", "mlp_out")
"""What the unpatched run keeps."""
KEEP_OTHER: tuple[str, ...] = ("z", "mlp_out")
"""What is kept of the run that senders are taken from."""
_NOWHERE = FINAL_STAGE + 1


@dataclass(frozen=True)
class Slots:
    """The tokens at which some receiver reads and the two runs may differ."""

    prompt: Int[Tensor, " slot"]
    pos: Int[Tensor, " slot"]
    number: Int[Tensor, "batch pos"]
    """Each token's number among the slots; -1 where it is none."""

    @classmethod
    def of(cls, wanted: Bool[Tensor, "batch pos"]) -> Slots:
        """From a mask."""
        prompt, pos = wanted.nonzero(as_tuple=True)
        number = torch.full_like(wanted, -1, dtype=torch.long)
        number[prompt, pos] = torch.arange(len(prompt), device=wanted.device)
        return cls(prompt, pos, number)

    def __len__(self) -> int:
        return len(self.prompt)

    def take(self, x: Float[Tensor, "batch pos *rest"]) -> Float[Tensor, "slot *rest"]:
        """The values at the slots."""
        return x[self.prompt, self.pos]


@dataclass(frozen=True)
class Paths:
    """A path for each set of senders and each slot where one of them stands, early ones first."""

    sender: Int[Tensor, " path"]
    slot: Int[Tensor, " path"]
    start: Int[Tensor, " path"]
    """The stage at which the first of the path's senders writes (see `language.stage`)."""
    number: Int[Tensor, "sender slot"]
    """Each pair's number among the paths; -1 where there is none."""

    @classmethod
    def of(cls, senders: Sequence[Senders], slots: Slots, pair: Pair) -> Paths:
        """All of them. The embedding writes the same in both runs where tokens are the same."""
        device = slots.pos.device
        first = torch.full((len(senders), len(slots)), _NOWHERE, device=device)
        other_token = slots.take(pair.tokens) != slots.take(pair.other)
        for row, members in enumerate(senders):
            for node in members.nodes:
                here = standing(node, slots, pair)
                writes = stage(node)
                if writes == EMBEDDING_STAGE:
                    here = here & other_token
                first[row] = torch.where(here, first[row].clamp(max=writes), first[row])
        sender, slot = (first < _NOWHERE).nonzero(as_tuple=True)
        start, order = first[sender, slot].sort(stable=True)
        sender, slot = sender[order], slot[order]
        number = torch.full_like(first, -1)
        number[sender, slot] = torch.arange(len(sender), device=device)
        return cls(sender, slot, start, number)

    def before(self, stage_: int) -> int:
        """How many of the paths, the first ones, have begun before a stage."""
        return int((self.start < stage_).sum())

    def __len__(self) -> int:
        return len(self.sender)


def standing(node: Node, slots: Slots, pair: Pair) -> Bool[Tensor, " slot"]:
    """At which slots a node stands."""
    if node.role is None:
        return torch.ones_like(slots.pos, dtype=torch.bool)
    return slots.pos == pair.at[node.role][slots.prompt]


@dataclass(frozen=True)
class Reading:
    """What some receivers of one stage would read, on every path that has begun before it.

    Attributes:
        stage: The stage.
        rows: How many paths have begun; the first so many.
        values: ``"q"``, ``"k"``, ``"v"`` -> ``[path head d_head]``; ``"in"`` -> the MLP's output
            ``[path d_model]``; ``"final"`` -> the final stream ``[path d_model]``.
        columns: Which row of the ``head`` axis is which head, by input.
    """

    stage: int
    rows: int
    values: dict[str, Tensor]
    columns: dict[str, dict[int, int]]

    def of(self, receiver: Receiver) -> Float[Tensor, "path d"]:
        """What one receiver would read, the MLP's input through the MLP."""
        values = self.values[receiver.input]
        if receiver.node is None or receiver.node.head is None:
            return values
        return values[:, self.columns[receiver.input][receiver.node.head]]


@dataclass(frozen=True)
class Chain:
    """Pass C for some sets of senders on a batch of prompts.

    Attributes:
        base: The unpatched run, with :data:`KEEP`.
        other: The run that senders are taken from, with :data:`KEEP_OTHER`.
    """

    gpt: forward.Decoder
    base: forward.Run
    other: forward.Run
    pair: Pair
    senders: Sequence[Senders]
    slots: Slots
    paths: Paths

    def readings(self, receivers: Sequence[Receiver], mlps_frozen: bool) -> Iterator[Reading]:
        """What the receivers would read, one stage after the other."""
        gpt, slots, paths = self.gpt, self.slots, self.paths
        by_stage: dict[int, list[Receiver]] = {}
        for receiver in receivers:
            by_stage.setdefault(receiver.stage, []).append(receiver)
        last_stage = max(by_stage)
        change = self._embedding_change()
        for layer in range(gpt.n_layers):
            if 2 * layer > last_stage:
                return
            if wanted := by_stage.get(2 * layer):
                rows = paths.before(2 * layer)
                x = slots.take(self.base["resid_pre"][layer])[paths.slot[:rows]] + change[:rows]
                yield _head_inputs(gpt, layer, x, wanted)
            before = change
            change = self._add_heads(layer, change)
            read = before if gpt.parallel else change
            wanted = by_stage.get(2 * layer + 1)
            change, mlp_out = self._add_mlp(layer, change, read, mlps_frozen, bool(wanted))
            if wanted:
                yield Reading(2 * layer + 1, len(mlp_out), {"in": mlp_out}, {})
        if wanted := by_stage.get(FINAL_STAGE):
            x = slots.take(self.base["resid_pre"][gpt.n_layers])[paths.slot] + change
            yield Reading(FINAL_STAGE, len(x), {"final": x}, {})

    def _embedding_change(self) -> Float[Tensor, "path d_model"]:
        """d at block 0, for the paths on which the embedding sends."""
        rows = self.paths.before(EMBEDDING_STAGE + 1)
        tokens, other = self.slots.take(self.pair.tokens), self.slots.take(self.pair.other)
        slot = self.paths.slot[:rows]
        old, new = (forward.embed_tokens(self.gpt, each[slot]) for each in (tokens, other))
        return new - old

    def _members(
        self, layer: int, heads: bool
    ) -> tuple[Int[Tensor, " write"], Int[Tensor, " write"], Int[Tensor, " write"]]:
        """For heads or MLPs of one layer that send: path, head and slot of each write."""
        found = []
        places: dict[str | None, Tensor] = {}
        for row, members in enumerate(self.senders):
            for node in members.nodes:
                if node.layer == layer and node.is_head == heads:
                    if node.role not in places:
                        here = standing(node, self.slots, self.pair)
                        places[node.role] = here.nonzero()[:, 0]
                    slot = places[node.role]
                    head = torch.full_like(slot, node.head or 0)
                    found.append((self.paths.number[row, slot], head, slot))
        if not found:
            nothing = self.paths.slot[:0]
            return nothing, nothing, nothing
        path, head, slot = (torch.cat(column) for column in zip(*found, strict=True))
        return path, head, slot

    def _add_heads(
        self, layer: int, change: Float[Tensor, "path d_model"]
    ) -> Float[Tensor, "longer d_model"]:
        """d_mid from d: what this layer's sending heads write on the reference, and not here."""
        change = _grown(change, self.paths.before(2 * layer + 1))
        path, head, slot = self._members(layer, True)
        if not len(path):
            return change
        z = self.slots.take(self.base["z"][layer])
        dz = self.slots.take(self.other["z"][layer]) - z
        W_O = forward.W_O_by_head(self.gpt, layer, dz.dtype)
        # What the path's heads write together; where it is normed, that is not what is added.
        added = change if self.gpt.adds_heads else torch.zeros_like(change)
        for index in head.unique().tolist():
            here = head == index
            written = dz[:, index] @ W_O[index]
            added.index_add_(0, path[here], written[slot[here]])
        if self.gpt.adds_heads:
            return change
        sending = path.unique()
        of_path = z[self.paths.slot[sending]]
        change[sending] += forward.change_of_write(self.gpt, layer, of_path, added[sending])
        return change

    def _add_mlp(
        self,
        layer: int,
        change: Float[Tensor, "path d_model"],
        read: Float[Tensor, "path_before d_model"],
        frozen: bool,
        asked: bool,
    ) -> tuple[Float[Tensor, "longer d_model"], Float[Tensor, "path_before d_model"]]:
        """d after the block; and the MLP's output on the paths that have begun before it.

        Args:
            change: d with what the block's heads add.
            read: The change of the stream that the MLP reads, which in parallel blocks is d before
                the block. On paths that begin with the block's heads it does not change.
            frozen: MLPs write what they write in the unpatched run.
            asked: Whether the output is asked for even so.
        """
        slots, paths = self.slots, self.paths
        before = slots.take(self.base["mlp_out"][layer])
        mlp_out = change[:0]
        added = torch.zeros_like(change)
        if len(change) and (asked or not frozen):
            slot = paths.slot[: len(change)]
            stream = slots.take(self.base[self.gpt.mlp_reads][layer])[slot]
            mlp_out = forward.mlp(self.gpt, layer, stream + _grown(read, len(change)))
            if not frozen:
                added = mlp_out - before[slot]
        rows = paths.before(2 * layer + 2)
        change, added = _grown(change, rows), _grown(added, rows)
        path, _, at = self._members(layer, False)
        added[path] = (slots.take(self.other["mlp_out"][layer]) - before)[at]
        return change + added, mlp_out


def _grown(change: Float[Tensor, "path d_model"], rows: int) -> Float[Tensor, "longer d_model"]:
    """Room for paths that begin here, whose change is zero so far."""
    return torch.cat([change, change.new_zeros(rows - len(change), change.shape[1])])


def _head_inputs(
    gpt: forward.Decoder,
    layer: int,
    x: Float[Tensor, "path d_model"],
    receivers: Sequence[Receiver],
) -> Reading:
    """Queries, keys and values of the receiving heads of a layer."""
    normed = forward.normalise(gpt.blocks[layer].ln1, x)
    values: dict[str, Tensor] = {}
    columns: dict[str, dict[int, int]] = {}
    for name in dict.fromkeys(receiver.input for receiver in receivers):
        heads = sorted({r.node.head or 0 for r in receivers if r.input == name and r.node})
        values[name] = forward.project(gpt, layer, normed, name, heads)
        columns[name] = {head: column for column, head in enumerate(heads)}
    return Reading(2 * layer, len(x), values, columns)
