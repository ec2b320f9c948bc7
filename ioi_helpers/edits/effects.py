"""What edits do to predictions: to the answer, and wherever they were not meant to do anything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from ioi_helpers import forward, metrics
from ioi_helpers.dataset import TwoAnswerData
from ioi_helpers.edits.context import edited
from ioi_helpers.edits.fast import (
    Name,
    can_be_fast,
    finals,
    kl_after,
    longest_span,
    numbers_kept,
    unedited,
)
from ioi_helpers.runs import (
    DEFAULT_MEMORY,
    Edit,
    logit_diffs,
    refuse_too_long,
    require_data,
    require_edits_for,
    run_rows_in_batches,
    widened,
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
    engine: forward.Engine = "auto",
    memory: int = DEFAULT_MEMORY,
    progress: bool = True,
) -> dict[str, EditEffect]:
    """Logit differences, and changed predictions, of several edited runs beside one clean run.

    An intervention's efficacy (does the answer follow?) and its damage (what else changes?).

    Args:
        model, data, edits, engine, progress: As for :func:`logit_diffs_of_edits`.
        memory: Bytes that the runs may use; all logits that can change are held at once, twice.

    Returns:
        name -> its effect.

    Raises:
        ValueError: As :func:`ioi_helpers.runs.logit_diffs`.
    """
    gpt = _checked(model, data, edits, engine)
    quick = [name for name, here in edits.items() if can_be_fast(gpt, data, here)]
    width = data.tokens.shape[1]

    def read(part: TwoAnswerData, rows: Int[Tensor, " rows"]) -> dict[tuple[str, str], Tensor]:
        here = {name: [one.take(rows) for one in runs] for name, runs in edits.items()}
        length = int(part.lengths.max())
        found = {}
        if gpt is not None and quick:
            base = unedited(gpt, part)
            ends = finals(gpt, base, {name: here[name] for name in quick})
            known: dict[tuple[int, ...], tuple[Tensor, Tensor]] = {}
            for name in quick:
                kl = kl_after(gpt, base, here[name], length, known)
                found[name, "kl"] = torch.nn.functional.pad(
                    kl, (0, width - length), value=torch.nan
                )
                diffs = forward.logit_diffs(gpt, ends[name], part.io_tokens, part.s_tokens)
                found[name, "logit_diff"] = widened(diffs)
        if len(quick) == len(edits):
            return found
        tokens = part.tokens[:, :length].to(model.cfg.device)
        refuse_too_long(model, tokens)
        positions = torch.arange(length, device=tokens.device)
        padding = positions >= part.lengths[:, None].to(tokens.device)
        clean = _log_probabilities(model, tokens)
        for name in edits.keys() - set(quick):
            with edited(model, *here[name]):
                other = _log_probabilities(model, tokens)
            kl = (clean.exp() * (clean - other)).sum(dim=-1).clamp_min(0)
            kl = kl.masked_fill(padding, torch.nan)
            found[name, "kl"] = torch.nn.functional.pad(kl, (0, width - length), value=torch.nan)
            at = torch.arange(len(rows), device=other.device)
            end = other[at, part.positions["END"].to(other.device)]
            found[name, "logit_diff"] = metrics.logit_diff(end, part, per_prompt=True)
        return found

    longest = int(data.lengths.max())
    if len(quick) == len(edits):
        longest = max(longest_span(here, data.lengths) for here in edits.values())
    found = run_rows_in_batches(
        model,
        data,
        read,
        memory=memory,
        progress=progress,
        logits=4 * longest,
        kept=0 if gpt is None else numbers_kept(gpt, int(data.lengths.max())),
    )
    return {name: EditEffect(found[name, "logit_diff"], found[name, "kl"]) for name in edits}


def logit_diffs_of_edits(
    model: TransformerBridge,
    data: TwoAnswerData,
    edits: Mapping[Name, Sequence[Edit]],
    *,
    engine: forward.Engine = "auto",
    memory: int = DEFAULT_MEMORY,
    progress: bool = True,
) -> dict[Name, Float[Tensor, " batch"]]:
    """The logit difference of each prompt in several edited runs.

    The same, one run of the whole model for each::

        {name: runs.logit_diffs(model, data, here) for name, here in edits.items()}

    A run with one edit of the stream shares with the others all that it cannot have changed: what
    stands before the edit, and the blocks below it.

    Args:
        model, data: The model and all the prompts that the edits were made for.
        edits: A name -> the edits of that run; none for the clean one.
        engine: ``"hooks"`` runs the whole model for each, ``"auto"`` where it must.
        memory: Bytes that the runs may use; what does not fit is done in parts.
        progress: Show a bar where there is something to wait for.

    Returns:
        name -> ``[batch]``, in float32 or better.

    Raises:
        ValueError: As :func:`ioi_helpers.runs.logit_diffs`; an unknown engine, or ``"fast"`` with a
            model or edits that only hooks can run.
    """
    gpt = _checked(model, data, edits, engine)
    quick = {name: here for name, here in edits.items() if can_be_fast(gpt, data, here)}
    settings: dict[str, Any] = {"memory": memory, "progress": progress}

    def read(part: TwoAnswerData, rows: Int[Tensor, " rows"]) -> dict[Name, Tensor]:
        assert gpt is not None
        base = unedited(gpt, part)
        here = {name: [one.take(rows) for one in runs] for name, runs in quick.items()}
        return {
            name: widened(forward.logit_diffs(gpt, final, part.io_tokens, part.s_tokens))
            for name, final in finals(gpt, base, here).items()
        }

    found: dict[Name, Tensor] = {}
    if gpt is not None and quick:
        kept = numbers_kept(gpt, int(data.lengths.max()))
        found = run_rows_in_batches(model, data, read, kept=kept, **settings)
    found |= {
        name: logit_diffs(model, data, here, **settings)
        for name, here in edits.items()
        if name not in quick
    }
    return {name: found[name] for name in edits}


def _checked(
    model: TransformerBridge,
    data: TwoAnswerData,
    edits: Mapping[Any, Sequence[Edit]],
    engine: forward.Engine,
) -> forward.Decoder | None:
    """The weights if runs are to be made by the equations, after the refusals."""
    require_data(model, data)
    for of_run in edits.values():
        require_edits_for(of_run, len(data))
    slowly = "Edited runs go through hooks, one run of the model for each"
    gpt = forward.weights_for(model, engine, slowly)
    if engine == "fast" and not all(can_be_fast(gpt, data, here) for here in edits.values()):
        raise ValueError(
            "The fast path knows runs with one edit of the stream each; use engine='auto'."
        )
    return gpt


@torch.no_grad()
def _log_probabilities(
    model: TransformerBridge, tokens: Tensor
) -> Float[Tensor, "batch pos vocab"]:
    logits = model(tokens)
    wide = torch.promote_types(logits.dtype, torch.float32)
    return logits.to(wide).log_softmax(dim=-1)
