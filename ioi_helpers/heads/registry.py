"""The registries of what is known about heads."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformer_lens.model_bridge import TransformerBridge

from ioi_helpers.bundled import BUNDLED, bundled_folder
from ioi_helpers.models import is_gpt2_small
from ioi_helpers.names import head_name, parse_head

CLASSES: tuple[str, ...] = (
    "previous_token",
    "duplicate_token",
    "induction",
    "s_inhibition",
    "name_mover",
    "backup_name_mover",
    "negative_name_mover",
)
"""The classes of heads in the IOI circuit (Wang et al. 2022, figure 2), roughly early to late."""


@dataclass(frozen=True)
class HeadRole:
    """One head's part in the IOI circuit of one model.

    Attributes:
        layer, head_index: The head.
        role: One of :data:`CLASSES`.
        position: The role of the token at which it works, such as ``"END"`` or ``"S1+1"``.
        evidence: How this was established: for a bundled model the intervention with its effect,
            for GPT-2 small the source.
    """

    layer: int
    head_index: int
    role: str
    position: str
    evidence: dict[str, Any] = field(default_factory=dict, compare=False)

    @property
    def head(self) -> str:
        """The head's name, ``"L9H9"``."""
        return head_name(self.layer, self.head_index)


def roles(model: TransformerBridge) -> list[HeadRole]:
    """The registry of roles of the model at hand: its reference circuit, early heads first.

    Args:
        model: As ``load_model`` returns it: ``model.ioi_name`` says which it is.

    Returns:
        One entry for each head with a known role.

    Raises:
        ValueError: Nothing is recorded for this model.
    """
    name = getattr(model, "ioi_name", None)
    if name in BUNDLED:
        file = bundled_folder(name) / "roles.json"
    elif is_gpt2_small(model):
        file = Path(__file__).parent.parent / "published" / "gpt2-small-roles.json"
    else:
        raise ValueError(
            f"No roles are recorded for {name or 'a model that load_model did not load'}, only for "
            f"gpt2-small, {' and '.join(BUNDLED)}; find this model's heads by the methods "
            "themselves."
        )
    if not file.is_file():
        raise ValueError(f"The registry of {name} ({file.name}) is missing; reinstall the package.")
    found = _read_registry(file.read_text(encoding="utf-8"))
    return sorted(found, key=lambda entry: (entry.layer, entry.head_index))


def heads_with_role(model: TransformerBridge, role: str) -> list[str]:
    """The names of the heads that have a role in the model's registry; empty if it has none.

    Raises:
        ValueError: The role is none of :data:`CLASSES`, or nothing is recorded for this model.
    """
    if role not in CLASSES:
        raise ValueError(f"{role!r} is not a class of heads; use one of {', '.join(CLASSES)}.")
    return [entry.head for entry in roles(model) if entry.role == role]


def _read_registry(text: str) -> list[HeadRole]:
    return [
        HeadRole(
            *parse_head(entry["head"]),
            role=entry["role"],
            position=entry["position"],
            evidence=entry.get("evidence", {}),
        )
        for entry in json.loads(text)["heads"]
    ]
