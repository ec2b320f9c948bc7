"""Runs with something edited: only what can have changed is computed again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ioi_helpers.forward.attention import attention
from ioi_helpers.forward.decoder import Decoder
from ioi_helpers.forward.mlp import mlp
from ioi_helpers.forward.spans import Editor, Run, Spans

MOST_TOKENS = 8192
"""Tokens that a sweep runs together at most; more would be no faster, and its progress bar
slower."""


@dataclass(frozen=True)
class Edit:
    """New values of the residual stream, and where they stand.

    Each row is one prompt run once with its own edit; everything else is as in the base run.
    """

    layer: int
    """The block; ``n_layers`` with ``middle=False`` is after the last."""
    middle: bool
    """Edit the stream between the block's attention and its MLP, not the stream that enters it.
    Not in parallel blocks, which have none (see `Decoder.after_attention`)."""
    spans: Spans
    """From the first position that is edited to the prompt's last."""
    tokens: Int[Tensor, " edited"]
    """Which of the spans' tokens are edited."""
    values: Float[Tensor, "edited d_model"]

    def only_ends(self) -> Edit:
        """What is left of it where only the last position of each row matters."""
        at_end = self.spans.pos[self.tokens] == self.spans.last[self.spans.row[self.tokens]]
        return Edit(
            self.layer,
            self.middle,
            self.spans.only_ends(),
            self.spans.row[self.tokens[at_end]],
            self.values[at_end],
        )


@torch.no_grad()
def run_edits(
    gpt: Decoder,
    base: Run,
    edits: Sequence[Edit],
    edit: Editor | None = None,
    everywhere: bool = False,
) -> Float[Tensor, "row d_model"]:
    """Run every row of every edit through the rest of the model.

    Rows enter at their own layer and then go through the blocks together, so a matrix product is
    done once for all of them.

    Args:
        base: The unedited run, with :data:`BASE_SITES` kept.
        edits: Rows of edits, each edit with its own layer.
        edit: Replaces further values of the rows on their way from where they enter, see
            :data:`Editor`. The rows of its spans are numbered as they entered: those of the lowest
            edit first.
        everywhere: Go on with all positions of the spans to the end, not with the last alone.

    Returns:
        The final residual stream at each row's last position: the rows of the first edit, then
        those of the second, and so on. `unembed` makes logits of it. With `everywhere` that at
        each token of the spans.
    """
    if not edits:
        return base.final[:0]
    last_layer = gpt.n_layers - 1
    waiting = sorted(range(len(edits)), key=lambda i: (edits[i].layer, edits[i].middle))
    entered: list[int] = []
    nothing = base.last[:0]
    spans, x = Spans(nothing, nothing, nothing), base.final[:0]

    def next_edit(layer: int, middle: bool) -> Edit | None:
        if waiting and (edits[waiting[0]].layer, edits[waiting[0]].middle) == (layer, middle):
            entered.append(waiting.pop(0))
            entering = edits[entered[-1]]
            at_the_end = layer > last_layer or (layer == last_layer and middle)
            at_the_end = at_the_end and not everywhere
            return entering.only_ends() if at_the_end else entering
        return None

    def enter(new: Spans, tokens: Tensor, values: Tensor, layer: int) -> None:
        # Positions that are not edited themselves enter with the base run's values: what follows
        # may differ there, as they look back at edited ones.
        nonlocal spans, x
        joining = base["resid_pre"][layer][new.at]
        joining[tokens] = values
        spans, x = Spans.join([spans, new]), torch.cat([x, joining])

    for layer in range(edits[waiting[0]].layer, gpt.n_layers):
        while new := next_edit(layer, middle=False):
            enter(new.spans, new.tokens, new.values, layer)
        x_mid = read = x
        if len(spans):
            only_ends = layer == last_layer and not everywhere
            computed = attention(gpt, layer, x, spans, base, only_ends=only_ends, edit=edit)
            x_mid, read = computed["resid_mid"], computed[gpt.mlp_reads]
            spans = spans.only_ends() if only_ends else spans
        in_middle = []
        while new := next_edit(layer, middle=True):
            in_middle.append(new)
        parts = [x_mid, *(new.values for new in in_middle)]
        after = torch.cat(parts)
        # Where the MLP does not read the middle of a block, nothing is edited there.
        mlp_out = mlp(gpt, layer, read if gpt.parallel else after)
        if edit is not None and len(spans):
            on_their_way = len(x_mid)
            mlp_out[:on_their_way] = edit("mlp_out", layer, mlp_out[:on_their_way], spans)
        after += mlp_out
        x, *edited = after.split([len(part) for part in parts])
        for new, values in zip(in_middle, edited, strict=True):
            enter(new.spans, new.tokens, values, layer + 1)
    while new := next_edit(gpt.n_layers, middle=False):
        enter(new.spans, new.tokens, new.values, gpt.n_layers)

    # Every row is down to its last position; back to the order in which the edits were given.
    counts = [len(edits[i].spans.row if everywhere else edits[i].spans) for i in entered]
    by_edit = dict(zip(entered, x.split(counts), strict=True))
    return torch.cat([by_edit[i] for i in range(len(edits))])


def by_layer_in_parts(
    layers: Sequence[int], tokens: Sequence[int], most: int = MOST_TOKENS
) -> Iterator[list[int]]:
    """Numbers of edits to be run together, with at most so many tokens; those without tokens never.

    By layer, so that edits which enter late in the model do not go along with early ones.

    Args:
        layers: Where each edit enters.
        tokens: How many tokens its rows have.
        most: Tokens in a part, unless a single edit has more.
    """
    part: list[int] = []
    total = 0
    for i in sorted(range(len(layers)), key=layers.__getitem__):
        if not tokens[i]:
            continue
        if part and total + tokens[i] > most:
            yield part
            part, total = [], 0
        part.append(i)
        total += tokens[i]
    if part:
        yield part


def first_difference(
    tokens: Int[Tensor, "batch pos"],
    other: Int[Tensor, "batch pos"],
    lengths: Int[Tensor, " batch"],
) -> tuple[Int[Tensor, " batch"], Bool[Tensor, "batch pos"]]:
    """Where prompts of equal length differ.

    Returns:
        The first position that differs (``lengths`` where none does), before which no activation
        can differ; and for each position whether its token does.
    """
    positions = torch.arange(tokens.shape[1], device=tokens.device)
    differs = (tokens != other) & (positions < lengths[:, None])
    first = torch.where(differs, positions, tokens.shape[1]).amin(dim=1)
    return torch.minimum(first, lengths), differs
