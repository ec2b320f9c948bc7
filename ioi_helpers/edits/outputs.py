"""A head's output, put into a run: its ``z``, which ``W_O`` maps into the residual stream."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from ioi_helpers.dataset import TwoAnswerData
from ioi_helpers.edits.rows import Replacement, Rowwise, arrived, edited_positions, present
from ioi_helpers.names import HeadLike, existing_head, head_name, parse_head
from ioi_helpers.runs import EditHooks, Hook, known_hooks


@dataclass(frozen=True)
class HeadEdit(Replacement):
    """Replace one head's z at one position of each prompt (:func:`head_edit`).

    Attributes:
        positions, new: As for `Replacement`; ``[batch d_head]``.
        head: Such as ``"L9H9"``.
    """

    head: str

    def hooks(self, model: TransformerBridge) -> EditHooks:
        """The hooks that make the edit and check it.

        Raises:
            ValueError: The model has no such head, or another width.
        """
        _, index = existing_head(model, self.head)
        says = "The new z has {} dimensions, but a head of this model has {}."
        self.require_width(model.cfg.d_head, says)
        writer = HeadWriter(model, self.head)

        def replace(z: Float[Tensor, "batch pos head d_head"], hook: Any) -> Tensor:
            rows, at = present(self.positions, z)
            return writer.write(z, rows, at, self.values(z[rows, at, index], rows))

        return EditHooks([(writer.site, replace)], writer.checks)


def head_edit(
    data: TwoAnswerData,
    role: str | Int[Tensor, " batch"],
    head: HeadLike,
    new: Float[Tensor, "batch d_head"] | Rowwise,
) -> HeadEdit:
    """An edit of a head's output (its z) at a role's position in each prompt.

    Args:
        data: The prompts.
        role: ``"END"`` ..., or a position for each prompt.
        head: Such as ``"L9H9"``.
        new: What to put there, one z a prompt, or a function of what is there.

    Raises:
        ValueError: An unknown role, a text that is no head, or another number of rows or positions
            than prompts.
    """
    positions = edited_positions(data, role, new, "values of z", "d_head")
    return HeadEdit(positions, new, head_name(*parse_head(head)))


class HeadWriter:
    """Writes a head's z in one run, and checks that attention's output is made of it."""

    def __init__(self, model: TransformerBridge, head: str) -> None:
        self.layer, self.index = existing_head(model, head)
        self.head = head
        self.site = f"blocks.{self.layer}.attn.hook_z"
        output = f"blocks.{self.layer}.attn.o.hook_out"
        known_hooks(model, [self.site, output])
        # The linear map that the run itself puts z through.
        self._map = model.blocks[self.layer].attn.o.original_component
        self._written: list[tuple[Tensor, Tensor, Tensor]] = []
        self._read: list[Tensor] = []
        self.checks: list[Hook] = [(self.site, self._look), (output, self._check)]

    def write(
        self,
        z: Float[Tensor, "batch pos head d_head"],
        rows: Int[Tensor, " rows"],
        at: Int[Tensor, " rows"],
        new: Float[Tensor, "rows d_head"],
    ) -> Float[Tensor, "batch pos head d_head"]:
        """All heads' z with this head's new one."""
        out = z.clone()
        out[rows, at, self.index] = new.to(z.dtype)
        self._written[:] = [(rows, at, out.detach()[rows, at, self.index])]
        return out

    def _look(self, z: Float[Tensor, "batch pos head d_head"], hook: Any) -> None:
        if self._written:
            rows, at, new = self._written[0]
            self._read[:] = [z.detach()[rows, at]]
            if not torch.equal(z.detach()[rows, at, self.index], new):
                raise RuntimeError(self._refusal())

    def _check(self, attn_out: Float[Tensor, "batch pos d_model"], hook: Any) -> None:
        if not self._written:
            return
        rows, at, _ = self._written.pop()
        with torch.no_grad():
            wanted = self._map(self._read.pop().flatten(1))
        if not arrived(attn_out[rows, at], wanted, wanted.abs().amax()):
            raise RuntimeError(self._refusal())

    def _refusal(self) -> str:
        return (
            f"The output given to {self.head} did not arrive: in this model, or with the other "
            "hooks that are on it, what attention writes is not made of it."
        )
