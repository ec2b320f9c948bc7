"""Gradients of the logit difference with respect to what every receiver reads.

A receiver's input is the residual stream *before* its LayerNorm, and every head has a q, a k and a
v input of its own. Two ways to the same numbers: the equations of :mod:`ioi_helpers.forward`,
differentiated; or, for other models, TransformerLens' hooks on these very inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from ioi_helpers import forward, runs
from ioi_helpers.graph import HEAD_INPUTS, Node, Shape
from ioi_helpers.path_patching.pair import Pair


@dataclass(frozen=True)
class Point:
    """A run between the unpatched run and the other one.

    Attributes:
        weight: How much of the unpatched run is in it, from 0 to 1.
        nodes: The nodes whose outputs are mixed, all of one layer's heads or an MLP; None mixes the
            embeddings, from which everything else follows.
    """

    weight: float
    nodes: tuple[Node, ...] | None = None


Gradient = tuple[int, str, Float[Tensor, "batch pos *head d_model"]]
"""Layer, input (``"q"``, ``"k"``, ``"v"``, ``"in"`` or ``"final"``) and gradient."""


class Runs(Protocol):
    """Both runs over a pair of datasets, and gradients on those between them."""

    logit_diffs: tuple[Float[Tensor, " batch"], Float[Tensor, " batch"]]
    """Of the unpatched run and of the other one."""

    def changes(self) -> Float[Tensor, "batch pos sender d_model"]:
        """What each sender writes in the other run, less what it writes in the unpatched one: the
        embedding, then each layer's heads and MLP."""

    def gradients(self, point: Point) -> Iterator[Gradient]:
        """The gradient of each prompt's logit difference; receivers before the mixed nodes and
        unread ones are left out."""


# --- by the equations -----------------------------------------------------------------------------


class FastRuns:
    """By the equations of :mod:`ioi_helpers.forward`."""

    def __init__(self, gpt: forward.Decoder, pair: Pair):
        self.gpt, self.pair = gpt, pair
        prompts = torch.arange(len(pair), device=pair.last.device)
        self.spans = forward.Spans(prompts, torch.zeros_like(pair.last), pair.last)
        self.base = forward.run(gpt, pair.tokens, pair.last, ("z", "mlp_out", "k", "v"))
        first = forward.first_difference(pair.tokens, pair.other, pair.last + 1)[0]
        # Up to where prompts differ, the other run's values are the unpatched run's, to the bit.
        self.other = forward.run(
            gpt, pair.other, pair.last, ("z", "mlp_out"), base=self.base, first=first
        )
        io, s = pair.io_tokens, pair.s_tokens
        self.logit_diffs = (
            forward.logit_diffs(gpt, self.base.final, io, s),
            forward.logit_diffs(gpt, self.other.final, io, s),
        )

    def changes(self) -> Float[Tensor, "batch pos sender d_model"]:
        """See :class:`Runs`."""
        gpt, pair = self.gpt, self.pair
        embedded = forward.embed_tokens(gpt, pair.other) - forward.embed_tokens(gpt, pair.tokens)
        found = [embedded[:, :, None]]
        for layer in range(gpt.n_layers):
            dz = self.other["z"][layer] - self.base["z"][layer]
            W_O = forward.W_O_by_head(gpt, layer, dz.dtype)
            found.append(torch.einsum("bphk,hkd->bphd", dz, W_O))
            found.append((self.other["mlp_out"][layer] - self.base["mlp_out"][layer])[:, :, None])
        within = self.pair.mask(None)[:, :, None, None]
        return torch.cat(found, dim=2) * within

    def gradients(self, point: Point) -> Iterator[Gradient]:
        """See :class:`Runs`."""
        gpt, spans, read = self.gpt, self.spans, _Read()
        with torch.enable_grad():
            x = self._embedded(point).requires_grad_()
            mixed = self._mixed(point)
            edit = read.editor(mixed)
            for layer in range(gpt.n_layers):
                read.streams.append(x)
                computed = forward.attention(gpt, layer, x, spans, edit=edit)
                mid = computed["resid_mid"]
                # A copy, whose gradient leaves out what goes past the MLP.
                branch = computed[gpt.mlp_reads].clone()
                read.values["in", layer] = branch
                mlp_out = mixed("mlp_out", layer, forward.mlp(gpt, layer, branch))
                x = mid + mlp_out
            final = x[spans.ends]
            read.values["final", gpt.n_layers] = final
            io, s = self.pair.io_tokens, self.pair.s_tokens
            total = forward.logit_diffs(gpt, final, io, s).sum()
            found = torch.autograd.grad(total, list(read.values.values()), allow_unused=True)
        for (name, layer), gradient in zip(read.values, found, strict=True):
            if gradient is not None:
                yield layer, name, self._at_input(name, layer, gradient, read.streams)

    def _embedded(self, point: Point) -> Float[Tensor, "token d_model"]:
        x = forward.embed(self.gpt, self.pair.tokens, self.spans)
        if point.nodes is not None:
            return x
        return point.weight * x + (1 - point.weight) * forward.embed(
            self.gpt, self.pair.other, self.spans
        )

    def _mixed(self, point: Point) -> Callable[[str, int, Tensor], Tensor]:
        nodes = point.nodes or ()

        def mixed(site: str, layer: int, value: Tensor) -> Tensor:
            members = [n for n in nodes if n.layer == layer and n.is_head == (site == "z")]
            for node in members:
                a, b = (run[site][layer][self.spans.at] for run in (self.base, self.other))
                between = point.weight * a + (1 - point.weight) * b
                if node.head is None:
                    return between
                value = value.clone()
                value[:, node.head] = between[:, node.head]
            return value

        return mixed

    def _at_input(
        self, name: str, layer: int, gradient: Tensor, streams: Sequence[Tensor]
    ) -> Float[Tensor, "batch pos *head d_model"]:
        """From a query, key or value to the stream that is read for it, through LayerNorm."""
        gpt, spans = self.gpt, self.spans
        if name == "final":
            full = gradient.new_zeros(len(self.pair), self.pair.width, gradient.shape[-1])
            full[spans.prompt, spans.last] = gradient
            return full
        if name in HEAD_INPUTS:
            weight, _ = forward.weights_of(gpt.blocks[layer], name)
            stream = streams[layer].detach()[:, None]
            weight = gpt.heads(weight).to(stream.dtype)
            gradient = torch.einsum("thk,dhk->thd", gradient.to(stream.dtype), weight)
            gradient = forward.through(gpt.blocks[layer].ln1, stream, gradient)
        full = gradient.new_zeros(len(self.pair), self.pair.width, *gradient.shape[1:])
        full[spans.at] = gradient
        return full


class _Read:
    """What is read on the way of one run, kept for its gradient."""

    def __init__(self) -> None:
        self.values: dict[tuple[str, int], Tensor] = {}
        self.streams: list[Tensor] = []

    def editor(self, mixed: Callable[[str, int, Tensor], Tensor]) -> forward.Editor:
        """Remembers queries, keys and values, and mixes z."""

        def edit(site: str, layer: int, value: Tensor, where: forward.Spans) -> Tensor:
            if site in HEAD_INPUTS:
                self.values[site, layer] = value
            return mixed(site, layer, value) if site == "z" else value

        return edit


# --- other models --------------------------------------------------------------------------------

_INPUT_HOOKS = {name: f"attn.hook_{name}_input" for name in HEAD_INPUTS} | {"in": "hook_mlp_in"}
_EMBEDDED = "blocks.0.hook_resid_pre"


class HookRuns:
    """By TransformerLens' hooks on every head's own q, k and v input."""

    def __init__(self, model: TransformerBridge, pair: Pair):
        self.model, self.pair = model, pair
        self.n_layers = model.cfg.n_layers
        try:
            with runs.separate_inputs(model):
                pass
        except NotImplementedError as error:
            raise ValueError(
                "Edge scores by gradients need hooks on each head's own q, k and v inputs, which "
                f"TransformerLens does not have for {model.cfg.architecture}; use exact_edges, or "
                "a GPT2LMHeadModel."
            ) from error
        outputs = [f"blocks.{n}.{name}" for n in range(self.n_layers) for name in _OUTPUTS]
        self.base, base_diffs = self._run(pair.tokens, [_EMBEDDED, *outputs])
        self.other, other_diffs = self._run(pair.other, [_EMBEDDED, *outputs])
        self.logit_diffs = (base_diffs.detach(), other_diffs.detach())

    def _run(
        self,
        tokens: Tensor,
        names: Sequence[str],
        replaced: dict[str, Callable[[Tensor], Tensor]] | None = None,
    ) -> tuple[dict[str, Tensor], Float[Tensor, " batch"]]:
        """Activations by name, and logit differences; ``replaced`` comes first."""
        seen: dict[str, Tensor] = {}

        def hook_for(name: str) -> runs.Hook:
            change = (replaced or {}).get(name)

            def hook_fn(value: Tensor, hook: Any) -> Tensor | None:
                seen[name] = value if change is None else change(value)
                return None if change is None else seen[name]

            return name, hook_fn

        every = dict.fromkeys([*names, *(replaced or {})])
        with torch.set_grad_enabled(replaced is not None):
            with self.model.hooks(fwd_hooks=[hook_for(name) for name in every]):
                logits = runs.logits_at_positions(self.model, tokens, self.pair.last)
        logits = runs.widened(logits)
        rows = torch.arange(len(self.pair), device=logits.device)
        io, s = (t.to(logits.device) for t in (self.pair.io_tokens, self.pair.s_tokens))
        return seen, logits[rows, io] - logits[rows, s]

    def changes(self) -> Float[Tensor, "batch pos sender d_model"]:
        """See :class:`Runs`."""

        def change(name: str) -> Tensor:
            return (self.other[name] - self.base[name]).detach()

        found = [change(_EMBEDDED)[:, :, None]]
        for layer in range(self.n_layers):
            attn = self.model.blocks[layer].attn
            dz = change(f"blocks.{layer}.attn.hook_z")
            dz = dz if dz.ndim == 4 else dz.unflatten(-1, (self.model.cfg.n_heads, -1))
            scale = runs.residual_scale(self.model.blocks[layer])
            found.append(torch.einsum("bphk,hkd->bphd", dz, attn.W_O * scale))
            found.append(change(f"blocks.{layer}.hook_mlp_out")[:, :, None])
        within = self.pair.mask(None)[:, :, None, None]
        return torch.cat(found, dim=2) * within

    def gradients(self, point: Point) -> Iterator[Gradient]:
        """See :class:`Runs`."""
        final = f"blocks.{self.n_layers - 1}.hook_resid_post"
        inputs = {
            f"blocks.{layer}.{hook}": (layer, name)
            for layer in range(self.n_layers)
            for name, hook in _INPUT_HOOKS.items()
        } | {final: (self.n_layers, "final")}
        with runs.separate_inputs(self.model):
            # A copy of its own, or the gradient would hold what goes past the MLP, too.
            copies = {name: torch.clone for name, (_, read) in inputs.items() if read == "in"}
            replaced = {**copies, **self._replaced(point)}
            seen, diffs = self._run(self.pair.tokens, list(inputs), replaced)
            missing = [name for name in inputs if name not in seen]
            if missing:
                raise ValueError(
                    f"This model has no {missing[0]}, so the gradient of a single input cannot be "
                    "taken; use exact_edges, which needs no gradients."
                )
            read = [seen[name] for name in inputs]
            found = torch.autograd.grad(diffs.sum(), read, allow_unused=True)
        for (layer, name), gradient in zip(inputs.values(), found, strict=True):
            if gradient is not None:
                yield layer, name, gradient

    def _replaced(self, point: Point) -> dict[str, Callable[[Tensor], Tensor]]:
        def between(name: str) -> Tensor:
            a, b = self.base[name].detach(), self.other[name].detach()
            return point.weight * a + (1 - point.weight) * b

        def embedded(value: Tensor) -> Tensor:
            x = between(_EMBEDDED) if point.nodes is None else value.detach()
            return x.clone().requires_grad_()

        replaced: dict[str, Callable[[Tensor], Tensor]] = {_EMBEDDED: embedded}
        for node in point.nodes or ():
            block = f"blocks.{node.layer}"
            name = f"{block}.attn.hook_z" if node.is_head else f"{block}.hook_mlp_out"
            replaced[name] = self._mixing(between(name), node, replaced.get(name))
        return replaced

    def _mixing(
        self, mixed: Tensor, node: Node, before: Callable[[Tensor], Tensor] | None
    ) -> Callable[[Tensor], Tensor]:
        def mix(value: Tensor) -> Tensor:
            value = value if before is None else before(value)
            if node.head is None:
                return mixed
            value, n_heads = value.clone(), self.model.cfg.n_heads
            target, new = (
                x if x.ndim == 4 else x.unflatten(-1, (n_heads, -1)) for x in (value, mixed)
            )
            target[:, :, node.head] = new[:, :, node.head]
            return value

        return mix


_OUTPUTS = ("attn.hook_z", "hook_mlp_out")


def nodes_by_layer(shape: Shape) -> Iterator[tuple[Node, ...]]:
    """Each layer's heads, and its MLP, in order."""
    for layer in range(shape.n_layers):
        yield tuple(Node(layer, head) for head in range(shape.n_heads))
        yield (Node(layer, None),)
