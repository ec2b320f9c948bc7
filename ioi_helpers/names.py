"""Names of heads and MLPs: ``"L9H9"``, ``"MLP0"``.

The one place where such a name is read, written, and held against a model.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # importing it takes seconds, and nothing here runs a model
    from transformer_lens.model_bridge import TransformerBridge


HeadLike = str | tuple[int, int]
"""A head: ``"L9H9"``, or its layer and index, ``(9, 9)``."""


def head_name(layer: int, head: int) -> str:
    """``"L9H9"`` for layer 9, head 9."""
    return f"L{layer}H{head}"


def mlp_name(layer: int) -> str:
    """``"MLP0"`` for layer 0."""
    return f"MLP{layer}"


def head_labels(model: TransformerBridge) -> list[str]:
    """The names of all heads, ``"L0H0"`` first, in the order of a flattened [layer head] tensor."""
    labels: list[str] = model.all_head_labels
    return labels


def is_head_pair(value: Any) -> bool:
    """Whether something is a head written as two whole numbers, ``(9, 9)``."""
    return (
        isinstance(value, tuple)
        and len(value) == 2
        and all(isinstance(part, int) and not isinstance(part, bool) for part in value)
    )


def parse_head(head: HeadLike) -> tuple[int, int]:
    """The layer and the index of a head that is written ``"L9H9"`` or ``(9, 9)``.

    Raises:
        ValueError: It has another form.
    """
    if is_head_pair(head):
        return head  # type: ignore[return-value]
    match = re.fullmatch(r"L(\d+)H(\d+)", head) if isinstance(head, str) else None
    if match is None:
        raise ValueError(f"{head!r} does not name a head; write 'L9H9' or (9, 9): layer and head.")
    return int(match[1]), int(match[2])


def parse_component(name: HeadLike) -> tuple[int, int | None]:
    """The layer and the head's index, None for an MLP, of ``"L9H9"``, ``(9, 9)`` or ``"MLP0"``.

    Raises:
        ValueError: It has another form.
    """
    match = re.fullmatch(r"MLP(\d+)", name) if isinstance(name, str) else None
    if match is not None:
        return int(match[1]), None
    try:
        return parse_head(name)
    except ValueError:
        raise ValueError(
            f"{name!r} names neither a head nor an MLP; write 'L9H9' or (9, 9), or 'MLP0'."
        ) from None


def require_component(model: TransformerBridge, layer: int, head: int | None) -> None:
    """Refuse a head or MLP (``head`` None) that the model does not have.

    Raises:
        ValueError: There is none.
    """
    n_layers, n_heads = model.cfg.n_layers, model.cfg.n_heads
    if not 0 <= layer < n_layers or (head is not None and not 0 <= head < n_heads):
        name = mlp_name(layer) if head is None else head_name(layer, head)
        raise ValueError(
            f"There is no {name} in this model: it has {n_layers} layers of {n_heads} heads, L0H0 "
            f"to {head_name(n_layers - 1, n_heads - 1)}."
        )
    if head is None and getattr(model.cfg, "attn_only", False):
        raise ValueError(f"There is no {mlp_name(layer)} in this model: it has no MLPs.")


def existing_head(model: TransformerBridge, head: HeadLike) -> tuple[int, int]:
    """The layer and the index of one of the model's heads.

    Raises:
        ValueError: It has another form, or the model has no such head.
    """
    layer, index = parse_head(head)
    require_component(model, layer, index)
    return layer, index
