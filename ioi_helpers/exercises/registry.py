"""Where exercises are kept: the key that answers to each are held against, and its context.

A module `exercises/nbNN.py` registers the exercises of notebook NN when it is imported, which
happens the first time one of them is looked up:

    @exercise("01.3")
    def _attribution(ctx: Context) -> Key:
        truth = head_attribution(ctx.model, ctx.demo).values
        return array(truth, ("layer", "head"), mistakes={"turning the sign.": -truth})

The key is made once for the model and data at hand, and so is all that it computes. An exercise's
title, difficulty and minutes stand in the notebook, above its stub.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from ioi_helpers.exercises.verdicts import Key

EXERCISE_ID = re.compile(r"(\d\d)\.(\d+)")

Value = TypeVar("Value")


class Context:
    """What a check may use: the reader's model and data, under the names given to `use`.

    They are attributes (`ctx.model`, `ctx.data`). A name that was not given is a ValueError that
    says so. `once` keeps what is expensive to compute for as long as the context lives.
    """

    def __init__(self, things: Mapping[str, Any]) -> None:
        self._things = dict(things)
        self._computed: dict[str, Any] = {}
        self._with: tuple[dict[str, int], Context] | None = None

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        if name not in self._things:
            raise ValueError(
                f"This check needs `{name}` and was not given it; run the cell with "
                f"exercises.use(...) first, or pass {name}={name} to check."
            )
        return self._things[name]

    @property
    def things(self) -> Mapping[str, Any]:
        """All that was given, by name."""
        return self._things

    def once(self, key: str, compute: Callable[[], Value]) -> Value:
        """The value of `compute()`, called only the first time this `key` is asked for."""
        if key not in self._computed:
            self._computed[key] = compute()
        return self._computed[key]

    def with_things(self, things: Mapping[str, Any]) -> Context:
        """This context, or one where other things replace or join its own.

        The last such context is kept, so that a second answer finds what the first computed.
        """
        if not things:
            return self
        same = {name: id(thing) for name, thing in things.items()}
        if self._with is None or self._with[0] != same:
            self._with = same, Context({**self._things, **things})
        return self._with[1]

    def key(self, id: str) -> Key:
        """The key of an exercise for what is at hand. Raises ValueError for an unknown id."""
        return self.once(f"key of {id}", lambda: find(id)(self))


Maker = Callable[[Context], Key]

_REGISTERED: dict[str, Maker] = {}


def exercise(id: str) -> Callable[[Maker], Maker]:
    """Register the decorated function, which makes the key of an exercise from a context.

    Raises ValueError for an id that is taken or not of the form "01.3".
    """
    if not EXERCISE_ID.fullmatch(id):
        raise ValueError(f"{id!r} is not an exercise id; write the notebook and a number: '01.3'.")

    def register(maker: Maker) -> Maker:
        taken = _REGISTERED.get(id)
        if taken and (taken.__module__, taken.__name__) != (maker.__module__, maker.__name__):
            raise ValueError(f"Exercise {id} is registered already, by {taken.__name__}.")
        _REGISTERED[id] = maker
        return maker

    return register


def find(id: str) -> Maker:
    """What makes the key of the exercise; loads its notebook's module when it is not there yet.

    Raises ValueError for an unknown id, naming the known ones.
    """
    form = EXERCISE_ID.fullmatch(id) if isinstance(id, str) else None
    if form is None:
        raise ValueError(f"{id!r} is not an exercise id; write the notebook and a number: '01.3'.")
    if id not in _REGISTERED:
        there = known(form[1])
        if not there:
            raise ValueError(f"Notebook {form[1]} has no exercises.")
        if id not in there:
            raise ValueError(
                f"There is no exercise {id}; notebook {form[1]} has {', '.join(there)}."
            )
    return _REGISTERED[id]


def known(notebook: str) -> list[str]:
    """The exercises of a notebook ("01"), whose module is loaded; [] if it has none."""
    module = f"ioi_helpers.exercises.nb{notebook}"
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module:
            raise
    return [id for id in _REGISTERED if id.startswith(f"{notebook}.")]
