"""Attention patterns, put into a run so that they take effect.

In most models TransformerLens computes ``z = pattern @ v`` itself, and what a hook writes at
``hook_pattern`` goes into the product. In some (GPT-Neo, OPT, GPT-J in version 4.3) the wrapped
module does, and ``hook_pattern`` fires when all is over: it shows the pattern, but an edit there
comes too late. There the same edit is made at ``hook_z``, with this run's own ``v``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from ioi_helpers.dataset import TwoAnswerData
from ioi_helpers.edits.outputs import HeadWriter
from ioi_helpers.edits.rows import RowwiseEdit, arrived, edited_positions, present
from ioi_helpers.names import HeadLike, existing_head, head_name, parse_head
from ioi_helpers.runs import EditHooks, known_hooks


@dataclass(frozen=True)
class AttentionEdit(RowwiseEdit):
    """Give one head a fixed pattern from one position of each prompt (:func:`attention_edit`).

    Attributes:
        positions: ``[batch]``, the position that attends.
        head: Such as ``"L9H9"``.
        pattern: ``[batch key]``, how much it attends to each position.
    """

    head: str
    pattern: Float[Tensor, "batch key"]

    def hooks(self, model: TransformerBridge) -> EditHooks:
        """The hooks that make the edit and check it.

        Raises:
            ValueError: The model has no such head.
        """
        layer, index = existing_head(model, self.head)
        attn = f"blocks.{layer}.attn."
        known_hooks(model, [attn + name for name in ("hook_v", "hook_pattern", "hook_z")])
        writer = HeadWriter(model, self.head)
        seen: dict[str, Tensor] = {}

        def wanted(like: Tensor, rows: Tensor, n_keys: int) -> Float[Tensor, "rows key"]:
            pattern = self.pattern.to(like.dtype).to(like.device)[rows, :n_keys]
            return torch.nn.functional.pad(pattern, (0, n_keys - pattern.shape[-1]))

        def replace(pattern: Float[Tensor, "batch head query key"], hook: Any) -> Tensor | None:
            rows, at = present(self.positions, pattern[:, 0])
            row_of_keys = wanted(pattern, rows, pattern.shape[-1])
            if "z" in seen:  # Too late: z has been written already, and this is for readers only.
                if not pattern.requires_grad:
                    pattern[rows, index, at] = row_of_keys
                return None
            out = pattern.clone()
            out[rows, index, at] = row_of_keys
            seen["pattern"] = out
            return out

        def remember(v: Float[Tensor, "batch pos value_head d_head"], hook: Any) -> None:
            seen["v"] = v
            seen.pop("z", None)
            seen.pop("pattern", None)

        def z_of(z: Float[Tensor, "batch pos head d_head"]) -> tuple[Tensor, Tensor, Tensor]:
            rows, at = present(self.positions, z)
            v = seen["v"][rows][:, :, index * seen["v"].shape[2] // z.shape[2]]
            return rows, at, torch.einsum("rk,rkd->rd", wanted(v, rows, v.shape[1]), v)

        def write(z: Float[Tensor, "batch pos head d_head"], hook: Any) -> Tensor | None:
            if "pattern" in seen:  # It is in z already, or else the check will say so.
                return None
            seen["z"] = z
            return writer.write(z, *z_of(z))

        def check(z: Float[Tensor, "batch pos head d_head"], hook: Any) -> None:
            rows, at, new = z_of(z)
            if not arrived(z[rows, at, index], new, seen["v"].detach().abs().amax()):
                raise RuntimeError(
                    f"The attention given to {self.head} did not arrive: in this model, or with "
                    "the other hooks that are on it, its output is not that pattern's."
                )

        return EditHooks(
            [(attn + "hook_pattern", replace), (attn + "hook_z", write)],
            # v is read when all others have written.
            [(attn + "hook_v", remember), (attn + "hook_z", check), *writer.checks],
        )


def attention_edit(
    data: TwoAnswerData,
    role: str | Int[Tensor, " batch"],
    head: HeadLike,
    pattern: Float[Tensor, "batch key"],
) -> AttentionEdit:
    """An edit of where a head attends from a role's position in each prompt.

    ::

        clean = runs.attention_patterns(model, data, name_movers)
        restore = [attention_edit(data, "END", head, rows) for head, rows in clean.items()]

    Args:
        data: The prompts.
        role: ``"END"`` ..., or a position for each prompt: the one that attends.
        head: Such as ``"L9H9"``.
        pattern: How much it attends to each position of the prompt, such as
            :func:`~ioi_helpers.runs.attention_patterns` reads from another run.

    Raises:
        ValueError: An unknown role, a text that is no head, or another number of rows or positions
            than prompts.
    """
    positions = edited_positions(data, role, pattern, "attention", "key")
    return AttentionEdit(positions, head_name(*parse_head(head)), pattern)


def attend(
    pattern: Float[Tensor, "batch head *query key"],
    v: Float[Tensor, "batch pos value_head d_head"],
) -> Float[Tensor, "batch *query head d_head"]:
    """``z = pattern @ v``; where heads share values, each takes those of its group.

    Args:
        pattern: Of all heads, for one query a prompt or for several.
        v: As at ``hook_v``; positions beyond the pattern's keys are not attended to.
    """
    n_heads, n_keys = pattern.shape[1], pattern.shape[-1]
    v = v[:, :n_keys].repeat_interleave(n_heads // v.shape[2], dim=2)
    if pattern.ndim == 3:
        return torch.einsum("bhk,bkhd->bhd", pattern, v)
    return torch.einsum("bhqk,bkhd->bqhd", pattern, v)
