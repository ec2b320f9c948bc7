"""Run a model with edges replaced: every input has its own kept and removed terms.

The input of a head's q, k or v, of an MLP, or of the final stream is the sum of what all earlier
sources write: the embedding, heads, MLPs (:mod:`ioi_helpers.graph`). A removed edge puts the
source's value from another run (or nothing) into that sum, for that one input. Sources are computed
anew from what they read in *this* run, so a change travels along kept edges only. Biases ``b_O``
belong to no source and are always there. (ACDC, EAP-IG, MIB and auto-circuit mean the same by it.)
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from ioi_helpers import forward, runs
from ioi_helpers.circuits.run import CircuitRun, run_in_parts
from ioi_helpers.dataset import TwoAnswerData
from ioi_helpers.dataset.two_answers import reference_for
from ioi_helpers.graph import HEAD_INPUTS, Circuit, Edge, Node, Shape


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


def sources(
    gpt: forward.Decoder, tokens: Int[Tensor, "batch pos"], last: Int[Tensor, " batch"]
) -> Float[Tensor, "source token d_model"]:
    """What every source writes in a plain run, flat over the prompts' tokens."""
    run = forward.run(gpt, tokens, last, ("z", "mlp_out"))
    spans = _whole(last)
    found = [forward.embed(gpt, tokens, spans)]
    for layer in range(gpt.n_layers):
        found += _written_by_heads(gpt, layer, run["z"][layer][spans.at])
        found.append(run["mlp_out"][layer][spans.at])
    return torch.stack(found)


def _whole(last: Int[Tensor, " batch"]) -> forward.Spans:
    return forward.Spans(torch.arange(len(last), device=last.device), torch.zeros_like(last), last)


def _written_by_heads(
    gpt: forward.Decoder, layer: int, z: Float[Tensor, "token head d_head"]
) -> list[Float[Tensor, "token d_model"]]:
    return list(torch.einsum("thd,hdm->htm", z, forward.W_O_by_head(gpt, layer, z.dtype)))


@torch.no_grad()
def run_edges(
    gpt: forward.Decoder,
    tokens: Int[Tensor, "batch pos"],
    last: Int[Tensor, " batch"],
    token_class: Int[Tensor, " token"],
    mask: EdgeMask,
    instead: Float[Tensor, "source token d_model"],
) -> Float[Tensor, "batch d_model"]:
    """The final stream at END with all edges replaced that are not kept.

    Args:
        tokens, last: The prompts, right-padded, and their last positions.
        token_class: Each token's class, flat over the prompts' tokens.
        mask: What is kept.
        instead: What stands in for each source, flat over the same tokens.
    """
    spans = _whole(last)
    own = torch.zeros_like(instead)
    own[0] = forward.embed(gpt, tokens, spans)
    biases = torch.zeros_like(own[0])
    n_sources = 1
    q_gone, kv_gone, mlp_gone, final_gone = (
        (~part).to(instead) for part in (mask.q, mask.kv, mask.mlp, mask.final)
    )

    for layer in range(gpt.n_layers):
        block, before = gpt.blocks[layer], n_sources
        stream = own[:n_sources].sum(dim=0) + biases
        change = instead[:n_sources] - own[:n_sources]

        def read(
            gone: Float[Tensor, "head source token"],
            name: str,
            stream: Tensor = stream,
            change: Tensor = change,
            n: int = n_sources,
            block: forward.Block = block,
        ) -> Float[Tensor, "token head d_head"]:
            inputs = stream + torch.einsum("hst,std->htd", gone[:, :n], change)
            W, b = forward.weights_of(block, name)
            heads = range(gpt.n_heads) if name == "q" else gpt.kv_heads(range(gpt.n_heads))
            W_by_head = gpt.heads(W.to(inputs.dtype))[:, heads]
            read = torch.einsum("htm,mhd->thd", forward.normalise(block.ln1, inputs), W_by_head)
            return read if b is None else read + gpt.heads(b)[heads]

        q = read(q_gone[layer][..., token_class], "q")
        z = torch.zeros_like(q)
        # Keys and values may differ by who asks. Classes that see the same are done together.
        seen = kv_gone[:, layer]
        for queries in _same_columns(seen):
            k, v = (
                read(seen[i][..., queries[0]][..., token_class], name)
                for i, name in enumerate(("k", "v"))
            )
            pattern = forward.attention_pattern(gpt, layer, q, k, spans, spans)
            found = forward.attend(pattern, v, spans, spans)
            here = torch.isin(token_class, torch.tensor(queries, device=token_class.device))
            z[here] = found[here]
        for written in _written_by_heads(gpt, layer, z):
            own[n_sources] = written
            n_sources += 1
        # Where blocks are parallel, their MLP reads what their heads read.
        seen_by_mlp = before if gpt.parallel else n_sources
        old_biases, biases = biases, biases if block.b_O is None else biases + block.b_O
        stream = own[:seen_by_mlp].sum(dim=0) + (old_biases if gpt.parallel else biases)
        change = instead[:seen_by_mlp] - own[:seen_by_mlp]
        gone = mlp_gone[layer][:seen_by_mlp][:, token_class]
        own[n_sources] = forward.mlp(gpt, layer, stream + torch.einsum("st,std->td", gone, change))
        n_sources += 1
    ends = spans.ends
    at_end = own[:, ends]
    change = instead[:, ends] - at_end
    return at_end.sum(dim=0) + biases[ends] + torch.einsum("s,sbd->bd", final_gone, change)


def _same_columns(seen: Float[Tensor, "2 head source key_class query_class"]) -> list[list[int]]:
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


class EdgeCircuits:
    """Many circuits of edges of one model, run on the same prompts.

    ::

        circuits = EdgeCircuits(model, data, data.abc())
        faithfulness(circuits, Circuit.of_edges(edges)).table()

    Args:
        model: A model that :mod:`ioi_helpers.forward` can run and that adds what each head writes
            as it is. Where heads share keys and values, each is taken to read its own copy.
        data: The prompts.
        reference: The prompts whose values removed edges carry; they correspond to the data row by
            row and token by token. None is ``data.abc()``.
        how: ``"resample"``, row by row from the reference, or ``"zero"``, which asks for none. (No
            means here: the mean of LayerNorms is not the LayerNorm of means, so with them not even
            a circuit without any edge is a run of the model.)
        memory: Bytes for activations; more prompts than fit are run in parts.

    Raises:
        ValueError: The model is another, the reference does not fit, or ``how`` is unknown.
    """

    def __init__(
        self,
        model: TransformerBridge,
        data: TwoAnswerData,
        reference: TwoAnswerData | None = None,
        *,
        how: Literal["resample", "zero"] = "resample",
        memory: int = runs.DEFAULT_MEMORY,
    ) -> None:
        runs.require_data(model, data)
        if how not in ("resample", "zero"):
            raise ValueError(f"how must be 'resample' or 'zero' for edges, not {how!r}.")
        gpt = forward.require_weights(model, "Circuits of edges need", by_head=True)
        self.model, self.data, self.how = model, data, how
        self.shape = Shape.of(model)
        width = int(data.lengths.max())
        runs.refuse_too_long(model, data.tokens[:, :width])
        self.reference: TwoAnswerData | None = None
        if how == "resample":
            self.reference = reference_for(data, reference)
            runs.require_data(model, self.reference)
            runs.refuse_misaligned(data, self.reference)
        self.memory = memory
        self._gpt = gpt
        self.roles = tuple(data.positions)
        classes = torch.full((len(data), width), len(self.roles), device=gpt.device)
        rows = torch.arange(len(data), device=gpt.device)
        at = {role: runs.role_positions(data, role).to(gpt.device) for role in self.roles}
        for number, role in enumerate(self.roles):
            classes[rows, at[role]] = number
        self._classes = classes
        # Of two roles at one token a class can name one only.
        self._shared = {
            role: other
            for role in self.roles
            for other in self.roles
            if role != other and bool((at[role] == at[other]).any())
        }

    def run(self, circuit: Circuit, *, without: Circuit | None = None) -> CircuitRun:
        """The model with every edge replaced but the circuit's, those of ``without`` too.

        Args:
            circuit: What is kept.
            without: Edges that are not kept after all; one of them may be a part of an edge of the
                circuit, such as one role's of an edge at every position.

        Raises:
            ValueError: An edge that the model does not have, or, in ``without``, the circuit; a
                role that stands at another role's token.
        """
        mask = EdgeMask.of(self.shape, self.roles, self._edges(circuit))
        if without is not None:
            gone = self._edges(without)
            left = mask.without(EdgeMask.of(self.shape, self.roles, gone))
            if left is None:
                one = next(
                    edge
                    for edge in sorted(gone, key=str)
                    if mask.without(EdgeMask.of(self.shape, self.roles, [edge])) is None
                )
                raise ValueError(
                    f"{one} is not in the circuit, so the circuit cannot be run without it; leave "
                    "it out."
                )
            mask = left
        return self._run(mask)

    def run_model(self, *, without: Circuit | None = None) -> CircuitRun:
        """The whole model, or the model with these edges replaced."""
        edges = frozenset[Edge]() if without is None else self._edges(without)
        return self._run(EdgeMask.of(self.shape, self.roles, edges, kept=False))

    def _edges(self, circuit: Circuit | Iterable[Edge]) -> frozenset[Edge]:
        if not isinstance(circuit, Circuit):
            circuit = Circuit.of_edges(circuit)
        circuit.require(self.model)
        if circuit.edges is None:
            raise ValueError("This circuit has no edges; run its nodes with Circuits.")
        for edge in circuit.sorted_edges() if self._shared else ():
            for node in (edge.sender, edge.receiver):
                role = None if node is None else node.role
                if role in self._shared:
                    raise ValueError(
                        f"In some prompt {role} and {self._shared[role]} are one token, so edges "
                        f"cannot tell them apart ({edge}); leave out such prompts, or the roles."
                    )
        return circuit.edges

    @torch.no_grad()
    def _run(self, mask: EdgeMask) -> CircuitRun:
        gpt, data, reference = self._gpt, self.data, self.reference
        width = int(data.lengths.max())
        mask = mask.to(gpt.device)

        def logits(rows: Tensor) -> Float[Tensor, "batch vocab"]:
            tokens = data.tokens[rows, :width].to(gpt.device)
            last = data.lengths[rows].to(gpt.device) - 1
            if self.how == "zero":
                shape = (number_of_sources(self.shape), int((last + 1).sum()), gpt.W_E.shape[1])
                instead = torch.zeros(
                    shape,
                    device=gpt.device,
                    dtype=torch.promote_types(gpt.W_E.dtype, torch.float32),
                )
            else:
                assert reference is not None
                instead = sources(gpt, reference.tokens[rows, :width].to(gpt.device), last)
            token_class = self._classes[rows.to(gpt.device)][_whole(last).at]
            return forward.unembed(gpt, run_edges(gpt, tokens, last, token_class, mask, instead))

        # What is kept of a run of edges is several times that of a plain run: a stream a source.
        return run_in_parts(self.model, data, logits, max(1, self.memory // 4))
