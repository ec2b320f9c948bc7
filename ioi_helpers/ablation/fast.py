"""Ablated runs by the equations, in which only what can have changed is computed again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from ioi_helpers import forward
from ioi_helpers.ablation.components import site_of
from ioi_helpers.ablation.replacements import Replacement
from ioi_helpers.dataset import TwoAnswerData

WRITTEN: tuple[str, ...] = ("z", "mlp_out")
"""What components write: where they are replaced."""
KEEP: tuple[str, ...] = (*forward.BASE_SITES, *WRITTEN)
"""What the unablated run keeps."""


@dataclass(frozen=True, eq=False)
class Part:
    """Some of the prompts, and their run with nothing ablated."""

    rows: slice
    tokens: Int[Tensor, "rows pos"]
    base: forward.Run


class Parts:
    """All the prompts in parts that fit into memory, each run when its turn comes.

    Raises:
        ValueError: ``memory`` is not positive.
    """

    def __init__(self, gpt: forward.Decoder, data: TwoAnswerData, memory: int) -> None:
        self.gpt, self.data = gpt, data
        self.at_once = prompts_at_once(gpt, int(data.lengths.max()), memory)

    def __len__(self) -> int:
        return -(-len(self.data) // self.at_once)

    def __iter__(self) -> Iterator[Part]:
        gpt, data = self.gpt, self.data
        for start in range(0, len(data), self.at_once):
            rows = slice(start, start + self.at_once)
            tokens = data.tokens[rows, : int(data.lengths.max())].to(gpt.device)
            last = data.lengths[rows].to(gpt.device) - 1
            yield Part(rows, tokens, forward.run(gpt, tokens, last, KEEP))


def prompts_at_once(gpt: forward.Decoder, width: int, memory: int) -> int:
    """How many prompts' unablated runs can be kept, in half of the memory.

    Raises:
        ValueError: ``memory`` is not positive.
    """
    if memory < 1:
        raise ValueError(f"memory must be a positive number of bytes, not {memory}.")
    vectors = 2 * len(KEEP) * gpt.n_layers + 16  # those of one ablated run as well
    per_prompt = width * vectors * gpt.W_E.shape[1] * gpt.dtype.itemsize
    return max(1, min(memory // 2 // per_prompt, forward.MOST_TOKENS // width))


def ablated_run(
    gpt: forward.Decoder,
    tokens: Int[Tensor, "batch pos"],
    base: forward.Run,
    values: Sequence[Replacement],
    keep: Iterable[str] = (),
) -> forward.Run:
    """A run with all these components replaced, from the first position at which one is.

    Args:
        values: What replaces them, for the prompts of `tokens` only.
        keep: Sites to keep.
    """
    first = torch.stack([first_position(value, base.last) for value in values]).amin(dim=0)
    return forward.run(gpt, tokens, base.last, keep, base=base, first=first, edit=editor(values))


def first_position(value: Replacement, last: Int[Tensor, " batch"]) -> Int[Tensor, " batch"]:
    """Where each prompt is changed first."""
    if value.at is None:
        return torch.zeros_like(last)
    at = value.at.to(last.device)
    return torch.where(at >= 0, at, last[:, None]).amin(dim=1)


def editor(values: Sequence[Replacement]) -> forward.Editor:
    """The same replacements as an edit of a run whose rows are the prompts, in order."""
    by_place: dict[tuple[str, int], list[Replacement]] = {}
    for value in values:
        by_place.setdefault((site_of(value.component), value.component.layer), []).append(value)

    def edit(site: str, layer: int, activation: Tensor, spans: forward.Spans) -> Tensor:
        for value in by_place.get((site, layer), ()):
            activation = activation.clone()
            head = value.component.head
            target = activation if head is None else activation[:, head]
            tokens, index = _tokens(value, spans)
            target[tokens] = value.table[index].to(target)
        return activation

    return edit


def _tokens(value: Replacement, spans: forward.Spans) -> tuple[Tensor, Tensor]:
    """Which tokens of the spans are replaced, and by which row of the table."""
    if value.at is None or value.index is None:
        tokens = torch.arange(len(spans.row), device=spans.row.device)
        return tokens, torch.zeros_like(tokens)
    device = spans.row.device
    at, index = value.at.to(device)[spans.prompt], value.index.to(device)[spans.prompt]
    row, place = ((at >= spans.first[:, None]) & (at <= spans.last[:, None])).nonzero(as_tuple=True)
    return (spans.starts - spans.first)[row] + at[row, place], index[row, place]


def residual_edit(gpt: forward.Decoder, base: forward.Run, value: Replacement) -> forward.Edit:
    """One component's replacement, as an edit of the residual stream that it writes to."""
    component, last = value.component, base.last
    prompts = torch.arange(len(last), device=last.device)
    spans = forward.Spans(prompts, first_position(value, last), last)
    tokens, index = _tokens(value, spans)
    prompt, pos = spans.prompt[spans.row[tokens]], spans.pos[tokens]
    new = value.table[index].to(base.final)
    layer, head = component.layer, component.head
    if head is None:
        stream = base["resid_pre"][layer + 1][prompt, pos]
        values = stream + new - base["mlp_out"][layer][prompt, pos]
        return forward.Edit(layer + 1, False, spans, tokens, values)
    change = new - base["z"][layer][prompt, pos, head]
    d_head = change.shape[-1]
    W_O = gpt.blocks[layer].W_O[head * d_head : (head + 1) * d_head].to(gpt.dtype)
    written = change @ W_O
    if not gpt.adds_heads:
        written = forward.change_of_write(gpt, layer, base["z"][layer][prompt, pos], written)
    site, where = gpt.after_attention(layer)
    values = base[site][where][prompt, pos] + written
    return forward.Edit(where, site == "resid_mid", spans, tokens, values)
