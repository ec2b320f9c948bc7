"""Try answers to a notebook's exercises, as a reader would who types them into the stub's cell.

A notebook's code cells are executed in this process up to an exercise's stub; every answer starts
from a copy of what a reader has at that point. An answer is Python source that assigns what the
stub assigns; it is run between the stub's own lines and its closing `exercises.check` call.
Solutions come from the notebook itself, other answers from `tests/answers/`, one file a notebook:

    RIGHT = {"01.1": ["answer = ...", "..."]}          # each must pass
    WRONG = {"01.1": {"answer = -1": r"sign", ...}}    # each must be refused so

On some model a mistake may lead to the right answer. Which does so where is a table, kept in
`tests/answers/coincidences.md` and compared with what is found.
"""

from __future__ import annotations

import ast
import contextlib
import io
import json
import os
import re
import runpy
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

from IPython.core.inputtransformer2 import TransformerManager
from nbformat import NotebookNode

from ioi_helpers import exercises as package
from ioi_helpers.exercises import Context, Key
from ioi_helpers.exercises.values import from_json
from notebooks.tools.execution import REPOSITORY
from notebooks.tools.stored_outputs import NOT_ATTEMPTED, read, tags
from notebooks.tools.tasks import Task, read_task

MODELS = ("ioi-mini", "ioi-plain")
ANSWERS = REPOSITORY / "tests" / "answers"
SOLUTION = re.compile(
    r"<details>\s*<summary>\s*Solution\s*</summary>.*?```python\n(.*?)```.*?</details>", re.DOTALL
)


@dataclass(frozen=True)
class Answer:
    """An answer's source; `refusal` is what the message of a wrong one must match."""

    source: str
    refusal: str | None = None


@dataclass(frozen=True)
class Exercise:
    """An exercise of a notebook: its task, its stub, its solution, and the answers to try on it."""

    task: Task
    stub: str
    solution: str
    right: list[Answer] = field(default_factory=list)
    wrong: list[Answer] = field(default_factory=list)

    @property
    def identifier(self) -> str:
        """Such as "01.3"."""
        return self.task.identifier


@dataclass(frozen=True)
class Verdict:
    """What the check said: `passed` (None: not attempted), its message, and what was printed."""

    passed: bool | None
    message: str
    printed: str
    progress: str = ""
    """What the check wrote to the standard error, as progress bars do."""
    recorded: bool | None = None
    """What the check says of the answer as a record holds it, once handed in and collected."""


@dataclass
class Recorder:
    """Takes the place of a session's log: keeps the answer that was checked last, as a record would
    hold it."""

    seen: set[str] = field(default_factory=set)
    held: str = ""
    key: Key | None = None

    def note(self, id: str, encoded: Any, passed: bool, context: Context) -> None:
        """Keep what a record would hold."""
        self.held, self.key = json.dumps(encoded, allow_nan=False), context.key(id)

    def verdict(self) -> bool | None:
        """The check's verdict on what is held; None where nothing was."""
        if self.key is None:
            return None
        return package.decide(from_json(json.loads(self.held)), self.key).passed


def load_exercises(path: Path, answers: Path | None = None) -> list[Exercise]:
    """The exercises of the notebook at `path` with their bank of answers.

    Raises ValueError where the notebook and the bank do not fit together.
    """
    bank_file = answers or ANSWERS / f"{path.name[:2]}.py"
    bank = runpy.run_path(str(bank_file)) if bank_file.exists() else {}
    right, wrong = bank.get("RIGHT", {}), bank.get("WRONG", {})
    exercises: list[Exercise] = []
    cells = read(path).cells
    for place, cell in enumerate(cells):
        if "exercise" not in tags(cell):
            continue
        task = read_task(cells[place - 1].source if place else "")
        identifier = task.identifier
        if cell.metadata.get("exercise") != {"id": identifier}:
            raise ValueError(f"{path.name}: the metadata of {identifier} must be its id alone.")
        if any(known.identifier == identifier for known in exercises):
            raise ValueError(f"{path.name}: exercise {identifier} stands there twice.")
        split_check(cell.source, identifier)
        exercises.append(
            Exercise(
                task,
                cell.source,
                _solution(cells, place, identifier),
                [Answer(source) for source in right.get(identifier, [])],
                [Answer(*entry) for entry in wrong.get(identifier, {}).items()],
            )
        )
    unknown = {*right, *wrong} - {exercise.identifier for exercise in exercises}
    if unknown:
        raise ValueError(f"{bank_file.name} answers exercises that {path.name} lacks: {unknown}.")
    return exercises


def _solution(cells: list[NotebookNode], place: int, identifier: str) -> str:
    below = cells[place + 1] if place + 1 < len(cells) else None
    if below is None or "solution" not in tags(below):
        raise ValueError(f"Below the stub of {identifier} there is no cell tagged 'solution'.")
    blocks = SOLUTION.findall(below.source)
    if len(blocks) != 1 or below.source.count("```python") != 1:
        raise ValueError(
            f"The solution of {identifier} must be one ```python block in "
            "<details><summary>Solution</summary>."
        )
    return blocks[0]


def split_check(source: str, identifier: str) -> tuple[str, str]:
    """Cut a cell in two: what comes before its closing check call, and that call.

    Raises ValueError if the last statement is not `exercises.check("<identifier>", ...)`.
    """
    statements = ast.parse(source).body
    last = statements[-1] if statements else None
    if isinstance(last, ast.Expr) and isinstance(last.value, ast.Call):
        call = last.value
        name = call.func.attr if isinstance(call.func, ast.Attribute) else None
        first = call.args[0] if call.args else None
        if name == "check" and isinstance(first, ast.Constant) and first.value == identifier:
            lines = source.splitlines(keepends=True)
            check = ast.get_source_segment(source, last) or ""
            return "".join(lines[: last.lineno - 1]), check
    raise ValueError(f'The cell must end with exercises.check("{identifier}", ...).')


class NotebookSession:
    """A notebook executed in this process on one model, as far as the exercise being tried.

    Exercises are best tried in their order: going back starts the notebook anew. What a reader has
    where a cell tagged `plain` stands is kept.
    """

    def __init__(self, path: Path, model: str) -> None:
        self.path = path
        self.model = model
        self._cells: list[NotebookNode] = []
        self._to_keep: set[int] = set()
        for cell in read(path).cells:
            if cell.cell_type == "code":
                self._cells.append(cell)
            elif "plain" in tags(cell):
                self._to_keep.add(len(self._cells))
        self._restart()

    def _restart(self) -> None:
        self.seconds: dict[str, list[float]] = defaultdict(list)
        """Of the processor, that each check of an answer took, by exercise."""
        self._next = 0
        self._kept: dict[int, dict[str, Any]] = {}
        self._namespace: dict[str, Any] = {
            "__name__": "__main__",
            "display": lambda *_, **__: None,
        }

    def run_until(self, identifier: str | None) -> None:
        """Execute the cells before the stub of an exercise (None: all cells)."""
        stops = {
            cell.metadata["exercise"]["id"]: place
            for place, cell in enumerate(self._cells)
            if "exercise" in tags(cell)
        }
        self._run(len(self._cells) if identifier is None else stops[identifier])

    def namespace_after(self, cells: int) -> dict[str, Any]:
        """A copy of what a reader has after the notebook's first so many code cells."""
        if cells not in self._kept:
            self._run(cells)
        return dict(self._kept.get(cells, self._namespace))

    def _run(self, stop: int) -> None:
        if stop < self._next:
            self._restart()
        for place in range(self._next, stop):
            source = TransformerManager().transform_cell(self._cells[place].source)
            with self._as_a_kernel(io.StringIO()):
                where = f"{self.path.name}, code cell {place + 1}"
                exec(compile(source, where, "exec"), self._namespace)
            self._next = place + 1
            if self._next in self._to_keep:
                self._kept[self._next] = dict(self._namespace)

    def attempt(self, exercise: Exercise, source: str | None) -> Verdict:
        """Run the stub with `source` (None: nothing) before its check call, and the check.

        The source may end with the check call itself, as a solution to copy does.
        """
        stub, check = split_check(exercise.stub, exercise.identifier)
        answer = source or ""
        with contextlib.suppress(ValueError):
            answer, check = split_check(answer, exercise.identifier)
        namespace = self._filled_in(exercise, stub, answer)
        printed, progress = io.StringIO(), io.StringIO()
        recorder = Recorder()
        began = time.process_time()  # the clock would count a busy machine against the check
        with (
            self._as_a_kernel(printed, progress),
            mock.patch.object(package, "_session", recorder),
        ):
            result = eval(check, namespace)
        seconds = time.process_time() - began
        if result.passed is not None:
            self.seconds[exercise.identifier].append(seconds)
        # Functions of an answer refer to the namespace that holds them: what they cached would stay
        # until the collector comes round, gigabytes of it where answers run the model.
        namespace.clear()
        with self._as_a_kernel(io.StringIO()):
            recorded = recorder.verdict()
        return Verdict(
            result.passed,
            str(result.message),
            printed.getvalue(),
            progress.getvalue(),
            recorded,
        )

    def key(self, exercise: Exercise) -> Key:
        """What answers to the exercise are held against, on this model."""
        stub, check = split_check(exercise.stub, exercise.identifier)
        namespace = self._filled_in(exercise, stub)

        def key_of(identifier: str, answer: Any, **things: Any) -> Key:
            return package._current.with_things(things).key(identifier)

        with self._as_a_kernel(io.StringIO()), mock.patch.object(package, "check", key_of):
            key = eval(check, namespace)
        assert isinstance(key, Key)
        return key

    def _filled_in(self, exercise: Exercise, *bodies: str) -> dict[str, Any]:
        """What a reader has who has run the stub with an answer in it, but for the check."""
        self.run_until(exercise.identifier)
        namespace = dict(self._namespace)
        with self._as_a_kernel(io.StringIO()):
            for body in bodies:
                exec(compile(body, f"answer to {exercise.identifier}", "exec"), namespace)
        return namespace

    @contextlib.contextmanager
    def _as_a_kernel(self, printed: io.StringIO, progress: io.StringIO | None = None) -> Any:
        """The notebook's folder, its model, and what it writes in `printed` and `progress`."""
        with (
            mock.patch.dict(os.environ, {"IOI_MODEL": self.model}),
            contextlib.chdir(self.path.parent),
            contextlib.redirect_stdout(printed),
            contextlib.redirect_stderr(progress or io.StringIO()),
        ):
            yield


def complaint(verdict: Verdict, expected: str, refusal: str | None = None) -> str | None:
    """Why a verdict is not as expected, or None.

    `expected` is "untouched", "right" or "wrong"; a wrong answer's message must match `refusal`.
    """
    said = f"the check said {verdict.message!r}"
    if expected == "untouched":
        if verdict.passed is not None or NOT_ATTEMPTED not in verdict.printed.lower():
            return f"an untouched stub must print '{NOT_ATTEMPTED}', but {said}"
    elif expected == "right":
        if verdict.passed is not True:
            return f"a right answer was refused: {said}"
    elif verdict.passed is not False:
        return f"a wrong answer was not refused: {said}"
    elif not re.search(refusal or "", verdict.message, re.IGNORECASE | re.DOTALL):
        return f"the refusal does not name the mistake ({refusal}): {said}"
    if verdict.recorded is not None and verdict.recorded != verdict.passed:
        return f"handed in and collected, the same answer is {verdict.recorded}, but {said}"
    if verdict.message not in verdict.printed:
        return f"the message was not printed: {said}, but printed {verdict.printed!r}"
    if verdict.progress:
        return f"a check must not draw a progress bar: {verdict.progress!r}"
    return None
