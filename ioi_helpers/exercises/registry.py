"""Where exercises are kept: what each asks for, the function that checks it, and its context.

A module `exercises/nbNN.py` registers the exercises of notebook NN when it is imported, which
happens the first time one of them is looked up:

    @exercise("01.3", title="Attribution of a head", difficulty="medium", minutes=10)
    def _(answer, ctx):
        truth = ctx.once("attribution", lambda: head_attribution(ctx.model, ctx.demo))
        return tensor_close(answer, truth, axes=("layer", "head"))
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from ioi_helpers.exercises.verdicts import Verdict

DIFFICULTIES = ("warm-up", "easy", "medium", "hard")
EXERCISE_ID = re.compile(r"(\d\d)\.(\d+)")

Checker = Callable[[Any, "Context"], Verdict]
Value = TypeVar("Value")


class Context:
    """What a check may use: the reader's model and data, under the names given to `use`.

    They are attributes (`ctx.model`, `ctx.data`). A name that was not given is a ValueError that
    says so. `once` keeps what is expensive to compute for as long as the context lives.
    """

    def __init__(self, things: Mapping[str, Any]) -> None:
        self._things = dict(things)
        self._computed: dict[str, Any] = {}

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        if name not in self._things:
            raise ValueError(
                f"This check needs `{name}` and was not given it; run the cell with "
                f"exercises.use(...) first, or pass {name}={name} to check."
            )
        return self._things[name]

    def once(self, key: str, compute: Callable[[], Value]) -> Value:
        """The value of `compute()`, called only the first time this `key` is asked for."""
        if key not in self._computed:
            self._computed[key] = compute()
        return self._computed[key]

    def with_things(self, things: Mapping[str, Any]) -> Context:
        """This context, or a new one where other things replace or join its own."""
        return Context({**self._things, **things}) if things else self


@dataclass(frozen=True)
class Exercise:
    """One exercise: its id ("01.3"), what the notebook says of it, and its check."""

    id: str
    title: str
    difficulty: str
    minutes: int
    checker: Checker


_REGISTERED: dict[str, Exercise] = {}


def exercise(id: str, *, title: str, difficulty: str, minutes: int) -> Callable[[Checker], Checker]:
    """Register the decorated function `(answer, ctx) -> Verdict` as the check of an exercise.

    Raises ValueError for an id that is taken or not of the form "01.3", and for a difficulty that
    is not one of `DIFFICULTIES`.
    """
    if not EXERCISE_ID.fullmatch(id):
        raise ValueError(f"{id!r} is not an exercise id; write the notebook and a number: '01.3'.")
    if difficulty not in DIFFICULTIES:
        raise ValueError(f"{difficulty!r} is no difficulty; use one of {', '.join(DIFFICULTIES)}.")

    def register(checker: Checker) -> Checker:
        taken = _REGISTERED.get(id)
        if taken is not None and taken.checker.__module__ != checker.__module__:
            raise ValueError(f"Exercise {id} is registered already, in {taken.checker.__module__}.")
        if taken is not None and taken.title != title:
            raise ValueError(f"Exercise {id} is registered already, as {taken.title!r}.")
        _REGISTERED[id] = Exercise(id, title, difficulty, minutes, checker)
        return checker

    return register


def find(id: str) -> Exercise:
    """The exercise with this id; loads its notebook's module when it is not there yet.

    Raises ValueError for an unknown id, naming the known ones.
    """
    if id in _REGISTERED:
        return _REGISTERED[id]
    form = EXERCISE_ID.fullmatch(id) if isinstance(id, str) else None
    if form is None:
        raise ValueError(f"{id!r} is not an exercise id; write the notebook and a number: '01.3'.")
    known = [e.id for e in listing(form[1])]
    if id not in known:
        raise ValueError(f"There is no exercise {id}; notebook {form[1]} has {', '.join(known)}.")
    return _REGISTERED[id]


def listing(notebook: str) -> list[Exercise]:
    """The exercises of a notebook ("01"), in order.

    Raises ValueError where that notebook has none.
    """
    module = f"ioi_helpers.exercises.nb{notebook}"
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module:
            raise
    found = [e for e in _REGISTERED.values() if e.id.startswith(notebook + ".")]
    if not found:
        raise ValueError(f"Notebook {notebook} has no exercises.")
    return sorted(found, key=lambda e: int(e.id.split(".")[1]))
