"""The driver: hand out what has no answer yet, again after deaths, and put tables together."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import pandas as pd

from ioi_helpers.runs import DEFAULT_MEMORY, progress_bar
from ioi_helpers.survey import tables
from ioi_helpers.survey.asked import Survey
from ioi_helpers.survey.engines import WorkersLost, engine, hand_out
from ioi_helpers.survey.ledger import Ledger
from ioi_helpers.survey.tables import WHOSE, HasTables
from ioi_helpers.survey.tasks import Call, Places, Task, calls_of, tasks_of
from ioi_helpers.survey.workers import forget_model

OF_TASKS = {
    "model": WHOSE["model"],
    "revision": WHOSE["revision"],
    "weights": WHOSE["weights"],
    "data": WHOSE["data"],
    "question": "which question",
    "done": "whether there is an answer",
    "failure": WHOSE["failure"],
    "seconds": "what the question took, seconds",
    "seconds to load": "what loading the model for it took, 0 where it was there, seconds",
    "parameters": "how many the model has",
    "memory": "the most memory that its worker had held by then, bytes",
    "device": "where it ran",
    "dtype": "of the parameters",
    "worker": "machine and process",
    "file": "the answer's file",
}
"""The columns of the table of tasks."""


@dataclass(frozen=True)
class Results(HasTables):
    """What a survey has found so far.

    Attributes:
        survey: What was asked.
        tasks: A row for each task; :data:`OF_TASKS` says what the columns hold.
        tables: Each question's table, by its label.
    """

    survey: Survey
    tasks: pd.DataFrame = field(repr=False)
    tables: dict[str, pd.DataFrame] = field(repr=False)

    @property
    def failures(self) -> pd.DataFrame:
        """The rows of ``tasks`` that failed."""
        return self.tasks[self.tasks["failure"].notna()]

    def __str__(self) -> str:
        done, failed = int(self.tasks["done"].sum()), len(self.failures)
        memory = self.tasks["memory"].dropna()
        largest = f"; largest worker {memory.max() / 2**30:.1f} GiB" if len(memory) else ""
        return f"{len(self.tasks)} tasks: {done - failed} answered, {failed} failed{largest}"


def run(
    survey: Survey,
    out: str | PathLike[str],
    *,
    backend: str | None = None,
    address: str | None = None,
    n_jobs: int | None = None,
    memory: int = DEFAULT_MEMORY,
    retry: bool = False,
    progress: bool = True,
    tasks: Sequence[Task] | None = None,
) -> Results:
    """Answer what has no answer yet, and return all answers.

    Each answer is written by the worker that found it, whole or not at all, to a file named by all
    that it depends on. So a run that was interrupted goes on where it was when it is started again;
    what was answered before, by this survey or another one in the same folder, is not done again.

    A task that fails is a row that says why. A worker that dies takes no answer with it: what it
    had not finished is handed out again, what it died of alone; a task of which two workers died is
    a row as well.

    Args:
        survey: What is asked.
        out: The folder of results: answers in ``answers/``, the survey's tables in a folder of its
            name. All workers must see it at the same path.
        backend, address, n_jobs: Of :func:`~ioi_helpers.survey.engines.engine`: ``"sequential"``,
            ``"loky"``, ``"dask"`` or ``"ray"``.
        memory: Bytes that a worker may use for activations, beside its model.
        retry: Ask again what failed before.
        progress: Show a bar that counts answers.
        tasks: Of the survey, if they are known.

    Raises:
        ValueError: Arguments that do not fit, or a back end that is not installed.
        WorkersLost: Workers die before they begin anything.
    """
    if memory < 1:
        raise ValueError(f"memory must be a positive number of bytes, not {memory}.")
    tasks = tasks_of(survey) if tasks is None else tasks
    out = Path(out).expanduser().absolute()
    answers = out / "answers"
    answers.mkdir(parents=True, exist_ok=True)
    if retry:
        _forget_failures(answers, tasks)
    ledger = Ledger.open(out / "unfinished")
    places = Places(answers, ledger.folder)
    try:
        if _unanswered(tasks, places):
            with engine(backend, address, n_jobs) as workers:
                with _counting(tasks, places, progress):
                    _until_answered(tasks, places, ledger, memory, workers)
    finally:
        ledger.close()
        forget_model()
    found = results(survey, out, tasks=tasks)
    _write_tables(found, out / survey.name)
    return found


def results(
    survey: Survey, out: str | PathLike[str], *, tasks: Sequence[Task] | None = None
) -> Results:
    """What has been found so far, without running anything; also while a run goes on.

    Args:
        survey, out: As for :func:`run`.
        tasks: Of the survey, if they are known.
    """
    out = Path(out).expanduser().absolute()
    places = Places(out / "answers", out)
    rows: list[dict[str, Any]] = []
    found: dict[str, list[pd.DataFrame]] = {one.label: [] for one in survey.questions}
    columns: dict[str, dict[str, str]] = {one.label: dict(WHOSE) for one in survey.questions}
    for task in tasks_of(survey) if tasks is None else tasks:
        file = places.answer(task)
        whose = {
            "model": task.model.name,
            "revision": task.model.revision,
            "weights": task.weights[:12],
            "data": task.prompts.label,
        }
        row = dict.fromkeys(OF_TASKS) | whose | {"question": task.question.label, "done": False}
        if file.exists():
            table, record = tables.read(file)
            row |= {key: record[key] for key in row.keys() & record.keys() - whose.keys()}
            row |= {"question": task.question.label, "done": True, "file": file.name}
            columns[task.question.label] |= table.attrs["columns"]
            table = table.drop(columns="failure", errors="ignore")
            table.attrs = {}
            for place, (name, value) in enumerate((whose | {"failure": row["failure"]}).items()):
                table.insert(place, name, pd.Series([value] * len(table), dtype="string"))
            found[task.question.label].append(table)
        rows.append(row)
    joined = {label: _joined(parts, columns[label]) for label, parts in found.items()}
    listed = pd.DataFrame(rows)
    texts = [*WHOSE, "question", "device", "dtype", "worker", "file"]
    listed = listed.astype(dict.fromkeys(texts, "string") | {"done": bool})
    for name in ("parameters", "memory"):
        listed[name] = listed[name].astype("Int64")
    listed.attrs = {"columns": dict(OF_TASKS)}
    return Results(survey, listed, joined)


def _joined(parts: Sequence[pd.DataFrame], columns: dict[str, str]) -> pd.DataFrame:
    """Tables below each other; the rows of tasks that failed, which hold no numbers, last."""
    whole = [part for part in parts if part["failure"].isna().all()]
    failed = [part for part in parts if not part["failure"].isna().all()]
    if not parts:
        table = pd.DataFrame({name: pd.Series(dtype="string") for name in WHOSE})
    elif not whole or not failed:
        table = pd.concat(parts, ignore_index=True)
    else:
        # Whole numbers would become fractions beside rows that have none.
        counts = {
            name: "Int64"
            for part in whole
            for name, kind in part.dtypes.items()
            if pd.api.types.is_integer_dtype(kind)
        }
        first = pd.concat(whole, ignore_index=True).astype(counts)
        table = pd.concat([first, *failed], ignore_index=True)
    table.attrs = {"columns": columns}
    return table


# --- until everything is answered ----------------------------------------------------------------


def _until_answered(
    tasks: Sequence[Task], places: Places, ledger: Ledger, memory: int, workers: int
) -> None:
    """Hand out what has no answer, and again what workers died of, alone."""
    while left := _unanswered(tasks, places):
        before = (len(left), sum(map(ledger.begun, left)))
        suspects = [task for task in left if ledger.begun(task)]
        fresh = [task for task in left if not ledger.begun(task)]
        # Who died of what is sure only where nothing else was being done: loky and Ray lose all
        # that their workers were at.
        rounds = [calls_of(fresh, places, memory, workers)] if fresh else []
        rounds += [[Call((task,), places, memory)] for task in suspects]
        lost = None
        for calls in rounds:
            try:
                hand_out(calls)
            except WorkersLost as error:
                lost = error
        still = _unanswered(tasks, places)
        if (len(still), sum(map(ledger.begun, still))) == before:
            raise lost or WorkersLost(
                f"Workers are through with their calls, but {len(still)} answers did not arrive in "
                f"{str(places.answers)!r}; give results a folder that all workers share."
            )


def _unanswered(tasks: Sequence[Task], places: Places) -> list[Task]:
    there = _answered(places)
    return [task for task in tasks if places.answer(task).name not in there]


def _answered(places: Places) -> set[str]:
    return {path.name for path in places.answers.glob("*.parquet")}


def _forget_failures(answers: Path, tasks: Sequence[Task]) -> None:
    places = Places(answers, answers)
    for file in {places.answer(task) for task in tasks}:
        if file.exists() and tables.read(file)[1]["failure"] is not None:
            file.unlink()


@contextmanager
def _counting(tasks: Sequence[Task], places: Places, progress: bool) -> Iterator[None]:
    """A bar that counts the answers as they arrive, whichever engine is at work."""
    names = {places.answer(task).name for task in tasks}
    over = threading.Event()

    def count(bar: Any) -> None:
        while not over.wait(0.5):
            bar.n = len(names & _answered(places))
            bar.refresh()

    with progress_bar("survey", show=progress, total=len(names)) as bar:
        bar.n = bar.initial = len(names & _answered(places))
        watcher = threading.Thread(target=count, args=(bar,), daemon=True)
        if not bar.disable:
            watcher.start()
        try:
            yield
        finally:
            over.set()
            if not bar.disable:
                watcher.join()


def _write_tables(found: Results, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for label, table in {**found.tables, "tasks": found.tasks}.items():
        tables.write(table, folder / f"{label}.parquet", {"survey": found.survey.name}, folder)
