"""A reader who changes a number of a notebook gets what belongs to the new one, everywhere.

The numbers below stand in the notebook once. With others in their place, every right answer still
passes and what is measured twice still agrees: no key, no bank and no helper goes on with the old
number. (Nothing is compared with stored outputs; wrong answers may coincide with other numbers.)
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from notebooks.tools.execution import find_notebooks
from notebooks.tools.exercise_runs import MODELS, NotebookSession, complaint, load_exercises

CHANGES = {
    "04": {"seeds, copy_length = range(8), 50": "seeds, copy_length = range(3, 9), 40"},
    "12": {"CHOICE = None": 'CHOICE = "said again"'},  # another behaviour, as a reader brings one
}
SLOW = {"12"}


class ChangedSession(NotebookSession):
    """A notebook in which a reader has changed some lines."""

    def change(self, changes: dict[str, str]) -> None:
        """Put new text in place of old, which must stand in one code cell, once."""
        self._cells = copy.deepcopy(self._cells)
        for old, new in changes.items():
            places = [cell for cell in self._cells if old in cell.source]
            assert len(places) == 1 and places[0].source.count(old) == 1, old
            places[0].source = places[0].source.replace(old, new)

    def finished(self) -> dict[str, Any]:
        """What a reader has at the end of the notebook."""
        return self.namespace_after(len(self._cells))


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(
    "number", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in CHANGES]
)
def test_a_changed_number_is_followed(number: str, model: str) -> None:
    (path,) = find_notebooks([number])
    session = ChangedSession(path, model)
    session.change(CHANGES[number])
    for exercise in load_exercises(path):
        for source in (exercise.solution, *(answer.source for answer in exercise.right)):
            said = complaint(session.attempt(exercise, source), "right")
            assert said is None, f"{exercise.identifier}: {said}"
    found = session.finished()
    if number == "12":
        assert found["card"]["behaviour"].startswith("said again")
    if number == "04":
        scores = torch.tensor(found["table"]["induction"].to_numpy()).float()
        torch.testing.assert_close(scores, found["robust"].induction.flatten().cpu())
