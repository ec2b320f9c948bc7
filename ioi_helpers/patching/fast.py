"""The fast sweep: what a patch can have changed is computed again, for many patches together.

A patch is an edit of the residual stream (see :mod:`ioi_helpers.forward`): the stream is replaced
where the site is a place in it, and otherwise gets the difference that the patched output makes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ioi_helpers import forward
from ioi_helpers.patching.pair import Pair
from ioi_helpers.patching.request import HEAD_SITES, Cells
from ioi_helpers.patching.score import Scorer, Values
from ioi_helpers.runs import progress_bar


class _Site(NamedTuple):
    """How a patch at a site becomes an edit of the residual stream."""

    stream: str
    """The stream that is edited: in the middle of a block, before one, or the first that holds what
    attention writes (`forward.Decoder.after_attention`)."""
    after: int
    """0 if that is the site's own block, 1 if it is the next."""
    needs: tuple[str, ...]
    """What either run must keep, beyond `forward.BASE_SITES`."""
    adds: bool = True
    """The stream gets the difference of two outputs, and is not replaced itself."""
    positionwise: bool = False
    """In block 0 it is a function of the token at its own position alone."""
    spreads: bool = False
    """A patch at one position can change others' values within the same block."""


_AFTER_ATTENTION = "after attention"
_ATTENTION = ("q", "k", "v", "z")
_SITES: dict[str, _Site] = {
    "resid_pre": _Site("resid_pre", 0, ("resid_pre",), False, positionwise=True, spreads=True),
    "resid_mid": _Site("resid_mid", 0, ("resid_mid",), False),
    "resid_post": _Site("resid_pre", 1, ("resid_pre",), False),
    "attn_out": _Site(_AFTER_ATTENTION, 0, ("attn_out",)),
    "mlp_out": _Site("resid_pre", 1, ("mlp_out",)),
    "z": _Site(_AFTER_ATTENTION, 0, ("z",)),
    "q": _Site(_AFTER_ATTENTION, 0, _ATTENTION, positionwise=True),
    "k": _Site(_AFTER_ATTENTION, 0, _ATTENTION, positionwise=True, spreads=True),
    "v": _Site(_AFTER_ATTENTION, 0, _ATTENTION, positionwise=True, spreads=True),
    "pattern": _Site(_AFTER_ATTENTION, 0, _ATTENTION),
}


@torch.no_grad()
def fast_sweep(
    gpt: forward.Decoder, cells: Cells, pair: Pair, scorer: Scorer, memory: int, progress: bool
) -> Values:
    """Run every cell's patch on every prompt."""
    width = max(pair.base_tokens.shape[1], pair.source_tokens.shape[1])
    size, needs = gpt.dtype.itemsize, _SITES[cells.site].needs
    # Half of the memory is for what the two runs keep, half for runs with patches.
    vectors = (len({*forward.BASE_SITES, *needs}) + len(needs)) * gpt.n_layers + 16
    per_prompt = width * vectors * gpt.W_E.shape[1] * size
    if scorer.needs_all_logits:
        per_prompt += 4 * gpt.b_U.numel() * size
    at_once = len(pair) if scorer.needs_all_prompts else max(1, memory // 2 // per_prompt)
    tokens_at_once = min(forward.MOST_TOKENS, max(1, memory // 2 // gpt.bytes_per_token(width)))
    starts = range(0, len(pair), at_once)
    cells = cells.to(gpt.device)
    shape = (len(scorer.metrics), len(cells), len(pair))
    patched = torch.empty(shape, dtype=gpt.dtype, device=gpt.device)
    unpatched = torch.empty(shape[0], 2, len(pair), dtype=gpt.dtype, device=gpt.device)
    total = len(starts) * len(cells)
    with progress_bar(f"patching {cells.site}", show=progress, total=total) as bar:
        for start in starts:
            rows = slice(start, start + at_once)
            part = _Part.of(gpt, cells.site, pair.part(rows))
            score = _final_score(gpt, scorer.part(rows), memory // 2)
            unpatched[:, :, rows] = score(torch.stack([part.base.final, part.source.final]))
            patched[:, :, rows] = unpatched[:, :1, rows]
            counts = part.token_counts(cells)
            for chunk in forward.by_layer_in_parts(cells.layer.tolist(), counts, tokens_at_once):
                patched[:, chunk, rows] = score(part.run(cells, chunk))
                bar.update(len(chunk))
            bar.update(counts.count(0))
    return Values(patched, unpatched[:, 0], unpatched[:, 1])


def _final_score(
    gpt: forward.Decoder, scorer: Scorer, memory: int
) -> Callable[[Float[Tensor, "cell batch d_model"]], Float[Tensor, "metric cell batch"]]:
    """A function from final residual streams at END to every metric."""
    n_metrics, batch = len(scorer.metrics), len(scorer.data)

    def from_two_columns(final: Tensor) -> Tensor:
        diffs = forward.logit_diffs(gpt, final, scorer.data.io_tokens, scorer.data.s_tokens)
        return diffs.expand(n_metrics, -1, -1)

    def from_all_logits(final: Tensor) -> Tensor:
        # A metric may need a few copies of the logits, as a softmax does.
        at_once = max(1, memory // (4 * batch * gpt.b_U.numel() * gpt.dtype.itemsize))
        scores: list[Tensor] = []
        for part in final.split(at_once):
            logits = forward.unembed(gpt, part.flatten(0, 1)).unflatten(0, (-1, batch))
            scores.extend(scorer.score(run) for run in logits)
        return torch.stack(scores, dim=1)

    return from_all_logits if scorer.needs_all_logits else from_two_columns


@dataclass(frozen=True)
class _Part:
    """Some prompts' two unpatched runs, from which patches at one site are computed."""

    gpt: forward.Decoder
    name: str
    site: _Site
    pair: Pair
    base: forward.Run
    source: forward.Run

    @classmethod
    def of(cls, gpt: forward.Decoder, name: str, pair: Pair) -> _Part:
        """Run both."""
        site = _SITES[name]
        keep = (*forward.BASE_SITES, *site.needs)
        base = forward.run(gpt, pair.base_tokens, pair.base_last, keep, shift=pair.base_shift)
        source = forward.run(
            gpt,
            pair.source_tokens,
            pair.source_last,
            site.needs,
            base=None if pair.first is None else base,
            first=pair.first,
            shift=pair.source_shift,
        )
        return cls(gpt, name, site, pair, base, source)

    def reached(
        self, layer: int, cells: Cells
    ) -> tuple[Int[Tensor, "cell batch"], Bool[Tensor, "cell batch"]]:
        """For cells of one layer: the first position that is edited, and whether anything changes.

        Nothing can where the two runs are equal at the site, or where the edit cannot reach END.
        """
        pair = self.pair
        if cells.option is None:
            assert pair.first is not None
            first = pair.first.expand(len(cells), len(pair))
            return first, first <= pair.base_last
        assert pair.base_at is not None
        first = pair.base_at[:, cells.option].T
        active = torch.ones_like(first, dtype=torch.bool)
        if pair.first is not None:
            active = first >= pair.first
        if pair.differs is not None and layer == 0 and self.site.positionwise:
            active = active & pair.differs.gather(1, first.T).T
        if layer == self.gpt.n_layers - 1 and not self.site.spreads:
            active = active & (first == pair.base_last)
        return first, active

    def token_counts(self, cells: Cells) -> list[int]:
        """How many tokens each cell's runs have; 0 where it changes nothing."""
        counts = torch.zeros(len(cells), dtype=torch.long, device=self.gpt.device)
        for layer in range(self.gpt.n_layers):
            here = (cells.layer == layer).nonzero()[:, 0]
            first, active = self.reached(layer, cells.take(here))
            counts[here] = ((self.pair.base_last + 1 - first) * active).sum(dim=1)
        return counts.tolist()

    def run(self, cells: Cells, chunk: Sequence[int]) -> Float[Tensor, "cell batch d_model"]:
        """The final residual streams of some cells, the unpatched one where nothing changes."""
        numbers = torch.tensor(chunk, device=self.gpt.device)
        layers = cells.layer[numbers]
        edits, cell_of, prompt_of = [], [], []
        for layer in layers.unique().tolist():
            places = (layers == layer).nonzero()[:, 0]
            group = cells.take(numbers[places])
            first, active = self.reached(layer, group)
            cell, prompt = active.nonzero(as_tuple=True)
            spans = forward.Spans(prompt, first[cell, prompt], self.pair.base_last[prompt])
            edits.append(self.edit(layer, group.take(cell), spans))
            cell_of.append(places[cell])
            prompt_of.append(prompt)
        final = self.base.final.repeat(len(chunk), 1, 1)
        final[torch.cat(cell_of), torch.cat(prompt_of)] = forward.run_edits(
            self.gpt, self.base, edits
        )
        return final

    def edit(self, layer: int, rows: Cells, spans: forward.Spans) -> forward.Edit:
        """One patch of a layer in each row of the spans, as an edit of the residual stream."""
        # A k or v at one position changes z at all that come after.
        everywhere = rows.option is None or self.name in ("k", "v")
        tokens = torch.arange(len(spans.row), device=spans.row.device)
        tokens = tokens if everywhere else spans.starts
        row = spans.row[tokens]
        prompt, to = spans.prompt[row], spans.pos[tokens]
        where, stream = layer + self.site.after, self.site.stream
        if stream == _AFTER_ATTENTION:
            stream, where = self.gpt.after_attention(layer)
        if self.name in HEAD_SITES:
            change = self.change_of_heads(layer, rows.take(row), prompt, to)
            values = self.base[stream][where][prompt, to] + change
        else:
            came_from = to
            if rows.option is not None:
                assert self.pair.source_at is not None
                came_from = self.pair.source_at[prompt, rows.option]
            if self.site.adds:
                values = self.base[stream][where][prompt, to]
                values = values + self.source[self.name][layer][prompt, came_from]
                values -= self.base[self.name][layer][prompt, to]
            else:
                values = self.source[stream][where][prompt, came_from]
        return forward.Edit(where, stream == "resid_mid", spans, tokens, values)

    def change_of_heads(
        self, layer: int, cells: Cells, prompt: Int[Tensor, " token"], to: Int[Tensor, " token"]
    ) -> Float[Tensor, "token d_model"]:
        """What the patched heads add to the stream of each token, less what they added before.

        A head reads nothing of the other heads of its layer. So all heads can be given the source's
        q (or k, v, pattern) at once, and each cell takes the z of its own head.

        Args:
            cells: The cell of each token.
            prompt, to: Each token's prompt and position.
        """
        before = self.base["z"][layer][prompt, to]
        change = torch.empty_like(before)
        for option, here in _groups(cells.option, len(prompt)):
            change[here] = self.patched_z(layer, option)[prompt[here], to[here]] - before[here]
        W_O = self.gpt.blocks[layer].W_O.to(self.gpt.dtype)
        if cells.head is None:
            written = change.flatten(1) @ W_O
        else:
            # A key or value may be shared by several heads, which then all change.
            shared = self.gpt.group if self.name in ("k", "v") else 1
            width = shared * change.shape[-1]
            written = change.new_empty(len(prompt), W_O.shape[1])
            for head, here in _groups(cells.head, len(prompt)):
                assert head is not None
                heads = slice(head * shared, (head + 1) * shared)
                rows = slice(head * width, (head + 1) * width)
                written[here] = change[here, heads].flatten(1) @ W_O[rows]
        return forward.change_of_write(self.gpt, layer, before, written)

    def patched_z(self, layer: int, option: int | None) -> Float[Tensor, "batch pos head d_head"]:
        """The base run's z, with every head's q, k, v, z or pattern from the source.

        Args:
            option: Which position of the pair is patched; all of them if it is None.
        """
        pair = self.pair
        prompts = torch.arange(len(pair), device=self.gpt.device)

        def patched(name: str) -> Float[Tensor, "batch pos head d_head"]:
            if name != self.name:
                return self.base[name][layer]
            if option is None:
                return self.source[name][layer]
            assert pair.base_at is not None
            assert pair.source_at is not None
            value = self.base[name][layer].clone()
            came_from = self.source[name][layer][prompts, pair.source_at[:, option]]
            value[prompts, pair.base_at[:, option]] = came_from
            return value

        if self.name == "z":
            return patched("z")
        whole = forward.Spans(prompts, torch.zeros_like(pair.base_last), pair.base_last)
        if self.name == "pattern":
            q, k = self.source["q"][layer], self.source["k"][layer]
        else:
            q, k = patched("q"), patched("k")
        pattern = forward.attention_pattern(self.gpt, layer, q[whole.at], k[whole.at], whole, whole)
        z = self.base["z"][layer].clone()
        z[whole.at] = forward.attend(pattern, patched("v")[whole.at], whole, whole)
        return z


def _groups(
    numbers: Int[Tensor, " token"] | None, n: int
) -> Iterator[tuple[int | None, Int[Tensor, " group"] | slice]]:
    """Each number that occurs and where; None for everything where there are no numbers."""
    if numbers is None:
        yield None, slice(n)
        return
    for number in numbers.unique().tolist():
        yield number, (numbers == number).nonzero()[:, 0]
