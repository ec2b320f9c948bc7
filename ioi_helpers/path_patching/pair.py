"""The prompts that are run and those that replace, row by row and token by token."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from ioi_helpers.dataset import TwoAnswerData
from ioi_helpers.dataset.two_answers import reference_for
from ioi_helpers.patching.result import DIRECTIONS
from ioi_helpers.runs import refuse_misaligned, refuse_too_long, require_data, role_positions


@dataclass(frozen=True)
class Pair:
    """Tokens of two datasets of the same shape; the first axis of every tensor is the batch."""

    tokens: Int[Tensor, "batch pos"]
    """What is run."""
    other: Int[Tensor, "batch pos"]
    """What senders are taken from."""
    last: Int[Tensor, " batch"]
    io_tokens: Int[Tensor, " batch"]
    s_tokens: Int[Tensor, " batch"]
    at: dict[str, Int[Tensor, " batch"]]
    """The position of each role that is used, END among them."""

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def width(self) -> int:
        """Positions of the longest prompt."""
        return self.tokens.shape[1]

    def part(self, rows: slice) -> Pair:
        """Some of the prompts, cut to their own longest."""
        width = int(self.last[rows].max()) + 1
        return Pair(
            self.tokens[rows, :width],
            self.other[rows, :width],
            self.last[rows],
            self.io_tokens[rows],
            self.s_tokens[rows],
            {role: at[rows] for role, at in self.at.items()},
        )

    def exchanged(self) -> Pair:
        """The other prompts are run, and these replace."""
        return replace(self, tokens=self.other, other=self.tokens)

    def mask(self, role: str | None) -> Bool[Tensor, "batch pos"]:
        """The position of a role, or every position of the prompt."""
        positions = torch.arange(self.width, device=self.tokens.device)
        if role is None:
            return positions <= self.last[:, None]
        return positions == self.at[role][:, None]

    def coincide(self, role: str | None, other: str | None) -> bool:
        """Whether two roles are one and the same token in any prompt; None is every token."""
        if role is None or other is None or role == other:
            return True
        return bool((self.at[role] == self.at[other]).any())


def pair_of(
    model: TransformerBridge,
    data: TwoAnswerData,
    reference: TwoAnswerData | None,
    direction: str,
    roles: Iterable[str | None],
) -> Pair:
    """Check that model, data and reference fit together, and put the two into tensors.

    Args:
        reference: None is ``data.abc()``.
        direction: ``"noising"`` runs the data and takes senders from the reference,
            ``"denoising"`` the other way round. Names and roles are the data's in both.
        roles: Those that are asked for; each prompt must have them.

    Raises:
        ValueError: See :func:`~ioi_helpers.path_patching.path_patch`.
    """
    require_data(model, data)
    if direction not in DIRECTIONS:
        raise ValueError(f"direction must be 'noising' or 'denoising', not {direction!r}.")
    reference = reference_for(data, reference)
    require_data(model, reference)
    refuse_misaligned(data, reference)
    refuse_too_long(model, data.tokens[:, : int(data.lengths.max())])
    wanted = dict.fromkeys(["END", *(role for role in roles if role is not None)])
    device = model.W_E.device
    width = int(data.lengths.max())
    pair = Pair(
        tokens=data.tokens[:, :width].to(device),
        other=reference.tokens[:, :width].to(device),
        last=(data.lengths - 1).to(device),
        io_tokens=data.io_tokens.to(device),
        s_tokens=data.s_tokens.to(device),
        at={role: role_positions(data, role).to(device) for role in wanted},
    )
    return pair if direction == "noising" else pair.exchanged()
