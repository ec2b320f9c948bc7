"""Where heads look on IOI prompts, by role."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm
from transformer_lens.model_bridge import TransformerBridge

from ioi_helpers.models import refuse_too_long

if TYPE_CHECKING:
    from ioi_helpers.dataset import IOIDataset


def attention_by_role(
    model: TransformerBridge,
    data: IOIDataset,
    query: str = "END",
    keys: Sequence[str] = ("IO", "S1", "S2"),
    *,
    per_prompt: bool = False,
    batch_size: int = 64,
) -> Float[Tensor, "layer head key *batch"]:
    """How much each head attends from one role's position to others'.

    The same for a single prompt, in plain TransformerLens::

        _, cache = model.run_with_cache(data.tokens[i])
        cache["pattern", layer][0, head, data.positions[query][i], data.positions[key][i]]

    Args:
        model: A GPT-2-style model.
        data: Prompts; they may differ in length.
        query: The role of the position that attends.
        keys: The roles of the positions attended to.
        per_prompt: Keep one value a prompt instead of the mean.
        batch_size: Prompts run at once.

    Returns:
        ``[layer head key]``, the mean over prompts, or ``[layer head key batch]``; each a share of
        one head's attention, from 0 to 1. A key after the query gets exactly 0.

    Raises:
        ValueError: A role is unknown, ``keys`` is one text instead of several or empty,
            ``batch_size`` is below 1, or the model is in training mode.
    """
    if isinstance(keys, str) or not keys:
        raise ValueError(f'keys must list one or more roles, such as ("IO", "S1"), not {keys!r}.')
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, not {batch_size}.")
    if model.training:
        raise ValueError("The model is in training mode, where dropout is random; call eval().")
    values = attention_of_pairs(model, data, [(query, key) for key in keys], batch_size)
    return values if per_prompt else values.mean(dim=-1)


def attention_of_pairs(
    model: TransformerBridge,
    data: IOIDataset,
    pairs: Sequence[tuple[str, str]],
    batch_size: int = 64,
) -> Float[Tensor, "layer head pair batch"]:
    """The attention of several (query role, key role) pairs, in one run; see above."""
    refuse_too_long(model, data.tokens)
    query_at, key_at = positions_of_pairs(data, pairs)
    parts = []
    for start in tqdm(range(0, len(data), batch_size), desc="prompts", leave=False, delay=5):
        part = slice(start, start + batch_size)
        parts.append(_attention(model, data.tokens[part], query_at[part], key_at[part]))
    return torch.cat(parts, dim=-1)


def positions_of_pairs(
    data: IOIDataset, pairs: Sequence[tuple[str, str]]
) -> tuple[Int[Tensor, "batch pair"], Int[Tensor, "batch pair"]]:
    """Where the queries and the keys of these pairs of roles are."""
    queries, keys = zip(*pairs, strict=True)
    return (
        torch.stack([data.positions[role] for role in queries], dim=-1),
        torch.stack([data.positions[role] for role in keys], dim=-1),
    )


def _attention(
    model: TransformerBridge,
    tokens: Tensor,
    query_at: Int[Tensor, "batch pair"],
    key_at: Int[Tensor, "batch pair"],
) -> Float[Tensor, "layer head pair batch"]:
    by_layer, hooks = hooks_on_pairs(model, query_at, key_at)
    # Every position that is read must exist, also a key that comes after the query.
    length = int(torch.maximum(query_at, key_at).max()) + 1
    with torch.no_grad():
        # logits_to_keep: one position's logits are cheaper than all, and none are used here.
        model.run_with_hooks(
            tokens[:, :length].to(model.cfg.device),
            fwd_hooks=hooks,
            return_type=None,
            logits_to_keep=1,
        )
    return torch.stack(by_layer)


def hooks_on_pairs(
    model: TransformerBridge,
    query_at: Int[Tensor, "batch pair"],
    key_at: Int[Tensor, "batch pair"],
) -> tuple[list[Float[Tensor, "head pair batch"]], list[tuple[str, Any]]]:
    """A list with one entry a layer, and the hooks that fill it in the next run."""
    by_layer: list[Tensor] = [torch.empty(0)] * model.cfg.n_layers

    def keep(layer: int) -> Any:
        def hook_fn(pattern: Float[Tensor, "batch head query key"], hook: Any) -> None:
            rows = torch.arange(len(pattern), device=pattern.device)[:, None]
            queries, keys = query_at.to(pattern.device), key_at.to(pattern.device)
            chosen = pattern[rows, :, queries, keys].permute(2, 1, 0)
            half = chosen.dtype in (torch.float16, torch.bfloat16)
            by_layer[layer] = (chosen.float() if half else chosen).to(model.W_U.device)

        return hook_fn

    return by_layer, [
        (f"blocks.{layer}.attn.hook_pattern", keep(layer)) for layer in range(model.cfg.n_layers)
    ]
