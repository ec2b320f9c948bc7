"""What has been answered in this session: one entry an exercise, for `progress` and `export`.

A session is a notebook's kernel. Each entry holds one answer, as JSON: the newest, unless an
earlier one was right and it is not. Tries are different answers, up to the first right one; running
a cell again is none.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import ioi_helpers
from ioi_helpers.dataset import IOIDataset
from ioi_helpers.exercises.registry import Context, known
from ioi_helpers.exercises.values import digest

DIGITS = 12  # of the name of an answer that was tried


@dataclass(frozen=True)
class Entry:
    """An answer to an exercise, and what it was checked on."""

    answer: Any
    """As :func:`~ioi_helpers.exercises.values.to_json` writes it."""
    passed: bool
    """What the check said in the session."""
    tried: tuple[str, ...]
    """Names of the different answers that were checked, up to the first right one."""
    checked_on: Mapping[str, Any]
    """Version, model and data, as :func:`what_is_at_hand` describes them."""

    def then(self, later: Entry) -> Entry:
        """This entry and a later one to the same exercise as one."""
        if self.passed:
            return replace(later, tried=self.tried) if later.passed else self
        more = [name for name in later.tried if name not in self.tried]
        return replace(later, tried=(*self.tried, *more))


@dataclass
class Session:
    """What the checks of one kernel were given."""

    seen: set[str] = field(default_factory=set)
    """Exercises whose check was called, with an answer or with none."""
    entries: dict[str, Entry] = field(default_factory=dict)

    def note(self, id: str, encoded: Any, passed: bool, context: Context) -> None:
        """Remember an answer that was checked."""
        at_hand = context.once("what is at hand", lambda: what_is_at_hand(context.things))
        entry = Entry(encoded, passed, (digest(encoded)[:DIGITS],), at_hand)
        earlier = self.entries.get(id)
        self.entries[id] = earlier.then(entry) if earlier else entry


@dataclass(frozen=True)
class Progress:
    """Which exercises are right, which not yet, and which were not attempted in this session."""

    right: tuple[str, ...]
    wrong: tuple[str, ...]
    blank: tuple[str, ...]
    tries: Mapping[str, int]
    """Of every exercise that was attempted: how many different answers, up to the right one."""

    def __str__(self) -> str:
        every = sorted({*self.right, *self.wrong, *self.blank}, key=number)
        if not every:
            return "No exercise has been checked in this session yet."
        return "\n".join(
            self._line(notebook, [id for id in every if id.startswith(f"{notebook}.")])
            for notebook in dict.fromkeys(id[:2] for id in every)
        )

    def _line(self, notebook: str, ids: list[str]) -> str:
        def listed(chosen: Iterable[str]) -> str:
            mine = [id for id in ids if id in chosen]
            if not mine:
                return "none"
            with_tries = (
                f"{id} ({self.tries[id]} tries)" if self.tries.get(id, 1) > 1 else id for id in mine
            )
            return ", ".join(with_tries)

        right = sum(id in self.right for id in ids)
        return (
            f"Notebook {notebook}: {right} of {len(ids)} exercises right. Right: "
            f"{listed(self.right)}. Not right yet: {listed(self.wrong)}. "
            f"Not attempted: {listed(self.blank)}."
        )

    def _ipython_display_(self) -> None:
        """Show nothing more at the end of a cell: the lines are printed already."""


def progress_of(session: Session) -> Progress:
    """What is done of every notebook of which a check was called."""
    notebooks = {id[:2] for id in session.seen}
    every = sorted((id for notebook in notebooks for id in known(notebook)), key=number)
    entries = session.entries
    return Progress(
        right=tuple(id for id in every if id in entries and entries[id].passed),
        wrong=tuple(id for id in every if id in entries and not entries[id].passed),
        blank=tuple(id for id in every if id not in entries),
        tries={id: len(entry.tried) for id, entry in entries.items()},
    )


def number(id: str) -> tuple[int, int]:
    """Where an exercise stands among all: "01.10" comes after "01.9"."""
    notebook, _, place = id.partition(".")
    return int(notebook), int(place)


def what_is_at_hand(things: Mapping[str, Any]) -> dict[str, Any]:
    """The version, model and prompts that answers are checked on, told apart by little.

    A model is told by its name and a few sums over its weights, prompts by a digest of their text:
    enough to notice that something else was loaded or that a cell was changed by accident.
    """
    prompts = {
        name: hashlib.sha256("\n".join(thing.prompts).encode()).hexdigest()[:DIGITS]
        for name, thing in sorted(things.items())
        if isinstance(thing, IOIDataset)
    }
    return {
        "version": ioi_helpers.__version__,
        "model": _model(things.get("model")),
        "prompts": prompts,
    }


def _model(model: Any) -> dict[str, Any]:
    """A model's name, without the folders that lead to it, and sums over its weights."""
    if not hasattr(model, "parameters"):
        return {"name": "", "sums": []}
    sums = [0.0, 0.0, 0.0]
    for parameter in model.parameters():
        weight = parameter.detach().float()
        sums[0] += weight.numel()
        sums[1] += float(weight.abs().sum())
        sums[2] += float(weight.square().sum())
    return {"name": Path(getattr(model, "ioi_name", "")).name, "sums": sums}
