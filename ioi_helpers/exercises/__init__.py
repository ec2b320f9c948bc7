"""Checks for the exercises: whether an answer is right and, where it is wrong, what went wrong.

A notebook binds what its checks may use once, then checks every answer:

    exercises.use(model=model, demo=demo, data=data)
    exercises.check("01.3", answer)

The truth is recomputed on the model that was given, never looked up. A check prints one line and
returns a result whose `passed` is True, False, or None for an exercise that was not attempted yet.

What answers are held against are tables, one an exercise, in one module a notebook (`nb01`, ...):
the truth, the mistakes that are known with the value that each leads to on this model, and what to
say. `verdicts.decide` compares, whatever the form of the answer (`forms`).

`progress()` tells what is done in this session, `export("ada")` writes the answers to a file to
hand in, and a teacher's

    python -m ioi_helpers.exercises collect FOLDER

checks the answers in a folder of such files once more and makes a table of them (`collecting`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ioi_helpers.exercises import records
from ioi_helpers.exercises.registry import Context, exercise, find
from ioi_helpers.exercises.session import Progress, Session, progress_of
from ioi_helpers.exercises.values import Damaged, to_json
from ioi_helpers.exercises.verdicts import NOT_ATTEMPTED, Key, Verdict, decide, is_blank
from ioi_helpers.runs import without_progress_bars

__all__ = [
    "Context",
    "Key",
    "Progress",
    "Result",
    "Verdict",
    "check",
    "decide",
    "exercise",
    "export",
    "progress",
    "use",
]

_current = Context({})
_session = Session()


@dataclass(frozen=True)
class Result:
    """What a check found. `passed` is True, False, or None (not attempted)."""

    id: str
    passed: bool | None
    message: str

    def __str__(self) -> str:
        says = {True: "correct.", False: "not right yet.", None: "not attempted yet."}[self.passed]
        return f"Exercise {self.id}: {says} {self.message}".rstrip()

    def _ipython_display_(self) -> None:
        """Show nothing more at the end of a cell: the line is printed already."""


def use(**things: Any) -> None:
    """Bind what the checks of this notebook may use, by name: `use(model=model, data=data)`.

    It replaces whatever was bound before, so that no check mixes two models.
    """
    global _current
    _current = Context(things)


def check(id: str, answer: Any, **things: Any) -> Result:
    """Check the answer to exercise `id` ("01.3"), print the verdict in one line and return it.

    `things` replace or join those bound by `use`, for this check only. An answer that is still a
    stub (None, ..., or holding one of them) counts as not attempted.

    The first answer to an exercise takes as long as the truth and what its mistakes lead to; from
    then on they are known.

    Raises ValueError for an unknown exercise and for a check that lacks a model or data; never for
    an answer, however odd.
    """
    find(id)  # an unknown one is told so, whatever the answer
    _session.seen.add(id)
    verdict = NOT_ATTEMPTED
    if not is_blank(answer):
        context = _current.with_things(things)
        # A check answers in one line, however busy the machine: it shows no bars.
        with without_progress_bars():
            verdict = decide(answer, context.key(id))
        if verdict.passed is not None:
            _session.note(id, to_json(answer), verdict.passed, context)
    result = Result(id, verdict.passed, verdict.message)
    print(result)
    return result


def progress() -> Progress:
    """Print what is done in this session of the notebooks whose checks were called; return it.

    A session is a notebook's kernel: after a restart, cells that are run again count again.
    """
    done = progress_of(_session)
    print(done)
    return done


def export(file: str | Path, who: str | None = None) -> Path:
    """Write the answers of this session to a file to hand in, and return its path.

    The file holds the answers themselves, as JSON: numbers, texts and tensors, no code and nothing
    that can be run. Besides: what each check said, how many different answers were tried up to the
    right one, and which version, model and prompts it was checked on. A file that is there already
    is added to, so that one file can hold every notebook and every sitting; a right answer in it is
    never replaced by a wrong one.

    Args:
        file: Its path; ".json" is added where it is missing.
        who: Whose answers; by default the name in the file that is there, or the file's own.

    Raises:
        ValueError: Nothing was answered in this session, or the file that is there is not a record
            of the same person's answers; it is left as it is.
    """
    path = Path(file)
    if path.suffix != ".json":
        path = path.with_name(f"{path.name}.json")
    if not _session.entries:
        raise ValueError(
            "There is nothing to export: no exercise was answered in this session. Run the cells "
            "with your answers first."
        )
    if not path.parent.is_dir():
        raise ValueError(f"There is no folder {str(path.parent)!r}; make it, or name another file.")
    record = records.Record(who or path.stem, _session.entries)
    if path.exists():
        try:
            earlier = records.read(path)
        except Damaged as error:
            raise ValueError(
                f"{path.name} is there already and cannot be added to: {error}. Name another file."
            ) from error
        if who not in (None, earlier.who):
            raise ValueError(f"{path.name} holds answers of {earlier.who!r}; name another file.")
        record = records.merged(earlier, records.Record(earlier.who, _session.entries))
    records.write(record, path)
    right = sum(entry.passed for entry in record.entries.values())
    notebooks = ", ".join(sorted({id[:2] for id in record.entries}))
    print(
        f"{path.name} holds {len(record.entries)} answers of {record.who!r}, {right} of them right "
        f"so far (notebooks: {notebooks})."
    )
    return path
