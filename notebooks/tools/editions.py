"""Make the editions for a classroom from the notebooks: `make editions`.

    python -m notebooks.tools editions [01 02 ...] [--out build/editions]

`student/` has no solutions and no outputs; checks and hints stay, and a last cell writes what is to
be handed in. `teacher/` has each solution in its stub's cell, what the check says of it, the stored
outputs (what figures should look like on ioi-mini), and below each exercise the wrong answers that
its check was tried on, with the sentence that meets each. Both are made from the notebooks and the
banks of answers alone and are kept nowhere else: change those.
"""

from __future__ import annotations

import ast
import contextlib
import re
from collections.abc import Sequence
from pathlib import Path

import nbformat
from nbformat import NotebookNode
from tqdm import tqdm

from notebooks.tools.execution import REPOSITORY, arguments_for, find_notebooks
from notebooks.tools.exercise_runs import (
    SOLUTION,
    Exercise,
    NotebookSession,
    load_exercises,
    split_check,
)
from notebooks.tools.stored_outputs import MODEL, code_cells, read, tags

OUT = REPOSITORY / "build" / "editions"
COLAB = re.compile(r"^\[!\[Open In Colab\].*\n+", re.MULTILINE)
BLANK = re.compile(r"^\w+ = None  # your .*\n", re.MULTILINE)

HAND_IN = """## Hand in

`exercises.progress()` says what is done. `exercises.export("your-name")` writes your answers to the
file `your-name.json` in this notebook's folder. Give the same name in every notebook, and one file
holds them all: hand it in. It holds your answers and not your code; your teacher gets from it who,
which exercise, how many tries, right or wrong. After a restart run the cells with your answers
again first."""
HAND_IN_CODE = """\
exercises.progress()
# exercises.export("your-name")  # take away the first "#" to write the file"""


def student(notebook: NotebookNode) -> NotebookNode:
    """A copy without solutions and outputs, whose last cell writes what is to be handed in."""
    made = _copy(notebook, "student")
    made.cells = [cell for cell in made.cells if "solution" not in tags(cell)]
    made.cells += [
        nbformat.v4.new_markdown_cell(HAND_IN, id="hand-in"),
        nbformat.v4.new_code_cell(HAND_IN_CODE, id="hand-in-code"),
    ]
    for cell in code_cells(made):
        cell.outputs, cell.execution_count = [], None
    return made


def teacher(
    notebook: NotebookNode, exercises: Sequence[Exercise], session: NotebookSession
) -> NotebookNode:
    """A copy with solutions in their stubs' cells, and the wrong answers that are known.

    `session` is the notebook on the model whose outputs it stores.
    """
    made = _copy(notebook, "teacher")
    waiting = list(exercises)
    cells = [nbformat.v4.new_markdown_cell(_overview(exercises), id="for-the-teacher")]
    for cell in made.cells:
        if "exercise" in tags(cell):
            exercise = waiting[0]
            cell.source = solved(exercise)
            printed = session.attempt(exercise, exercise.solution).printed
            cell.outputs = [nbformat.v4.new_output("stream", name="stdout", text=printed)]
        elif "solution" in tags(cell):
            cell.source = _explained(cell.source)
        cells.append(cell)
        if "solution" in tags(cell):
            exercise = waiting.pop(0)
            place = exercise.identifier.replace(".", "-")
            text = _wrong_answers(exercise, session)
            cells.append(nbformat.v4.new_markdown_cell(text, id=f"wrong-answers-{place}"))
    made.cells = [cells[1], cells[0], *cells[2:]]  # its title stays first
    return made


def solved(exercise: Exercise) -> str:
    """A stub's cell with the solution in the place of what it leaves open."""
    before, check = split_check(exercise.stub, exercise.identifier)
    solution = exercise.solution.strip()
    with contextlib.suppress(ValueError):  # a solution need not repeat the check
        solution, check = split_check(solution, exercise.identifier)
    given = BLANK.sub("", before).strip("\n")
    if _statements(given) <= _statements(solution):  # it says them again
        given = ""
    return "\n\n".join(part for part in (given, solution.strip("\n")) if part) + f"\n{check}"


def _statements(source: str) -> set[str]:
    return {ast.dump(statement) for statement in ast.parse(source).body}


def _copy(notebook: NotebookNode, edition: str) -> NotebookNode:
    """A copy without the link to Colab, which would open the notebook itself and no edition."""
    made = nbformat.from_dict(notebook)
    made.metadata["ioi_helpers_edition"] = edition
    for cell in made.cells:
        cell.source = COLAB.sub("", cell.source)
    return made


def _overview(exercises: Sequence[Exercise]) -> str:
    """What a teacher sees first: the exercises, how hard, how long."""
    rows = [
        f"| {e.identifier} | {e.task.title} | {e.task.difficulty} | {e.task.minutes} "
        f"| {len(e.wrong)} |"
        for e in exercises
    ]
    minutes = sum(e.task.minutes for e in exercises)
    return "\n".join(
        [
            f"**Teacher's edition**, made from this notebook: its outputs are those of `{MODEL}`, "
            "each exercise is solved, and below it stand wrong answers with what the check says.",
            "",
            "| exercise | | difficulty | minutes | wrong answers below |",
            "|---|---|---|---|---|",
            *rows,
            f"| together | | | {minutes} | {sum(len(e.wrong) for e in exercises)} |",
        ]
    )


def _explained(source: str) -> str:
    """A solution's words, open, without its code, which is in the cell above."""
    text = re.sub(r"</?details>|<summary>.*?</summary>", "", source)
    assert SOLUTION.search(source)
    words = re.sub(r"```python\n.*?```", "*(the code in the cell above)*", text, flags=re.DOTALL)
    return f"**Solution.** {words.strip()}"


def _wrong_answers(exercise: Exercise, session: NotebookSession) -> str:
    """Wrong answers and what the check says of each on the session's model."""
    parts = [
        f"<details><summary>What goes wrong: {len(exercise.wrong)} answers and what the check says "
        f"of each on {session.model}</summary>"
    ]
    for answer in exercise.wrong:
        verdict = session.attempt(exercise, answer.source)
        # On this model a mistake may lead to the right answer; the message says so.
        said = verdict.message if not verdict.passed else f"(Accepted here.) {verdict.message}"
        parts += [f"```python\n{answer.source.strip()}\n```", f"> {said}"]
    return "\n\n".join([*parts, "</details>"])


def make(path: Path, out: Path) -> list[Path]:
    """Write both editions of the notebook at `path` below `out`; returns their paths."""
    notebook, exercises = read(path), load_exercises(path)
    session = NotebookSession(path, MODEL)
    made = {"student": student(notebook), "teacher": teacher(notebook, exercises, session)}
    written = []
    for edition, copy in made.items():
        folder = out / edition
        folder.mkdir(parents=True, exist_ok=True)
        nbformat.write(copy, folder / path.name)
        written.append(folder / path.name)
    return written


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = arguments_for("Make editions for students and teachers.")
    parser.add_argument("--out", type=Path, default=OUT, help="default: build/editions")
    options = parser.parse_args(arguments)
    paths = find_notebooks(options.notebooks)
    for path in tqdm(paths, unit="notebook", dynamic_ncols=True):
        make(path, options.out)
    print(f"\nStudents' and teachers' editions of {len(paths)} notebooks are in {options.out}")
    return 0
