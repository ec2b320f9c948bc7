"""Tools to write checks with: compare an answer with the truth and name the mistake.

Each tool takes the answer, the truth and a bank of mistakes: sentences that say what went wrong,
each with the wrong value it leads to on the model at hand. A wrong answer that equals a banked
value gets that sentence; otherwise the tool says what it can see (sign, scale, shape, order of
axes, too high or too low) without giving the answer away. An odd answer (text, NaN, a tensor where
a number is due) is refused in a sentence, never with an exception.
"""

from __future__ import annotations

import math
import numbers
import re
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from ioi_helpers.exercises.forms import Refused
from ioi_helpers.exercises.verdicts import NOT_ATTEMPTED, Verdict, is_blank
from ioi_helpers.names import head_name

# A wrong value, or a function that computes it: called only for answers that are wrong.
Mistakes = Mapping[str, Any]


def result_of(function: Any, *arguments: Any, **named: Any) -> Any:
    """What the reader's function returns; None where it is a stub that raises NotImplementedError.

    Raises Refused when it is no function or fails, with the line of the reader's code that did.
    """
    if not callable(function):
        raise Refused(f"Pass the function itself, not {_kind(function)}.")
    try:
        return function(*arguments, **named)
    except NotImplementedError:
        return None
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        code = getattr(getattr(function, "__code__", None), "co_filename", None)
        own = [f for f in frames if f.filename == code]
        where = f" in its line `{own[-1].line}`" if own and own[-1].line else ""
        text = str(error).strip().splitlines()
        said = f": {text[0]}" if text else ""
        raise Refused(f"Your function raised {type(error).__name__}{where}{said}.") from error


def numeric(
    answer: Any,
    truth: float,
    *,
    relative: float = 0.01,
    absolute: float = 1e-6,
    mistakes: Mistakes | None = None,
    unit: str = "",
    hint: str = "",
    right: str = "",
) -> Verdict:
    """Check a single number: float, int, numpy scalar or tensor with one element.

    Right means within `absolute` or within `relative` times the truth, whichever is wider. `hint`
    ends the message for a wrong answer that is no known mistake, `right` that for a right one.
    """
    if is_blank(answer):
        return NOT_ATTEMPTED
    try:
        value = as_number(answer)
    except Refused as refusal:
        return Verdict(False, str(refusal))
    truth = float(truth)
    margin = max(absolute, relative * abs(truth))
    if abs(value - truth) <= margin:
        return Verdict(True, right)
    # A wrong number may be much larger than the truth, and is then as inexact as it is large.
    known = [
        (abs(value - wrong) / max(margin, relative * abs(wrong)), text)
        for text, wrong in _wrong_numbers(mistakes)
    ]
    if known and min(known)[0] <= 1:
        return Verdict(False, min(known)[1])
    if abs(value + truth) <= margin:
        return Verdict(False, "The sign is wrong: check what is subtracted from what.")
    way = "too high" if value > truth else "too low"
    of = f" (in {unit})" if unit else ""
    return Verdict(False, f"Your number is {way}{of}. {hint}".rstrip())


def tensor_close(
    answer: Any,
    truth: Any,
    *,
    axes: Sequence[str],
    relative: float = 0.01,
    absolute: float = 1e-6,
    mistakes: Mistakes | None = None,
    hint: str = "",
    right: str = "",
) -> Verdict:
    """Check an array: tensor, numpy array or nested list, with the named `axes` of the truth.

    Every entry must lie within `absolute`, or within `relative` times the truth's largest
    magnitude, whichever is wider.
    """
    if is_blank(answer):
        return NOT_ATTEMPTED
    try:
        given = as_array(answer)
    except Refused as refusal:
        return Verdict(False, str(refusal))
    true = as_array(truth)
    margin = max(absolute, relative * float(np.abs(true).max(initial=0.0)))
    if _close(given, true, margin):
        return Verdict(True, right)
    for text, wrong in (mistakes or {}).items():
        banked = as_array(_value(wrong))
        if _close(given, banked, max(margin, relative * float(np.abs(banked).max(initial=0.0)))):
            return Verdict(False, text)
    if given.shape != true.shape:
        return Verdict(False, _wrong_shape(given, true, axes, margin))
    if not np.isfinite(given).all():
        return Verdict(False, "Some entries are NaN or infinite; look for a division by zero.")
    return Verdict(False, f"{_wrong_values(given, true, axes, margin)} {hint}".rstrip())


def choice(
    answer: Any,
    truth: Any,
    options: Sequence[Any],
    *,
    reasons: Mapping[Any, str] | None = None,
    right: str = "",
) -> Verdict:
    """Check a pick among `options`; letter case and blanks do not matter.

    `reasons` says, for a wrong option, why it is not the answer.
    """
    if is_blank(answer):
        return NOT_ATTEMPTED
    if not any(_same_option(truth, o) for o in options):
        raise ValueError(f"The truth {truth!r} is not among the options {list(options)}.")
    picked = [o for o in options if _same_option(answer, o)]
    if not picked:
        listed = ", ".join(repr(o) for o in options)
        return Verdict(False, f"Pick one of: {listed}.")
    if _same_option(picked[0], truth):
        return Verdict(True, right)
    why = [text for option, text in (reasons or {}).items() if _same_option(option, picked[0])]
    return Verdict(False, why[0] if why else f"It is not {picked[0]!r}.")


def head_set(
    answer: Any,
    truth: Any,
    *,
    ordered: bool = False,
    mistakes: Mistakes | None = None,
    shape: tuple[int, int] | None = None,
    hint: str = "",
    right: str = "",
) -> Verdict:
    """Check a set of heads, in any spelling: "L9H9", "9.9", (9, 9), a tensor [head 2], a text list.

    With `ordered` the order counts too. `shape` (layers, heads a layer) of the model catches heads
    that it does not have.
    """
    if is_blank(answer):
        return NOT_ATTEMPTED
    try:
        given = as_heads(answer)
    except Refused as refusal:
        return Verdict(False, str(refusal))
    true = as_heads(truth)
    if shape is not None:
        absent = [h for h in given if h[0] >= shape[0] or h[1] >= shape[1]]
        if absent:
            size = f"{shape[0]} layers of {shape[1]} heads, counted from 0"
            return Verdict(False, f"There is no {_label(absent[0])} in this model: it has {size}.")
    if given == true if ordered else set(given) == set(true):
        return Verdict(True, right)
    for text, wrong in (mistakes or {}).items():
        heads = as_heads(_value(wrong))
        if given == heads if ordered else set(given) == set(heads):
            return Verdict(False, text)
    if set(given) == set(true):
        return Verdict(False, f"These are the heads, but not in the right order. {hint}".rstrip())
    if {(h, layer) for layer, h in given} == set(true):
        return Verdict(False, "Layer and head are swapped: L9H6 is layer 9, head 6.")
    extra, missing = len(set(given) - set(true)), len(set(true) - set(given))
    found = [f"{extra} of the heads you gave do not belong"] * (extra > 0)
    found += [f"{missing} are missing"] * (missing > 0)
    return Verdict(False, f"{' and '.join(found).capitalize()}. {hint}".rstrip())


def first_failure(*verdicts: Verdict) -> Verdict:
    """The verdict of an answer in several parts: the first that is not right, else the last."""
    if not verdicts:
        raise ValueError("first_failure needs at least one verdict.")
    return next((v for v in verdicts if v.passed is not True), verdicts[-1])


def as_number(answer: Any) -> float:
    """A float from any kind of single number. Raises Refused for everything else."""
    if isinstance(answer, (torch.Tensor, np.ndarray)):
        if math.prod(answer.shape) != 1:
            raise Refused(
                f"A single number is asked for, not {_kind(answer)}: take the mean or pick one."
            )
        answer = answer.item()
    if isinstance(answer, (bool, np.bool_)) or not isinstance(answer, numbers.Real):
        raise Refused(f"A single number is asked for, not {_kind(answer)}.")
    try:
        value = float(answer)
    except OverflowError:
        value = math.inf
    if not math.isfinite(value):
        raise Refused(f"Your number is {value}; look for a division by zero or an empty mean.")
    return value


def as_array(answer: Any) -> Float[np.ndarray, " *shape"]:
    """A float64 array from a tensor, array or nested list. Raises Refused for everything else."""
    if isinstance(answer, torch.Tensor):
        if answer.is_complex():
            raise Refused("Real numbers are asked for, not complex ones.")
        return answer.detach().to(device="cpu", dtype=torch.float64).numpy()
    if isinstance(answer, (list, tuple)):
        parts = [as_array(part) for part in answer]
        if len({part.shape for part in parts}) > 1:
            raise Refused("A tensor is asked for; the rows of your list differ in length.")
        return np.stack(parts) if parts else np.zeros(0)
    if isinstance(answer, (str, bytes, Mapping, set, frozenset)) or callable(answer):
        raise Refused(f"A tensor is asked for, not {_kind(answer)}.")
    try:
        return np.asarray(answer, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        raise Refused(f"A tensor is asked for, not {_kind(answer)}.") from None


HEAD = re.compile(r"\s*l?(?:ayer)?\s*(\d+)\s*(?:\.|,|:|\s|\s*h(?:ead)?)\s*(\d+)\s*", re.IGNORECASE)
IN_TEXT = re.compile(r"l?\d+\s*(?:h|\.)\s*\d+", re.IGNORECASE)


def as_heads(answer: Any) -> list[tuple[int, int]]:
    """Heads as (layer, head index), in order and without repeats. Raises Refused for the rest."""
    if isinstance(answer, (torch.Tensor, np.ndarray)):
        answer = answer.tolist()
    if isinstance(answer, str):
        parts: Sequence[Any] = [answer] if HEAD.fullmatch(answer) else IN_TEXT.findall(answer)
        if not parts:
            raise Refused(f"{answer!r} names no head; write heads as 'L9H9'.")
    elif _is_pair(answer):
        parts = [answer]
    elif isinstance(answer, (list, tuple, set, frozenset)) or hasattr(answer, "__iter__"):
        parts = list(answer)
    else:
        raise Refused(f"A list of heads such as ['L9H9'] is asked for, not {_kind(answer)}.")
    return list(dict.fromkeys(_head(part) for part in parts))


def _head(part: Any) -> tuple[int, int]:
    if isinstance(part, (torch.Tensor, np.ndarray)):
        part = part.tolist()
    if isinstance(part, str):
        match = HEAD.fullmatch(part)
        if match:
            return int(match[1]), int(match[2])
    elif _is_pair(part):
        return int(part[0]), int(part[1])
    raise Refused(f"{part!r} is not a head; write 'L9H9' or (9, 9) for head 9 of layer 9.")


def _is_pair(part: Any) -> bool:
    return (
        isinstance(part, (list, tuple))
        and len(part) == 2
        and all(
            isinstance(i, (int, np.integer, torch.Tensor))
            and not isinstance(i, bool)
            and (not torch.is_tensor(i) or (i.numel() == 1 and not i.is_floating_point()))
            for i in part
        )
    )


def _label(head: tuple[int, int]) -> str:
    return head_name(*head)


def _value(wrong: Any) -> Any:
    return wrong() if callable(wrong) else wrong


def _wrong_numbers(mistakes: Mistakes | None) -> list[tuple[str, float]]:
    values = [(text, float(_value(wrong))) for text, wrong in (mistakes or {}).items()]
    return [(text, wrong) for text, wrong in values if math.isfinite(wrong)]


def _close(a: np.ndarray, b: np.ndarray, margin: float) -> bool:
    return a.shape == b.shape and bool(np.all(np.abs(a - b) <= margin))


def _wrong_shape(given: np.ndarray, true: np.ndarray, axes: Sequence[str], margin: float) -> str:
    wanted = f"[{' '.join(axes)}] = {list(true.shape)}"
    if true.ndim == 2 and _close(given.T, true, margin):
        return f"The axes are swapped: the answer is {wanted}."
    if given.ndim == true.ndim and sorted(given.shape) == sorted(true.shape):
        return f"The answer is {wanted}; the axes of yours, {list(given.shape)}, are out of order."
    if given.ndim > true.ndim:
        extra = "average over or select from the other axes"
        return f"The answer is {wanted} but yours is {list(given.shape)}; {extra}."
    if given.ndim < true.ndim:
        lost = "an axis was averaged or selected away"
        return f"The answer is {wanted} but yours is {list(given.shape)}; {lost}."
    return f"The answer is {wanted} but yours is {list(given.shape)}."


def _wrong_values(given: np.ndarray, true: np.ndarray, axes: Sequence[str], margin: float) -> str:
    if _close(given, -true, margin):
        return "The sign is wrong everywhere: check what is subtracted from what."
    if true.ndim == 2 and given.shape == given.T.shape and _close(given.T, true, margin):
        return f"The axes are swapped: the answer is [{' '.join(axes)}]."
    power = float(np.sum(true * true))
    factor = float(np.sum(given * true)) / power if power else 0.0
    if factor and _close(given / factor, true, margin):
        return (
            "The pattern is right but every entry is off by the same factor: a sum where a mean is "
            "due, or a scale left out?"
        )
    if true.size > 1 and _close(given - given.mean(), true - true.mean(), margin):
        return "Every entry is off by the same amount: something constant was added or left out."
    gap = np.abs(given - true)
    worst = np.unravel_index(int(np.argmax(gap)), gap.shape)
    place = ", ".join(f"{axis} {i}" for axis, i in zip(axes, worst, strict=True))
    way = "too high" if given[worst] > true[worst] else "too low"
    wrong = int(np.sum(gap > margin))
    return f"{wrong} of {true.size} entries are wrong, most of all [{place}], which is {way}."


def _same_option(a: Any, b: Any) -> bool:
    if isinstance(a, str) and isinstance(b, str):
        return " ".join(a.lower().split()) == " ".join(b.lower().split())
    return type(a) is type(b) and bool(a == b)


def _kind(answer: Any) -> str:
    """What an answer is, in the reader's words."""
    if isinstance(answer, (torch.Tensor, np.ndarray)):
        return f"a tensor of shape {list(answer.shape)}"
    if isinstance(answer, str):
        return "text"
    if isinstance(answer, (bool, np.bool_)):
        return "True or False"
    if callable(answer):
        return "a function (call it first)"
    return f"a {type(answer).__name__}"


def exercise(id, *, title, difficulty, minutes):  # type: ignore
    from ioi_helpers.exercises import registry

    def register(checker):  # type: ignore
        def maker(ctx):  # type: ignore
            def judge(answer):  # type: ignore
                try:
                    return checker(answer, ctx)
                except Refused as refusal:
                    return Verdict(False, str(refusal))

            return judge

        maker.__name__, maker.__module__ = checker.__name__, checker.__module__
        registry.exercise(id)(maker)
        return checker

    return register
