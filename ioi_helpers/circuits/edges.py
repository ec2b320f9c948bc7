"""Run a model with edges replaced: every input has its own kept and removed terms.

The input of a head's q, k or v, of an MLP, or of the final stream is the sum of what all earlier
sources write: the embedding, heads, MLPs (:mod:`ioi_helpers.graph`). A removed edge puts the
source's value from another run (or nothing) into that sum, for that one input. Sources are computed
anew from what they read in *this* run, so a change travels along kept edges only. Biases ``b_O``
belong to no source and are always there. (ACDC, EAP-IG, MIB and auto-circuit mean the same by it.)
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from ioi_helpers import forward, runs
from ioi_helpers.circuits import edges_by_hooks
from ioi_helpers.circuits.masks import EdgeMask, number_of_sources, same_columns
from ioi_helpers.circuits.run import CircuitRun, run_in_parts
from ioi_helpers.dataset import TwoAnswerData
from ioi_helpers.dataset.two_answers import reference_for
from ioi_helpers.graph import Circuit, Edge, Shape


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
    stream = forward.embed(gpt, tokens, spans).to(instead)
    change = torch.empty_like(instead)  # of each source: what stands in for it, less what it writes
    torch.sub(instead[0], stream, out=change[0])
    n_sources = 1
    q_gone, kv_gone, mlp_gone, final_gone = (
        (~part).to(instead) for part in (mask.q, mask.kv, mask.mlp, mask.final)
    )

    for layer in range(gpt.n_layers):
        block, before = gpt.blocks[layer], stream

        def read(
            gone: Float[Tensor, "head source token"],
            name: str,
            stream: Tensor = stream,
            n: int = n_sources,
            block: forward.Block = block,
        ) -> Float[Tensor, "token head d_head"]:
            inputs = stream + torch.einsum("hst,std->htd", gone[:, :n], change[:n])
            W, b = forward.weights_of(block, name)
            heads = range(gpt.n_heads) if name == "q" else gpt.kv_heads(range(gpt.n_heads))
            W_by_head = gpt.heads(W.to(inputs.dtype))[:, heads]
            read = torch.einsum("htm,mhd->thd", forward.normalise(block.ln1, inputs), W_by_head)
            return read if b is None else read + gpt.heads(b)[heads]

        q = read(q_gone[layer][..., token_class], "q")
        z = torch.zeros_like(q)
        # Keys and values may differ by who asks. Classes that see the same are done together.
        seen = kv_gone[:, layer]
        for queries in same_columns(seen):
            k, v = (
                read(seen[i][..., queries[0]][..., token_class], name)
                for i, name in enumerate(("k", "v"))
            )
            pattern = forward.attention_pattern(gpt, layer, q, k, spans, spans)
            found = forward.attend(pattern, v, spans, spans)
            here = torch.isin(token_class, torch.tensor(queries, device=token_class.device))
            z[here] = found[here]
        # Where blocks are parallel, their MLP reads what their heads read.
        seen_by_mlp = n_sources
        for written in _written_by_heads(gpt, layer, z):
            torch.sub(instead[n_sources], written, out=change[n_sources])
            stream = stream + written
            n_sources += 1
        if block.b_O is not None:
            stream = stream + block.b_O
        if not gpt.parallel:
            before, seen_by_mlp = stream, n_sources
        gone = mlp_gone[layer][:seen_by_mlp][:, token_class]
        inputs = before + torch.einsum("st,std->td", gone, change[:seen_by_mlp])
        written = forward.mlp(gpt, layer, inputs)
        torch.sub(instead[n_sources], written, out=change[n_sources])
        stream = stream + written
        n_sources += 1
    at_end = change[:, spans.ends]
    return stream[spans.ends] + torch.einsum("s,sbd->bd", final_gone, at_end)


_SLOWLY = "Circuits of edges are run with TransformerLens' hooks"


class EdgeCircuits:
    """Many circuits of edges of one model, run on the same prompts.

    ::

        circuits = EdgeCircuits(model, data, data.abc())
        faithfulness(circuits, Circuit.of_edges(edges)).table()

    Args:
        model: A model that :mod:`ioi_helpers.forward` can run and that adds what each head writes
            as it is (where heads share keys and values, each is taken to read its own copy); or,
            slowly, one with hooks on each head's own inputs.
        data: The prompts.
        reference: The prompts whose values removed edges carry; they correspond to the data row by
            row and token by token. None is ``data.abc()``.
        how: ``"resample"``, row by row from the reference, or ``"zero"``, which asks for none. (No
            means here: the mean of LayerNorms is not the LayerNorm of means, so with them not even
            a circuit without any edge is a run of the model.)
        engine: ``"fast"``, ``"hooks"``, or ``"auto"``: the fast one where the model allows.
        memory: Bytes for activations; more prompts than fit are run in parts.
        progress: Show a bar over these parts where a single run takes long.

    Raises:
        ValueError: Neither engine can run the model, the reference does not fit, or ``how`` is
            unknown.
    """

    def __init__(
        self,
        model: TransformerBridge,
        data: TwoAnswerData,
        reference: TwoAnswerData | None = None,
        *,
        how: Literal["resample", "zero"] = "resample",
        engine: forward.Engine = "auto",
        memory: int = runs.DEFAULT_MEMORY,
        progress: bool = False,
    ) -> None:
        runs.require_data(model, data)
        if how not in ("resample", "zero"):
            raise ValueError(f"how must be 'resample' or 'zero' for edges, not {how!r}.")
        gpt = forward.weights_for(model, engine, _SLOWLY)
        known = gpt or forward.usable_weights(model)[0]
        if known is not None and not known.adds_heads:  # nor do hooks see what each head adds
            forward.require_weights(model, "Circuits of edges need", by_head=True)
        if gpt is None:
            edges_by_hooks.input_hooks(model)  # refused now and not at the first run
        self.model, self.data, self.how = model, data, how
        self.engine: forward.Engine = engine
        self.shape = Shape.of(model)
        width = int(data.lengths.max())
        runs.refuse_too_long(model, data.tokens[:, :width])
        self.reference: TwoAnswerData | None = None
        if how == "resample":
            self.reference = reference_for(data, reference)
            runs.require_data(model, self.reference)
            runs.refuse_misaligned(data, self.reference)
        self.memory, self.progress = memory, progress
        self._gpt = gpt
        self.roles = tuple(data.positions)
        device = model.W_E.device
        classes = torch.full((len(data), width), len(self.roles), device=device)
        rows = torch.arange(len(data), device=device)
        at = {role: runs.role_positions(data, role).to(device) for role in self.roles}
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
        data, gpt, device = self.data, self._gpt, self._classes.device
        if gpt is not None and forward.first_hook(self.model):  # put on since
            gpt = forward.weights_for(self.model, self.engine, _SLOWLY)
        width = int(data.lengths.max())
        mask = mask.to(device)

        def logits(rows: Tensor) -> Float[Tensor, "batch vocab"]:
            tokens = data.tokens[rows, :width].to(device)
            last = data.lengths[rows].to(device) - 1
            classes = self._classes[rows.to(device)]
            other = None
            if self.reference is not None:
                other = self.reference.tokens[rows, :width].to(device)
            if gpt is None:
                return edges_by_hooks.run_edges(self.model, tokens, last, classes, mask, other)
            if other is not None:
                instead = sources(gpt, other, last)
            else:
                shape = (number_of_sources(self.shape), int((last + 1).sum()), gpt.W_E.shape[1])
                dtype = torch.promote_types(gpt.W_E.dtype, torch.float32)
                instead = torch.zeros(shape, device=device, dtype=dtype)
            token_class = classes[_whole(last).at]
            return forward.unembed(gpt, run_edges(gpt, tokens, last, token_class, mask, instead))

        # What is kept of a run of edges is several times that of a plain run: a stream a source.
        memory = max(1, self.memory // 4)
        return run_in_parts(self.model, data, logits, memory, progress=self.progress)
