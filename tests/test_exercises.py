"""Every exercise of every notebook, on both bundled models.

The untouched stub says that it was not attempted; the solution in the notebook and at least two
differently written right answers pass; at least three plausible wrong answers are each refused
with a message that names the mistake.
"""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path

import pytest
from _pytest.mark import ParameterSet

from notebooks.tools.execution import find_notebooks
from tests.exercise_runs import MODELS, Exercise, NotebookSession, complaint, load_exercises

RIGHT_ANSWERS = 2  # besides the solution
WRONG_ANSWERS = 3
EXERCISES = 4  # a notebook

EXERCISES_BY_NOTEBOOK = {path: load_exercises(path) for path in find_notebooks()}


def every_exercise() -> list[ParameterSet]:
    """All exercises, by their number."""
    every = [e for exercises in EXERCISES_BY_NOTEBOOK.values() for e in exercises]
    return [pytest.param(e, id=e.identifier) for e in every]


def every_attempt() -> list[ParameterSet]:
    """All answers on all models, grouped so that each notebook runs once a model."""
    attempts = []
    for path, exercises in EXERCISES_BY_NOTEBOOK.items():
        for model in MODELS:
            for e in exercises:
                tried: list[tuple[str, str | None, str, str | None]] = [
                    ("stub", None, "untouched", None),
                    ("solution", e.solution, "right", None),
                ]
                tried += [(f"right{i}", a.source, "right", None) for i, a in enumerate(e.right, 1)]
                tried += [
                    (f"wrong{i}", a.source, "wrong", a.refusal)
                    for i, a in enumerate(e.wrong_on(model), 1)
                ]
                for name, source, expected, refusal in tried:
                    attempts.append(
                        pytest.param(
                            path, model, e, source, expected, refusal,
                            id=f"{e.identifier}-{model}-{name}",
                        )
                    )  # fmt: skip
    return attempts


@lru_cache(maxsize=1)
def session(path: Path, model: str) -> NotebookSession:
    """The notebook on the model; the last one is kept, since its attempts follow each other."""
    return NotebookSession(path, model)


@pytest.mark.parametrize(
    ("path", "model", "exercise", "source", "expected", "refusal"), every_attempt()
)
def test_answer(
    path: Path,
    model: str,
    exercise: Exercise,
    source: str | None,
    expected: str,
    refusal: str | None,
) -> None:
    verdict = session(path, model).attempt(exercise, source)
    assert complaint(verdict, expected, refusal) is None


@pytest.mark.parametrize("path", EXERCISES_BY_NOTEBOOK, ids=lambda path: path.stem)
def test_a_notebook_has_enough_exercises(path: Path) -> None:
    found = [exercise.identifier for exercise in EXERCISES_BY_NOTEBOOK[path]]
    assert len(found) >= EXERCISES
    assert found == [f"{path.name[:2]}.{i}" for i in range(1, len(found) + 1)]


@pytest.mark.parametrize("exercise", every_exercise())
def test_the_bank_is_large_enough(exercise: Exercise) -> None:
    assert len(exercise.right) >= RIGHT_ANSWERS
    for model in MODELS:
        assert len(exercise.wrong_on(model)) >= WRONG_ANSWERS, model
    sources = [answer.source for answer in [*exercise.right, *exercise.wrong]]
    assert len({*sources, exercise.solution}) == len(sources) + 1, "an answer stands there twice"


@pytest.mark.parametrize("exercise", every_exercise())
def test_the_task_tells_difficulty_time_and_hints(exercise: Exercise) -> None:
    assert re.search(r"difficulty", exercise.task, re.IGNORECASE)
    assert re.search(r"\d+\s*min", exercise.task, re.IGNORECASE)
    assert "<details>" in exercise.task
    assert re.search(r"<summary>\s*Hint", exercise.task)
