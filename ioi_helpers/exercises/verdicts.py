"""What is said of an answer: a key holds the truth and a table of mistakes, `decide` compares.

A key's tables have a sentence on the left and on the right the value it goes with on the model at
hand: `mistakes` what leads to wrong values, `also` what else is right. A mistake is told as "Your
number is what one gets by reading at S2", for a number may come about in another way, and every
mistake that gives it is named. Where a wrong answer is no known mistake the form says what it can
see (sign, scale, shape, too high or too low) without giving the answer away. An odd answer is
refused in a sentence, never with an exception.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, TypedDict, Unpack

import numpy as np

from ioi_helpers.exercises.forms import (
    COARSE,
    Form,
    Heads,
    Numbers,
    Pick,
    Refused,
    as_array,
    as_heads,
)

Table = Mapping[str, Any]

NEAR = 2.0  # how many times as far as the nearest mistake another may lie and be named too
TOLD = 3  # mistakes that a verdict names
NOTHING = 0.005  # the margin around a truth of nothing: what prints as 0.00
EXACT = 0.05  # of the margin, within which two mistakes are equally near


@dataclass(frozen=True)
class Verdict:
    """`passed` is True, False, or None for an answer that is still a stub."""

    passed: bool | None
    message: str = ""


NOT_ATTEMPTED = Verdict(None)


class Tables(TypedDict, total=False):
    """What a key says besides its truth."""

    mistakes: Table
    also: Table
    rules: Mapping[str, Callable[[Any], bool]]
    close: tuple[float, str]
    hint: str
    right: str | Callable[[Any], str]


class Tolerances(Tables, total=False):
    """What the key of a number says besides; :func:`array` has the defaults."""

    relative: float
    absolute: float
    error: float
    between: tuple[float, float, str] | None
    unit: str
    of_estimate: Literal["mean", "stderr"]


@dataclass(frozen=True)
class Key:
    """What answers to an exercise are held against.

    Each mistake goes on from "what one gets by", in the manner of "reading at S2. The answer is
    predicted at END", where the first sentence is the mistake and the rest advice. A value of None
    or NaN says that the mistake leads to nothing here.
    """

    form: Form
    truth: Any
    """The right answer, or a function that says whether an answer is right."""
    mistakes: Table = field(default_factory=dict)
    also: Table = field(default_factory=dict)
    """Other right answers: what to say of each, and its value."""
    rules: Mapping[str, Callable[[Any], bool]] = field(default_factory=dict)
    """What to say of a wrong answer that is no known mistake: the first whose function holds."""
    close: tuple[float, str] = (0.0, "")
    """How near the truth a number is right that is no known mistake, and what to say of it."""
    hint: str = ""
    """Ends the message for a wrong answer that nothing is known of."""
    right: str | Callable[[Any], str] = ""
    nothing: bool = False
    """Whether the truth is zero within its error on the model at hand."""

    @cached_property
    def wrong(self) -> dict[str, Any]:
        """The mistakes that lead to something on the model at hand, with their values."""
        values = {text: value for text, value in self.mistakes.items() if _is_some(value)}
        return {text: self.form.value(value) for text, value in values.items()}

    @cached_property
    def others(self) -> dict[str, Any]:
        """What else is right, with its values."""
        return {said: self.form.value(value) for said, value in self.also.items()}

    @cached_property
    def coincidences(self) -> list[str]:
        """The mistakes that lead to the right answer on the model at hand."""
        return [text for text, value in self.wrong.items() if self.is_right(value)]

    def is_right(self, value: Any) -> bool:
        """Whether a value in the answer's form is the truth, or the same within its margin."""
        if callable(self.truth):
            return bool(self.truth(value))
        return self.form.distance(value, self.truth) <= 1

    @cached_property
    def caveat(self) -> str:
        """What the check cannot tell on the model at hand; "" where it can tell everything."""
        if self.nothing:
            return (
                "On this model the truth is zero within its error, so right and wrong can hardly "
                "be told apart."
            )
        if self.wrong and len(self.coincidences) == len(self.wrong):
            return (
                "On this model every mistake that we know of leads to the same, so right and wrong "
                "cannot be told apart."
            )
        if self.coincidences:
            return f"(On this model one gets the same {_by(self.coincidences)}.)"
        return ""


def decide(answer: Any, key: Key) -> Verdict:
    """The verdict on an answer."""
    if is_blank(answer):
        return NOT_ATTEMPTED
    try:
        given = key.form.read(answer)
    except Refused as refusal:
        return Verdict(False, str(refusal))
    passed, said = judge(given, key)
    caveat = key.caveat if passed or key.nothing else ""
    return Verdict(passed, f"{said} {caveat}".strip())


def judge(given: Any, key: Key) -> tuple[bool, str]:
    """Whether a value, as the key's form reads answers, is right, and what to say of it."""
    if key.is_right(given):
        return True, key.right(given) if callable(key.right) else key.right
    for said, value in key.others.items():
        if key.form.distance(given, value) <= 1:
            return True, said
    for truth in () if callable(key.truth) else (key.truth, *key.others.values()):
        grain = key.form.grain(given, truth)
        if grain is not None:
            return _rounded(given, truth, grain, key)
    named = _named(given, key)
    if named:
        advice = dict.fromkeys(rest for rest in map(_advice, named) if rest)
        return False, " ".join([f"{key.form.says} what one gets {_by(named)}.", *advice])
    if key.close[0] and float(np.abs(given - key.truth)) <= key.close[0]:
        return True, key.close[1]
    for said, holds in key.rules.items():
        if holds(given):
            return False, said
    return False, f"{key.form.gap(given, key.truth)} {key.hint}".strip()


def _rounded(given: Any, truth: Any, grain: Any, key: Key) -> tuple[bool, str]:
    """Right if no mistake that we know of comes so close, else asked for more digits."""
    apart = {
        text: float(np.max(np.abs(given - value) / grain))
        for text, value in key.wrong.items()
        if value.shape == given.shape and not key.is_right(value)
    }
    coarse = float(np.max(grain)) > COARSE * float(np.abs(truth).max())
    if (coarse or min(apart.values(), default=math.inf) <= 2) and isinstance(key.form, Numbers):
        alike = sorted((text for text in apart if apart[text] <= 1 + 1e-6), key=apart.__getitem__)
        also = f" It is also what one gets, rounded, {_by(alike)}." if alike else ""
        digits = key.form.digits(truth)
        return False, f"Right as far as it goes: give it with {digits} decimals at least.{also}"
    return True, key.right(given) if callable(key.right) else key.right


def _named(given: Any, key: Key) -> list[str]:
    """The mistakes that lead to a value: all that are about as near as the nearest."""
    far = {text: key.form.distance(given, value) for text, value in key.wrong.items()}
    near = {text: distance for text, distance in far.items() if distance <= 1}
    if not near:
        return []
    limit = max(EXACT, NEAR * min(near.values()))
    return sorted((text for text in near if near[text] <= limit), key=near.__getitem__)


def _by(mistakes: Sequence[str]) -> str:
    """Mistakes in one clause, without advice: "by doing this, or by doing that"."""
    ways = [f"by {mistake(text)}" for text in mistakes[:TOLD]]
    more = len(mistakes) - TOLD
    ways += [f"in {more} other way{'s' * (more > 1)}"] * (more > 0)
    return ", or ".join(ways)


def mistake(text: str) -> str:
    """The mistake in a sentence of a key's table, without the advice."""
    return re.split(r"[.;] ", text, maxsplit=1)[0]


def _advice(text: str) -> str:
    advice = text[len(mistake(text)) + 2 :]
    return f"{advice[:1].upper()}{advice[1:]}{'' if advice[-1:] in '.?' else '.'}"


def _is_some(value: Any) -> bool:
    return value is not None and not (isinstance(value, float) and math.isnan(value))


def is_blank(answer: Any) -> bool:
    """Whether an answer is a stub: None, `...`, nothing but empty text, or a collection in which
    None or `...` still stands. Empty text in a collection may be an answer."""
    return not answer.strip() if isinstance(answer, str) else _unfilled(answer)


def _unfilled(answer: Any) -> bool:
    if isinstance(answer, Mapping):
        return any(map(_unfilled, answer.values()))
    if isinstance(answer, list | tuple | set | frozenset):
        return any(map(_unfilled, answer))
    return answer is None or answer is Ellipsis


# --- keys of each form ----------------------------------------------------------------------------


def number(truth: Any, **settings: Unpack[Tolerances]) -> Key:
    """The key of a single number, right within `absolute` or `relative` times the truth.

    `error` is the standard error of a truth that may be nothing on some models: where it is zero
    within two of them, the verdict says so, and 0.00 is right where two decimals of the truth are.
    """
    return array(truth, (), **settings)


def array(
    truth: Any,
    axes: Sequence[str],
    *,
    relative: float = 0.01,
    absolute: float = 1e-6,
    error: float = 0.0,
    between: tuple[float, float, str] | None = None,
    unit: str = "",
    of_estimate: Literal["mean", "stderr"] = "mean",
    **tables: Unpack[Tables],
) -> Key:
    """The key of an array with the named axes.

    Every entry must lie within `absolute`, or within `relative` times the truth's largest
    magnitude, whichever is wider.
    """
    true = as_array(truth)
    size = float(np.abs(true).max(initial=0.0))
    nothing = 0 < size <= 2 * error
    margin = max(absolute, relative * size, NOTHING if nothing else 0.0)
    form = Numbers(
        tuple(axes), true.shape, relative, margin, unit, between, of_estimate=of_estimate
    )
    return Key(form, true, nothing=nothing, **tables)


def head_set(truth: Any, *, shape: tuple[int, int] | None = None, **tables: Unpack[Tables]) -> Key:
    """The key of a set of heads of a model of `shape` (layers, heads a layer).

    Where there are such heads, mistakes that lead to none have no say: an empty list is told so.
    """
    if truth:
        tables["mistakes"] = {text: v or None for text, v in tables.get("mistakes", {}).items()}
    return Key(Heads(shape), as_heads(truth), **tables)


def pick(
    truth: Any,
    read: Callable[[Any], Any],
    *,
    says: str = "That is",
    nothing: bool = False,
    **tables: Unpack[Tables],
) -> Key:
    """The key of one thing out of many, as `read` gives it from an answer.

    `nothing` says that on the model at hand none of them stands out.
    """
    return Key(Pick(read, says), truth, nothing=nothing, **tables)
