"""Causal evidence about heads that the head table needs, one intervention a head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from ioi_helpers.ablation import ablate, ablation_effects
from ioi_helpers.heads.repeats import RepeatScores, repeat_scores
from ioi_helpers.names import existing_head, parse_head

if TYPE_CHECKING:
    from ioi_helpers.dataset import IOIDataset


def backup_rise(
    model: TransformerBridge, data: IOIDataset, ablated: str, *, batch_size: int = 64
) -> Float[Tensor, "layer head batch"]:
    """How each head's direct attribution changes when one head is taken out at END.

    The head's output at END is taken from the prompt with three different names (``data.abc()``).
    The final LayerNorm's scale is frozen at its value in the untouched run, so that what changes is
    what heads write and not the yardstick. :func:`~ioi_helpers.ablation.ablation_effects` has the
    rest of the story; as there, hooks on the model stay on, but what is put in is the output of the
    model without them. Source: Wang et al. 2022, section 3.4.

    Args:
        model: A GPT-2-style model.
        data: Prompts; they may differ in length.
        ablated: The head that is taken out, such as ``"L9H9"``.
        batch_size: Prompts run at once.

    Returns:
        Attribution after minus before, in logits, for each prompt. Heads of the same layer and
        earlier ones cannot change; the entry of the ablated head is its own loss.

    Raises:
        ValueError: The model has no such head.
    """
    place = existing_head(model, ablated)
    effects = ablation_effects(
        model, data, (ablated, "END"), "resample", reference=data.abc(), batch_size=batch_size
    )
    rise = effects.heads.clone()
    rise[place] = effects.direct
    return rise


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
        with ablate(model, name, "zero"):
            after = repeat_scores(model, **settings)
        others = torch.ones_like(clean.induction, dtype=torch.bool)
        others[parse_head(name)] = False
        best = after.induction[others].max() - clean.induction[others].max()
        found[name] = (after.loss - clean.loss, float(best))
    return found
