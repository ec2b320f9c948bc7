"""Path patching by the equations, in which only what can have changed is computed again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from ioi_helpers import forward
from ioi_helpers.path_patching.chain import KEEP, KEEP_OTHER, Chain, Paths, Reading, Slots
from ioi_helpers.path_patching.language import FINAL_STAGE, Receivers, Senders
from ioi_helpers.path_patching.pair import Pair
from ioi_helpers.path_patching.parts import Parts
from ioi_helpers.path_patching.request import Request
from ioi_helpers.path_patching.rest import Arrivals, Patches, in_chunks, patches, run_together


@torch.no_grad()
def sweep(gpt: forward.Decoder, request: Request, parts: Parts, memory: int, bar: tqdm) -> None:
    """Fill in the logit difference of every set of receivers, set of senders and prompt.

    The paper's four passes: A and B once for a batch of prompts, C (`chain`) once for each set of
    senders, whatever the number of receivers, and D (`rest`) once for each pair of sets.
    """
    pair, senders, receivers = request.pair, request.senders, request.receivers
    at_once = prompts_at_once(gpt, pair, senders, receivers, memory)
    most = min(forward.MOST_TOKENS, max(1, memory // 2 // gpt.bytes_per_token(pair.width)))
    for start in range(0, len(pair), at_once):
        rows = slice(start, min(start + at_once, len(pair)))
        size = rows.stop - rows.start
        wanted = [number for number in range(len(receivers)) if not parts.has(number, rows)]
        bar.update((len(receivers) - len(wanted)) * size)
        if not wanted and parts.has_runs(rows):
            continue
        batch = _Batch(gpt, pair.part(rows), senders, most)
        parts.put_runs(rows, *batch.runs)
        for number, values in batch.values(receivers, wanted, request.mlps_frozen):
            parts.put(number, rows, values)
            bar.update(size)


def prompts_at_once(
    gpt: forward.Decoder,
    pair: Pair,
    senders: Sequence[Senders],
    receivers: Sequence[Receivers],
    memory: int,
) -> int:
    """How many prompts half of the memory is enough for; the other half is for pass D."""
    d_model = gpt.W_E.shape[1]
    roles = {receiver.role for several in receivers for receiver in several.inputs}
    slots = pair.width if None in roles else len(roles)
    runs = (7 + len(KEEP_OTHER)) * gpt.n_layers * pair.width
    # The change of the stream on each path, the stream, the MLP's output, and what is read.
    paths = 8 * len(senders) * slots
    stages = {receiver.stage for several in receivers for receiver in several.inputs}
    several = any(len({r.stage for r in each.inputs}) > 1 for each in receivers)
    paths += 3 * len(senders) * slots * (len(stages) if several else 1)
    per_prompt = (runs + paths) * d_model * gpt.W_E.element_size()
    return max(1, memory // 2 // per_prompt)


@dataclass(frozen=True)
class _Batch:
    """Some prompts, and the two runs over them."""

    gpt: forward.Decoder
    pair: Pair
    senders: Sequence[Senders]
    most: int
    """Tokens that pass D runs together at most."""

    @cached_property
    def first(self) -> Int[Tensor, " batch"]:
        """The first token that differs, before which no activation does."""
        pair = self.pair
        return forward.first_difference(pair.tokens, pair.other, pair.last + 1)[0]

    @cached_property
    def base(self) -> forward.Run:
        """Pass B."""
        return forward.run(self.gpt, self.pair.tokens, self.pair.last, KEEP)

    @cached_property
    def other(self) -> forward.Run:
        """Pass A."""
        pair = self.pair
        return forward.run(
            self.gpt, pair.other, pair.last, KEEP_OTHER, base=self.base, first=self.first
        )

    @cached_property
    def runs(self) -> tuple[Float[Tensor, " batch"], Float[Tensor, " batch"]]:
        """The logit differences with nothing patched: of what is run, and of the other prompts."""
        prompts = torch.arange(len(self.pair), device=self.first.device)
        return (
            self.logit_diffs(self.base.final, prompts),
            self.logit_diffs(self.other.final, prompts),
        )

    def logit_diffs(
        self, final: Float[Tensor, "row d_model"], prompt: Int[Tensor, " row"]
    ) -> Float[Tensor, " row"]:
        """Of final streams at END."""
        pair = self.pair
        return forward.logit_diffs(self.gpt, final, pair.io_tokens[prompt], pair.s_tokens[prompt])

    def values(
        self, receivers: Sequence[Receivers], wanted: Sequence[int], mlps_frozen: bool
    ) -> Iterator[tuple[int, Float[Tensor, "sender batch"]]]:
        """The logit differences for each of some sets of receivers, with the set's number."""
        live = {n: receivers[n].live(self.gpt.n_layers) for n in wanted}
        unpatched = self.runs[0].expand(len(self.senders), -1)
        for number in wanted:
            if not live[number].inputs:  # nothing reads what they do
                yield number, unpatched
        inputs = [receiver for several in live.values() for receiver in several.inputs]
        if not inputs:
            return
        roles = list(dict.fromkeys(receiver.role for receiver in inputs))
        positions = torch.arange(self.pair.width, device=self.first.device)
        read_at = torch.stack([self.pair.mask(role) for role in roles]).any(dim=0)
        slots = Slots.of(read_at & (positions >= self.first[:, None]))
        paths = Paths.of(self.senders, slots, self.pair)
        kept: list[Reading] = []
        chain = Chain(self.gpt, self.base, self.other, self.pair, self.senders, slots, paths)
        for reading in chain.readings(inputs, mlps_frozen):
            kept.append(reading)
            here = {
                n: Arrivals(several, self.pair, slots, paths)
                for n, several in live.items()
                if several.inputs and several.stage == reading.stage
            }
            found = {n: unpatched.clone() for n in here}
            if reading.stage == FINAL_STAGE:
                for n, arrivals in here.items():
                    self._to_logits(found[n], arrivals, reading)
            else:
                self._through_the_rest(found, here, kept)
            yield from found.items()
            still = {r.stage for n, several in live.items()
                     if several.inputs and several.stage > reading.stage
                     for r in several.inputs}  # fmt: skip
            kept = [one for one in kept if one.stage in still]

    def _to_logits(
        self, found: Float[Tensor, "sender batch"], arrivals: Arrivals, reading: Reading
    ) -> None:
        """The final stream is read by nothing but the unembedding, so pass D is that alone."""
        paths, slots = arrivals.paths, arrivals.slots
        at_end = slots.pos[paths.slot] == self.pair.last[slots.prompt[paths.slot]]
        sender, prompt = paths.sender[at_end], slots.prompt[paths.slot[at_end]]
        found[sender, prompt] = self.logit_diffs(reading.values["final"][at_end], prompt)

    def _through_the_rest(
        self,
        found: dict[int, Float[Tensor, "sender batch"]],
        arrivals: dict[int, Arrivals],
        kept: Sequence[Reading],
    ) -> None:
        """Pass D for every set of receivers that has all its inputs by now."""

        def runs() -> Iterator[tuple[int, Tensor, Patches]]:
            for number, arriving in arrivals.items():
                reached = arriving.reached.any(dim=1).nonzero()[:, 0]
                for chosen in in_chunks(arriving, reached, self.most):
                    yield number, chosen, patches(self.gpt, self.base, arriving, kept, chosen)

        for (number, chosen, patch), final in run_together(
            self.gpt, self.base, runs(), self.most, lambda run: run[2]
        ):
            prompt = patch.spans.prompt
            found[number][chosen[patch.sender], prompt] = self.logit_diffs(final, prompt)
