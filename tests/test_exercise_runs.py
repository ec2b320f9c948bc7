"""The trying of answers is itself tested, on a small notebook whose checks are known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from nbformat import NotebookNode

from notebooks.tools.exercise_runs import (
    Exercise,
    NotebookSession,
    Verdict,
    complaint,
    load_exercises,
    split_check,
)
from notebooks.tools.tasks import tasks
from tests.sample_notebooks import code, notebook, text, write

CHECKS = """\
import os
from types import SimpleNamespace
def check(identifier, answer):
    if answer is None:
        passed, message = None, "not attempted yet"
    elif answer == truth:
        passed, message = True, "correct"
    else:
        passed, message = False, "the sign is wrong" if answer == -truth else "not the number"
    print(f"{identifier}: {message}")
    return SimpleNamespace(passed=passed, message=message)
exercises = SimpleNamespace(check=check)
truth = {"ioi-mini": 4, "ioi-plain": 5}[os.environ["IOI_MODEL"]]"""
TASK = "### Exercise 01.1 · A sum\n\n*Difficulty: easy · about 10 min*\n\nAdd."
ID = {"id": "01.1"}
STUB = 'answer = None  # your code\nexercises.check("01.1", answer)'
SOLUTION = (
    "Why.\n\n<details><summary>Solution</summary>\n\n```python\nanswer = truth\n```\n</details>"
)
BANK = """\
RIGHT = {"01.1": ["answer = truth + 0", "a = truth\\nanswer = a\\nexercises.check('01.1', answer)"]}
WRONG = {"01.1": {"answer = -truth": "sign", "answer = 9": "number"}}
"""


def sample(
    stub: str = STUB,
    solution: str = SOLUTION,
    task: str = TASK,
    known: dict[str, Any] | None = None,
) -> NotebookNode:
    """A notebook with one exercise, whose later cells change what the answer rests on."""
    return notebook(
        code(CHECKS),
        text(task),
        code(stub, tags=["exercise"], exercise=known or ID),
        text(solution, ["solution"]),
        code("truth = 6\nassert answer is None"),
    )


@pytest.fixture
def written(tmp_path: Path) -> tuple[Path, Path]:
    """The sample's path, and that of its bank of answers."""
    bank = tmp_path / "bank.py"
    bank.write_text(BANK)
    return write(sample(), tmp_path / "01_sample.ipynb"), bank


@pytest.mark.parametrize("model", ["ioi-mini", "ioi-plain"])
def test_answers_are_tried_where_the_stub_stands(written: tuple[Path, Path], model: str) -> None:
    [exercise] = load_exercises(*written)
    session = NotebookSession(written[0], model)
    assert complaint(session.attempt(exercise, None), "untouched") is None
    assert complaint(session.attempt(exercise, exercise.solution), "right") is None
    for answer in exercise.right:
        assert complaint(session.attempt(exercise, answer.source), "right") is None
    assert [answer.refusal for answer in exercise.wrong] == ["sign", "number"]
    for answer in exercise.wrong:
        assert complaint(session.attempt(exercise, answer.source), "wrong", answer.refusal) is None


def test_answers_do_not_see_each_other(written: tuple[Path, Path]) -> None:
    [exercise] = load_exercises(*written)
    session = NotebookSession(written[0], "ioi-mini")
    session.attempt(exercise, "truth = 7\nleft_over = 1\nanswer = 7")
    assert session.attempt(exercise, exercise.solution).passed
    with pytest.raises(NameError):
        session.attempt(exercise, "answer = left_over")


@pytest.mark.parametrize(
    ("verdict", "expected", "refusal", "sentence"),
    [
        (Verdict(True, "correct", "correct"), "untouched", None, "untouched stub"),
        (Verdict(None, "not yet", "not yet"), "untouched", None, "untouched stub"),
        (Verdict(False, "no", "no"), "right", None, "right answer was refused"),
        (Verdict(None, "not attempted yet", "not attempted yet"), "right", None, "refused"),
        (Verdict(True, "correct", "correct"), "wrong", "sign", "not refused"),
        (Verdict(False, "no", "no"), "wrong", "sign", "does not name the mistake"),
        (Verdict(False, "the sign", ""), "wrong", "sign", "not printed"),
        (Verdict(True, "well", "well", "100%"), "right", None, "progress bar"),
    ],
)
def test_each_complaint(
    verdict: Verdict, expected: str, refusal: str | None, sentence: str
) -> None:
    assert sentence in (complaint(verdict, expected, refusal) or "")


@pytest.mark.parametrize(
    ("made", "sentence"),
    [
        (sample(stub="answer = None"), "must end with exercises.check"),
        (sample(stub='answer = None\nexercises.check("01.2", answer)'), "must end with"),
        (sample(solution="<details>no code</details>"), "one ```python block"),
        (sample(solution=SOLUTION + "\n```python\n1\n```"), "one ```python block"),
        (notebook(text(TASK), code(STUB, tags=["exercise"], exercise=ID)), "tagged 'solution'"),
        (sample(known={"id": "01.2"}), "id alone"),
        (sample(known={"id": "01.1", "minutes": 10}), "id alone"),
        (sample(task="### Task"), "An exercise begins"),
        (sample(task=TASK.replace("easy", "brutal")), "An exercise begins"),
        (sample(task=TASK.replace("10", "ten")), "An exercise begins"),
    ],
)
def test_a_malformed_exercise_is_refused(tmp_path: Path, made: NotebookNode, sentence: str) -> None:
    path = write(made, tmp_path / "01_sample.ipynb")
    with pytest.raises(ValueError, match=sentence):
        load_exercises(path, tmp_path / "none.py")


def test_answers_to_no_exercise_are_refused(written: tuple[Path, Path]) -> None:
    written[1].write_text('RIGHT = {"01.7": ["answer = 1"]}')
    with pytest.raises(ValueError, match="01.7"):
        load_exercises(*written)


def test_going_back_starts_anew(written: tuple[Path, Path]) -> None:
    [exercise] = load_exercises(*written)
    session = NotebookSession(written[0], "ioi-mini")
    session.run_until(None)
    assert session.attempt(exercise, exercise.solution).passed


def test_a_check_call_may_span_lines() -> None:
    body, check = split_check('a = 1\nexercises.check(\n    "01.1",\n    a,\n)\n', "01.1")
    assert body == "a = 1\n"
    assert check == 'exercises.check(\n    "01.1",\n    a,\n)'


def test_an_exercise_without_a_bank_has_no_answers(written: tuple[Path, Path]) -> None:
    [exercise] = load_exercises(written[0], written[0].parent / "none.py")
    assert isinstance(exercise, Exercise)
    assert exercise.right == exercise.wrong == []


def test_what_is_known_of_an_exercise_stands_above_its_stub() -> None:
    [task] = tasks(sample())
    assert (task.identifier, task.title, task.difficulty, task.minutes) == (
        "01.1",
        "A sum",
        "easy",
        10,
    )
    assert task.text.strip() == "Add."
