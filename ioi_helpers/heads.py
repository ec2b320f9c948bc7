"""Attention heads: their names, where they attend by role, and what is known about them.

A head is written ``L9H9`` (layer 9, head 9). Which heads play which part in the IOI circuit is
recorded once for each model, in its registry of roles: for the embedded models in the
``roles.json`` beside their weights, each entry with the intervention that established it, and for
GPT-2 small the 26 heads of Wang et al. 2022 (section 3, appendix C), in the same format. Notebooks
look heads up there instead of writing their indices down.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm
from transformer_lens.model_bridge import TransformerBridge

from ioi_helpers.models import EMBEDDED, embedded_folder, is_gpt2_small, refuse_too_long

if TYPE_CHECKING:
    from ioi_helpers.dataset import IOIDataset

CLASSES: tuple[str, ...] = (
    "previous_token",
    "duplicate_token",
    "induction",
    "s_inhibition",
    "name_mover",
    "backup_name_mover",
    "negative_name_mover",
)
"""The classes of heads in the IOI circuit (Wang et al. 2022, figure 2), roughly early to late."""


@dataclass(frozen=True)
class HeadRole:
    """One head's part in the IOI circuit of one model.

    Attributes:
        layer, head_index: The head.
        role: One of :data:`CLASSES`.
        position: The role of the token at which it works, such as ``"END"`` or ``"S1+1"``.
        evidence: How this was established: for an embedded model the intervention with its effect,
            for GPT-2 small the source.
    """

    layer: int
    head_index: int
    role: str
    position: str
    evidence: dict[str, Any] = field(default_factory=dict, compare=False)

    @property
    def head(self) -> str:
        """The head's name, ``"L9H9"``."""
        return f"L{self.layer}H{self.head_index}"


def head_labels(model: TransformerBridge) -> list[str]:
    """The names of all heads, ``"L0H0"`` first, in the order of a flattened [layer head] tensor."""
    labels: list[str] = model.all_head_labels
    return labels


def parse_head(head: str) -> tuple[int, int]:
    """The layer and the index of a head that is named like ``"L9H9"``.

    Raises:
        ValueError: The name has another form.
    """
    match = re.fullmatch(r"L(\d+)H(\d+)", head) if isinstance(head, str) else None
    if match is None:
        raise ValueError(
            f'{head!r} does not name a head; write the layer and the head like "L9H9".'
        )
    return int(match[1]), int(match[2])


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
    refuse_too_long(model, data.tokens)
    query_at = data.positions[query]
    keys_at = torch.stack([data.positions[key] for key in keys], dim=-1)
    parts = []
    for start in tqdm(range(0, len(data), batch_size), desc="prompts", leave=False, delay=5):
        part = slice(start, start + batch_size)
        parts.append(_attention(model, data.tokens[part], query_at[part], keys_at[part]))
    values = torch.cat(parts, dim=-1)
    return values if per_prompt else values.mean(dim=-1)


def _attention(
    model: TransformerBridge, tokens: Tensor, query_at: Tensor, keys_at: Tensor
) -> Float[Tensor, "layer head key batch"]:
    n_layers = model.cfg.n_layers
    by_layer: list[Tensor] = [torch.empty(0)] * n_layers

    def keep(layer: int) -> Any:
        def hook_fn(pattern: Float[Tensor, "batch head query key"], hook: Any) -> None:
            rows = torch.arange(len(pattern), device=pattern.device)
            from_query = pattern[rows, :, query_at.to(pattern.device)]
            at = keys_at.to(pattern.device)[:, None].expand(-1, pattern.shape[1], -1)
            chosen = from_query.gather(-1, at).permute(1, 2, 0)
            half = chosen.dtype in (torch.float16, torch.bfloat16)
            by_layer[layer] = (chosen.float() if half else chosen).to(model.W_U.device)

        return hook_fn

    # Every position that is read must exist, also a key that comes after the query.
    length = int(torch.maximum(query_at, keys_at.amax(dim=-1)).max()) + 1
    with torch.no_grad():
        # logits_to_keep: one position's logits are cheaper than all, and none are used here.
        model.run_with_hooks(
            tokens[:, :length].to(model.cfg.device),
            fwd_hooks=[
                (f"blocks.{layer}.attn.hook_pattern", keep(layer)) for layer in range(n_layers)
            ],
            return_type=None,
            logits_to_keep=1,
        )
    return torch.stack(by_layer)


def roles(model: TransformerBridge) -> list[HeadRole]:
    """The registry of roles of the model at hand: its reference circuit, early heads first.

    Args:
        model: As ``load_model`` returns it: ``model.ioi_name`` says which it is.

    Returns:
        One entry for each head with a known role.

    Raises:
        ValueError: Nothing is recorded for this model.
    """
    name = getattr(model, "ioi_name", None)
    if name in EMBEDDED:
        file = embedded_folder(name) / "roles.json"
    elif is_gpt2_small(model):
        file = Path(__file__).parent / "reference" / "gpt2-small-roles.json"
    else:
        raise ValueError(
            f"No roles are recorded for {name or 'a model that load_model did not load'}, only for "
            f"gpt2-small, {' and '.join(EMBEDDED)}; find this model's heads by the methods "
            "themselves."
        )
    if not file.is_file():
        raise ValueError(f"The registry of {name} ({file.name}) is missing; reinstall the package.")
    found = _read_registry(file.read_text(encoding="utf-8"))
    return sorted(found, key=lambda entry: (entry.layer, entry.head_index))


def heads_with_role(model: TransformerBridge, role: str) -> list[str]:
    """The names of the heads that have a role in the model's registry; empty if it has none.

    Raises:
        ValueError: The role is none of :data:`CLASSES`, or nothing is recorded for this model.
    """
    if role not in CLASSES:
        raise ValueError(f"{role!r} is not a class of heads; use one of {', '.join(CLASSES)}.")
    return [entry.head for entry in roles(model) if entry.role == role]


def _read_registry(text: str) -> list[HeadRole]:
    return [
        HeadRole(
            *parse_head(entry["head"]),
            role=entry["role"],
            position=entry["position"],
            evidence=entry.get("evidence", {}),
        )
        for entry in json.loads(text)["heads"]
    ]
