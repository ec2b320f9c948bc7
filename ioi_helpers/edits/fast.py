"""Edited runs by the equations: only what an edit can have changed is computed again.

An edit of the stream at one position leaves alone the blocks below it and, as attention only looks
back, all positions before it. So a run with another edit costs a few tokens' upper blocks, where
a run of the model costs all of both.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ioi_helpers import forward
from ioi_helpers.dataset import TwoAnswerData
from ioi_helpers.edits.stream import TOO_WIDE, ResidualEdit
from ioi_helpers.runs import Edit, parse_point

Name = TypeVar("Name", bound=Hashable)


def can_be_fast(gpt: forward.Decoder | None, data: TwoAnswerData, edits: Sequence[Edit]) -> bool:
    """Whether a run with these edits is one that this module knows: with none, or with one of the
    stream at a position of each prompt. What is wrong with others the hooks say."""
    if gpt is None or len(edits) > 1 or not all(isinstance(one, ResidualEdit) for one in edits):
        return False
    for one in edits:
        assert isinstance(one, ResidualEdit)
        layer, stage = parse_point(one.point)
        if layer >= gpt.n_layers or (stage == "mid" and gpt.parallel):
            return False
        at = one.positions.cpu()
        if not bool(((at >= 0) & (at < data.lengths.cpu())).all()):
            return False
    return True


def unedited(gpt: forward.Decoder, part: TwoAnswerData) -> forward.Run:
    """The run that edits are compared with, and what of it they need."""
    tokens = part.tokens[:, : int(part.lengths.max())].to(gpt.device)
    return forward.run(gpt, tokens, part.lengths.to(gpt.device) - 1)


def numbers_kept(gpt: forward.Decoder, width: int) -> int:
    """How many numbers of each prompt the unedited run keeps."""
    return width * gpt.W_E.shape[1] * (len(forward.BASE_SITES) * gpt.n_layers + 1)


def stream_edit(gpt: forward.Decoder, base: forward.Run, edit: ResidualEdit) -> forward.Edit:
    """An edit of the stream in the words of `forward`, for the prompts of the base run."""
    edit.require_width(gpt.W_E.shape[1], TOO_WIDE)
    layer, stage = parse_point(edit.point)
    first = edit.positions.to(base.last.device)
    prompts = torch.arange(len(first), device=first.device)
    after = layer + (stage == "post")
    stream = base["resid_mid"][layer] if stage == "mid" else base["resid_pre"][after]
    there = stream[prompts, first]
    new = edit.values(there, prompts).to(there)
    spans = forward.Spans(prompts, first, base.last)
    return forward.Edit(after, stage == "mid", spans, spans.starts, new)


def finals(
    gpt: forward.Decoder, base: forward.Run, edits: Mapping[Name, Sequence[Edit]]
) -> dict[Name, Float[Tensor, "batch d_model"]]:
    """The final stream at END of each run, many at a time."""
    found: dict[Name, Tensor] = {name: base.final for name, here in edits.items() if not here}
    names = [name for name, here in edits.items() if here]
    made = [stream_edit(gpt, base, _only(edits[name])) for name in names]
    layers, tokens = [one.layer for one in made], [len(one.spans.row) for one in made]
    for chunk in forward.by_layer_in_parts(layers, tokens):
        final = forward.run_edits(gpt, base, [made[i] for i in chunk])
        parts = final.split([len(base.last)] * len(chunk))
        found |= {names[i]: part for i, part in zip(chunk, parts, strict=True)}
    return found


def kl_after(
    gpt: forward.Decoder,
    base: forward.Run,
    edits: Sequence[Edit],
    width: int,
    known: dict[tuple[int, ...], tuple[Float[Tensor, "token vocab"], Float[Tensor, "token vocab"]]],
) -> Float[Tensor, "batch pos"]:
    """KL(clean || edited) of the prediction after each token: 0 before the edit, NaN at padding.

    `known` keeps the clean run's predictions, and their logarithms, for other edits of the same
    positions.
    """
    positions = torch.arange(width, device=base.last.device)
    kl = torch.zeros(len(base.last), width, device=base.last.device)
    kl = kl.masked_fill(positions > base.last[:, None], torch.nan)
    if not edits:
        return kl
    made = stream_edit(gpt, base, _only(edits))
    edited = forward.run_edits(gpt, base, [made], everywhere=True)
    place = tuple(made.spans.first.tolist())
    if place not in known:
        known.clear()  # one is enough, and large
        log_p = _log_probabilities(gpt, base["resid_pre"][gpt.n_layers][made.spans.at])
        known[place] = log_p.exp(), log_p
    p, log_p = known[place]
    # In place: these are the largest tensors of all.
    terms = _log_probabilities(gpt, edited).neg_().add_(log_p).mul_(p)
    kl[made.spans.at] = terms.sum(dim=-1).clamp_min(0).to(kl)
    return kl


def longest_span(edits: Sequence[Edit], lengths: Int[Tensor, " batch"]) -> int:
    """Tokens of a prompt, at most, whose predictions an edit can change."""
    spans = [lengths.cpu() - _only(edits).positions.cpu()] if edits else []
    return max((int(span.max()) for span in spans), default=0)


def _only(edits: Sequence[Edit]) -> ResidualEdit:
    (one,) = edits
    assert isinstance(one, ResidualEdit)
    return one


def _log_probabilities(
    gpt: forward.Decoder, stream: Float[Tensor, "token d_model"]
) -> Float[Tensor, "token vocab"]:
    logits = forward.unembed(gpt, stream)
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(dim=-1)
