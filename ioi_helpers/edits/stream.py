"""The residual stream, put into a run at a point.

Before and after a block this is one hook. In the middle of a block, TransformerLens 4.3's
``hook_resid_mid`` is the input of the MLP's LayerNorm: a hook that returns a new tensor reaches
only the MLP and not the skip connection around it; one that writes in place reaches both, because
both happen to read the same tensor. Here neither is relied on. The stream before the block is
remembered, and the difference that an edit makes is added to attention's output, which goes into
both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from ioi_helpers.dataset import TwoAnswerData
from ioi_helpers.edits.rows import Replacement, Rowwise, arrived, edited_positions, present
from ioi_helpers.runs import EditHooks, Hook, known_hooks, parse_point, point_hook

TOO_WIDE = "The new activations have {} dimensions, but the residual stream of this model has {}."


@dataclass(frozen=True)
class ResidualEdit(Replacement):
    """Replace the residual stream at one position of each prompt (:func:`residual_edit`).

    Attributes:
        positions, new: As for `Replacement`; ``[batch d_model]``.
        point: Such as ``"L6.mid"``.
    """

    point: str

    def hooks(self, model: TransformerBridge) -> EditHooks:
        """The hooks that make the edit and check it.

        Raises:
            ValueError: The model has no such point, none that can be edited, or another width.
        """
        self.require_width(model.cfg.d_model, TOO_WIDE)

        def replace(stream: Float[Tensor, "batch pos d_model"], hook: Any) -> Tensor:
            rows, at = present(self.positions, stream)
            out = stream.clone()
            out[rows, at] = self.values(stream[rows, at], rows).to(stream.dtype)
            return out

        return residual_hooks(model, self.point, replace)


def residual_edit(
    data: TwoAnswerData,
    role: str | Int[Tensor, " batch"],
    point: str,
    new: Float[Tensor, "batch d_model"] | Rowwise,
) -> ResidualEdit:
    """An edit of the residual stream at a role's position in each prompt.

    Args:
        data: The prompts.
        role: ``"S2"`` ..., or a position for each prompt.
        point: Before, in the middle of or after a block: ``"L6.pre"``, ``"L6.mid"``, ``"L6.post"``.
        new: What to put there, one activation a prompt (such as ``intervene(...).x``), or a
            function of what is there, the same for all rows.

    Raises:
        ValueError: An unknown role, a text that is no point, or another number of activations or
            positions than prompts.
    """
    parse_point(point)
    positions = edited_positions(data, role, new, "activations", "d_model")
    return ResidualEdit(positions, new, point)


def residual_hooks(
    model: TransformerBridge, point: str, hook_fn: Callable[..., Tensor | None]
) -> EditHooks:
    """Hooks that let a function see and really change the residual stream at a point.

    Args:
        model: A model whose blocks add to one stream.
        point: Such as ``"L6.mid"``.
        hook_fn: From ``[batch pos d_model]`` and the hook to the new stream, or None for no change;
            what TransformerLens takes for a forward hook.

    Returns:
        The hooks, and those that check in the run that every entry which was changed is what the
        next layer reads (``RuntimeError`` if not, for instance because another hook changes it as
        well). With no change the run is the same bit for bit.

    Raises:
        ValueError: The model has no such point, or one that cannot be edited.
    """
    layer, stage = parse_point(point)
    name = point_hook(model, point)
    # In the run at hand: what was changed, to what, and how large the terms are.
    changed: list[tuple[Tensor, Tensor, Tensor]] = []

    def note(old: Tensor, new: Tensor) -> None:
        old, new = old.detach(), new.detach()
        where = new != old
        changed[:] = [(where, new[where], torch.maximum(old.abs().amax(), new.abs().amax()))]

    def check(stream: Tensor, hook: Any) -> None:
        if not changed:
            return
        where, new, scale = changed.pop()
        if not arrived(stream[where.to(stream.device)], new, scale):
            raise RuntimeError(
                f"The edit at {point} did not arrive: in this model, or with the other hooks that "
                "are on it, what is written there is not what the next layer reads."
            )

    if stage != "mid":

        def replace(stream: Tensor, hook: Any) -> Tensor | None:
            new = hook_fn(stream, hook)
            if new is None or new is stream:
                return None
            note(stream, new)
            return new

        follows = layer if stage == "pre" else layer + 1
        last = follows == model.cfg.n_layers
        reader = "ln_final.hook_in" if last else f"blocks.{follows}.ln1.hook_in"
        known_hooks(model, [reader])
        return EditHooks([(name, replace)], [(reader, check)])

    if getattr(model.cfg, "parallel_attn_mlp", False):
        raise ValueError(
            "In this model attention and MLP run in parallel, so a block has no middle; edit at "
            f'"L{layer}.pre" or "L{layer}.post".'
        )
    before: list[Tensor] = []

    def remember(stream: Tensor, hook: Any) -> None:
        before[:] = [stream]

    def change(attn_out: Tensor, hook: Any) -> Tensor | None:
        if not before:
            raise RuntimeError(f"The stream before block {layer} was not seen; is it hooked out?")
        middle = before.pop() + attn_out
        new = hook_fn(middle, hook)
        if new is None or new is middle:
            return None
        note(middle, new)
        return attn_out + (new - middle)

    return EditHooks(
        [(f"blocks.{layer}.hook_attn_out", change)],
        [(f"blocks.{layer}.hook_resid_pre", remember), (name, check)],
    )


class AtPoints:
    """A model whose hooks may be named by points, for TransformerLens' interchange tools.

    ``fit_das``, ``collect_activations`` and ``run_with_intervention`` take a hook's name and any
    model that has ``hooks`` and parameters. Given ``AtPoints(model)`` they take ``"L6.mid"`` too,
    and edit what they say.
    """

    def __init__(self, model: TransformerBridge) -> None:
        self.model = model

    @contextmanager
    def hooks(self, fwd_hooks: Sequence[Hook] = ()) -> Iterator[TransformerBridge]:
        """As the model's own, with points among the names."""
        write: list[Hook] = []
        check: list[Hook] = []
        for name, hook_fn in fwd_hooks:
            is_point = isinstance(name, str) and name[:1] == "L" and "." in name
            if is_point:
                made = residual_hooks(self.model, name, hook_fn)
                write, check = write + made.write, check + made.check
            else:
                write.append((name, hook_fn))
        with self.model.hooks(fwd_hooks=write + check):
            yield self.model

    def parameters(self) -> Iterator[torch.nn.Parameter]:
        """The model's parameters."""
        yield from self.model.parameters()

    def requires_grad_(self, requires_grad: bool = True) -> AtPoints:
        """As the model's own."""
        self.model.requires_grad_(requires_grad)
        return self
