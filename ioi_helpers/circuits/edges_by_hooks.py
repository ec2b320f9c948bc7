"""Circuits of edges of any model that has hooks on each head's own q, k and v inputs.

Slow, and the definition itself: what :mod:`ioi_helpers.circuits.edges` computes with a model's
equations is tested against it. The residual stream of a run holds what each source writes in that
run; at every input, the terms that are not kept are exchanged.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from ioi_helpers import runs
from ioi_helpers.circuits.masks import EdgeMask, same_columns
from ioi_helpers.graph import HEAD_INPUTS, Shape
from ioi_helpers.path_patching.language import shares_keys

EMBEDDED = "blocks.0.hook_resid_pre"


def input_hooks(model: TransformerBridge) -> AbstractContextManager[None]:
    """Within it the model has hooks on what each head's q, k and v, and each MLP, reads.

    Raises:
        ValueError: TransformerLens has no such hooks for this architecture, or its heads share
            keys and values.
    """
    if shares_keys(model):
        raise ValueError(
            "In this model several heads share one key and value, so there are no edges into the k "
            "and v of single heads; use circuits of nodes."
        )
    try:
        with runs.separate_inputs(model):
            pass
    except NotImplementedError as error:
        raise ValueError(
            "Circuits of edges need hooks on each head's own q, k and v inputs, which "
            f"TransformerLens does not have for {model.cfg.architecture}; use circuits of nodes, "
            "or a GPT2LMHeadModel."
        ) from error
    return runs.separate_inputs(model)


@torch.no_grad()
def sources(
    model: TransformerBridge, tokens: Int[Tensor, "batch pos"], last: Int[Tensor, " batch"]
) -> Float[Tensor, "source batch pos d_model"]:
    """What every source writes in a plain run: the embedding, then each layer's heads and MLP."""
    seen = _Written(model)
    _run(model, tokens, last, seen.hooks())
    return torch.stack(seen.found)


@torch.no_grad()
def run_edges(
    model: TransformerBridge,
    tokens: Int[Tensor, "batch pos"],
    last: Int[Tensor, " batch"],
    token_class: Int[Tensor, "batch pos"],
    mask: EdgeMask,
    reference: Int[Tensor, "batch pos"] | None,
) -> Float[Tensor, "batch vocab"]:
    """The logits at END with all edges replaced that are not kept.

    Where keys and values differ by who asks, one more run for each layer and group of askers.

    Args:
        tokens, last: The prompts, right-padded, and their last positions.
        token_class: Each token's class.
        mask: What is kept.
        reference: The prompts whose values stand in; None: zeros do.
    """
    instead = None if reference is None else sources(model, reference, last)
    fixed: dict[int, Tensor] = {}
    groups = [same_columns(mask.kv[:, layer]) for layer in range(model.cfg.n_layers)]

    def run(asking: dict[int, int], more: Sequence[runs.Hook] = ()) -> Float[Tensor, "batch vocab"]:
        edges = _Replaced(model, token_class, last, mask, instead, asking, fixed)
        return _run(model, tokens, last, [*edges.hooks(), *more])

    first = {layer: several[0][0] for layer, several in enumerate(groups)}
    for layer, several in enumerate(groups):
        if len(several) == 1:
            continue
        made: list[Tensor] = []

        def keep(z: Tensor, hook: Any, made: list[Tensor] = made) -> None:
            made.append(z.clone())

        for queries in several:
            run(first | {layer: queries[0]}, [(f"blocks.{layer}.attn.hook_z", keep)])
        z = made[0]
        for queries, own in zip(several, made, strict=True):
            here = torch.isin(token_class, torch.tensor(queries, device=token_class.device))
            here = here[:, : z.shape[1]]
            z = torch.where(here.reshape(*here.shape, *[1] * (z.ndim - 2)), own, z)
        fixed[layer] = z
    return run(first)


def _run(
    model: TransformerBridge, tokens: Tensor, last: Tensor, hooks: Sequence[runs.Hook]
) -> Float[Tensor, "batch vocab"]:
    with input_hooks(model), model.hooks(fwd_hooks=list(hooks)):
        return runs.logits_at_positions(model, tokens, last)


class _Written:
    """Hooks that keep what each source writes in a run."""

    def __init__(self, model: TransformerBridge) -> None:
        self.model, self.layers = model, range(model.cfg.n_layers)
        self.found: list[Float[Tensor, "batch pos d_model"]] = []

    def hooks(self) -> list[runs.Hook]:
        hooks: list[runs.Hook] = [(EMBEDDED, self._keep)]
        for layer in self.layers:
            hooks.append((f"blocks.{layer}.attn.hook_z", self._keep_heads(layer)))
            hooks.append((f"blocks.{layer}.hook_mlp_out", self._keep))
        return hooks

    def _keep(self, value: Tensor, hook: Any) -> None:
        self.found.append(runs.widened(value.clone()))

    def _keep_heads(self, layer: int) -> Any:
        block = self.model.blocks[layer]
        W_O = block.attn.W_O * runs.residual_scale(block)

        def hook_fn(z: Tensor, hook: Any) -> None:
            z = z if z.ndim == 4 else z.unflatten(-1, (self.model.cfg.n_heads, -1))
            self.found += runs.widened(torch.einsum("bphk,hkd->hbpd", z, W_O)).unbind()

        return hook_fn


class _Replaced(_Written):
    """Hooks that exchange, at every input, what is not kept there.

    Args:
        asking: For each layer the class of those whose keys and values are made.
        fixed: z of the layers where askers differ, from runs made before.
    """

    def __init__(
        self,
        model: TransformerBridge,
        token_class: Int[Tensor, "batch pos"],
        last: Int[Tensor, " batch"],
        mask: EdgeMask,
        instead: Float[Tensor, "source batch pos d_model"] | None,
        asking: dict[int, int],
        fixed: dict[int, Tensor],
    ) -> None:
        super().__init__(model)
        self.token_class, self.last, self.instead = token_class, last, instead
        self.mask, self.asking, self.fixed = mask, asking, fixed
        self.shape = Shape.of(model)

    def hooks(self) -> list[runs.Hook]:
        hooks: list[runs.Hook] = [(EMBEDDED, self._keep)]
        for layer in self.layers:
            block = f"blocks.{layer}"
            parts = (self.mask.q, *self.mask.kv[..., self.asking[layer]])
            for name, part in zip(HEAD_INPUTS, parts, strict=True):
                hooks.append((f"{block}.attn.hook_{name}_input", self._exchange(part[layer])))
            if layer in self.fixed:
                hooks.append((f"{block}.attn.hook_z", self._put(self.fixed[layer])))
            # Attention and MLP of a block side by side: the MLP does not read the block's heads.
            mine = 1 + layer * (self.shape.n_heads + 1) if self.shape.parallel else None
            reads_mlp = self._exchange(self.mask.mlp[layer][None], mine)
            if self.shape.parallel:
                hooks.append((f"{block}.hook_mlp_in", reads_mlp))
            hooks.append((f"{block}.attn.hook_z", self._keep_heads(layer)))
            if not self.shape.parallel:
                hooks.append((f"{block}.hook_mlp_in", reads_mlp))
            hooks.append((f"{block}.hook_mlp_out", self._keep))
        final = f"blocks.{len(self.layers) - 1}.hook_resid_post"
        return [*hooks, (final, self._exchange_at_end)]

    def _exchange(self, kept: Tensor, sources: int | None = None) -> Any:
        """Exchange what is not kept (``[head source token_class]``) at one input of each head."""

        def hook_fn(value: Tensor, hook: Any) -> Tensor:
            n = len(self.found) if sources is None else sources
            change = self._change(n)
            gone = (~kept[:, :n])[..., self.token_class[:, : change.shape[2]]].to(change)
            new = torch.einsum("hsbp,sbpd->bphd", gone, change)
            return value + (new if value.ndim == 4 else new[:, :, 0]).to(value)

        return hook_fn

    def _change(self, n: int) -> Float[Tensor, "source batch pos d_model"]:
        own = torch.stack(self.found[:n])
        if self.instead is None:
            return -own
        return self.instead[:n, :, : own.shape[2]].to(own) - own

    def _exchange_at_end(self, value: Tensor, hook: Any) -> Tensor:
        rows, value = torch.arange(len(value), device=value.device), value.clone()
        change = self._change(len(self.found))[:, rows, self.last]
        value[rows, self.last] += torch.einsum(
            "s,sbd->bd", (~self.mask.final).to(change), change
        ).to(value)
        return value

    def _put(self, z: Tensor) -> Any:
        def hook_fn(value: Tensor, hook: Any) -> Tensor:
            return z.to(value)

        return hook_fn
