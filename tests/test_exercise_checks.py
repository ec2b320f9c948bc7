"""The mechanism of exercise checks, on toy exercises: right, wrong, odd and missing answers."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from IPython.core.formatters import DisplayFormatter

from ioi_helpers import exercises
from ioi_helpers.exercises import registry
from ioi_helpers.exercises.verdicts import (
    Refused,
    Verdict,
    as_heads,
    choice,
    first_failure,
    head_set,
    is_blank,
    numeric,
    result_of,
    tensor_close,
)

TRUTH = torch.arange(1.0, 13.0).reshape(3, 4) / 4
AXES = ("layer", "head")


@pytest.fixture(autouse=True)
def toy_exercises(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Two exercises of a notebook that does not exist, gone again after the test."""
    monkeypatch.setattr(registry, "_REGISTERED", dict(registry._REGISTERED))

    @exercises.exercise("90.2", title="A mean", difficulty="warm-up", minutes=2)
    def mean(answer: Any, ctx: exercises.Context) -> Verdict:
        truth = ctx.once("mean", lambda: ctx.data.mean())
        wrong = {"That is the median; the mean is asked for.": lambda: ctx.data.median()}
        return numeric(answer, truth, mistakes=wrong)

    @exercises.exercise("90.10", title="A function", difficulty="hard", minutes=10)
    def function(answer: Any, ctx: exercises.Context) -> Verdict:
        return numeric(result_of(answer, ctx.data), ctx.data.sum())

    exercises.use()
    yield
    exercises.use()


DATA = torch.tensor([1.0, 2.0, 6.0, 9.0])


def test_the_three_verdicts_in_one_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    exercises.use(data=DATA)
    assert exercises.check("90.2", DATA.mean()).passed is True
    assert exercises.check("90.2", 2.0).passed is False
    assert exercises.check("90.2", None).passed is None
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "Exercise 90.2: correct.",
        "Exercise 90.2: not right yet. That is the median; the mean is asked for.",
        "Exercise 90.2: not attempted yet.",
    ]


@pytest.mark.parametrize("stub", [None, ..., "", "  ", [None], (..., 1), {"a": ...}, [[1, None]]])
def test_stubs_are_not_attempted_even_without_context(stub: Any) -> None:
    assert exercises.check("90.2", stub).passed is None


@pytest.mark.parametrize("stub", [lambda data: None, lambda data: ...])
def test_a_function_that_returns_a_stub_is_not_attempted(stub: Any) -> None:
    def unfinished(data: Any) -> Any:
        raise NotImplementedError

    assert exercises.check("90.10", stub, data=DATA).passed is None
    assert exercises.check("90.10", unfinished, data=DATA).passed is None
    assert exercises.check("90.10", ..., data=DATA).passed is None


def test_functions_are_called_and_their_failures_explained() -> None:
    assert exercises.check("90.10", lambda data: data.sum(), data=DATA).passed is True
    assert exercises.check("90.10", sum, data=DATA).passed is True

    def failing(data: Any) -> Any:
        return data.reshape(3)

    result = exercises.check("90.10", failing, data=DATA)
    assert result.passed is False
    assert "RuntimeError in its line `return data.reshape(3)`" in result.message
    assert "Pass the function itself" in exercises.check("90.10", 18.0, data=DATA).message


def test_the_result_is_not_shown_a_second_time() -> None:
    exercises.use(data=DATA)
    result = exercises.check("90.2", 1.0)
    shown, _ = DisplayFormatter().format(result)
    assert shown == {}
    assert str(result).startswith("Exercise 90.2: not right yet.")


def test_context_is_replaced_never_mixed() -> None:
    exercises.use(data=DATA, model="first")
    exercises.use(data=DATA + 1)
    assert exercises.check("90.2", 5.5).passed is True
    assert exercises.check("90.2", 4.5, data=DATA).passed is True, "for this check only"
    assert exercises.check("90.2", 5.5).passed is True
    with pytest.raises(ValueError, match="needs `model`"):
        _ = exercises._current.model


def test_a_missing_thing_is_a_clear_sentence() -> None:
    with pytest.raises(ValueError, match=re.escape("exercises.use(...)")):
        exercises.check("90.2", 1.0)


def test_expensive_truths_are_computed_once() -> None:
    calls = []
    ctx = registry.Context({"data": DATA})
    for _ in range(3):
        ctx.once("key", lambda: calls.append(1))
    assert len(calls) == 1
    assert ctx.with_things({}) is ctx
    assert ctx.with_things({"data": 0}) is not ctx


def test_unknown_exercises() -> None:
    with pytest.raises(ValueError, match=re.escape("notebook 90 has 90.2, 90.10")):
        exercises.check("90.3", 1.0)
    with pytest.raises(ValueError, match="Notebook 89 has no exercises"):
        exercises.check("89.1", 1.0)
    for bad in ("1.3", "01-3", "1", 1.3):
        with pytest.raises(ValueError, match="not an exercise id"):
            exercises.check(bad, 1.0)  # type: ignore[arg-type]


def test_listing_is_in_order() -> None:
    assert [e.id for e in exercises.listing("90")] == ["90.2", "90.10"]
    assert exercises.listing("90")[0].minutes == 2


def test_registering_twice_is_refused() -> None:
    def again(title: str, difficulty: str = "easy", id: str = "90.2") -> None:
        exercises.exercise(id, title=title, difficulty=difficulty, minutes=1)(lambda a, c: None)  # type: ignore

    with pytest.raises(ValueError, match="registered already"):
        again("Another")
    with pytest.raises(ValueError, match="is no difficulty"):
        again("Another", "brutal")
    with pytest.raises(ValueError, match="not an exercise id"):
        again("Another", id="x")


# --- numbers -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer",
    [3.5, np.float32(3.5), np.array(3.5), torch.tensor(3.5), torch.tensor([3.5]), 3.51, 3.47],
)
def test_numbers_of_every_kind_are_accepted(answer: Any) -> None:
    assert numeric(answer, 3.5).passed is True


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (float("nan"), "nan"),
        (torch.tensor(float("inf")), "inf"),
        ("3.5", "text"),
        (True, "True or False"),
        (torch.full((8,), 3.5), r"a tensor of shape \[8\]"),
        ([3.5], "a list"),
        (lambda: 3.5, "a function"),
        (3.5 + 1j, "complex"),
        (object(), "object"),
    ],
)
def test_odd_numbers_are_refused_in_words(answer: Any, says: str) -> None:
    verdict = numeric(answer, 3.5)
    assert verdict.passed is False
    assert re.search(says, verdict.message)


def test_mistakes_are_named_before_directions() -> None:
    mistakes = {"You took the sum.": 28.0, "You forgot LayerNorm.": lambda: torch.tensor(60.0)}
    assert numeric(28.1, 3.5, mistakes=mistakes).message == "You took the sum."
    assert numeric(60, 3.5, mistakes=mistakes).message == "You forgot LayerNorm."
    assert "sign" in numeric(-3.5, 3.5, mistakes=mistakes).message
    assert "too high" in numeric(5, 3.5, mistakes=mistakes, unit="logits", hint="Mean!").message
    assert numeric(1, 3.5, hint="Mean!").message == "Your number is too low. Mean!"


def test_the_nearest_mistake_is_named() -> None:
    mistakes = {"far": 3.90, "near": 3.85}
    assert numeric(3.86, 3.5, relative=0.02, mistakes=mistakes).message == "near"


def test_a_mistake_that_equals_the_truth_does_not_refuse_it() -> None:
    assert numeric(3.5, 3.5, mistakes={"wrong": 3.5, "nothing": float("nan")}).passed is True


@given(st.floats(-100, 100), st.floats(-100, 100))
@settings(max_examples=200, deadline=None)
def test_numeric_accepts_exactly_the_tolerance(truth: float, answer: float) -> None:
    right = abs(answer - truth) <= max(1e-6, 0.01 * abs(truth))
    verdict = numeric(answer, truth)
    assert verdict.passed is right
    if not right:
        assert verdict.message
        assert f"{truth:.3g}" not in verdict.message, "the answer is not given away"


# --- tensors -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer",
    [
        TRUTH,
        TRUTH.numpy(),
        TRUTH.tolist(),
        list(TRUTH),
        TRUTH.to(torch.bfloat16),
        TRUTH + 1e-3,
        TRUTH.clone().requires_grad_(),
    ],
)
def test_tensors_of_every_kind_are_accepted(answer: Any) -> None:
    assert tensor_close(answer, TRUTH, axes=AXES).passed is True


def changed() -> torch.Tensor:
    wrong = TRUTH.clone()
    wrong[2, 1] += 1
    return wrong


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (TRUTH.T, r"swapped: the answer is \[layer head\] = \[3, 4\]"),
        (TRUTH.T.contiguous() * 2, "out of order"),
        (TRUTH.expand(8, 3, 4), "average over"),
        (TRUTH[0], "averaged or selected away"),
        (TRUTH[:2], r"yours is \[2, 4\]"),
        (-TRUTH, "sign is wrong"),
        (TRUTH * 8, "same factor"),
        (TRUTH + 2, "same amount"),
        (
            changed(),
            r"1 of 12 entries are wrong, most of all \[layer 2, head 1\], which is too high",
        ),
        (TRUTH * float("nan"), "NaN"),
        ("L9H9", "text"),
        ({"a": 1}, "a dict"),
        ([[1.0], [1.0, 2.0]], "differ in length"),
        (["a", "b"], "text"),
        (TRUTH.to(torch.complex64), "complex"),
        (lambda: TRUTH, "a function"),
    ],
)
def test_wrong_tensors_are_explained(answer: Any, says: str) -> None:
    verdict = tensor_close(answer, TRUTH, axes=AXES)
    assert verdict.passed is False
    assert re.search(says, verdict.message)


def test_square_transposes_are_noticed() -> None:
    square = torch.arange(9.0).reshape(3, 3)
    assert "swapped" in tensor_close(square.T, square, axes=AXES).message


def test_banked_tensors_may_have_any_shape() -> None:
    mistakes = {
        "You kept the prompts.": lambda: TRUTH.expand(8, 3, 4),
        "You summed over prompts.": TRUTH * 8,
    }
    kept = tensor_close(TRUTH.expand(8, 3, 4), TRUTH, axes=AXES, mistakes=mistakes)
    assert kept.message == "You kept the prompts."
    summed = tensor_close(TRUTH * 8, TRUTH, axes=AXES, mistakes=mistakes)
    assert summed.message == "You summed over prompts."


def test_wrong_values_are_not_computed_for_right_answers() -> None:
    def never() -> Any:
        raise AssertionError

    assert tensor_close(TRUTH, TRUTH, axes=AXES, mistakes={"x": never}).passed
    assert numeric(1.0, 1.0, mistakes={"x": never}).passed
    assert head_set("L1H1", ["L1H1"], mistakes={"x": never}).passed


def test_an_all_zero_truth() -> None:
    zero = torch.zeros(3, 4)
    assert tensor_close(zero, zero, axes=AXES).passed is True
    assert tensor_close(TRUTH, zero, axes=AXES).passed is False


# --- heads -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer",
    [
        ["L9H9", "L10H0"],
        ["l10h0", "9.9"],
        [(9, 9), (10, 0)],
        {(10, 0), (9, 9)},
        [[9, 9], [10, 0]],
        torch.tensor([[9, 9], [10, 0]]),
        np.array([[10, 0], [9, 9]]),
        "L9H9, L10H0",
        "L9H9 and 10.0",
        ["layer 9 head 9", "L10 H0"],
        [(np.int64(9), torch.tensor(9)), "10, 0"],
        ["L9H9", "L9H9", "L10H0"],
    ],
)
def test_heads_in_every_spelling(answer: Any) -> None:
    assert head_set(answer, ["L9H9", "L10H0"]).passed is True


@pytest.mark.parametrize("answer", ["L9H9", "9.9", (9, 9), [9, 9], ["L9H9"], torch.tensor([9, 9])])
def test_a_single_head(answer: Any) -> None:
    assert head_set(answer, "L9H9").passed is True
    assert as_heads(answer) == [(9, 9)]


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (["L9H9"], "1 are missing"),
        (["L9H9", "L10H0", "L3H3"], "1 of the heads you gave do not belong"),
        (["L1H1"], "do not belong and 2 are missing"),
        (["L9H9", "L0H10"], "do not belong"),
        (["L0H10", "L9H9"], "do not belong"),
        ([(9, 9), (0, 10)], "swapped"),
        (["L12H0", "L9H9"], "There is no L12H0 in this model"),
        (["head nine"], "is not a head"),
        ("nothing", "names no head"),
        (9.9, "a float"),
        ([9.9], "is not a head"),
        (torch.zeros(3, 3), "is not a head"),
        (["L9H9", 4], "is not a head"),
    ],
)
def test_wrong_heads_are_explained(answer: Any, says: str) -> None:
    verdict = head_set(answer, ["L9H9", "L10H0"], shape=(12, 12))
    assert verdict.passed is False
    if says == "swapped" or answer in (["L9H9", "L0H10"], ["L0H10", "L9H9"]):
        assert "swapped" in verdict.message
    else:
        assert says in verdict.message


def test_order_and_mistakes_of_heads() -> None:
    truth = ["L9H9", "L9H6", "L10H0"]
    assert head_set(truth[::-1], truth).passed is True
    assert "order" in head_set(truth[::-1], truth, ordered=True).message
    mistakes = {"Those are the most negative heads.": lambda: ["L10H7", "L11H10"]}
    assert "negative" in head_set({"L11H10", "L10H7"}, truth, mistakes=mistakes).message


# --- choices and parts ---------------------------------------------------------------------------


def test_choice() -> None:
    def pick(answer: Any) -> Verdict:
        reasons = {"the embedding": "It does not know where the names are."}
        return choice(answer, "a head", ["a head", "an MLP", "the embedding"], reasons=reasons)

    assert pick(" A  Head ").passed is True
    assert pick("The embedding").message == "It does not know where the names are."
    assert pick("an MLP").message == "It is not 'an MLP'."
    assert pick("b").message == "Pick one of: 'a head', 'an MLP', 'the embedding'."
    assert pick(torch.zeros(2)).passed is False
    assert pick("").passed is None
    assert choice(True, True, [True, False]).passed is True
    assert choice(1, True, [True, False]).passed is False
    with pytest.raises(ValueError, match="not among the options"):
        choice("a", "z", ["a", "b"])


def test_first_failure() -> None:
    yes, no, blank = Verdict(True, "well"), Verdict(False, "no"), Verdict(None)
    assert first_failure(yes, no, blank) is no
    assert first_failure(yes, blank, no) is blank
    assert first_failure(yes, yes) is yes
    with pytest.raises(ValueError, match="at least one"):
        first_failure()


def test_result_of_passes_what_the_function_needs() -> None:
    assert result_of(lambda a, b=1: a + b, 1, b=2) == 3
    with pytest.raises(Refused, match="TypeError"):
        result_of(lambda: 1, 2)
    with pytest.raises(Refused, match="a SimpleNamespace"):
        result_of(SimpleNamespace())


ODD: list[Callable[[], Any]] = [
    lambda: object(),
    lambda: b"x",
    lambda: {"a": 1},
    lambda: {1, 2},
    lambda: range(3),
    lambda: np.array(["a"]),
    lambda: np.array([object()]),
    lambda: torch.zeros(0),
    lambda: torch.tensor(float("nan")),
    lambda: [],
    lambda: [[], []],
    lambda: (1, "a"),
    lambda: 10**400,
    lambda: print,
    lambda: SimpleNamespace(x=1),
    lambda: (i for i in range(2)),
]


@pytest.mark.parametrize("make", ODD)
def test_no_tool_ever_raises_for_an_answer(make: Callable[[], Any]) -> None:
    """Whatever the reader passes, the verdict is a refusal in words."""
    for tool in (
        lambda a: numeric(a, 1.5),
        lambda a: tensor_close(a, TRUTH, axes=AXES),
        lambda a: head_set(a, ["L9H9"]),
        lambda a: choice(a, "x", ["x", "y"]),
    ):
        verdict = tool(make())
        assert verdict.passed is False
        assert verdict.message


def test_blank_looks_inside_collections_but_not_tensors() -> None:
    assert is_blank({"a": [None]})
    assert not is_blank(torch.tensor(float("nan")))
    assert not is_blank([])
    assert not is_blank(0)
