"""Where heads look: between pairs of roles, or from one role over all positions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from ioi_helpers.dataset import TwoAnswerData
from ioi_helpers.names import HeadLike, existing_head, head_name
from ioi_helpers.runs.batches import DEFAULT_MEMORY, Edit, Hook, run_in_batches
from ioi_helpers.runs.guards import refuse_too_long, require_data, role_positions
from ioi_helpers.runs.reading import widened


def attention_of_pairs(
    model: TransformerBridge,
    data: TwoAnswerData,
    pairs: Sequence[tuple[str, str]],
    edits: Sequence[Edit] = (),
    *,
    memory: int = DEFAULT_MEMORY,
    progress: bool = True,
) -> Float[Tensor, "layer head pair batch"]:
    """How much every head attends from one role to another, for several pairs in one run.

    :func:`ioi_helpers.heads.attention_by_role` has the same in plain TransformerLens.

    Args:
        model, data: The model and the prompts, which may differ in length.
        pairs: The role that attends and the role attended to, each.
        edits, memory, progress: As for :func:`~ioi_helpers.runs.run_in_batches`.

    Returns:
        ``[layer head pair batch]``, each a share of one head's attention, from 0 to 1. A key after
        the query gets exactly 0.

    Raises:
        ValueError: A role is unknown, or as :func:`~ioi_helpers.runs.activations_at`.
    """
    require_data(model, data)
    queries, keys = zip(*pairs, strict=True)
    query_at = torch.stack([role_positions(data, role) for role in queries], dim=-1)
    key_at = torch.stack([role_positions(data, role) for role in keys], dim=-1)

    def read(part: TwoAnswerData) -> Float[Tensor, "layer head pair rows"]:
        at = [torch.stack([part.positions[r] for r in roles], dim=-1) for roles in (queries, keys)]
        by_layer, hooks = hooks_on_pairs(model, at[0], at[1])
        _run(model, part.tokens, int(torch.maximum(*at).max()) + 1, hooks)
        return torch.stack(by_layer)

    return run_in_batches(
        model, data, read, edits=edits, memory=memory, progress=progress,
        # Every position that is read must exist, also a key that comes after the query.
        upto=torch.maximum(query_at, key_at).amax(dim=-1),
        kept=model.cfg.n_layers * model.cfg.n_heads * len(queries),
        dim=-1,
    )  # fmt: skip


def hooks_on_pairs(
    model: TransformerBridge,
    query_at: Int[Tensor, "batch pair"],
    key_at: Int[Tensor, "batch pair"],
) -> tuple[list[Float[Tensor, "head pair batch"]], list[Hook]]:
    """A list with one entry a layer, and the hooks that fill it in the next run."""
    by_layer: list[Tensor] = [torch.empty(0)] * model.cfg.n_layers

    def keep(layer: int) -> Callable[..., None]:
        def hook_fn(pattern: Float[Tensor, "batch head query key"], hook: Any) -> None:
            rows = torch.arange(len(pattern), device=pattern.device)[:, None]
            queries, keys = query_at.to(pattern.device), key_at.to(pattern.device)
            chosen = pattern[rows, :, queries, keys].permute(2, 1, 0)
            by_layer[layer] = widened(chosen).to(model.W_U.device)

        return hook_fn

    return by_layer, [
        (f"blocks.{layer}.attn.hook_pattern", keep(layer)) for layer in range(model.cfg.n_layers)
    ]


def attention_patterns(
    model: TransformerBridge,
    data: TwoAnswerData,
    heads: Sequence[HeadLike],
    role: str = "END",
    edits: Sequence[Edit] = (),
    *,
    memory: int = DEFAULT_MEMORY,
    progress: bool = True,
) -> dict[str, Float[Tensor, "batch key"]]:
    """Where heads attend from a role, over all positions: what an attention edit takes.

    Args:
        model, data: The model and the prompts, which may differ in length.
        heads: Such as ``["L9H9", "L9H6"]``.
        role: The position that attends.
        edits, memory, progress: As for :func:`~ioi_helpers.runs.run_in_batches`.

    Returns:
        head -> ``[batch key]``, as wide as ``data.tokens``; 0 after the role.

    Raises:
        ValueError: No heads, or one that the model does not have; or as
            :func:`~ioi_helpers.runs.activations_at`.
    """
    require_data(model, data)
    positions = role_positions(data, role)
    where = {head_name(*at): at for at in (existing_head(model, head) for head in heads)}
    if not where:
        raise ValueError("heads is empty; name at least one.")
    layers = sorted({layer for layer, _ in where.values()})
    width, device = data.tokens.shape[1], model.W_U.device

    def read(part: TwoAnswerData) -> dict[str, Tensor]:
        found: dict[int, Tensor] = {}

        def keep(layer: int) -> Callable[..., None]:
            def hook_fn(pattern: Float[Tensor, "batch head query key"], hook: Any) -> None:
                at = part.positions[role].to(pattern.device)
                rows = torch.arange(len(at), device=pattern.device)
                chosen = widened(pattern[rows, :, at])
                unseen = width - chosen.shape[-1]
                found[layer] = torch.nn.functional.pad(chosen, (0, unseen)).to(device)

            return hook_fn

        hooks = [(f"blocks.{layer}.attn.hook_pattern", keep(layer)) for layer in layers]
        _run(model, part.tokens, int(part.positions[role].max()) + 1, hooks)
        return {head: found[layer][:, index] for head, (layer, index) in where.items()}

    return run_in_batches(
        model, data, read, edits=edits, memory=memory, progress=progress,
        upto=positions, kept=len(layers) * model.cfg.n_heads * width,
    )  # fmt: skip


def _run(
    model: TransformerBridge, tokens: Int[Tensor, "batch pos"], length: int, hooks: list[Hook]
) -> None:
    tokens = tokens[:, :length].to(model.cfg.device)
    refuse_too_long(model, tokens)
    with torch.no_grad():
        # logits_to_keep: one position's logits are cheaper than all, and none are used here.
        model.run_with_hooks(tokens, fwd_hooks=hooks, return_type=None, logits_to_keep=1)
