"""Checks for the exercises: whether an answer is right and, where it is wrong, what went wrong.

A notebook binds what its checks may use once, then checks every answer:

    exercises.use(model=model, demo=demo, data=data)
    exercises.check("01.3", answer)

The truth is recomputed on the model that was given, never looked up. A check prints one line and
returns a result whose `passed` is True, False, or None for an exercise that was not attempted yet.

What answers are held against are tables, one an exercise, in one module a notebook (`nb01`, ...):
the truth, the mistakes that are known with the value that each leads to on this model, and what to
say. `verdicts.decide` compares, whatever the form of the answer (`forms`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ioi_helpers.exercises.registry import Context, exercise, find
from ioi_helpers.exercises.verdicts import NOT_ATTEMPTED, Key, Verdict, decide, is_blank
from ioi_helpers.runs import without_progress_bars

__all__ = ["Context", "Key", "Result", "Verdict", "check", "decide", "exercise", "use"]

_current = Context({})


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
    verdict = NOT_ATTEMPTED
    if not is_blank(answer):
        # A check answers in one line, however busy the machine: it shows no bars.
        with without_progress_bars():
            verdict = decide(answer, _current.with_things(things).key(id))
    result = Result(id, verdict.passed, verdict.message)
    print(result)
    return result
