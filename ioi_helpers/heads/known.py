"""The registries of what is known about heads: which head class each has, and by what evidence."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from transformer_lens.model_bridge import TransformerBridge

from ioi_helpers import published
from ioi_helpers.bundled import BUNDLED, bundled_folder
from ioi_helpers.graph import Circuit
from ioi_helpers.models import is_gpt2_small
from ioi_helpers.names import HeadLike, head_name, parse_head

HEAD_CLASSES: tuple[str, ...] = (
    "previous_token",
    "duplicate_token",
    "induction",
    "s_inhibition",
    "name_mover",
    "backup_name_mover",
    "negative_name_mover",
)
"""The head classes of the IOI circuit (Wang et al. 2022, figure 2), roughly early to late."""


@dataclass(frozen=True)
class KnownHead:
    """One head's part in the IOI circuit of one model.

    Attributes:
        head: The head's name, ``"L9H9"``.
        head_class: One of :data:`HEAD_CLASSES`.
        position: The role of the token at which it works, such as ``"END"`` or ``"S1+1"``.
        evidence: How this was established: for a bundled model the intervention with its effect,
            for GPT-2 small the source.
    """

    head: str
    head_class: str
    position: str
    evidence: Mapping[str, Any] = field(default_factory=dict, compare=False)

    @property
    def layer(self) -> int:
        """The head's layer."""
        return parse_head(self.head)[0]

    @property
    def head_index(self) -> int:
        """Its index in the layer."""
        return parse_head(self.head)[1]


@dataclass(frozen=True)
class Registry:
    """What is on record about the heads of one model; early heads first.

    It may be empty, because no head fits a head class or because nobody has looked: ``print`` of a
    registry says in one sentence which it is.

    Attributes:
        model: The model's name.
        entries: One for each head with a known head class. A head may have two.
        recorded: Whether this model's heads were looked at at all.
    """

    model: str
    entries: tuple[KnownHead, ...]
    recorded: bool = True

    def __iter__(self) -> Iterator[KnownHead]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def __str__(self) -> str:
        if not self.recorded:
            return (
                f"Nothing is on record about the heads of {self.model}, only about those of "
                f"gpt2-small, {' and '.join(BUNDLED)}; find them by the methods themselves."
            )
        heads = len({entry.head for entry in self.entries})
        said = f"{heads or 'No'} {'head' if heads < 2 else 'heads'} of {self.model}"
        return f"{said} {'has' if heads < 2 else 'have'} a head class on record."

    @property
    def head_classes(self) -> tuple[str, ...]:
        """The head classes that occur, roughly early to late."""
        found = {entry.head_class for entry in self.entries}
        return tuple(head_class for head_class in HEAD_CLASSES if head_class in found)

    @property
    def found_elsewhere(self) -> frozenset[str]:
        """Head classes that were established on other text than IOI prompts."""
        return frozenset(entry.head_class for entry in self.entries if "on" in entry.evidence)

    def class_of(self, head: HeadLike) -> str:
        """The head class on record for a head, such as ``"name_mover"``; a dash if there is none.

        Of a head with more than one: all, separated by a comma.
        """
        name = head_name(*parse_head(head))
        return ", ".join(e.head_class for e in self.entries if e.head == name) or "-"

    def of_class(self, head_class: str) -> list[str]:
        """The names of the heads of a head class; empty if there are none.

        Raises:
            ValueError: It is none of :data:`HEAD_CLASSES`.
        """
        if head_class not in HEAD_CLASSES:
            raise ValueError(
                f"{head_class!r} is not a head class; use one of {', '.join(HEAD_CLASSES)}."
            )
        return [entry.head for entry in self.entries if entry.head_class == head_class]

    def circuit(self) -> Circuit:
        """The circuit of these heads, each at the token where it works, with its head classes."""
        return Circuit.of_registry((vars(entry) for entry in self.entries), self.model)


def registry(model: TransformerBridge) -> Registry:
    """What is on record about the heads of the model at hand.

    Of a model that was loaded from a folder: the ``registry.json`` that lies there, as the bundled
    models' do.

    Args:
        model: As ``load_model`` returns it, which says what it is and where it is from.

    Returns:
        The registry; empty, and saying so when printed, where nothing is recorded.

    Raises:
        ValueError: The file of a bundled model is missing, or a file is no registry.
    """
    name = getattr(model, "ioi_name", "a model that load_model did not load")
    if is_gpt2_small(model):
        return Registry("gpt2-small", _entries(published.head_classes()))
    folder = bundled_folder(name) if name in BUNDLED else getattr(model, "ioi_folder", None)
    file = folder / "registry.json" if folder else None
    if file is None or not file.is_file():
        if name in BUNDLED:
            raise ValueError(f"The registry.json of {name} is missing; reinstall the package.")
        return Registry(name, (), recorded=False)
    try:
        return Registry(name, _entries(json.loads(file.read_text(encoding="utf-8"))["heads"]))
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"{str(file)!r} is not a registry of heads ({error!r}); mend it or take it away."
        ) from error


def circuit(model: TransformerBridge) -> Circuit:
    """The circuit that the model's :func:`registry` describes; empty where it has no heads."""
    return registry(model).circuit()


def heads_of_class(model: TransformerBridge, head_class: str) -> list[str]:
    """The names of the heads of a head class, by the model's :func:`registry`; may be empty.

    Raises:
        ValueError: It is none of :data:`HEAD_CLASSES`.
    """
    return registry(model).of_class(head_class)


def _entries(rows: Sequence[Mapping[str, Any]]) -> tuple[KnownHead, ...]:
    found = [KnownHead(**row) for row in rows]
    return tuple(sorted(found, key=lambda entry: parse_head(entry.head)))
