"""Causal evidence about heads that the head table needs, one intervention a head.

Every intervention is a *resample*: a head's output (``z``) at one role becomes what it is on the
same prompt with something changed (``patch_sweep`` with ``direction="noising"``).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from ioi_helpers import attribution
from ioi_helpers.heads.registry import existing_head, parse_head
from ioi_helpers.heads.repeats import RepeatScores, repeat_scores
from ioi_helpers.metrics import logit_diff

if TYPE_CHECKING:
    from ioi_helpers.dataset import IOIDataset


@torch.no_grad()
def backup_rise(
    model: TransformerBridge,
    data: IOIDataset,
    ablated: str,
    *,
    before: Float[Tensor, "layer head batch"] | None = None,
    batch_size: int = 64,
) -> Float[Tensor, "layer head batch"]:
    """How each head's direct attribution changes when one head is taken out at END.

    The head's output at END is taken from the prompt with three different names (``data.abc()``).
    The final LayerNorm's scale is frozen at its value in the untouched run, so that what changes is
    what heads write and not the yardstick. Source: Wang et al. 2022, section 3.4.

    Args:
        model: A GPT-2-style model.
        data: Prompts; they may differ in length.
        ablated: The head that is taken out, such as ``"L9H9"``.
        before: ``attribution.head_attribution(model, data, per_prompt=True)``, if at hand.
        batch_size: Prompts run at once.

    Returns:
        Attribution after minus before, in logits, for each prompt. Heads of the same layer and
        earlier ones cannot change; the entry of the ablated head is its own loss.

    Raises:
        ValueError: The model has no such head.
    """
    layer, head = existing_head(model, ablated)
    hook = f"blocks.{layer}.attn.hook_z"
    other = data.abc()
    parts = []
    for start in range(0, len(data), batch_size):
        part, counterpart = (each[start : start + batch_size] for each in (data, other))
        scale = attribution.final_layer_norm_scale(model, part)
        _, cache = model.run_with_cache(
            counterpart.tokens.to(model.cfg.device), names_filter=lambda name: name == hook
        )
        at = part.positions["END"].to(model.cfg.device)
        rows = torch.arange(len(part), device=at.device)
        value = cache[hook][rows, at, head]

        def replace(z: Tensor, hook: Any, rows: Tensor, at: Tensor, value: Tensor) -> Tensor:
            z = z.clone()
            z[rows, at, head] = value
            return z

        with model.hooks(fwd_hooks=[(hook, partial(replace, rows=rows, at=at, value=value))]):
            after = attribution.head_attribution(model, part, per_prompt=True, scale=scale)
        parts.append(after)
    if before is None:
        before = attribution.head_attribution(model, data, per_prompt=True, batch_size=batch_size)
    return torch.cat(parts, dim=-1) - before


@torch.no_grad()
def resampled_at(
    model: TransformerBridge,
    data: IOIDataset,
    counterpart: IOIDataset,
    role: str,
    heads: Sequence[str],
) -> Float[Tensor, "choice batch"]:
    """Change of the logit difference when a head's output at a role is the counterpart's.

    ``patch_sweep`` does the same for all heads; this is for a few of many, one run each.
    """
    if not heads:
        return torch.empty(0, len(data))
    device = model.cfg.device
    tokens, at = data.tokens.to(device), data.positions[role].to(device)
    rows = torch.arange(len(data), device=device)
    hooks = {f"blocks.{parse_head(name)[0]}.attn.hook_z" for name in heads}
    _, cache = model.run_with_cache(
        counterpart.tokens.to(device), names_filter=lambda name: name in hooks
    )
    clean = logit_diff(model(tokens), data, per_prompt=True)
    found = []
    for name in heads:
        layer, head = parse_head(name)
        hook = f"blocks.{layer}.attn.hook_z"

        def replace(
            z: Tensor, hook: Any, head: int = head, value: Tensor = cache[hook][rows, at, head]
        ) -> Tensor:
            z = z.clone()
            z[rows, at, head] = value
            return z

        logits = model.run_with_hooks(tokens, fwd_hooks=[(hook, replace)])
        found.append(logit_diff(logits, data, per_prompt=True) - clean)
    return torch.stack(found)


def silenced_on_repeats(
    model: TransformerBridge,
    heads: Sequence[str],
    clean: RepeatScores,
    **settings: Any,
) -> dict[str, tuple[float, float]]:
    """What silencing each of some heads does on repeated tokens.

    Args:
        model: A GPT-2-style model.
        heads: One after another is silenced (``z`` set to zero everywhere).
        clean: The scores with nothing silenced.
        settings: Of :func:`~ioi_helpers.heads.repeat_scores`, the same as for ``clean``.

    Returns:
        For each head: the change of the loss on the repeated tokens (nats), and that of the best
        induction score of any other head.
    """
    found = {}
    for name in heads:
        after = repeat_scores(model, silenced=[name], **settings)
        others = torch.ones_like(clean.induction, dtype=torch.bool)
        others[parse_head(name)] = False
        best = after.induction[others].max() - clean.induction[others].max()
        found[name] = (after.loss - clean.loss, float(best))
    return found
