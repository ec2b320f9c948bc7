"""What can be ablated: a head or an MLP, everywhere or at one role's position."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from transformer_lens.model_bridge import TransformerBridge

from ioi_helpers.dataset import ROLES


@dataclass(frozen=True)
class Component:
    """A head, or an MLP (``head`` is None), at a role's position, or everywhere (``role`` None)."""

    layer: int
    head: int | None
    role: str | None = None

    @property
    def name(self) -> str:
        """``"L9H9"`` or ``"MLP0"``."""
        return f"MLP{self.layer}" if self.head is None else f"L{self.layer}H{self.head}"

    @property
    def site(self) -> str:
        """Where it is replaced: at its ``"z"``, or at the ``"mlp_out"``."""
        return "mlp_out" if self.head is None else "z"

    @property
    def hook(self) -> str:
        """TransformerLens' name of that place."""
        site = "hook_mlp_out" if self.head is None else "attn.hook_z"
        return f"blocks.{self.layer}.{site}"

    def __str__(self) -> str:
        return self.name if self.role is None else f"{self.name} at {self.role}"


Spec = str | tuple[str, str] | Component
"""One component: ``"L9H9"``, ``"MLP0"``, ``("L9H9", "END")``."""


def parse_components(
    model: TransformerBridge, heads: Spec | Iterable[Spec]
) -> tuple[Component, ...]:
    """The components that are meant, each once, in the order given.

    Args:
        model: The model they are in.
        heads: One component or several, each in one of the forms of :data:`Spec`.

    Raises:
        ValueError: There is none, or one of them is not in this model, or a role is unknown.
    """
    if isinstance(heads, str | Component) or _is_pair(heads):
        heads = [heads]  # type: ignore[list-item]
    try:
        listed = list(heads)
    except TypeError:
        listed = [heads]  # type: ignore[list-item]
    if not listed:
        raise ValueError(
            "There is nothing to ablate; name at least one head or MLP, such as 'L9H9', 'MLP0' or "
            "('L9H9', 'END')."
        )
    # A set has no order of its own that would be the same in every run.
    if isinstance(heads, set | frozenset):
        listed.sort(key=str)
    return tuple(dict.fromkeys(_parse(model, spec) for spec in listed))


def _is_pair(heads: Any) -> bool:
    return (
        isinstance(heads, tuple)
        and len(heads) == 2
        and all(isinstance(part, str) for part in heads)
        and re.match(r"L\d|MLP\d", heads[1]) is None
    )


def _parse(model: TransformerBridge, spec: Any) -> Component:
    name, role = spec, None
    if isinstance(spec, Component):
        name, role = spec.name, spec.role
    elif isinstance(spec, tuple) and len(spec) == 2:
        name, role = spec
    match = re.fullmatch(r"L(\d+)H(\d+)|MLP(\d+)", name) if isinstance(name, str) else None
    if match is None:
        raise ValueError(
            f"{spec!r} names neither a head nor an MLP; write 'L9H9' or 'MLP0', or "
            "('L9H9', 'END') for one position."
        )
    if role is not None and role not in ROLES:
        raise ValueError(
            f"{role!r} is not a role of an IOI prompt; use one of {', '.join(ROLES)}, or leave it "
            f"out to ablate {name} everywhere."
        )
    n_layers, n_heads = model.cfg.n_layers, model.cfg.n_heads
    layer = int(match[1] or match[3] or 0)
    head = None if match[2] is None else int(match[2])
    if layer >= n_layers or (head is not None and head >= n_heads):
        raise ValueError(
            f"There is no {name} in this model: it has {n_layers} layers of {n_heads} heads, L0H0 "
            f"to L{n_layers - 1}H{n_heads - 1}."
        )
    if head is None and model.cfg.attn_only:
        raise ValueError(f"There is no {name} in this model: it has no MLPs.")
    return Component(layer, head, role)
