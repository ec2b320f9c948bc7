"""Run a model as a circuit: everything that is not in it is replaced, at every token index.

A circuit of nodes keeps heads at token roles. All other heads, and these heads at all other
positions, write what stands in for them (:mod:`ioi_helpers.circuits.values`); the embedding, MLPs,
LayerNorms and biases stay, unless MLPs are asked to be nodes. Kept heads are computed anew from
what they now read (Wang et al. 2022, section 4).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from ioi_helpers import forward, metrics, runs
from ioi_helpers.circuits.roles import Outside, final_stream
from ioi_helpers.circuits.values import Values, values_outside
from ioi_helpers.dataset import TwoAnswerData
from ioi_helpers.dataset.two_answers import reference_for
from ioi_helpers.graph import Circuit, Node, NodeLike, Shape

Kept = Bool[Tensor, "layer batch pos component"]
"""Which heads (and, as the last component of each layer, the MLP) are kept at which positions."""


@dataclass(frozen=True)
class CircuitRun:
    """What a run predicts at END of each prompt.

    Attributes:
        logit_diff: ``[batch]``, logit of IO minus logit of S.
        loss: ``[batch]``, minus the log probability of IO, in nats.
    """

    logit_diff: Float[Tensor, " batch"]
    loss: Float[Tensor, " batch"]

    @staticmethod
    def of_logits(logits: Float[Tensor, "batch vocab"], data: TwoAnswerData) -> CircuitRun:
        """From the logits at END, scored with the names of these prompts."""
        logits = runs.widened(logits)
        own = logits.gather(1, data.io_tokens.to(logits.device)[:, None])[:, 0]
        return CircuitRun(
            metrics.logit_diff(logits, data, per_prompt=True), logits.logsumexp(dim=-1) - own
        )

    @staticmethod
    def join(parts: Sequence[CircuitRun], rows: Sequence[Tensor] | None = None) -> CircuitRun:
        """Part after part, or each at its rows of the prompts."""
        rows = rows or [torch.arange(len(torch.cat([part.loss for part in parts])))]
        return CircuitRun(
            runs.in_order([part.logit_diff for part in parts], rows),
            runs.in_order([part.loss for part in parts], rows),
        )


_SLOWLY = "Circuits are run with TransformerLens' hooks"


def part_of(circuit: Circuit, nodes: Circuit | Iterable[NodeLike]) -> Circuit:
    """Nodes of a circuit, such as those of K in C \\ K.

    Raises:
        ValueError: The circuit has one of them neither at its role nor everywhere.
    """
    part = nodes if isinstance(nodes, Circuit) else Circuit.of(nodes)
    for node in part:
        if node not in circuit and node.at(None) not in circuit:
            raise ValueError(f"{node} is not in the circuit, so it cannot be in K; leave it out.")
    return part


class Circuits:
    """Many circuits of one model, run on the same prompts with the same values outside.

    ::

        circuits = Circuits(model, data)                   # means over ABC prompts
        circuits.run(circuit).logit_diff.mean()            # F(C)
        circuits.run(circuit, without=K).logit_diff        # F(C \\ K)
        circuits.run_model(without=K).logit_diff           # F(M \\ K): K at its roles only

    Args:
        model: A model that TransformerBridge boots; those of `forward.FAMILIES` are fast.
        data: The prompts; they may differ in length.
        reference: Where the values of what is left out come from; ``data.abc()`` if it is None.
        how: ``"mean"``, ``"resample"`` (row by row) or ``"zero"``.
        group: Whose mean: ``"template and order"`` (the paper's, with ABC prompts), ``"template"``,
            or ``"all"`` (one mean for all prompts, at the same place).
        mlps: ``"kept"``: MLPs stay. ``"nodes"``: an MLP is kept only where the circuit has it.
        engine: ``"fast"``, ``"hooks"``, or ``"auto"``: the fast one where the model allows, which
            is asked anew in each run. (Hooks put on the model later change what it computes, and
            not the values that stand in.)
        memory: Bytes for activations; more prompts than fit are run in parts.
        progress: Show a bar over these parts where a single run takes long.

    Raises:
        ValueError: A reference that does not fit the data, or one of the choices is unknown.
    """

    def __init__(
        self,
        model: TransformerBridge,
        data: TwoAnswerData,
        reference: TwoAnswerData | None = None,
        *,
        how: Literal["mean", "resample", "zero"] = "mean",
        group: Literal["template and order", "template", "all"] = "template and order",
        mlps: Literal["kept", "nodes"] = "kept",
        engine: forward.Engine = "auto",
        memory: int = runs.DEFAULT_MEMORY,
        progress: bool = False,
    ) -> None:
        runs.require_data(model, data)
        if mlps not in ("kept", "nodes"):
            raise ValueError(f"mlps must be 'kept' or 'nodes', not {mlps!r}.")
        self.model, self.data = model, data
        self.shape, self.how, self.group, self.mlps = Shape.of(model), how, group, mlps
        self.reference = reference if how == "zero" else reference_for(data, reference)
        self.memory, self.progress = memory, progress
        self.engine: forward.Engine = engine
        self._gpt = forward.weights_for(model, engine, _SLOWLY)
        self._values = values_outside(
            model, data, self.reference, how, group, mlps=mlps == "nodes", memory=memory
        )
        self._outside: Outside | None = None

    # --- what is kept -----------------------------------------------------------------------------

    def _nothing(self) -> Kept:
        n_layers, n, width = self.shape.n_layers, len(self.data), int(self.data.lengths.max())
        return torch.zeros(
            n_layers,
            n,
            width,
            self.shape.n_heads + 1,
            dtype=torch.bool,
            device=self._values.z.device,
        )

    def _mark(self, kept: Kept, nodes: Iterable[Node], keep: bool) -> None:
        rows = torch.arange(len(self.data), device=kept.device)
        for node in nodes:
            component = self.shape.n_heads if node.head is None else node.head
            if node.role is None:
                kept[node.layer, :, :, component] = keep
            else:
                at = runs.role_positions(self.data, node.role).to(kept.device)
                kept[node.layer, rows, at, component] = keep

    def _checked(self, nodes: Circuit | Iterable[NodeLike]) -> Circuit:
        circuit = nodes if isinstance(nodes, Circuit) else Circuit.of(nodes)
        circuit.require(self.model)
        if circuit.edges is not None:
            raise ValueError(
                "This circuit has edges, which Circuits would ignore; run it with EdgeCircuits, or "
                "its nodes alone as Circuit(circuit.nodes)."
            )
        if self.mlps == "kept" and any(not node.is_head for node in circuit):
            raise ValueError(
                "The circuit names MLPs, but with mlps='kept' all of them stay anyway; use "
                "mlps='nodes', or leave them out."
            )
        return circuit

    # --- runs -------------------------------------------------------------------------------------

    def run(
        self, circuit: Circuit | Iterable[NodeLike], *, without: Circuit | Iterable[NodeLike] = ()
    ) -> CircuitRun:
        """The model with everything replaced but the circuit: C, or C \\ K.

        Args:
            circuit: What is kept; may be empty.
            without: Nodes K that are not kept after all. A head that the circuit has everywhere
                may be taken away at one role.

        Raises:
            ValueError: The model has no such node, K is not in the circuit, or the circuit has
                edges.
        """
        inside = self._checked(circuit)
        gone = self._checked(part_of(inside, without))
        left = Circuit.of(node for node in inside if node not in gone and node.at(None) not in gone)
        gpt = self._weights()
        if gpt is not None and self._only_roles(left):
            return self._run_at_roles(gpt, left)
        kept = self._nothing()
        self._mark(kept, inside, True)
        self._mark(kept, gone, False)
        return self._run(gpt, kept)

    def run_model(self, *, without: Circuit | Iterable[NodeLike] = ()) -> CircuitRun:
        """The whole model, or M \\ K: K replaced at its roles' positions only."""
        kept = ~self._nothing()
        self._mark(kept, self._checked(without), False)
        return self._run(self._weights(), kept)

    def _weights(self) -> forward.Decoder | None:
        """The weights, if this run may be made with them: not past hooks put on the model since."""
        if self._gpt is None or not forward.first_hook(self.model):
            return self._gpt
        return forward.weights_for(self.model, self.engine, _SLOWLY)

    def _only_roles(self, circuit: Circuit) -> bool:
        """Whether tokens at roles are enough: see :mod:`ioi_helpers.circuits.roles`."""
        if self.mlps == "nodes" or any(node.role is None for node in circuit):
            return False
        # Keys and values of the run with nothing kept are as large as the values twice.
        z = self._values.z
        if 2 * z.numel() * z.element_size() > self.memory:
            return False
        at = torch.stack(list(self._at().values()), dim=1).sort(dim=1).values
        return bool((at.diff(dim=1) > 0).all())

    def _at(self) -> dict[str, Tensor]:
        return {
            role: runs.role_positions(self.data, role).to(self._values.z.device)
            for role in self.data.positions
        }

    def _run_at_roles(self, gpt: forward.Decoder, circuit: Circuit) -> CircuitRun:
        data, at = self.data, self._at()
        width = int(data.lengths.max())
        if self._outside is None:
            self._outside = self._nothing_kept(gpt)
        outside = self._outside

        def logits(rows: Tensor) -> Float[Tensor, "batch vocab"]:
            here = rows.to(gpt.device)
            tokens = data.tokens[rows, :width].to(gpt.device)
            final = final_stream(
                gpt,
                tokens,
                {role: positions[here] for role, positions in at.items()},
                circuit,
                outside.rows(here),
                self._values.z[:, here],
            )
            return forward.unembed(gpt, final)

        return run_in_parts(self.model, data, logits, self.memory, progress=self.progress)

    def _nothing_kept(self, gpt: forward.Decoder) -> Outside:
        data, values = self.data, self._values
        width = int(data.lengths.max())
        shape = (*values.z.shape[:3], gpt.n_kv_heads, gpt.d_head)
        k, v = values.z.new_zeros(shape), values.z.new_zeros(shape)
        final = values.z.new_zeros(len(data), gpt.W_E.shape[1])
        size = runs.prompts_at_once(self.model, width, self.memory)
        nothing = self._nothing()
        for rows in runs.in_parts(data.lengths, size, progress=False):
            here = rows.to(gpt.device)
            tokens = data.tokens[rows, :width].to(gpt.device)
            last = data.lengths[rows].to(gpt.device) - 1
            edit = _editor(nothing[:, here], values.rows(here))
            run = forward.run(gpt, tokens, last, ("k", "v"), edit=edit)
            k[:, here] = torch.stack(run["k"]).to(k)
            v[:, here] = torch.stack(run["v"]).to(v)
            final[here] = run.final.to(final)
        return Outside(k, v, final)

    def _run(self, gpt: forward.Decoder | None, kept: Kept) -> CircuitRun:
        def logits(rows: Tensor) -> Float[Tensor, "batch vocab"]:
            here = rows.to(kept.device)
            return self._logits(gpt, kept[:, here], self._values.rows(here), rows)

        return run_in_parts(self.model, self.data, logits, self.memory, progress=self.progress)

    @torch.no_grad()
    def _logits(
        self, gpt: forward.Decoder | None, kept: Kept, values: Values, rows: Tensor
    ) -> Float[Tensor, "batch vocab"]:
        width = kept.shape[2]
        if gpt is not None:
            tokens = self.data.tokens[rows, :width].to(gpt.device)
            last = self.data.lengths[rows].to(gpt.device) - 1
            run = forward.run(gpt, tokens, last, (), edit=_editor(kept, values))
            return forward.unembed(gpt, run.final)
        part = self.data[rows]
        with self.model.hooks(fwd_hooks=_hooks(kept, values)):
            return runs.logits_at_positions(self.model, part.tokens, part.positions["END"])


def run_in_parts(
    model: TransformerBridge,
    data: TwoAnswerData,
    logits: Callable[[Tensor], Float[Tensor, "batch vocab"]],
    memory: int,
    *,
    progress: bool = False,
) -> CircuitRun:
    """What a run predicts, from the logits at END of some rows at a time.

    Args:
        logits: From row numbers of the data to the logits at their ENDs.
        memory: Bytes that the activations of a part may take.
        progress: Show a bar over the parts.
    """
    size = runs.prompts_at_once(model, int(data.lengths.max()), memory)
    parts, rows = [], []
    for part in runs.in_parts(data.lengths, size, progress=progress):
        parts.append(CircuitRun.of_logits(logits(part), data[part]))
        rows.append(part)
    return CircuitRun.join(parts, rows)


def _editor(kept: Kept, values: Values) -> forward.Editor:
    """The replacement of all that is not kept, for `forward.run`."""

    def edit(site: str, layer: int, value: Tensor, spans: forward.Spans) -> Tensor:
        if site == "z":
            inside = kept[layer, :, :, :-1][spans.at]
            return torch.where(inside[..., None], value, values.z[layer][spans.at].to(value))
        if site == "mlp_out" and len(values.mlp_out):
            inside = kept[layer, :, :, -1][spans.at]
            return torch.where(inside[..., None], value, values.mlp_out[layer][spans.at].to(value))
        return value

    return edit


def _hooks(kept: Kept, values: Values) -> list[tuple[str, Any]]:
    """The same as TransformerLens hooks."""
    width_of = kept.shape[2]

    def replace(inside: Tensor, instead: Tensor) -> Any:
        def hook_fn(activation: Tensor, hook: Any) -> Tensor:
            width = min(activation.shape[1], width_of)
            new = activation.clone()
            new[:, :width] = torch.where(
                inside[:, :width, ..., None].to(new.device),
                new[:, :width],
                instead[:, :width].to(new),
            )
            return new

        return hook_fn

    hooks = [
        (f"blocks.{layer}.attn.hook_z", replace(kept[layer, :, :, :-1], values.z[layer]))
        for layer in range(len(kept))
    ]
    return hooks + [
        (f"blocks.{layer}.hook_mlp_out", replace(kept[layer, :, :, -1], values.mlp_out[layer]))
        for layer in range(len(values.mlp_out))
    ]
