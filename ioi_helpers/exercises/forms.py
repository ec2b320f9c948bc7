"""How answers are read, in whatever form they come, and how two of them are compared.

A form reads an answer (torch, numpy, pandas, lists, text, an estimate with its error) into one
kind of value or refuses it in a sentence. It says how far two values lie apart, in units of what
counts as the same, and of a wrong one what can be seen without giving the right one away.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
import torch
from jaxtyping import Float

from ioi_helpers.metrics import Estimate
from ioi_helpers.names import head_name

Head = tuple[int, int]
Array = Float[np.ndarray, "*shape"]

DECIMALS = (2, 3, 4)  # to which a right answer may be rounded
HALF, BRAIN = 2.0**-11, 2.0**-8  # half a unit in the last place of float16 and bfloat16
SINGLE = 1e-6  # of the largest entry: what single precision may add
COARSE = 0.06  # of the largest entry: a rounding that leaves hardly one digit


class Refused(Exception):
    """An answer of the wrong kind; its message says which kind is asked for."""


class Form(Protocol):
    """What a check needs to know of a kind of answer."""

    @property
    def says(self) -> str:
        """How a sentence about an answer begins: "Your number is"."""

    def read(self, answer: Any) -> Any:
        """The answer as a value of this form. Raises Refused."""

    def value(self, known: Any) -> Any:
        """A value of this form from one that a key holds."""

    def distance(self, given: Any, value: Any) -> float:
        """How far two values lie apart; up to 1 they are the same."""

    def grain(self, given: Any, truth: Any) -> Any:
        """What a value was rounded by, if it is the truth rounded; else None."""

    def gap(self, given: Any, truth: Any) -> str:
        """What can be seen of a wrong value; "" if nothing."""


# --- numbers and arrays ---------------------------------------------------------------------------

SINGLE_NUMBER = "A single number"


def single_number(answer: Any) -> Array:
    """A number in any form, without an axis. Raises Refused for anything else."""
    if isinstance(answer, (bool, np.bool_)):
        raise Refused(f"{SINGLE_NUMBER} is asked for, not {kind(answer)}.")
    if isinstance(answer, str):
        try:
            answer = float(answer)
        except ValueError:
            raise Refused(f"{SINGLE_NUMBER} is asked for, not text.") from None
    given = as_array(answer, SINGLE_NUMBER)
    if given.size != 1:
        several = "take the mean or pick one"
        raise Refused(f"{SINGLE_NUMBER} is asked for, not {kind(answer)}: {several}.")
    if not np.isfinite(given).all():
        look = "look for a division by zero or an empty mean"
        raise Refused(f"Your number is {given.item()}; {look}.")
    return given.reshape(())


@dataclass(frozen=True)
class Numbers:
    """A number, or an array of them with named axes, right within a margin.

    The margin is `absolute`, or `relative` times the largest magnitude where that is more.
    `between` gives bounds that a number cannot leave, and what to say of one that does. Of an
    estimate that is given, `of_estimate` is what counts.
    """

    axes: Sequence[str]
    shape: tuple[int, ...]
    relative: float
    absolute: float
    unit: str
    between: tuple[float, float, str] | None
    of_estimate: Literal["mean", "stderr"] = field(default="mean", kw_only=True)

    @property
    def says(self) -> str:
        return "Your numbers are" if self.axes else "Your number is"

    @property
    def asked(self) -> str:
        return "A tensor" if self.axes else SINGLE_NUMBER

    def read(self, answer: Any) -> Array:
        if isinstance(answer, Estimate):
            answer = getattr(answer, self.of_estimate)
        if not self.axes:
            return single_number(answer)
        given = as_array(answer, self.asked)
        # A row or a column is as good as a vector.
        fits = given.size == math.prod(self.shape) and sorted(given.shape) != sorted(self.shape)
        alike = [n for n in given.shape if n > 1] == [n for n in self.shape if n > 1]
        return given.reshape(self.shape) if fits and alike else given

    def margin(self, value: Array) -> float:
        """How far an answer may lie from a value and still be taken for it."""
        return max(self.absolute, self.relative * float(np.abs(value).max(initial=0.0)))

    def value(self, known: Any) -> Array:
        return as_array(known)

    def distance(self, given: Array, value: Array) -> float:
        if given.shape != value.shape or not np.isfinite(value).all():
            return math.inf
        gap = float(np.abs(given - value).max(initial=0.0))
        return gap / self.margin(value) if math.isfinite(gap) else math.inf

    def grain(self, given: Array, truth: Array) -> Array | None:
        if given.shape != truth.shape:
            return None
        single = SINGLE * float(np.abs(truth).max(initial=0.0))
        for grain in _grains(given):
            if np.all(np.abs(given - truth) <= grain + single):
                return grain
        return None

    def digits(self, truth: Array) -> int:
        """How many decimals are needed for the margin around the truth."""
        return max(2, math.ceil(-math.log10(2 * self.margin(truth))))

    def gap(self, given: Array, true: Array) -> str:
        if given.shape != true.shape:
            return self._wrong_shape(given, true)
        if not np.isfinite(given).all():
            return "Some entries are NaN or infinite; look for a division by zero."
        if self.axes:
            return self._wrong_values(given, true)
        if self.between and not self.between[0] <= given <= self.between[1]:
            return self.between[2]
        if self.distance(given, -true) <= 1:
            return "The sign is wrong: check what is subtracted from what."
        of = f" (in {self.unit})" if self.unit else ""
        return f"Your number is {'too high' if given > true else 'too low'}{of}."

    def _wrong_shape(self, given: Array, true: Array) -> str:
        wanted, yours = f"[{' '.join(self.axes)}] = {list(true.shape)}", list(given.shape)
        if true.ndim == 2 and self.distance(given.T, true) <= 1:
            return f"The axes are swapped: the answer is {wanted}."
        if given.ndim == true.ndim and sorted(given.shape) == sorted(true.shape):
            return f"The answer is {wanted}; the axes of yours, {yours}, are out of order."
        if given.ndim > true.ndim:
            extra = "average over or select from the other axes"
            return f"The answer is {wanted} but yours is {yours}; {extra}."
        if given.ndim < true.ndim or given.size == 1:
            return f"The answer is {wanted} but yours is {yours}; {self._lost(given, true)}."
        return f"The answer is {wanted} but yours is {yours}."

    def _lost(self, given: Array, true: Array) -> str:
        """Which axis was averaged over or summed."""
        for axis, name in enumerate(self.axes):
            for what, value in (("mean", true.mean(axis)), ("sum", true.sum(axis))):
                fits = given.size == np.size(value)
                if fits and self.distance(given.reshape(np.shape(value)), np.asarray(value)) <= 1:
                    return f"yours is the {what} over {name}s, and one for each is asked for"
        if given.size == 1:
            return f"one for each {' and '.join(self.axes)} is asked for, not a single one"
        return "an axis was averaged or selected away"

    def _wrong_values(self, given: Array, true: Array) -> str:
        if self.distance(given, -true) <= 1:
            return "The sign is wrong everywhere: check what is subtracted from what."
        if true.ndim == 2 and self.distance(given.T, true) <= 1:
            return f"The axes are swapped: the answer is [{' '.join(self.axes)}]."

        def close(values: Array) -> bool:
            return bool(np.all(np.abs(values - true) <= self.margin(true)))

        power = float(np.sum(true * true))
        factor = float(np.sum(given * true)) / power if power else 0.0
        if factor and close(given / factor):
            reason = "a sum where a mean is due, or a scale left out?"
            return f"The pattern is right but every entry is off by the same factor: {reason}"
        if true.size > 1 and close(given - given.mean() + true.mean()):
            reason = "something constant was added or left out."
            return f"Every entry is off by the same amount: {reason}"
        gap = np.abs(given - true)
        worst = np.unravel_index(int(np.argmax(gap)), gap.shape)
        place = ", ".join(f"{axis} {i}" for axis, i in zip(self.axes, worst, strict=True))
        way = "too high" if given[worst] > true[worst] else "too low"
        wrong = int(np.sum(gap > self.margin(true)))
        return f"{wrong} of {true.size} entries are wrong, most of all [{place}], which is {way}."


def _grains(given: Array) -> list[Array]:
    """What values like these may have been rounded by: half a unit of the last place."""
    found = []
    for decimals in DECIMALS:
        scaled = given * 10.0**decimals
        if np.all(np.abs(scaled - np.round(scaled)) <= 1e-6 * (1 + np.abs(scaled))):
            found.append(np.full_like(given, 0.5 * 10.0**-decimals))
    tensor = torch.from_numpy(np.ascontiguousarray(given))
    for dtype, unit in ((torch.float16, HALF), (torch.bfloat16, BRAIN)):
        if torch.equal(tensor.to(dtype).double(), tensor):
            found.append(np.abs(given) * unit + 1e-12)  # an exact zero is rounded by nothing
    return found


def as_array(answer: Any, asked: str = "A tensor") -> Array:
    """A float64 array from whatever holds numbers; an estimate counts as its mean.

    Raises Refused for everything else.
    """
    if isinstance(answer, Estimate):
        answer = answer.mean
    if isinstance(answer, torch.Tensor):
        if answer.is_complex():
            raise Refused("Real numbers are asked for, not complex ones.")
        return answer.detach().to(device="cpu", dtype=torch.float64).numpy()
    if isinstance(answer, (list, tuple)):
        parts = [as_array(part, asked) for part in answer]
        if len({part.shape for part in parts}) > 1:
            raise Refused(f"{asked} is asked for; the rows of your list differ in length.")
        return np.stack(parts) if parts else np.zeros(0)
    if isinstance(answer, (str, bytes, Mapping, set, frozenset)) or callable(answer):
        raise Refused(f"{asked} is asked for, not {kind(answer)}.")
    if isinstance(answer, int) and abs(answer) > 1e300:
        return np.array(math.inf)
    try:
        return np.array(answer, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        raise Refused(f"{asked} is asked for, not {kind(answer)}.") from None


# --- heads ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Heads:
    """A set of heads of a model of `shape` (layers, heads a layer), in any spelling."""

    shape: tuple[int, int] | None = None
    says = "These heads are"

    def read(self, answer: Any) -> list[Head]:
        given = as_heads(answer)
        if self.shape is not None:
            layers, heads = self.shape
            for layer, head in given:
                if layer >= layers or head >= heads:
                    size = f"{layers} layers of {heads} heads, counted from 0"
                    raise Refused(
                        f"There is no {head_name(layer, head)} in this model: it has {size}."
                    )
        return given

    def value(self, known: Any) -> list[Head]:
        return as_heads(known)

    def distance(self, given: list[Head], value: list[Head]) -> float:
        return 0.0 if set(given) == set(value) else math.inf

    def grain(self, given: list[Head], truth: Any) -> None:
        return None

    def gap(self, given: list[Head], true: list[Head]) -> str:
        if not true:
            return "On this model there is no such head: the answer is an empty list."
        if not given:
            return "There are such heads on this model, and the list is empty."
        if {(head, layer) for layer, head in given} == set(true):
            return "Layer and head are swapped: L9H6 is layer 9, head 6."
        extra, missing = len(set(given) - set(true)), len(set(true) - set(given))
        found = [f"{extra} of the heads you gave do not belong"] * (extra > 0)
        found += [f"{missing} are missing"] * (missing > 0)
        return f"{' and '.join(found).capitalize()}."


HEAD = re.compile(r"\s*l?(?:ayer)?\s*(\d+)\s*(?:\.|,|:|\s|\s*h(?:ead)?)\s*(\d+)\s*", re.IGNORECASE)
IN_TEXT = re.compile(r"l?\d+\s*(?:h|\.)\s*\d+", re.IGNORECASE)


def as_heads(answer: Any) -> list[Head]:
    """Heads as (layer, head index), in order and without repeats. Raises Refused for the rest."""
    if isinstance(answer, (torch.Tensor, np.ndarray)):
        answer = answer.tolist()
    if isinstance(answer, str):
        parts: Sequence[Any] = [answer] if HEAD.fullmatch(answer) else IN_TEXT.findall(answer)
        if not parts:
            raise Refused(f"{answer!r} names no head; write heads as 'L9H9'.")
    elif _is_pair(answer):
        parts = [answer]
    elif hasattr(answer, "__iter__") and not isinstance(answer, (bytes, Mapping)):
        parts = list(answer)
    else:
        raise Refused(f"A list of heads such as ['L9H9'] is asked for, not {kind(answer)}.")
    return list(dict.fromkeys(_head(part) for part in parts))


def _head(part: Any) -> Head:
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


# --- one thing out of many ------------------------------------------------------------------------


@dataclass(frozen=True)
class Pick:
    """One thing out of many, told apart by `==` as `read` gives it: a place, a label, a set."""

    read: Callable[[Any], Any]
    says: str = "That is"

    def value(self, known: Any) -> Any:
        return known

    def distance(self, given: Any, value: Any) -> float:
        return 0.0 if given == value else math.inf

    def grain(self, given: Any, truth: Any) -> None:
        return None

    def gap(self, given: Any, truth: Any) -> str:
        return ""


def whole_number(answer: Any, otherwise: str) -> int:
    """A whole number in any form. Raises Refused, with `otherwise` for one with a fraction."""
    value = single_number(answer).item()
    if value != int(value):
        raise Refused(otherwise)
    return int(value)


def kind(answer: Any) -> str:
    """What an answer is, in the reader's words."""
    if isinstance(answer, (torch.Tensor, np.ndarray)):
        return f"a tensor of shape {list(answer.shape)}"
    if isinstance(answer, str):
        return "text"
    if isinstance(answer, (bool, np.bool_)):
        return "True or False"
    if callable(answer):
        return "a function (call it first)"
    name = type(answer).__name__
    return f"{'an' if name[0] in 'AEIOaeio' else 'a'} {name}"
