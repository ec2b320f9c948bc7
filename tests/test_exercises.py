"""Every exercise of every notebook, on both bundled models.

The untouched stub says that it was not attempted; the solution in the notebook and at least two
differently written right answers pass; at least three plausible wrong answers are each refused
with a message that names the mistake. And every key is fair: a right answer passes in any form, and
rounded it passes or is asked for more digits; a number that a mistake gives is met with every
mistake that gives it; what cannot be told on a model is in a table, and said.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from _pytest.mark import ParameterSet

from ioi_helpers.exercises import Key, decide
from ioi_helpers.exercises.forms import Heads, Numbers, as_array, as_heads
from ioi_helpers.exercises.verdicts import judge, mistake
from ioi_helpers.metrics import Estimate
from ioi_helpers.names import head_name
from notebooks.tools.execution import find_notebooks
from notebooks.tools.exercise_runs import (
    ANSWERS,
    MODELS,
    Answer,
    Exercise,
    NotebookSession,
    complaint,
    load_exercises,
)
from tests.notebook_sessions import session

RIGHT_ANSWERS = 2  # besides the solution
WRONG_ANSWERS = 3
EXERCISES = 4  # a notebook
SECONDS = 1.0  # that a check may take, once what it compares with is computed

EXERCISES_BY_NOTEBOOK = {path: load_exercises(path) for path in find_notebooks()}
COINCIDENCES = ANSWERS / "coincidences.md"

Trial = Callable[[NotebookSession, Exercise], str | None]


# --- what is tried on every exercise --------------------------------------------------------------


def untouched(session: NotebookSession, exercise: Exercise) -> str | None:
    """The stub as it stands."""
    return complaint(session.attempt(exercise, None), "untouched")


def right(source: str) -> Trial:
    """An answer that must pass, and quickly once another has been checked."""

    def trial(session: NotebookSession, exercise: Exercise) -> str | None:
        return complaint(session.attempt(exercise, source), "right")

    return trial


def wrong(answer: Answer) -> Trial:
    """An answer that must be refused, unless the table says that it coincides with the truth."""

    def trial(session: NotebookSession, exercise: Exercise) -> str | None:
        verdict = session.attempt(exercise, answer.source)
        row = in_the_bank(answer)
        if row not in coincidences(exercise, session.model):
            said = complaint(verdict, "wrong", answer.refusal)
            if said and verdict.passed:
                said += (
                    f"\nor add this row to {COINCIDENCES.name}: {row_of(row, exercise, session)}"
                )
            return said
        if verdict.passed and "on this model" not in verdict.message.lower():
            return f"that it cannot be told is not said: {verdict.message}"
        said = complaint(verdict, "right")
        row = row_of(row, exercise, session)
        return said and f"{said}\nor delete this row of {COINCIDENCES.name}: {row}"

    return trial


def in_the_bank(answer: Answer) -> str:
    """How the table of coincidences calls a wrong answer."""
    return f"an answer to be refused with `{answer.refusal}`"


def quick(session: NotebookSession, exercise: Exercise) -> str | None:
    """The second answer that is tried is checked in a moment."""
    while len(session.seconds[exercise.identifier]) < 2:
        session.attempt(exercise, exercise.solution)
    seconds = session.seconds[exercise.identifier][1]
    return f"a second check takes {seconds:.1f} s" if seconds > SECONDS else None


def rounding(session: NotebookSession, exercise: Exercise) -> str | None:
    """A right answer rounded to two or three decimals is never said to be a mistake."""
    key = session.key(exercise)
    if not isinstance(key.form, Numbers):
        return None
    for truth in (key.truth, *key.others.values()):
        for decimals in (2, 3):
            verdict = decide(np.round(truth, decimals), key)
            if not verdict.passed and "decimals" not in verdict.message:
                return f"{truth} with {decimals} decimals: {verdict.message}"
    return None


def forms(session: NotebookSession, exercise: Exercise) -> str | None:
    """A right answer passes as text, list, array, tensor, pandas' or with its error."""
    key = session.key(exercise)
    for answer in in_every_form(key):
        verdict = decide(answer, key)
        if not verdict.passed:
            return f"{answer!r} was refused: {verdict.message}"
    return None


def in_every_form(key: Key) -> Iterator[Any]:
    """The truth as readers may have it."""
    if isinstance(key.form, Heads):
        pairs = as_heads(key.truth)
        names = [head_name(*pair) for pair in pairs]
        series = pd.Series(names, dtype=object)
        yield from (names, set(names), pairs, np.array(names), series, pd.Index(series))
        yield ", ".join(names) if names else ()
    if not isinstance(key.form, Numbers):
        return
    truth = as_array(key.truth)
    tensor = torch.from_numpy(truth)
    yield from (truth, tensor, tensor.float(), tensor.clone().requires_grad_(), truth.tolist())
    if not key.form.axes:
        value = truth.item()
        yield from (np.float32(value), tensor[None], [value], (tensor,), pd.Series([value]))
        asked_for = {"mean": 0.1, "stderr": 0.1} | {key.form.of_estimate: value}
        yield from (str(value), Estimate(**asked_for, n=8), [[value]])
    elif len(key.form.axes) == 1:
        yield from (tensor[:, None], tensor[None], pd.Series(truth), list(tensor))
        yield [Estimate(value, 0.1, 8) for value in truth.tolist()]
    else:
        yield from (pd.DataFrame(truth), list(tensor), tensor[None])


def told(session: NotebookSession, exercise: Exercise) -> str | None:
    """Each mistake's value is met with its sentence, which reads on from "what one gets by"."""
    key = session.key(exercise)
    for text, value in key.wrong.items():
        clause = mistake(text)
        if not clause.split()[0].endswith("ing") or text.endswith("."):
            return f"{text!r} does not go on from 'what one gets by' or ends with a full stop"
        passed, said = judge(value, key)
        if clause not in said and not passed and "decimals" not in said:
            return f"{text!r} is met with {said!r}"
    return None


def tabled(session: NotebookSession, exercise: Exercise) -> str | None:
    """The table of coincidences holds what mistakes give the right answer on the model."""
    key = session.key(exercise)
    found = {mistake(text) for text in key.coincidences}
    if key.nothing:
        found.add("anything near zero: the truth is nothing within its error")
    known = {row for row in coincidences(exercise, session.model) if not row.startswith("an ans")}
    changes = [
        f"{what} this row: {row_of(row, exercise, session)}"
        for what, rows in (("add", found - known), ("delete", known - found))
        for row in sorted(rows)
    ]
    return "\n".join([f"in {COINCIDENCES.name}", *changes]) if changes else None


def row_of(what: str, exercise: Exercise, session: NotebookSession) -> str:
    """A row of the table."""
    return f"| {exercise.identifier} | {session.model} | {what} |"


@lru_cache
def coincidence_table() -> list[tuple[str, str, str]]:
    """The rows of the table: exercise, model, and what gives the right answer there."""
    lines = COINCIDENCES.read_text(encoding="utf-8").splitlines()
    rows = [re.split(r" \| ", line[2:-2]) for line in lines if re.match(r"\| \d", line)]
    return [(row[0], row[1], row[2]) for row in rows]


def coincidences(exercise: Exercise, model: str) -> set[str]:
    """What is listed for an exercise on a model."""
    return {
        what for id, on, what in coincidence_table() if (id, on) == (exercise.identifier, model)
    }


# --- the tests ------------------------------------------------------------------------------------


def every_exercise() -> list[ParameterSet]:
    """All exercises, by their number."""
    every = [e for exercises in EXERCISES_BY_NOTEBOOK.values() for e in exercises]
    return [pytest.param(e, id=e.identifier) for e in every]


def every_trial() -> list[ParameterSet]:
    """All trials on all models, grouped so that each notebook runs once a model."""
    found = []
    for path, exercises in EXERCISES_BY_NOTEBOOK.items():
        for model in MODELS:
            for e in exercises:
                trials: dict[str, Trial] = {"stub": untouched, "solution": right(e.solution)}
                trials |= {f"right{i}": right(a.source) for i, a in enumerate(e.right, 1)}
                trials |= {f"wrong{i}": wrong(a) for i, a in enumerate(e.wrong, 1)}
                generic = (quick, rounding, forms, told, tabled)
                trials |= {trial.__name__: trial for trial in generic}
                found += [
                    pytest.param(path, model, e, trial, id=f"{e.identifier}-{model}-{name}")
                    for name, trial in trials.items()
                ]
    return found


@pytest.mark.parametrize(("path", "model", "exercise", "trial"), every_trial())
def test_exercise(path: Path, model: str, exercise: Exercise, trial: Trial) -> None:
    complaint = trial(session(path, model), exercise)
    if complaint:
        pytest.fail(complaint, pytrace=False)


@pytest.mark.parametrize("path", EXERCISES_BY_NOTEBOOK, ids=lambda path: path.stem)
def test_a_notebook_has_enough_exercises(path: Path) -> None:
    found = [exercise.identifier for exercise in EXERCISES_BY_NOTEBOOK[path]]
    assert len(found) >= EXERCISES
    assert found == [f"{path.name[:2]}.{i}" for i in range(1, len(found) + 1)]


@pytest.mark.parametrize("exercise", every_exercise())
def test_the_bank_is_large_enough(exercise: Exercise) -> None:
    assert len(exercise.right) >= RIGHT_ANSWERS
    for model in MODELS:
        told = coincidences(exercise, model)
        refused = [answer for answer in exercise.wrong if in_the_bank(answer) not in told]
        assert len(refused) >= WRONG_ANSWERS, model
    sources = [answer.source for answer in [*exercise.right, *exercise.wrong]]
    assert len({*sources, exercise.solution}) == len(sources) + 1, "an answer stands there twice"


@pytest.mark.parametrize("exercise", every_exercise())
def test_the_task_has_hints(exercise: Exercise) -> None:
    assert "<details>" in exercise.task.text
    assert re.search(r"<summary>\s*Hint", exercise.task.text)


def test_the_table_of_coincidences_is_of_answers_that_there_are() -> None:
    every = {e.identifier: e for exercises in EXERCISES_BY_NOTEBOOK.values() for e in exercises}
    for id, model, what in coincidence_table():
        assert model in MODELS
        patterns = [in_the_bank(answer) for answer in every[id].wrong]
        assert not what.startswith("an answer") or patterns.count(what) == 1, (id, what)
