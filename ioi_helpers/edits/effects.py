"""What edits do to predictions: to the answer, and wherever they were not meant to do anything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from ioi_helpers import metrics
from ioi_helpers.dataset import TwoAnswerData
from ioi_helpers.edits.context import edited
from ioi_helpers.runs import (
    DEFAULT_MEMORY,
    Edit,
    refuse_too_long,
    require_data,
    require_edits_for,
    run_rows_in_batches,
)


class EditEffect(NamedTuple):
    """An edited run beside the clean one."""

    logit_diff: Float[Tensor, " batch"]
    """The logit difference of each prompt with the edits on, in logits."""
    kl: Float[Tensor, "batch pos"]
    """KL(clean || edited) of the prediction after every token, in nats; NaN on padding. Before the
    first edited position it is exactly 0, by causality."""


def next_token_kl(
    model: TransformerBridge,
    data: TwoAnswerData,
    edits: Sequence[Edit],
    *,
    memory: int = DEFAULT_MEMORY,
    progress: bool = True,
) -> Float[Tensor, "batch pos"]:
    """How much edits change the prediction after every token: KL(clean || edited), in nats.

    The damage an intervention does, wherever it was not meant to do anything.

    Args:
        model, data, edits, memory, progress: As for :func:`logit_diffs_and_kl`.

    Returns:
        ``[batch pos]``, NaN on padding.
    """
    found = logit_diffs_and_kl(model, data, {"": edits}, memory=memory, progress=progress)
    return found[""].kl


def logit_diffs_and_kl(
    model: TransformerBridge,
    data: TwoAnswerData,
    edits: Mapping[str, Sequence[Edit]],
    *,
    memory: int = DEFAULT_MEMORY,
    progress: bool = True,
) -> dict[str, EditEffect]:
    """Logit differences, and changed predictions, of several edited runs beside one clean run.

    An intervention's efficacy (does the answer follow?) and its damage (what else changes?).

    Args:
        model, data: The model and all the prompts that the edits were made for.
        edits: A name -> the edits of that run; none for the clean one.
        memory: Bytes that the runs may use; all logits of a part are held at once, twice.
        progress: Show a bar where there is something to wait for.

    Returns:
        name -> its effect.

    Raises:
        ValueError: As :func:`ioi_helpers.runs.logit_diffs`.
    """
    require_data(model, data)
    for of_run in edits.values():
        require_edits_for(of_run, len(data))
    width = data.tokens.shape[1]

    def read(part: TwoAnswerData, rows: Int[Tensor, " rows"]) -> dict[tuple[str, str], Tensor]:
        length = int(part.lengths.max())
        tokens = part.tokens[:, :length].to(model.cfg.device)
        refuse_too_long(model, tokens)
        positions = torch.arange(length, device=tokens.device)
        padding = positions >= part.lengths[:, None].to(tokens.device)
        clean = _log_probabilities(model, tokens)
        found = {}
        for name, here in edits.items():
            with edited(model, *(one.take(rows) for one in here)):
                other = _log_probabilities(model, tokens)
            kl = (clean.exp() * (clean - other)).sum(dim=-1).clamp_min(0)
            kl = kl.masked_fill(padding, torch.nan)
            found[name, "kl"] = torch.nn.functional.pad(kl, (0, width - length), value=torch.nan)
            at = torch.arange(len(rows), device=other.device)
            end = other[at, part.positions["END"].to(other.device)]
            found[name, "logit_diff"] = metrics.logit_diff(end, part, per_prompt=True)
        return found

    found = run_rows_in_batches(
        model,
        data,
        read,
        memory=memory,
        progress=progress,
        logits=4 * int(data.lengths.max()),
    )
    return {name: EditEffect(found[name, "logit_diff"], found[name, "kl"]) for name in edits}


@torch.no_grad()
def _log_probabilities(
    model: TransformerBridge, tokens: Tensor
) -> Float[Tensor, "batch pos vocab"]:
    logits = model(tokens)
    wide = torch.promote_types(logits.dtype, torch.float32)
    return logits.to(wide).log_softmax(dim=-1)
