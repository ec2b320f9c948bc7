"""Pass D: the unpatched run with the receivers' new inputs put in, everything else recomputed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ioi_helpers import forward
from ioi_helpers.graph import HEAD_INPUTS, Node
from ioi_helpers.path_patching.chain import Paths, Reading, Slots
from ioi_helpers.path_patching.language import Receiver, Receivers
from ioi_helpers.path_patching.pair import Pair


@dataclass(frozen=True)
class Arrivals:
    """Where a set of receivers reads, and which senders reach it, on a batch of prompts."""

    receivers: Receivers
    pair: Pair
    slots: Slots
    paths: Paths

    @cached_property
    def numbers(self) -> dict[Receiver, Int[Tensor, "batch pos"]]:
        """The slot of each token at which a receiver reads; -1 at other tokens."""
        found = {}
        for receiver in self.receivers.inputs:
            here = self.pair.mask(receiver.role)
            found[receiver] = torch.where(here, self.slots.number, -1)
        return found

    @cached_property
    def reached(self) -> Bool[Tensor, "sender batch"]:
        """Whether anything passes from a set of senders to any receiver of the set."""
        n_senders, batch = len(self.paths.number), len(self.pair)
        found = torch.zeros(n_senders, batch, dtype=torch.bool, device=self.slots.pos.device)
        for receiver, number in self.numbers.items():
            rows = self.paths.before(receiver.stage)
            sender, slot = self.paths.sender[:rows], self.paths.slot[:rows]
            prompt = self.slots.prompt[slot]
            here = number[prompt, self.slots.pos[slot]] >= 0
            found[sender[here], prompt[here]] = True
        return found

    @cached_property
    def first(self) -> Int[Tensor, " batch"]:
        """The first token of each prompt at which anything is put in; one past END if none is."""
        wanted = torch.stack([number >= 0 for number in self.numbers.values()]).any(dim=0)
        positions = torch.arange(self.pair.width, device=wanted.device)
        beyond = self.pair.last[:, None] + 1
        return torch.where(wanted, positions, beyond).amin(dim=1)


@dataclass(frozen=True)
class HeadInputs:
    """Queries, keys and values of some heads of a layer."""

    layer: int
    heads: list[int]
    q: Float[Tensor, "query head d_head"]
    k: Float[Tensor, "token head d_head"]
    v: Float[Tensor, "token head d_head"]
    queries: forward.Spans


@dataclass(frozen=True)
class Patches:
    """A run for each pair of a set of senders and a prompt, and what is put into it.

    Attributes:
        spans: A row for each run, from the first token at which anything is put in to END.
        sender: Each run's senders, as a row of ``values``.
        values: What each receiver reads: ``[sender slot d]``, for an MLP its output.
    """

    arrivals: Arrivals
    base: forward.Run
    spans: forward.Spans
    sender: Int[Tensor, " row"]
    values: Mapping[Receiver, Float[Tensor, "sender slot d"]]

    def tokens(
        self, receiver: Receiver, where: forward.Spans
    ) -> tuple[Int[Tensor, " token"], Float[Tensor, "token d"]]:
        """The tokens at which a receiver reads, and what it reads there."""
        number = self.arrivals.numbers[receiver][where.at]
        tokens = (number >= 0).nonzero()[:, 0]
        return tokens, self.values[receiver][self.sender[where.row[tokens]], number[tokens]]

    def of(self, layer: int, name: str, restricted: bool = False) -> list[Receiver]:
        """Receivers of one layer and input; those for all queries, or those for one token's."""
        return [
            receiver
            for receiver in self.arrivals.receivers.inputs
            if receiver.input == name
            and receiver.node is not None
            and receiver.node.layer == layer
            and (receiver.node.role is not None) == restricted
        ]

    def put_in(
        self, value: Tensor, receivers: Sequence[Receiver], where: forward.Spans, heads: list[int]
    ) -> Tensor:
        """A layer's q, k or v ``[token head d_head]``, of these heads, with receivers' values."""
        if not receivers:
            return value
        value = value.clone()
        for receiver in receivers:
            assert receiver.node is not None
            tokens, new = self.tokens(receiver, where)
            value[tokens, heads.index(receiver.node.head or 0)] = new
        return value

    def roles(self, layer: int) -> list[str]:
        """The tokens whose queries alone see some key or value of a layer."""
        restricted = self.of(layer, "k", True) + self.of(layer, "v", True)
        return list(dict.fromkeys(r.node.role for r in restricted if r.node and r.node.role))

    def put_in_for_queries(
        self, gpt: forward.Decoder, inputs: HeadInputs, z: Float[Tensor, "query head d_head"]
    ) -> Float[Tensor, "query head d_head"]:
        """z, where some keys and values are for the query of one token only."""
        layer, heads, queries = inputs.layer, inputs.heads, inputs.queries
        for role in self.roles(layer):
            here = {
                name: [r for r in self.of(layer, name, True) if r.node and r.node.role == role]
                for name in ("k", "v")
            }
            keys = self.put_in(inputs.k, here["k"], self.spans, heads)
            values = self.put_in(inputs.v, here["v"], self.spans, heads)
            new = self.attend(gpt, replace(inputs, k=keys, v=values))
            tokens = (queries.pos == self.arrivals.pair.at[role][queries.at[0]]).nonzero()[:, 0]
            columns = sorted(
                {heads.index(r.node.head or 0) for r in sum(here.values(), []) if r.node}
            )
            z = z.clone()
            z[tokens[:, None], columns] = new[tokens[:, None], columns]
        return z

    def attend(
        self, gpt: forward.Decoder, inputs: HeadInputs
    ) -> Float[Tensor, "query head d_head"]:
        """z of some heads; keys and values before the spans are those of the unpatched run."""
        layer, queries = inputs.layer, inputs.queries
        own = gpt.kv_heads(inputs.heads)
        earlier = [self.base[name][layer][:, :, own] for name in ("k", "v")]
        pattern = forward.attention_pattern(
            gpt, layer, inputs.q, inputs.k, queries, self.spans, earlier[0]
        )
        return forward.attend(pattern, inputs.v, queries, self.spans, earlier[1])

    # --- where the runs begin --------------------------------------------------------------------

    def edit(self, gpt: forward.Decoder) -> forward.Edit:
        """The stream behind the lowest receivers, where the runs leave the unpatched one.

        Below them nothing has changed, and in their own block nothing but they themselves.
        """
        layer = self.lowest
        site, where = gpt.after_attention(layer)
        stream = self.base[site][where][self.spans.at]
        edited = torch.zeros(len(stream), dtype=torch.bool, device=stream.device)
        heads = sorted(
            {r.node.head for r in self.arrivals.receivers.inputs
             if r.node and r.node.layer == layer and r.node.head is not None}
        )  # fmt: skip
        if heads:
            change, edited = self._change_of_heads(gpt, layer, heads)
            stream = stream + change
        if not (mlp := self.of(layer, "in")):
            return self._entering(where, site == "resid_mid", edited, stream)
        mlp_out = self.base["mlp_out"][layer][self.spans.at].clone()
        if gpt.parallel:
            stream = stream - mlp_out  # which is in it already, and did not read those heads
        elif heads:
            mlp_out[edited] = forward.mlp(gpt, layer, stream[edited])
        for receiver in mlp:
            tokens, new = self.tokens(receiver, self.spans)
            mlp_out[tokens] = new
            edited[tokens] = True
        return self._entering(layer + 1, False, edited, stream + mlp_out)

    def _entering(
        self,
        layer: int,
        middle: bool,
        edited: Bool[Tensor, " token"],
        stream: Float[Tensor, "token d_model"],
    ) -> forward.Edit:
        """The edit, from the first edited token of each row if nothing before it is needed."""
        tokens, spans = edited.nonzero()[:, 0], self.spans
        if not self.several_layers:
            row, pos = spans.row[tokens], spans.pos[tokens]
            first = spans.last.scatter_reduce(0, row, pos, "amin")
            spans = forward.Spans(spans.prompt, first, spans.last)
            return forward.Edit(
                layer, middle, spans, spans.starts[row] + pos - first[row], stream[tokens]
            )
        return forward.Edit(layer, middle, spans, tokens, stream[tokens])

    @property
    def lowest(self) -> int:
        """The layer of the lowest receiver."""
        return min(r.node.layer for r in self.arrivals.receivers.inputs if r.node)

    def _change_of_heads(
        self, gpt: forward.Decoder, layer: int, heads: list[int]
    ) -> tuple[Float[Tensor, "token d_model"], Bool[Tensor, " token"]]:
        """What the receiving heads of the lowest layer add to the stream, and at which tokens."""
        spans = self.spans
        shared = gpt.kv_heads(heads)
        rows = {"q": heads, "k": shared, "v": shared}
        q, k, v = (
            self.put_in(
                self.base[name][layer][:, :, rows[name]][spans.at],
                self.of(layer, name),
                spans,
                heads,
            )
            for name in HEAD_INPUTS
        )
        inputs = HeadInputs(layer, heads, q, k, v, spans)
        z = self.put_in_for_queries(gpt, inputs, self.attend(gpt, inputs))
        before = self.base["z"][layer][self.spans.at]
        change = z - before[:, heads]
        W_O = forward.W_O_by_head(gpt, layer, change.dtype)[heads]
        written = forward.change_of_write(gpt, layer, before, change.flatten(1) @ W_O.flatten(0, 1))
        edited = torch.zeros(len(change), dtype=torch.bool, device=change.device)
        if self.of(layer, "k") or self.of(layer, "v"):
            edited[:] = True  # every later query sees them
        for receiver in self.of(layer, "q"):
            edited[self.tokens(receiver, self.spans)[0]] = True
        for role in self.roles(layer):
            edited |= self.spans.pos == self.arrivals.pair.at[role][self.spans.at[0]]
        return written, edited

    # --- what is put in further up ---------------------------------------------------------------

    @property
    def several_layers(self) -> bool:
        """Whether receivers stand above the lowest ones' block as well."""
        return any(r.node.layer > self.lowest for r in self.arrivals.receivers.inputs if r.node)

    def editor(self, gpt: forward.Decoder) -> forward.Editor:
        """Puts in what the receivers of higher layers read, whatever has become of it by then."""
        every_head = list(range(gpt.n_heads))
        seen: dict[str, Tensor] = {}

        def edit(site: str, layer: int, value: Tensor, where: forward.Spans) -> Tensor:
            if site in HEAD_INPUTS:
                seen[site] = self.put_in(value, self.of(layer, site), where, every_head)
                return seen[site]
            if site == "z" and self.roles(layer):
                inputs = HeadInputs(layer, every_head, **seen, queries=where)
                return self.put_in_for_queries(gpt, inputs, value)
            if site == "mlp_out" and (receivers := self.of(layer, "in")):
                value = value.clone()
                for receiver in receivers:
                    tokens, new = self.tokens(receiver, where)
                    value[tokens] = new
            return value

        return edit


def patches(
    gpt: forward.Decoder,
    base: forward.Run,
    arrivals: Arrivals,
    read: Sequence[Reading],
    chosen: Int[Tensor, " sender"],
) -> Patches:
    """The runs for some sets of senders.

    Args:
        read: What the receivers of the set read.
        chosen: The numbers of the sets of senders, in order.
    """
    row, prompt = arrivals.reached[chosen].nonzero(as_tuple=True)
    spans = forward.Spans(prompt, arrivals.first[prompt], arrivals.pair.last[prompt])
    by_stage = {reading.stage: reading for reading in read}
    slots, paths = arrivals.slots, arrivals.paths
    place = torch.full((len(paths.number),), -1, device=chosen.device)
    place[chosen] = torch.arange(len(chosen), device=chosen.device)
    values = {}
    for receiver in arrivals.receivers.inputs:
        # Where no path leads, a receiver gets what it reads in the unpatched run.
        unpatched = slots.take(unpatched_input(base, receiver))
        table = unpatched.expand(len(chosen), *unpatched.shape).clone()
        reading = by_stage[receiver.stage]
        sender = place[paths.sender[: reading.rows]]
        here = (sender >= 0).nonzero()[:, 0]
        table[sender[here], paths.slot[here]] = reading.of(receiver)[here].to(table)
        values[receiver] = table
    return Patches(arrivals, base, spans, row, values)


def unpatched_input(base: forward.Run, receiver: Receiver) -> Float[Tensor, "batch pos d"]:
    """What a receiver reads in the unpatched run, the MLP's input through the MLP."""
    node: Node | None = receiver.node
    assert node is not None
    if node.head is None:
        return base["mlp_out"][node.layer]
    return base[receiver.input][node.layer][:, :, node.head]


Item = TypeVar("Item")


def run_together(
    gpt: forward.Decoder,
    base: forward.Run,
    items: Iterable[Item],
    most: int,
    patches_of: Callable[[Item], Patches],
) -> Iterator[tuple[Item, Float[Tensor, "row d_model"]]]:
    """The final streams at END of every item's runs, as many runs at once as have ``most`` tokens.

    What has receivers in several layers is run alone: other values are put in on the way.
    """
    waiting: list[tuple[Item, forward.Edit]] = []

    def flushed() -> Iterator[tuple[Item, Float[Tensor, "row d_model"]]]:
        if waiting:
            edits = [edit for _, edit in waiting]
            finals = forward.run_edits(gpt, base, edits).split([len(e.spans) for e in edits])
            yield from zip([item for item, _ in waiting], finals, strict=True)
            waiting.clear()

    for item in items:
        patch = patches_of(item)
        edit = patch.edit(gpt)
        if patch.several_layers:
            yield item, forward.run_edits(gpt, base, [edit], patch.editor(gpt))
            continue
        if sum(len(e.spans.row) for _, e in waiting) + len(edit.spans.row) > most:
            yield from flushed()
        waiting.append((item, edit))
    yield from flushed()


def in_chunks(
    arrivals: Arrivals, chosen: Int[Tensor, " sender"], most: int
) -> Iterator[Int[Tensor, " sender"]]:
    """Numbers of sets of senders whose runs have together so many tokens at most, or one set."""
    lengths = (arrivals.pair.last + 1 - arrivals.first).clamp(min=0)
    counts = (arrivals.reached[chosen] * lengths).sum(dim=1).tolist()
    start, total = 0, 0
    for i, count in enumerate(counts):
        if total and total + count > most:
            yield chosen[start:i]
            start, total = i, 0
        total += count
    if total:
        yield chosen[start:]
