"""Which positions are computed, what is kept of them, and who may change it on the way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

SITES: tuple[str, ...] = ("resid_pre", "q", "k", "v", "z", "attn_out", "resid_mid", "mlp_out")
"""What a run can keep, in the order of the equations."""
BASE_SITES: tuple[str, ...] = ("resid_pre", "k", "v", "resid_mid")
"""What a run must keep for others to be computed as edits of it."""
BLOCK_SITES: tuple[str, ...] = ("q", "k", "v", "z", "attn_out", "resid_mid")
"""Those of attention."""


@dataclass(frozen=True)
class Spans:
    """Row r stands for positions ``first[r]`` to ``last[r]``, both included, of a prompt.

    Values at a span's positions are kept flat, ``[token ...]``: row 0's positions in order, then
    row 1's, and so on. Several rows may stand for the same prompt, each with another edit.
    """

    prompt: Int[Tensor, " row"]
    first: Int[Tensor, " row"]
    last: Int[Tensor, " row"]

    def __len__(self) -> int:
        return len(self.prompt)

    @cached_property
    def lengths(self) -> Int[Tensor, " row"]:
        """Positions in each row."""
        return self.last - self.first + 1

    @cached_property
    def starts(self) -> Int[Tensor, " row"]:
        """The token that is each row's first position."""
        return self.lengths.cumsum(0) - self.lengths

    @cached_property
    def ends(self) -> Int[Tensor, " row"]:
        """The token that is each row's last position."""
        return self.starts + self.lengths - 1

    @cached_property
    def row(self) -> Int[Tensor, " token"]:
        """Each token's row."""
        return torch.repeat_interleave(self.lengths)

    @cached_property
    def pos(self) -> Int[Tensor, " token"]:
        """Each token's position in its prompt."""
        tokens = torch.arange(len(self.row), device=self.row.device)
        return tokens + (self.first - self.starts)[self.row]

    @cached_property
    def at(self) -> tuple[Int[Tensor, " token"], Int[Tensor, " token"]]:
        """Index of each token in a tensor [batch pos ...]."""
        return self.prompt[self.row], self.pos

    @cached_property
    def width(self) -> int:
        """Positions in the longest row."""
        return int(self.lengths.max())

    def only_ends(self) -> Spans:
        """The same rows, cut down to their last positions."""
        return Spans(self.prompt, self.last, self.last)

    @cached_property
    def _uniform(self) -> bool:
        return len(self.row) == len(self) * self.width

    @cached_property
    def _slot(self) -> Int[Tensor, " token"]:
        return self.pos - self.first[self.row]

    def by_row(self, x: Shaped[Tensor, "token *rest"]) -> Shaped[Tensor, "row width *rest"]:
        """Rows side by side, short ones filled up with zeros."""
        if self._uniform:
            return x.unflatten(0, (len(self), self.width))
        padded = x.new_zeros(len(self), self.width, *x.shape[1:])
        padded[self.row, self._slot] = x
        return padded

    def flat(self, x: Shaped[Tensor, "row width *rest"]) -> Shaped[Tensor, "token *rest"]:
        """The inverse of `by_row`."""
        return x.flatten(0, 1) if self._uniform else x[self.row, self._slot]

    @cached_property
    def _place_in_prompt(self) -> tuple[Int[Tensor, " token"], Int[Tensor, " token"], int]:
        prompts = self.prompt[self.row]
        order = prompts.argsort(stable=True)
        counts = prompts.bincount()
        starts = counts.cumsum(0) - counts
        place = torch.empty_like(order)
        place[order] = torch.arange(len(order), device=order.device) - starts[prompts[order]]
        return prompts, place, int(counts.max())

    def by_prompt(
        self, x: Shaped[Tensor, "token *rest"], batch: int
    ) -> Shaped[Tensor, "batch place *rest"]:
        """All tokens of all rows of a prompt side by side, filled up with zeros."""
        prompts, place, most = self._place_in_prompt
        padded = x.new_zeros(batch, most, *x.shape[1:])
        padded[prompts, place] = x
        return padded

    def flat_from_prompts(
        self, x: Shaped[Tensor, "batch place *rest"]
    ) -> Shaped[Tensor, "token *rest"]:
        """The inverse of `by_prompt`."""
        prompts, place, _ = self._place_in_prompt
        return x[prompts, place]

    @staticmethod
    def join(spans: Sequence[Spans]) -> Spans:
        """One after another."""
        return Spans(
            torch.cat([part.prompt for part in spans]),
            torch.cat([part.first for part in spans]),
            torch.cat([part.last for part in spans]),
        )


Editor = Callable[[str, int, Tensor, Spans], Tensor]
"""Replaces values in the middle of a run: called with the site (one of :data:`SITES`), the layer,
the value, flat over the tokens of the spans, and the spans; returns the value to go on with. This
is how several heads of several layers are ablated or patched in one and the same run."""


@dataclass(frozen=True)
class Run:
    """What was kept of a run over a batch of prompts.

    ``run["k"][layer]`` is ``[batch pos head d_head]`` and ``run["resid_mid"][layer]``
    ``[batch pos d_model]``. ``run["resid_pre"]`` has one entry more than there are blocks: the
    last is the final residual stream. After a prompt's last position there are zeros.
    """

    last: Int[Tensor, " batch"]
    """The last position of each prompt: END."""
    kept: dict[str, list[Tensor]]
    final: Float[Tensor, "batch d_model"]
    """The final residual stream at END."""

    def __getitem__(self, site: str) -> list[Tensor]:
        return self.kept[site]
