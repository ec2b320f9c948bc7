"""What can be ablated: a head or an MLP, everywhere or at one role's position."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from transformer_lens.model_bridge import TransformerBridge

from ioi_helpers.dataset import ROLES
from ioi_helpers.names import (
    HeadLike,
    head_name,
    is_head_pair,
    mlp_name,
    parse_component,
    require_component,
)


@dataclass(frozen=True)
class Component:
    """A head, or an MLP (``head`` is None), at a role's position, or everywhere (``role`` None)."""

    layer: int
    head: int | None
    role: str | None = None

    @property
    def name(self) -> str:
        """``"L9H9"`` or ``"MLP0"``."""
        return mlp_name(self.layer) if self.head is None else head_name(self.layer, self.head)

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


Spec = HeadLike | tuple[HeadLike, str] | Component
"""One component: ``"L9H9"``, ``(9, 9)``, ``"MLP0"``, ``("L9H9", "END")``."""


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
    """Whether this is one component: ``(9, 9)``, or a component and a role."""
    return is_head_pair(heads) or (
        isinstance(heads, tuple)
        and len(heads) == 2
        and (isinstance(heads[0], str) or is_head_pair(heads[0]))
        and isinstance(heads[1], str)
        and re.match(r"L\d|MLP\d", heads[1]) is None
    )


def _parse(model: TransformerBridge, spec: Any) -> Component:
    name, role = spec, None
    if isinstance(spec, Component):
        name, role = spec.name, spec.role
    elif isinstance(spec, tuple) and len(spec) == 2 and not is_head_pair(spec):
        name, role = spec
    layer, head = parse_component(name)
    if role is not None and role not in ROLES:
        raise ValueError(
            f"{role!r} is not a role of an IOI prompt; use one of {', '.join(ROLES)}, or leave it "
            f"out to ablate {name} everywhere."
        )
    require_component(model, layer, head)
    return Component(layer, head, role)
