"""Surveys that ship with the package: their tables, and the questions to ask of other models."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from ioi_helpers.survey import tables
from ioi_helpers.survey.asked import ModelLike, Survey
from ioi_helpers.survey.tables import HasTables

SHIPPED = Path(__file__).parent / "shipped"
OF_MODELS = "models"
"""The table that has a row for each model: how it came about, and whether it does the task."""


@dataclass(frozen=True)
class Shipped(HasTables):
    """A survey that was run already: its tables, and what was asked.

    Attributes:
        name: What :func:`shipped` was given.
        models: A row for each model: how it was trained, from which seed, whether it learned the
            task. ``attrs["columns"]`` says what each column holds.
        tables: Each question's table, by its label, as a run of the survey returns them.
        data, questions: As :meth:`~ioi_helpers.survey.Survey.of` takes them.
    """

    name: str
    models: pd.DataFrame = field(repr=False)
    tables: dict[str, pd.DataFrame] = field(repr=False)
    data: dict[str, dict[str, Any]] = field(repr=False)
    questions: dict[str, dict[str, Any]] = field(repr=False)

    def of(self, models: Iterable[ModelLike], name: str = "mine") -> Survey:
        """The same questions, on prompts of the same recipe, of other models.

        ::

            asked = survey.shipped("seeds").of(["EleutherAI/pythia-160m", "./my-model"])
            found = survey.run(asked, "results")

        Args:
            models, name: Of :meth:`~ioi_helpers.survey.Survey.of`.
        """
        return Survey.of(models, self.data, self.questions, name)

    def __str__(self) -> str:
        return f"{self.name}: {len(self.models)} models; questions: {', '.join(self.tables)}"


def shipped_names() -> tuple[str, ...]:
    """The names that :func:`shipped` takes."""
    return tuple(sorted(path.parent.name for path in SHIPPED.glob("*/asked.toml")))


def shipped(name: str) -> Shipped:
    """A survey that ships with the package; nothing is run.

    Raises:
        ValueError: There is none of that name.
    """
    if name not in shipped_names():
        raise ValueError(
            f"No survey called {name!r} ships with this version; there is "
            f"{', '.join(shipped_names()) or 'none'}."
        )
    folder = SHIPPED / name
    data, questions = read_asked(folder)
    found = {
        label: tables.read(folder / f"{label}.parquet")[0] for label in (OF_MODELS, *questions)
    }
    return Shipped(name, found.pop(OF_MODELS), found, data, questions)


def read_asked(folder: Path) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
    """Prompts and questions of a survey that ships, as :meth:`Survey.of` takes them."""
    asked = tomllib.loads((folder / "asked.toml").read_text(encoding="utf-8"))
    return asked["data"], asked["questions"]
